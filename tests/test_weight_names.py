"""Weights that are not those of their architecture are named before they are used."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import weight_names
from weight_names import check_weight_names


def with_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def without(folder: Path, name: str) -> None:
    with_weights(folder, lambda tensors: {key: tensors[key] for key in tensors if key != name})


def tie(folder: Path, tied: bool) -> None:
    settings = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(settings))


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("tied", [True, False])
def test_whole_weights_are_fine_whether_tied_or_not(llama_copy, tied, suffix):
    tie(llama_copy, tied)
    AutoModelForCausalLM.from_pretrained(llama_copy).save_pretrained(llama_copy)
    if suffix == "bin":  # holds both names of a tied weight
        tensors = load_file(llama_copy / "model.safetensors")
        tensors["lm_head.weight"] = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
        torch.save(tensors, llama_copy / "pytorch_model.bin")
        (llama_copy / "model.safetensors").unlink()
    check_weight_names(llama_copy)


def test_a_missing_weight_is_named(llama_copy):
    without(llama_copy, UP)
    with pytest.raises(ValueError, match=rf"lacks 1 of the weights that a LlamaForCausalLM has.* {UP}"):
        check_weight_names(llama_copy)


def test_weights_under_other_names_are_missing(llama_copy):
    with_weights(llama_copy, lambda tensors: {f"wrapped.{name}": tensor for name, tensor in tensors.items()})
    with pytest.raises(ValueError, match=r"lacks \d\d of the weights"):
        check_weight_names(llama_copy)


def test_a_head_that_is_said_not_to_be_tied_must_be_there(llama_copy):
    tie(llama_copy, True)
    without(llama_copy, "lm_head.weight")
    check_weight_names(llama_copy)
    tie(llama_copy, False)
    with pytest.raises(ValueError, match=r"first is lm_head\.weight"):
        check_weight_names(llama_copy)


@pytest.mark.parametrize(
    "kind", [AutoModelForSequenceClassification, AutoModel], ids=["classes", "embeddings"]
)
def test_a_model_that_writes_no_text_is_refused(llama_copy, kind):
    kind.from_config(AutoConfig.from_pretrained(llama_copy)).save_pretrained(llama_copy)
    with pytest.raises(ValueError, match=r"lm_head\.weight.*one for embeddings, classes or rewards"):
        check_weight_names(llama_copy)


def test_a_configuration_that_describes_other_weights_is_named(llama_copy):
    with_weights(llama_copy, lambda tensors: tensors | {UP: torch.zeros(9, 64).half()})
    with pytest.raises(ValueError, match=rf"{UP} has the shape \[9, 64\] instead of \[128, 64\]"):
        check_weight_names(llama_copy)


def test_weights_without_a_place_are_said(llama_copy, caplog):
    with_weights(llama_copy, lambda tensors: tensors | {"extra.weight": torch.zeros(1)})
    check_weight_names(llama_copy)
    said = [record.getMessage() for record in caplog.records if record.name == weight_names.log.name]
    assert len(said) == 1 and "holds 1 weights" in said[0] and "extra.weight" in said[0]
