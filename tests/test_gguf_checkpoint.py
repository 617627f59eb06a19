"""A GGUF file as a checkpoint: the tokenizer is llama.cpp's, the configuration says what the file says."""

import json
from pathlib import Path

import gguf
import pytest
from gguf.constants import TokenType
from transformers import AutoConfig, AutoTokenizer

from config import DEFAULT_MODEL
from gguf_checkpoint import tokenizer_from_gguf
from model_source import fetch_checkpoint

REFERENCE = json.loads((Path(__file__).parent / "data/smollm2_token_reference.json").read_text())


def write_gguf(path: Path, metadata: dict) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


# SentencePiece vocabularies come without a pre-tokenizer.
@pytest.mark.parametrize("pre", [{}, {"tokenizer.ggml.pre": "llama-bpe"}], ids=["llama", "gpt2"])
def test_another_kind_of_tokenizer_is_refused(tmp_path, pre):
    kind = "gpt2" if pre else "llama"
    path = write_gguf(tmp_path / "model.gguf", {"tokenizer.ggml.model": kind, **pre})
    with pytest.raises(ValueError, match=f"kind .*{kind}.*{pre.get('tokenizer.ggml.pre', None)}"):
        tokenizer_from_gguf(path)


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return fetch_checkpoint(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


def encode(tokenizer, case: dict) -> list[int]:
    return tokenizer(case["text"], split_special_tokens=not case["parse_special"])["input_ids"]


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: case["name"])
def test_the_default_model_tokenizes_as_llama_cpp_does(tokenizer, case):
    assert encode(tokenizer, case) == case["ids"]
    if case["name"] not in REFERENCE["lossy_cases"]:
        assert tokenizer.decode(case["ids"]) == case["text"]


@pytest.mark.slow
def test_the_tokenizer_read_from_a_gguf_file_tokenizes_as_llama_cpp_does(tokenizer, tmp_path):
    # The checkpoint was written long ago, maybe by other code: take its vocabulary through a GGUF file again.
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    control = {token["id"] for token in REFERENCE["special_tokens"]}
    types = [
        TokenType.CONTROL if index in control else TokenType.NORMAL for index in range(len(model["vocab"]))
    ]
    settings = {key: value for key, value in REFERENCE["metadata"].items() if type(value) in (str, int)}
    path = write_gguf(
        tmp_path / "vocabulary.gguf",
        settings
        | {
            "tokenizer.ggml.tokens": sorted(model["vocab"], key=model["vocab"].get),
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        },
    )
    again = tokenizer_from_gguf(path)
    assert [case["name"] for case in REFERENCE["cases"] if encode(again, case) != case["ids"]] == []


def test_the_default_checkpoint_says_what_its_gguf_file_says(tokenizer, checkpoint):
    metadata = REFERENCE["metadata"]
    assert tokenizer.bos_token_id == metadata["tokenizer.ggml.bos_token_id"]
    assert tokenizer.eos_token_id == metadata["tokenizer.ggml.eos_token_id"]
    assert tokenizer.unk_token_id == metadata["tokenizer.ggml.unknown_token_id"]
    assert tokenizer.pad_token_id == metadata["tokenizer.ggml.padding_token_id"]
    assert tokenizer.chat_template == metadata["tokenizer.chat_template"]
    assert tokenizer.model_max_length == metadata["llama.context_length"]
    config = AutoConfig.from_pretrained(checkpoint)
    assert config.max_position_embeddings == metadata["llama.context_length"]
    assert config.rope_parameters["rope_theta"] == metadata["llama.rope.freq_base"]
