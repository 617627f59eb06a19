"""Shared by tests of replies and prompts: two tokenizers, scripted models, four catalogue entries."""

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from transformers import AutoTokenizer

from chat import ChatModel
from config import DEFAULT_MODEL, RED_PAJAMA_TEMPLATE, SUPPORTED_MODELS, ModelConfig
from fakes import ScriptedEngine

ASK = [{"role": "user", "content": "Who are you?"}]
REPLACEMENT = "\ufffd"
STOP = "<human>:"


@pytest.fixture(scope="module")
def byte_level(smollm2_folder):
    """Byte-level BPE: any token may hold half a character."""
    return AutoTokenizer.from_pretrained(smollm2_folder)


@pytest.fixture(scope="module")
def byte_fallback(tiny_checkpoints):
    """SentencePiece style: rare characters are spelt in tokens of one byte, words bring their space along."""
    return AutoTokenizer.from_pretrained(tiny_checkpoints["llama"])


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def say(*texts: str) -> list[dict[str, str]]:
    """A conversation in which user and assistant say these texts in turn."""
    roles = itertools.cycle(["user", "assistant"])
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def text_of(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.fixture
def playing(tokenizer) -> Callable[..., ChatModel]:
    """A ChatModel whose engine plays a script: ids, or a text in the tokenizer's own tokens."""

    def make(script: str | Sequence[int] = "", stop_strings=(), error=None, **settings) -> ChatModel:
        if isinstance(script, str):
            script = ids_of(tokenizer, script)
        settings |= {"chat_template": RED_PAJAMA_TEMPLATE, "stop_strings": stop_strings}
        return ChatModel(ScriptedEngine(script, error), tokenizer, ModelConfig("test/model", **settings))

    return make


FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"  # one picture, joined from three


TEXTS = [
    "Hello there, how are you?",
    "日本語のテキスト、한국어, العربية, עברית",
    f"{FAMILY} and {FAMILY}\U0001f44d\U0001f3fd",
    "e\u0301 a\u0308\u0323 n\u0303",
    "naïve café — “quoted” … €5",
    "\U0001d518\U0001d52b\U0001d526\ud7ff\U0010fffd",
    "def f(x):\n\n\treturn  x * 2 \n",
    "trailing spaces   ",
]


def byte_tokens(tokenizer, text: str) -> list[int]:
    """The text in tokens of one byte each, where the vocabulary has them, as no encoder would write it."""
    backend = tokenizer.backend_tokenizer
    ids = []
    for character in text:
        spelt = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in character.encode()]
        if None in spelt or tokenizer.unk_token_id in spelt:  # byte-level: one letter for each byte
            pieces = backend.pre_tokenizer.pre_tokenize_str(character)
            spelt = [tokenizer.convert_tokens_to_ids(letter) for piece, _ in pieces for letter in piece]
        ids += ids_of(tokenizer, character) if None in spelt or tokenizer.unk_token_id in spelt else spelt
    return ids


def random_text(rng: random.Random) -> str:
    blocks = [(0x20, 0x7E)] * 3 + [(0xA1, 0x24F), (0x300, 0x36F), (0x400, 0x52F), (0x4E00, 0x9FFF)]
    blocks += [(0xAC00, 0xD7A3), (0x1F300, 0x1F64F), (0x1F3FB, 0x1F3FF), (0x200D, 0x200D), (0x0A, 0x0A)]
    return "".join(chr(rng.randint(*rng.choice(blocks))) for _ in range(rng.randint(1, 30)))


# The four catalogue entries of the design, whose templates differ most

FAMILIES = {"red-pajama-3b-chat": "gpt_neox", "llama-2-chat-7b": "llama", "mpt-7b-chat": "mpt"}
# By which text each template marks turns, where it does so by text
TEXT_MARKERS = {
    "red-pajama-3b-chat": ["<human>:", "<bot>:"],
    "llama-2-chat-7b": ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"],
}


@pytest.fixture(scope="module")
def chats(byte_level, tiny_checkpoints) -> dict[str, ChatModel]:
    tokenizers = {
        name: AutoTokenizer.from_pretrained(tiny_checkpoints[family]) for name, family in FAMILIES.items()
    }
    tokenizers[DEFAULT_MODEL] = byte_level
    return {
        name: ChatModel(ScriptedEngine(), tokenizer, SUPPORTED_MODELS[name])
        for name, tokenizer in tokenizers.items()
    }


@pytest.fixture(params=[DEFAULT_MODEL, *FAMILIES])
def name(request) -> str:
    return request.param


@pytest.fixture
def chat(chats, name) -> ChatModel:
    return chats[name]


def prompt_of_the_template(chat: ChatModel, messages: list[dict[str, str]]) -> list[int]:
    if chat.config.system_prompt and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": chat.config.system_prompt}, *messages]
    return chat.tokenizer.apply_chat_template(
        messages, chat_template=chat.config.chat_template, add_generation_prompt=True, return_dict=False
    )
