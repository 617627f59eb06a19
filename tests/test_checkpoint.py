"""One look at a checkpoint folder: whether it is whole, which state it is, what converting it will take."""

import json
import re
from pathlib import Path

import pytest

from checkpoint import check_checkpoint, expected_weights, fingerprint, stored_weights
from tiny_checkpoints import FAMILIES

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = {"weight_map": {"embedding": SHARDS[0], "head": SHARDS[1], "norm": SHARDS[1]}}
SHARDED = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    SHARDS[0]: b"first" * 100,
    SHARDS[1]: b"second" * 100,
}


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors.index.json", "no weights"),
        (SHARDS[1], f"1 of 2 weight files are missing, the first is {SHARDS[1]}"),
    ],
)
def test_an_incomplete_local_folder_is_refused(tmp_path, missing, message):
    write_files(tmp_path, SHARDED)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        check_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "matters"),
    [("config.json", True), ("tokenizer.json", True), (SHARDS[1], True), ("README.md", False)],
)
def test_a_local_checkpoint_s_revision_changes_with_what_is_read(tmp_path, name, matters):
    write_files(tmp_path, SHARDED | {"README.md": b"about it"})
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[::-1])  # as long as it was
    assert (fingerprint(tmp_path) != before) == matters


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"dtype": "bfloat16", "vocab_size": 100, "hidden_size": 64}, (1000, 2, 6400)),
        ({"torch_dtype": "float16", "vocab_size": 100, "d_model": 32}, (1000, 2, 3200)),
        ({"torch_dtype": "float32"}, (500, 4, 0)),
        ({}, (500, 4, 0)),
    ],
    ids=str,
)
def test_weights_to_come_are_estimated_from_the_configuration(tmp_path, settings, expected):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert expected_weights(tmp_path, 1000) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_expected_of_weights_is_what_is_found(tiny_checkpoints, family):
    checkpoint = tiny_checkpoints[family]
    size = (checkpoint / "model.safetensors").stat().st_size
    assert expected_weights(checkpoint, size) == stored_weights(checkpoint)
