"""The tokenizer's side of a converted folder: every kind of tokenizer, templates, end tokens."""

import base64
import json
import random
import shutil
from pathlib import Path

import numpy as np
import openvino
import openvino_tokenizers
import pytest
import sentencepiece
from transformers import AutoTokenizer

import model_source
from chat_tokenizer import open_tokenizer
from config import DEFAULT_MODEL, SUPPORTED_MODELS, ModelConfig
from conversion import load_model, prepare_models
from tiny_checkpoints import CORPUS, FAMILIES
from tokenizer_files import TOKENIZER_IR, rewrite_tokenizer, write_tokenizer, write_tokenizer_ir

ROOT = Path(__file__).parents[1]
CHATML = SUPPORTED_MODELS["mpt-7b-chat"].chat_template
TEMPLATES = {"default": "{{ messages[0].content }}", "tool_use": "{{ messages[0].content }} with tools"}
MESSAGES = [{"role": "user", "content": "Hi"}]
PLAIN = ModelConfig("someone/model")


@pytest.fixture
def output(llama_copy, tmp_path) -> Path:
    """A folder as the export leaves it."""
    folder = tmp_path / "output"
    folder.mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.copy(llama_copy / name, folder)
    return folder


def with_templates(checkpoint: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = TEMPLATES
    tokenizer.save_pretrained(checkpoint)
    assert (checkpoint / "additional_chat_templates").is_dir()
    return checkpoint


def texts(folder: Path) -> dict[str, str]:
    tokenizer = open_tokenizer(folder)
    return {name: tokenizer.apply_chat_template(MESSAGES, name, tokenize=False) for name in TEMPLATES}


def test_of_several_named_templates_all_are_kept_and_the_default_is_used(llama_copy, output):
    published = write_tokenizer(with_templates(llama_copy), output, PLAIN)
    assert published["template"] == TEMPLATES
    assert texts(output) == {"default": "Hi", "tool_use": "Hi with tools"}
    assert AutoTokenizer.from_pretrained(output).apply_chat_template(MESSAGES, tokenize=False) == "Hi"


def test_the_catalogue_s_template_takes_the_place_of_the_default_one(llama_copy, output):
    published = write_tokenizer(with_templates(llama_copy), output, ModelConfig("x", chat_template=CHATML))
    assert texts(output) == {"default": "<|im_start|>user\nHi<|im_end|>\n", "tool_use": "Hi with tools"}
    rewrite_tokenizer(output, PLAIN, published)
    assert texts(output) == {"default": "Hi", "tool_use": "Hi with tools"}


@pytest.mark.slow
def test_a_checkpoint_with_several_templates_is_converted_and_can_be_copied(llama_copy, tmp_path):
    folders = prepare_models(str(with_templates(llama_copy)), ["FP16", "INT8"], tmp_path / "models")
    for folder in folders.values():
        copy = shutil.copytree(folder, tmp_path / "copy" / folder.name)
        (copy / "an empty folder").mkdir()
        _, tokenizer = load_model(copy)
        assert tokenizer.chat_template == TEMPLATES


@pytest.mark.slow
def test_a_damaged_file_in_a_folder_of_templates_is_noticed(llama_copy, tmp_path):
    folder = prepare_models(str(with_templates(llama_copy)), ["FP16"], tmp_path / "models")["FP16"]
    (folder / "additional_chat_templates/tool_use.jinja").unlink()
    with pytest.raises(ValueError, match=r"additional_chat_templates/tool_use\.jinja is missing"):
        load_model(folder)


def test_stop_strings_that_are_tokens_end_a_reply(llama_copy, output):
    published = write_tokenizer(llama_copy, output, ModelConfig("x", stop_strings=("<unk>", "no token")))
    assert published["eos_token_id"] == [2]
    assert json.loads((output / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == [
        0,
        2,
    ]


# Tokenizers without a tokenizer.json


def test_a_sentencepiece_tokenizer_needs_nothing_else(llama_copy, output, tmp_path):
    (tmp_path / "corpus.txt").write_text(CORPUS * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(llama_copy / "tokenizer"), vocab_size=450,
        model_type="bpe", byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    (llama_copy / "tokenizer.json").unlink()
    (llama_copy / "tokenizer.vocab").unlink()
    write_tokenizer(llama_copy, output, PLAIN)
    pieces = sentencepiece.SentencePieceProcessor(str(llama_copy / "tokenizer.model"))
    text = "What is OpenVINO? An assistant; ünïcode"
    assert open_tokenizer(output).encode(text, add_special_tokens=False) == pieces.encode(text)
    assert all((output / name).is_file() for name in TOKENIZER_IR)


def test_a_tiktoken_tokenizer_needs_nothing_else(llama_copy, output):
    (llama_copy / "tokenizer.json").unlink()
    tokens = [bytes([byte]) for byte in range(256)] + [b"He", b"ll", b"Hell", b" w", b"or"]
    lines = (f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens))
    (llama_copy / "tokenizer.model").write_text("\n".join(lines), encoding="utf-8")
    settings = json.loads((llama_copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (llama_copy / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    write_tokenizer(llama_copy, output, PLAIN)
    written = open_tokenizer(output)
    ids = written.encode("Hello world", add_special_tokens=False)
    assert ids == [tokens.index(token) for token in (b"Hell", b"o", b" w", b"or", b"l", b"d")]
    assert written.decode(ids) == "Hello world"


def test_tokens_that_only_the_tokenizer_s_class_adds_are_counted_too(llama_copy, output):
    settings = json.loads((llama_copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    (llama_copy / "tokenizer_config.json").write_text(
        json.dumps(settings | {"pad_token": "<|never seen|>"}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"has the id \d+ for '<\|never seen\|>', but .* only \d+ rows"):
        write_tokenizer(llama_copy, output, PLAIN)


def run_tokenizer_ir(folder: Path, texts: list[str]) -> list[list[int]]:
    core = openvino.Core()
    core.add_extension(openvino_tokenizers._ext_path)
    tokenizer = core.compile_model(folder / "openvino_tokenizer.xml", "CPU")
    return [tokenizer([text])["input_ids"][0].tolist() for text in texts]


@pytest.fixture(scope="module")
def smollm2_tokenizer(tmp_path_factory):
    """The default model's tokenizer, and a folder with its IR written by this version of the code."""
    folder = tmp_path_factory.mktemp("tokenizer")
    checkpoint = model_source.fetch_checkpoint(DEFAULT_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.save_pretrained(folder)
    write_tokenizer_ir(tokenizer, folder)
    return AutoTokenizer.from_pretrained(checkpoint), folder


def test_tokenizer_ir_of_the_default_model_equals_transformers(smollm2_tokenizer):
    tokenizer, folder = smollm2_tokenizer
    reference = json.loads((ROOT / "tests/data/smollm2_token_reference.json").read_text())
    # Left out: NUL at the end, which openvino_tokenizers cuts off, and bytes without a token (lossy).
    cases = [case for case in reference["cases"] if case["name"] not in reference["lossy_cases"]]
    texts = [case["text"] for case in cases if not case["text"].endswith("\0")]
    assert len(texts) == len(cases) - 2
    tokens = run_tokenizer_ir(folder, texts)
    differing = [text for text, ids in zip(texts, tokens, strict=True) if ids != tokenizer.encode(text)]
    assert differing == []


def test_tokenizer_ir_of_the_default_model_splits_spaces_and_digits_alike(smollm2_tokenizer):
    tokenizer, folder = smollm2_tokenizer
    pieces = (" ", "  ", "\n", "\n\n", "\t", "1", "23", "²", "Ⅷ", "a", "word", ".", "'s", "é", "日本", "!")
    rng = random.Random(0)
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(500)]
    tokens = run_tokenizer_ir(folder, texts)
    differing = [text for text, ids in zip(texts, tokens, strict=True) if ids != tokenizer.encode(text)]
    assert differing == []


@pytest.mark.parametrize("family", FAMILIES)
def test_tokenizer_ir_of_a_family_equals_transformers(converted, family):
    folder = converted(family, "INT8")
    texts = ["Who are you?", " spaces  inside ", "line\nbreaks\n", "日本語 👩‍👩‍👧 é", "1234 <human>: x"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert run_tokenizer_ir(folder, texts) == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("family", FAMILIES)
def test_detokenizer_ir_gives_the_text_back(converted, family):
    folder = converted(family, "INT8")
    text = "Who are you? I am an assistant.\n日本語 é"
    ids = AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
    core = openvino.Core()
    core.add_extension(openvino_tokenizers._ext_path)
    detokenizer = core.compile_model(folder / "openvino_detokenizer.xml", "CPU")
    assert detokenizer([np.array([ids])])["string_output"][0] == text
