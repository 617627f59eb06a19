"""The files of a checkpoint: whether each is whole, which hold the weights, and which state they are in."""

import os
import re
import struct

import pytest
import torch
from safetensors.torch import save_file

import checkpoint_files
from checkpoint import look
from checkpoint_files import fingerprint
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


# Which files hold what, by their names alone


@pytest.mark.parametrize(
    ("names", "kind", "files"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], "weights", ["model.safetensors"]),
        (["pytorch_model.bin"], "weights", ["pytorch_model.bin"]),
        (["adapter_config.json", "adapter_model.bin"], "adapter", ["adapter_model.bin"]),
        (["adapter_config.json", "model.safetensors"], "weights", ["model.safetensors"]),
        (
            ["openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml", "x.gguf", "other.bin"],
            "openvino",
            ["openvino_model.bin", "openvino_model.xml", "openvino_tokenizer.xml"],
        ),
        (["openvino_model.xml", "model.safetensors"], "weights", ["model.safetensors"]),
        (["b.gguf", "a.gguf"], "gguf", ["a.gguf", "b.gguf"]),
        (["a.gguf", SHARDS[0]], "weights", []),  # parts without their index
        (["config.json"], "weights", []),
    ],
    ids=str,
)
def test_weights_are_known_by_their_names(tmp_path, names, kind, files):
    assert checkpoint_files.kind_of(names) == kind
    assert checkpoint_files.weight_files(tmp_path, names) == files


def test_files_of_an_index_are_those_of_the_index(tmp_path):
    write_files(tmp_path, SHARDED)
    assert checkpoint_files.weight_files(tmp_path) == list(SHARDS)
    assert checkpoint_files.missing_files(tmp_path, [*SHARDS, "other"]) == ["other"]


@pytest.mark.parametrize("gone", [*SHARDS, "config.json"])
def test_a_folder_without_one_of_its_files_is_not_complete(tmp_path, gone):
    write_files(tmp_path, SHARDED)
    assert checkpoint_files.is_complete(tmp_path)
    (tmp_path / gone).unlink()
    assert not checkpoint_files.is_complete(tmp_path)


@pytest.mark.parametrize(
    ("files", "complete"),
    [
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, True),
        ({"adapter_config.json": b"{}"}, False),
        ({"a.gguf": b"GGUF"}, True),
        ({"model.safetensors.index.json": b"no json", "config.json": b"{}"}, False),
        ({}, False),
    ],
    ids=["adapter", "adapter without weights", "gguf", "unreadable index", "empty"],
)
def test_other_kinds_are_complete_or_not(tmp_path, files, complete):
    assert checkpoint_files.is_complete(write_files(tmp_path, files)) == complete


def test_a_single_file_is_complete_and_a_missing_folder_is_not(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert checkpoint_files.is_complete(tmp_path / "a.gguf")
    assert not checkpoint_files.is_complete(tmp_path / "nowhere")


def test_a_header_tells_types_and_shapes(tmp_path):
    tensors = {"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros((), dtype=torch.int64)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    header = checkpoint_files.read_header(tmp_path / "x.safetensors")
    assert header == {"a": ("BF16", (3, 5)), "b": ("I64", ())}
    assert (header["a"].numel, header["b"].numel) == (15, 1)


def test_a_single_file_has_a_revision_of_its_own(tmp_path):
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF one")
    before = fingerprint(file)
    (tmp_path / "config.json").write_text("{}")  # of something else
    assert fingerprint(file) == before
    file.write_bytes(b"GGUF two!")
    assert fingerprint(file) != before


def test_the_time_of_configuration_does_not_matter_but_that_of_weights_does(tmp_path):
    write_files(tmp_path, SHARDED)
    before = fingerprint(tmp_path)
    os.utime(tmp_path / "config.json", (1, 1))
    assert fingerprint(tmp_path) == before
    os.utime(tmp_path / SHARDS[0], (1, 1))
    assert fingerprint(tmp_path) != before
