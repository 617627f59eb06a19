"""Files of text and JSON: what cannot be read is named, with the place of the mistake and the way out."""

import pytest

from damaged_checkpoints import (
    MARK,
    POINTER,
    refusal,
)
from json_files import check_fetched, read_json, read_json_if_there, read_text


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"]
)
def test_a_pointer_of_git_lfs_is_named_with_the_way_out(llama_copy, name):
    (llama_copy / name).write_bytes(POINTER)
    message = refusal(llama_copy)
    assert str(llama_copy / name) in message
    assert "git lfs pull" in message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_empty_file_is_named(llama_copy, name):
    (llama_copy / name).write_bytes(b"")
    assert f"{llama_copy / name} is empty" in refusal(llama_copy)


def test_a_mistake_in_json_is_named_with_its_place(llama_copy):
    (llama_copy / "config.json").write_text(
        '{\n  "model_type": "llama",\n  "vocab_size" 5\n}', encoding="utf-8"
    )
    assert (
        f"{llama_copy / 'config.json'} is no valid JSON: Expecting ':' delimiter in line 3, column 16"
        in refusal(llama_copy)
    )


def test_json_in_another_encoding_is_named(llama_copy):
    (llama_copy / "config.json").write_bytes('{"author": "Zoë"}'.encode("latin-1"))
    assert "config.json is no text in UTF-8" in refusal(llama_copy)


def test_json_that_holds_no_object_is_named(llama_copy):
    (llama_copy / "generation_config.json").write_text("[]", encoding="utf-8")
    assert "generation_config.json holds a list" in refusal(llama_copy)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(MARK + '{"a": "ä"}'.encode())
    assert read_text(file) == '{"a": "ä"}'
    assert read_json(file) == {"a": "ä"}


def test_bytes_that_are_no_utf_8_are_named_with_their_place(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"x\.json is no text in UTF-8: .* at byte 7"):
        read_json(tmp_path / "x.json")


def test_a_file_that_may_be_missing_holds_nothing_then_but_is_read_if_there(tmp_path):
    assert read_json_if_there(tmp_path / "x.json") == {}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_json_if_there(tmp_path / "x.json") == {"a": 1}
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list where an object"):
        read_json_if_there(tmp_path / "x.json")


def test_a_file_that_begins_otherwise_was_fetched(tmp_path):
    (tmp_path / "x.bin").write_bytes(POINTER[:20])
    check_fetched(tmp_path / "x.bin")
    (tmp_path / "x.bin").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"x\.bin is only git-lfs's pointer"):
        check_fetched(tmp_path / "x.bin")
