"""Checkpoints with the shape of a large model and random weights, for measuring memory and speed."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig


def write_random_checkpoint(folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> Path:
    """Write a checkpoint in .bin shards of about 1 GB without ever holding more than one; no tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    noise = (torch.randn(1 << 26, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    shards: list[dict[str, torch.Tensor]] = [{}]
    weight_map, written = {}, 0

    def flush() -> None:
        torch.save(shards[-1], folder / f"pytorch_model-{len(shards):05}.bin")
        weight_map.update(dict.fromkeys(shards[-1], f"pytorch_model-{len(shards):05}.bin"))
        shards[-1] = {}

    for name, parameter in model.named_parameters():  # tied weights once
        if "norm" in name:
            tensor = torch.ones(parameter.shape, dtype=dtype)
        else:
            tensor = noise.repeat(-(-parameter.numel() // len(noise)))[: parameter.numel()].clone()
            tensor[:8] = torch.randn(8)  # equal constants would be stored once
        shards[-1][name] = tensor.reshape(parameter.shape)
        written += tensor.nbytes
        if sum(value.nbytes for value in shards[-1].values()) > 1e9:
            flush()
            shards.append({})
    flush()
    index = {"metadata": {"total_size": written}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder
