"""Checkpoints with random weights and the shape of a large model (or of a tiny one), for measuring.

Usage: python -m benchmarks.random_checkpoint gpt_neox FOLDER
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, MptConfig, PretrainedConfig

from config import DEFAULT_MODEL
from model_source import fetch_checkpoint

SHAPES = {  # and how the Hub stores their weights
    "llama": (LlamaConfig(), "safetensors"),  # transformers' defaults are Llama-2-7B
    "mpt": (MptConfig(d_model=4096, n_heads=32, n_layers=32, vocab_size=50432), "bin"),
    "gpt_neox": (  # RedPajama-INCITE-Chat-3B, 2.8 billion parameters, with a longer context
        GPTNeoXConfig(
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=32,
            num_attention_heads=32,
            rotary_pct=1.0,
            use_parallel_residual=False,
            max_position_embeddings=4096,
        ),
        "safetensors",
    ),
    "tiny": (  # where the model is not what is measured; but its KV cache fills as fast as that of a real one
        LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=16,
            num_key_value_heads=16,
            head_dim=128,
            vocab_size=49152,  # the tokenizer's
            max_position_embeddings=8192,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "safetensors",
    ),
}


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
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def write_shape(name: str, folder: Path) -> Path:
    """Write one of `SHAPES` in bfloat16, with as much of the default model's tokenizer as it has rows for."""
    config, suffix = SHAPES[name]
    write_random_checkpoint(folder, config, torch.bfloat16, suffix)
    for file in fetch_checkpoint(DEFAULT_MODEL).glob("*"):
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder)
    shorten_vocabulary(folder / "tokenizer.json", config.vocab_size)
    return folder


def shorten_vocabulary(file: Path, size: int) -> None:
    """Leave only the tokens of byte-pair encoding that it learnt first, in a tokenizer.json."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    vocabulary = {token: number for token, number in model["vocab"].items() if number < size}
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    model["vocab"], model["merges"] = vocabulary, [pair for pair in pairs if "".join(pair) in vocabulary]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


def main() -> None:
    """Write a checkpoint."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write_shape(options.shape, options.folder)


if __name__ == "__main__":
    main()
