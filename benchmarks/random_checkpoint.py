"""Checkpoints with the shape of a large model and random weights, for measuring memory and speed."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PretrainedConfig

from tests.tiny_checkpoints import make_tiny_checkpoint


def write_random_checkpoint(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, suffix: str = "bin"
) -> Path:
    """Write a checkpoint in shards of about 1 GB without ever holding more than one; no tokenizer.

    Args:
        suffix: the shards' format, "bin" (pickled by PyTorch) or "safetensors".
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    noise = (torch.randn(1 << 26, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    shard: dict[str, torch.Tensor] = {}
    weight_map: dict[str, str] = {}
    written = 0

    def flush() -> None:
        name = f"{stem}-{len(set(weight_map.values())) + 1:05}.{suffix}"
        if suffix == "safetensors":
            save_file(shard, folder / name, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, parameter in model.named_parameters():  # tied weights once
        if "norm" in name:
            tensor = torch.ones(parameter.shape, dtype=dtype)
        else:
            tensor = noise.repeat(-(-parameter.numel() // len(noise)))[: parameter.numel()].clone()
            tensor[:8] = torch.randn(8)  # equal constants would be stored once
        shard[name] = tensor.reshape(parameter.shape)
        written += tensor.nbytes
        if sum(value.nbytes for value in shard.values()) > 1e9:
            flush()
    if shard:
        flush()
    index = {"metadata": {"total_size": written}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def add_tokenizer(folder: Path, family: str) -> None:
    """Put the tokenizer of a tiny checkpoint into a folder: `family` is "llama", "gpt_neox" or "mpt"."""
    with tempfile.TemporaryDirectory() as temporary:
        for file in make_tiny_checkpoint(Path(temporary), family).glob("tokenizer*"):
            shutil.copy(file, folder)
