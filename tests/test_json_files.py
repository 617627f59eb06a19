"""Files of text and JSON: what cannot be read is named, with the place of the mistake and the way out."""

import pytest

from damaged_checkpoints import (
    POINTER,
    refusal,
)


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
