"""A GGUF file as a checkpoint: the tokenizer is llama.cpp's, the configuration says what the file says."""

import itertools
import json
from functools import cache
from pathlib import Path

import gguf
import pytest
from gguf.constants import TokenType
from make_pre_tokenizer_reference import write_gguf as write_vocabulary
from transformers import AutoConfig, AutoTokenizer

from config import DEFAULT_MODEL
from gguf_checkpoint import KINDS, tokenizer_from_gguf
from model_source import fetch_checkpoint

REFERENCE = json.loads(
    (Path(__file__).parent / "data/smollm2_token_reference.json").read_text(encoding="utf-8")
)


def write_gguf(path: Path, metadata: dict) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


# SentencePiece vocabularies come without a pre-tokenizer.
@pytest.mark.parametrize("pre", [{}, {"tokenizer.ggml.pre": "tekken"}], ids=["llama", "gpt2"])
def test_another_kind_of_tokenizer_is_refused(tmp_path, pre):
    kind = "gpt2" if pre else "llama"
    path = write_gguf(tmp_path / "model.gguf", {"tokenizer.ggml.model": kind, **pre})
    with pytest.raises(ValueError, match=f"kind .*{kind}.*{pre.get('tokenizer.ggml.pre', None)}"):
        tokenizer_from_gguf(path)


OTHERS = json.loads((Path(__file__).parent / "data/pre_tokenizer_reference.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def of_kind(tmp_path_factory):
    """The tokenizer of a GGUF file with one vocabulary and a kind of pre-tokenizer."""

    @cache
    def read(kind: str):
        path = tmp_path_factory.mktemp("gguf") / f"{kind}.gguf"
        return tokenizer_from_gguf(write_vocabulary(path, kind, OTHERS["tokens"], OTHERS["merges"]))

    return read


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_kind_of_tokenizer_gives_llama_cpp_s_ids(of_kind, kind):
    tokenizer = of_kind(kind)
    found = {name: tokenizer.encode(text, add_special_tokens=False) for name, text in OTHERS["texts"].items()}
    assert found == OTHERS["ids"][kind]


def test_the_reference_tells_the_kinds_apart():
    for one, other in itertools.combinations(KINDS, 2):
        assert OTHERS["ids"][one] != OTHERS["ids"][other]


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_kind_of_tokenizer_gives_the_text_back(of_kind, kind):
    for text in OTHERS["texts"].values():
        assert of_kind(kind).decode(of_kind(kind).encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("content", [b"GGUF", b"<html>", b"GGUF" + bytes(60)])
def test_what_is_no_whole_gguf_file_is_named(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.gguf (is no whole GGUF file|has a tokenizer of kind)"):
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
