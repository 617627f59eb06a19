"""Checkpoints made or damaged by hand, and the words in which `checkpoint.look` refuses them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint import look

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n"
MARK = b"\xef\xbb\xbf"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

INDEX = {"weight_map": {"embedding": SHARDS[0], "head": SHARDS[1], "norm": SHARDS[1]}}
SHARDED = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    SHARDS[0]: b"first" * 100,
    SHARDS[1]: b"second" * 100,
}


def change(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def shard(folder: Path) -> Path:
    """The same weights in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {SHARDS[0]: names[:5], SHARDS[1]: names[5:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map}), encoding="utf-8"
    )
    return folder


def as_bin(folder: Path, **how) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **how)
    (folder / "model.safetensors").unlink()
    return folder


def truncate(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        look(folder)
    return str(caught.value)


def write_ir(folder: Path) -> None:
    graph = '<net>\n<data element_type="f16" shape="4" offset="8" size="8" />\n</net>\n'
    (folder / "openvino_model.xml").write_text(graph)
    (folder / "openvino_model.bin").write_bytes(bytes(16))


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
