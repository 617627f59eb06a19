"""Optimum Intel's exporter: what is refused, and that weights and generation settings arrive as they are."""

import json

import openvino
import optimum.exporters.openvino
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint import stored_dtype
from conversion import prepare_model
from damaged_checkpoints import change
from optimum_export import check_settings, export_checkpoint
from tiny_checkpoints import make_tiny_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_weights_are_exported_as_they_are_stored(tmp_path, dtype, suffix):
    """Whatever the configuration says, which may name another type."""
    checkpoint = make_tiny_checkpoint(tmp_path / "checkpoint", "llama")
    weights = {name: tensor.to(dtype) for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    if suffix == "bin":
        torch.save(weights, checkpoint / "pytorch_model.bin")
        (checkpoint / "model.safetensors").unlink()
    else:  # not over the file that is mapped
        save_file(weights, checkpoint / "new", metadata={"format": "pt"})
        (checkpoint / "new").rename(checkpoint / "model.safetensors")
    config = json.loads((checkpoint / "config.json").read_text())
    stated = "float16" if dtype == torch.float32 else "float32"
    (checkpoint / "config.json").write_text(json.dumps(config | {"dtype": stated}))
    assert stored_dtype(checkpoint) == dtype
    folder = prepare_model(str(checkpoint), "FP16", tmp_path / "models")
    ir = openvino.Core().read_model(folder / "openvino_model.xml")
    constants = [node for node in ir.get_ops() if node.get_type_name() == "Constant"]
    matrices = {node.get_element_type() for node in constants if len(node.shape) == 2 and min(node.shape) > 4}
    assert matrices == {openvino.Type.bf16 if dtype == torch.bfloat16 else openvino.Type.f16}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_recommended_sampling_without_do_sample_is_kept(tmp_path, family):
    """Many published generation_config.json are so; transformers reads them and refuses to save them."""
    folder = make_tiny_checkpoint(tmp_path / "checkpoint", family)
    recommended = {"eos_token_id": 2, "temperature": 0.6, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(recommended))
    converted = prepare_model(str(folder), "FP16", tmp_path / "models")
    written = json.loads((converted / "generation_config.json").read_text())
    assert recommended.items() <= written.items()


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        (None, "has no model_type"),
        ("t5", "of type 't5', which Optimum Intel cannot export"),
        ("never-heard-of", "of type 'never-heard-of', which Optimum Intel cannot export"),
        ("chatglm", "code that a checkpoint brings along is not run"),
        ("dbrx", "exports with transformers up to .* only, and transformers .* is installed"),
        ("gpt_neo", "local attention"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_reason(model_type, words):
    with pytest.raises(ValueError, match=words):
        check_settings({"model_type": model_type})


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_neox", "gemma2"])
def test_what_can_be_is_not(model_type):
    check_settings({"model_type": model_type})


@pytest.fixture
def exported(monkeypatch) -> dict:
    """What Optimum is asked to do; it does nothing."""
    asked = {}
    monkeypatch.setattr(
        optimum.exporters.openvino, "main_export", lambda *where, **options: asked.update(options)
    )
    return asked


@pytest.mark.parametrize(
    ("stored", "written"),
    [(torch.bfloat16, "fp32"), (torch.float16, "fp32"), (torch.float32, "fp16")],
    ids=str,
)
def test_weights_are_loaded_as_they_are_stored_and_only_those_of_32_bits_rounded(
    llama_copy, tmp_path, exported, stored, written
):
    """What is no weight stays at 32 bits where weights have 16: "fp32" means that nothing is rounded."""
    tensors = {
        name: tensor.to(stored) for name, tensor in load_file(llama_copy / "model.safetensors").items()
    }
    save_file(tensors, llama_copy / "new", {"format": "pt"})
    (llama_copy / "new").rename(llama_copy / "model.safetensors")
    export_checkpoint(llama_copy, tmp_path)
    assert exported["model_loading_kwargs"] == {"torch_dtype": stored}
    assert exported["ov_config"].dtype == written
    assert exported["trust_remote_code"] is False


def test_where_the_checkpoint_has_no_generation_settings_its_configuration_s_are_written(
    llama_copy, tmp_path, exported
):
    (llama_copy / "generation_config.json").unlink(missing_ok=True)
    change(llama_copy / "config.json", eos_token_id=77)
    export_checkpoint(llama_copy, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 77


def test_generation_settings_that_the_exporter_has_written_stay(llama_copy, tmp_path, exported):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    export_checkpoint(llama_copy, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": 5}


def test_weights_that_are_missing_are_refused_before_the_export(llama_copy, tmp_path, exported):
    tensors = load_file(llama_copy / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, llama_copy / "new", {"format": "pt"})
    (llama_copy / "new").rename(llama_copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        export_checkpoint(llama_copy, tmp_path)
    assert exported == {}
