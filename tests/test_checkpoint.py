"""One look at a checkpoint folder: what it is, and what it says of each damage."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoint import check_metadata, look
from damaged_checkpoints import (
    MARK,
    POINTER,
    SHARDS,
    as_bin,
    change,
    refusal,
    shard,
    write_ir,
)

JSON = ("tokenizer.json", "tokenizer_config.json")


# Whole checkpoints


def test_a_whole_checkpoint_is_seen_as_one(llama_copy):
    seen = look(llama_copy)
    assert (seen.kind, seen.model_type, seen.whole) == ("weights", "llama", True)
    assert seen.files == ("model.safetensors",)
    assert (seen.base, seen.quantization, seen.marked) == (None, None, ())


@pytest.mark.parametrize("family", ["gpt_neox", "mpt"])
def test_every_family_of_the_tests_is_whole(tiny_checkpoints, family):
    assert look(tiny_checkpoints[family]).whole


def test_folders_inside_a_checkpoint_are_no_damage(llama_copy):
    (llama_copy / "additional_chat_templates").mkdir()
    (llama_copy / "additional_chat_templates/tool_use.jinja").write_text("{{ messages }}", encoding="utf-8")
    (llama_copy / "onnx").mkdir()
    assert look(llama_copy).whole


def test_weights_to_come_are_missing_but_no_error(llama_copy):
    shard(llama_copy)
    (llama_copy / SHARDS[1]).unlink()
    seen = look(llama_copy, coming=SHARDS)
    assert (seen.missing, seen.whole) == ((SHARDS[1],), False)


# Files that are not what they seem


def test_a_pointer_in_the_place_of_a_bin_file_is_no_reason_to_load_it_unsafely(llama_copy):
    (as_bin(llama_copy) / "pytorch_model.bin").write_bytes(POINTER)
    message = refusal(llama_copy)
    assert "git lfs pull" in message
    assert "weights_only" not in message


@pytest.mark.parametrize("name", ["tokenizer.model", "chat_template.jinja"])
def test_a_pointer_in_the_place_of_a_file_of_the_tokenizer_is_named(llama_copy, name):
    (llama_copy / name).write_bytes(POINTER)
    assert f"{name} is only git-lfs's pointer" in refusal(llama_copy)


def test_a_pointer_in_the_place_of_a_gguf_file_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(POINTER)
    assert "git lfs pull" in refusal(tmp_path / "model.gguf")


def test_what_a_folder_has_instead_of_a_checkpoint_is_told(tmp_path):
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(ValueError, match=r"no config\.json\. What it has is weights for TensorFlow"):
        check_metadata(tmp_path)
    for name in ("model.safetensors", *SHARDS):
        with pytest.raises(ValueError, match=r"no config\.json\.$"):
            check_metadata(tmp_path, names=[name])
    with pytest.raises(ValueError, match="weights under another name"):
        check_metadata(tmp_path, names=["my.safetensors"])


# Indices


@pytest.mark.parametrize("missing", SHARDS)
def test_an_index_without_one_of_its_files_is_incomplete(llama_copy, missing):
    (shard(llama_copy) / missing).unlink()
    assert f"1 of 2 weight files are missing, the first is {missing}" in refusal(llama_copy)


def test_files_without_their_index_are_named_with_the_index(llama_copy):
    (shard(llama_copy) / "model.safetensors.index.json").unlink()
    message = refusal(llama_copy)
    assert f"parts of weights, such as {SHARDS[0]}, but no model.safetensors.index.json" in message


# JSON


@pytest.mark.parametrize("name", ["config.json", *JSON])
def test_a_byte_order_mark_is_read_and_noted(llama_copy, name):
    (llama_copy / name).write_bytes(MARK + (llama_copy / name).read_bytes())
    seen = look(llama_copy)
    assert seen.marked == (name,)
    assert seen.model_type == "llama"


# What is not there


@pytest.mark.parametrize(
    ("present", "words"),
    [
        ("consolidated.00.pth", "Meta's own format"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("consolidated.safetensors", "Mistral's own format"),
        ("model.fp16.safetensors", "another name than model.safetensors; rename"),
        ("onnx/model_q4.onnx", "a model in ONNX"),
        ("openvino_language_model.xml", "several parts in OpenVINO IR"),
    ],
)
def test_weights_for_other_programs_are_named(llama_copy, present, words):
    (llama_copy / present).parent.mkdir(exist_ok=True)
    (llama_copy / "model.safetensors").rename(llama_copy / present)
    message = refusal(llama_copy)
    assert "has no model.safetensors or pytorch_model.bin" in message and words in message


def test_a_folder_without_configuration_is_no_checkpoint(llama_copy):
    (llama_copy / "config.json").unlink()
    assert "has no config.json" in refusal(llama_copy)


def test_a_folder_without_tokenizer_is_named(llama_copy):
    (llama_copy / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(llama_copy)


@pytest.mark.parametrize("inner", ["checkpoint-500", "snapshots/abc"])
def test_a_model_in_a_folder_of_this_folder_is_named(llama_copy, inner):
    outer = llama_copy.parent / "outer"
    shutil.move(llama_copy, outer / inner)
    assert f"name {outer / inner} instead" in refusal(outer)


def test_a_link_to_a_file_that_is_gone_is_named(llama_copy):
    (llama_copy / "model.safetensors").unlink()
    (llama_copy / "model.safetensors").symlink_to("../blobs/gone")
    message = refusal(llama_copy)
    assert f"{llama_copy / 'model.safetensors'} is a link to ../blobs/gone, which is not there" in message


# Quantized by others


METHODS = {
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "gptq": {"bits": 4, "group_size": 128},
    "awq": {"bits": 4, "zero_point": True, "version": "gemm"},
    "compressed-tensors": {"format": "pack-quantized", "config_groups": {}},
    "torchao": {},
    "invented-next-year": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_dequantized_is_refused_by_its_method(llama_copy, method):
    change(llama_copy / "config.json", quantization_config={"quant_method": method} | METHODS[method])
    message = refusal(llama_copy)
    assert f"by the method {method!r}" in message
    assert "Take the original model" in message


@pytest.mark.parametrize(
    ("key", "settings", "method"),
    [
        ("quantization_config", {"load_in_8bit": True}, "bitsandbytes"),
        ("quantization_config", {"bits": 4}, "unknown"),
        ("quantization", {"group_size": 64, "bits": 4}, "mlx"),
    ],
)
def test_a_configuration_that_names_no_method_is_refused_too(llama_copy, key, settings, method):
    change(llama_copy / "config.json", **{key: settings})
    assert f"by the method {method!r}" in refusal(llama_copy)


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_what_can_be_dequantized_is_noted(llama_copy, method):
    change(llama_copy / "config.json", quantization_config={"quant_method": method})
    assert look(llama_copy).quantization == method


# Adapters, OpenVINO IR, GGUF


@pytest.fixture
def adapter(tmp_path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": "someone/base", "revision": None}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file({"base_model.model.lora_A.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return folder


def test_a_lora_adapter_is_seen_with_its_base(adapter):
    seen = look(adapter)
    assert (seen.kind, seen.base, seen.files) == ("adapter", "someone/base", ("adapter_model.safetensors",))


def test_the_base_s_revision_is_part_of_its_name(adapter):
    change(adapter / "adapter_config.json", revision="v2")
    assert look(adapter).base == "someone/base@v2"


@pytest.mark.parametrize("kind", ["IA3", "PROMPT_TUNING", None])
def test_adapters_of_other_kinds_are_refused_by_name(adapter, kind):
    change(adapter / "adapter_config.json", peft_type=kind)
    assert f"is an adapter of type {kind!r}" in refusal(adapter)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task_type": "SEQ_CLS"}, "is an adapter for SEQ_CLS"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeats layers of its model"),
    ],
    ids=str,
)
def test_adapters_that_make_no_text_model_or_another_one_are_refused(adapter, changes, words):
    change(adapter / "adapter_config.json", **changes)
    assert words in refusal(adapter)


def test_an_adapter_without_its_base_is_named(adapter):
    change(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert "base_model_name_or_path is missing" in refusal(adapter)


def test_an_adapter_without_weights_is_named(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    assert "has no weights of the adapter" in refusal(adapter)


def test_weights_and_an_adapter_in_one_folder_are_ambiguous(llama_copy, adapter):
    shutil.copy(adapter / "adapter_config.json", llama_copy)
    assert "holds the weights of a model and of an adapter" in refusal(llama_copy)


def test_openvino_ir_is_seen_as_converted_already(llama_copy):
    (llama_copy / "model.safetensors").unlink()
    write_ir(llama_copy)
    seen = look(llama_copy)
    assert (seen.kind, seen.files) == ("openvino", ("openvino_model.bin", "openvino_model.xml"))


@pytest.mark.parametrize("content", [None, POINTER, b""], ids=["missing", "pointer", "empty"])
def test_openvino_ir_without_its_weights_is_named(llama_copy, content):
    (llama_copy / "model.safetensors").unlink()
    (llama_copy / "openvino_model.xml").write_bytes(b"content")
    if content is not None:
        (llama_copy / "openvino_model.bin").write_bytes(content)
    assert "openvino_model.bin" in refusal(llama_copy)


def test_a_gguf_file_and_a_folder_with_one_are_seen(tmp_path):
    (tmp_path / "model-Q8_0.gguf").write_bytes(b"GGUF")
    assert look(tmp_path).kind == look(tmp_path / "model-Q8_0.gguf").kind == "gguf"


def test_one_part_of_a_split_gguf_file_is_refused_with_the_way_to_join_them(tmp_path):
    for number in (1, 2):
        (tmp_path / f"big-Q8_0-0000{number}-of-00002.gguf").write_bytes(b"GGUF")
    for named in (tmp_path, tmp_path / "big-Q8_0-00002-of-00002.gguf"):
        message = refusal(named)
        assert "is one of 2 files" in message and "llama-gguf-split --merge" in message


def test_what_a_gguf_model_sees_pictures_with_is_not_the_model(tmp_path):
    for name in ("mmproj-model-F16.gguf", "model-Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert look(tmp_path).files == ("model-Q8_0.gguf",)


def test_of_several_gguf_files_one_must_be_named(tmp_path):
    for quantization in ("Q4_K_M", "Q8_0"):
        (tmp_path / f"model-{quantization}.gguf").write_bytes(b"GGUF")
    message = refusal(tmp_path)
    assert "holds 2 GGUF files" in message and str(tmp_path / "model-Q4_K_M.gguf") in message
