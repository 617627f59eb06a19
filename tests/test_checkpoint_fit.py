"""Whether weights, configuration and tokenizer of a checkpoint belong together."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from checkpoint import look
from checkpoint_fit import check_fit, check_ids, quantization_of
from damaged_checkpoints import (
    change,
    refusal,
)


def test_quantized_weights_without_a_word_about_it_are_refused(llama_copy):
    from safetensors.torch import load_file

    tensors = load_file(llama_copy / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.qweight"] = tensors.pop(f"{name}.weight").to(torch.int32)
    save_file(tensors, llama_copy / "model.safetensors")
    assert f"quantized already ({name}.qweight is I32)" in refusal(llama_copy)


def test_tokens_beyond_the_embedding_are_refused_with_both_numbers(llama_copy):
    rows = json.loads((llama_copy / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    content = json.loads((llama_copy / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"].append(content["added_tokens"][0] | {"id": rows, "content": "<|im_start|>"})
    (llama_copy / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    message = refusal(llama_copy)
    assert f"has the id {rows} for '<|im_start|>', but the model's embedding has only {rows} rows" in message
    assert "resize_token_embeddings" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<extra>": 5000}),
        ("vocab.json", {"extra": 5000}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5000": {"content": "<extra>"}}}),
    ],
)
def test_wherever_the_tokens_are_listed(llama_copy, name, content):
    (llama_copy / name).write_text(json.dumps(content), encoding="utf-8")
    assert "has the id 5000" in refusal(llama_copy)


def test_an_embedding_with_rows_to_spare_is_fine(llama_copy):
    from safetensors.torch import load_file

    tensors = load_file(llama_copy / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.zeros(64, 64).half()])
    save_file(tensors, llama_copy / "model.safetensors", {"format": "pt"})
    change(llama_copy / "config.json", vocab_size=tensors["lm_head.weight"].shape[0])
    assert look(llama_copy).whole


def test_a_vocabulary_size_that_the_embedding_contradicts_is_named(llama_copy):
    change(llama_copy / "config.json", vocab_size=10_000)
    assert re.search(
        r"vocab_size = 10000, but model.embed_tokens.weight .* has \d+ rows", refusal(llama_copy)
    )


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"bits": 4}}, {"bits": 4}),
        ({"quantization": {"bits": 8}}, {"bits": 8}),
        ({"text_config": {"quantization_config": {"bits": 2}}}, {"bits": 2}),
        ({"text_config": None}, None),
    ],
    ids=str,
)
def test_what_a_configuration_says_of_quantized_weights_is_found(settings, found):
    assert quantization_of(settings) == found


@pytest.mark.parametrize(("highest", "rows"), [(99, 100), (99, None), (-1, 100)])
def test_ids_within_the_embedding_are_fine(tmp_path, highest, rows):
    check_ids(tmp_path, highest, "x", rows)


def test_the_first_id_beyond_it_is_not(tmp_path):
    with pytest.raises(
        ValueError, match="has the id 100 for 'x', but the model's embedding has only 100 rows"
    ):
        check_ids(tmp_path, 100, "x", 100)


def test_a_list_of_pieces_counts_as_ids_from_zero(tmp_path):
    """As tokenizers of the kind Unigram have them."""
    vocabulary = {"model": {"vocab": [["<unk>", 0.0], ["a", -1.5], ["last", -2.0]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    check_fit(tmp_path, {"vocab_size": 3}, [])
    with pytest.raises(ValueError, match="has the id 2 for 'last'"):
        check_fit(tmp_path, {"vocab_size": 2}, [])


def test_the_text_part_s_vocabulary_counts(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 5}', encoding="utf-8")
    check_fit(tmp_path, {"vocab_size": 3, "text_config": {"vocab_size": 6}}, [])
    with pytest.raises(ValueError, match="only 5 rows"):
        check_fit(tmp_path, {"text_config": {"vocab_size": 5}}, [])


def test_weights_that_are_yet_to_come_are_passed_over(llama_copy):
    (llama_copy / "model.safetensors").unlink()
    settings = json.loads((llama_copy / "config.json").read_text(encoding="utf-8"))
    check_fit(llama_copy, settings, ["model.safetensors"])
