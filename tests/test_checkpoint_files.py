"""The files of a checkpoint: whether each is whole, which hold the weights, and which state they are in."""

import re
import struct

import pytest

from checkpoint import fingerprint, look
from damaged_checkpoints import (
    SHARDED,
    SHARDS,
    as_bin,
    refusal,
    shard,
    truncate,
    write_files,
    write_ir,
)


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "before 1.6"])
def test_both_formats_of_pytorch_are_whole(llama_copy, how):
    assert look(as_bin(llama_copy, **how)).files == ("pytorch_model.bin",)


def test_several_files_and_their_index_are_whole(llama_copy):
    assert look(shard(llama_copy)).files == SHARDS


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999999])
def test_truncated_safetensors_are_named(llama_copy, share):
    truncate(llama_copy / "model.safetensors", share)
    message = refusal(llama_copy)
    assert str(llama_copy / "model.safetensors") in message
    assert "Fetch the file again" in message


def test_a_truncated_shard_is_named_with_both_sizes(llama_copy):
    size = (shard(llama_copy) / SHARDS[1]).stat().st_size
    truncate(llama_copy / SHARDS[1])
    assert re.search(rf"{SHARDS[1]} ends too early: \d+ bytes instead of {size}", refusal(llama_copy))


def test_safetensors_with_something_behind_are_named(llama_copy):
    with (llama_copy / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "is longer than its header says" in refusal(llama_copy)


@pytest.mark.parametrize("header", [b"", b"[]", b"{,}"])
def test_what_is_no_safetensors_file_is_named(llama_copy, header):
    content = struct.pack("<Q", len(header)) + header if header else b"weights" * 100
    (llama_copy / "model.safetensors").write_bytes(content)
    assert "is no safetensors file: its header cannot be read" in refusal(llama_copy)


def test_a_truncated_bin_file_is_named(llama_copy):
    truncate(as_bin(llama_copy) / "pytorch_model.bin")
    assert "pytorch_model.bin ends too early" in refusal(llama_copy)


def test_what_is_no_bin_file_is_named(llama_copy):
    (as_bin(llama_copy) / "pytorch_model.bin").write_bytes(b"<html>Not found</html>")
    assert "pytorch_model.bin is no file of PyTorch's" in refusal(llama_copy)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_an_index_without_its_map_is_named(llama_copy, content):
    (shard(llama_copy) / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    assert "model.safetensors.index.json does not say which file" in refusal(llama_copy)


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin"])
def test_openvino_ir_that_ends_too_early_is_named(llama_copy, name):
    (llama_copy / "model.safetensors").unlink()
    write_ir(llama_copy)
    (llama_copy / name).write_bytes((llama_copy / name).read_bytes()[:-7])
    assert re.search(rf"{name} ends too early", refusal(llama_copy))


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
