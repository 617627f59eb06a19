"""Optimum Intel's exporter: what is refused, and that weights and generation settings arrive as they are."""

import json

import openvino
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint import stored_dtype
from conversion import prepare_model
from tiny_checkpoints import make_tiny_checkpoint


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
