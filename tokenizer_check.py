"""The tokenizer that was published is the one that is used: others are compared with tokenizer.json.

Knows that transformers rebuilds a tokenizer after the class that a checkpoint is labelled with, rightly or
not, and that OpenVINO translates it into a graph. Refuses to know models and chats.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chat_tokenizer import TOKENIZER_FILE, ChatTokenizer, open_tokenizer
from json_files import read_json_if_there

if TYPE_CHECKING:
    import openvino
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

TOKENIZER_IR = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
HARD_TEXTS = (
    "",
    " ",
    "Hello, world! How are you doing?",
    "  leading and trailing  \n",
    "\n\n\t tabs\tand\r\nlines\n \n  indented\n",
    "def f(x):\n    return [i**2 for i in range(10)]  # 12345678901 3.14",
    "1. one\n2.  two\n   3 three\n10) 4  5",
    "I'll, we've, they'd; DON'T  'quote' ``code`` snake_case CamelCase",
    "naïve café, Straße, ﬁ ligature, e\u0301 combining, Ａ full width, İstanbul",
    "日本語のテキスト、中文文本，한국어 텍스트, العربية עברית हिन्दी ไทย",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e=mc² ½ ∑ € ▁ Ġ \u200b\u200d\ufeff \u00a0 \u2028",
    "<s>[INST] x [/INST] y </s><unk><pad><|im_start|>user\nHi<|im_end|>\n<think>",
    "x" * 300 + "\x00\x01\x7f" + " " * 70,
)


@dataclass(frozen=True)
class Difference:
    """What a tokenizer makes of a text (ids) or of ids (a text), and what it should make of it."""

    given: str | list[int]
    expected: list[int] | str
    found: list[int] | str

    def __str__(self) -> str:
        return f"{self.given!r:.100} becomes {self.found!r:.200} instead of {self.expected!r:.200}"


def differences(
    published: ChatTokenizer, other: "ChatTokenizer | PreTrainedTokenizerBase"
) -> list[Difference]:
    """Where a tokenizer differs from the published one, on texts that tokenizers stumble over.

    These are `HARD_TEXTS` and the published one's own added tokens, without and with the tokens that are put
    around every text; and their ids as text.
    """
    readings = (
        _compare(
            published,
            special,
            partial(other.encode, add_special_tokens=special),
            partial(other.decode, skip_special_tokens=special),
        )
        for special in (False, True)
    )
    return [difference for reading in readings for difference in reading]


def graph_differences(
    published: ChatTokenizer, tokenizer: "openvino.Model", detokenizer: "openvino.Model"
) -> list[Difference]:
    """The same for a tokenizer and a detokenizer that openvino_tokenizers made."""
    import numpy as np
    import openvino
    import openvino_tokenizers  # noqa: F401  (gives its operations to every Core)

    core = openvino.Core()
    to_ids, to_text = (core.compile_model(graph, "CPU") for graph in (tokenizer, detokenizer))

    def encode(text: str) -> list[int]:
        return to_ids([text])["input_ids"][0].tolist()

    def decode(ids: list[int]) -> str:
        return str(to_text([np.array([ids], np.int64)])["string_output"][0])

    return list(_compare(published, True, encode, decode))


def folder_differences(folder: Path) -> list[Difference]:
    """The same for those that a folder holds beside its tokenizer.json: see `TOKENIZER_IR`.

    Raises:
        ValueError: they cannot be read.
    """
    import openvino
    import openvino_tokenizers  # noqa: F401

    core = openvino.Core()
    try:
        graphs = [core.read_model(folder / name) for name in TOKENIZER_IR]
        return graph_differences(open_tokenizer(folder), *graphs)
    except RuntimeError as error:
        raise ValueError(f"The tokenizer's IR in {folder} cannot be read: {error}") from error


def _compare(
    published: ChatTokenizer,
    special: bool,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> Iterator[Difference]:
    """What two functions make otherwise than the published tokenizer.

    Args:
        special: ids have the tokens that are put around every text, and are decoded without special tokens;
            else neither.
    """
    added = [token.content for token in published.added_tokens_decoder.values()]
    for text in (*HARD_TEXTS, "".join(added), " x ".join(added)):
        ids = published.encode(text, add_special_tokens=special)
        if (found := encode(text)) != ids:
            yield Difference(text, ids, found)
        decoded = published.decode(ids, skip_special_tokens=special)
        if (found := decode(ids)) != decoded:
            yield Difference(ids, decoded, found)


def read_tokenizer(folder: str | Path, config: "PretrainedConfig | None" = None) -> "PreTrainedTokenizerBase":
    """A folder's tokenizer in transformers, with the same ids and texts as its tokenizer.json.

    The class that a checkpoint is labelled with may make another tokenizer of it; then the file wins. Without
    a tokenizer.json the class makes one from what is there.

    Args:
        config: the model's configuration, where that in the folder is none that transformers accepts.

    Raises:
        ValueError: transformers reads tokenizer.json otherwise than it is written, whatever the class; or
            there is none, and what is there cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = Path(folder) / TOKENIZER_FILE
    brings_code = "auto_map" in read_json_if_there(Path(folder) / "tokenizer_config.json")
    if brings_code and not file.is_file():
        raise ValueError(
            f"The tokenizer in {folder} needs code that it brings along (auto_map in tokenizer_config.json), "
            f"which is not run. Take a copy of the model that has a {TOKENIZER_FILE}."
        )
    try:
        if brings_code:
            labelled = PreTrainedTokenizerFast.from_pretrained(folder)
        else:
            labelled = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except Exception as error:  # of many kinds, of several libraries
        raise ValueError(
            f"transformers cannot read the tokenizer in {folder}: {error}. Fetch its files again, or take a "
            f"copy of the model that has a {TOKENIZER_FILE}."
        ) from error
    if not file.is_file():
        return labelled
    published = open_tokenizer(folder)
    if labelled.backend_tokenizer.to_str() == published.backend_tokenizer.to_str():
        return labelled
    # Some names may stand in no file, but only in the class; and some of these are of other vocabularies.
    vocabulary = published.get_vocab()
    names = {name: token for name, token in labelled.special_tokens_map.items() if token in vocabulary}
    plain = PreTrainedTokenizerFast.from_pretrained(folder, **names)
    if wrong := differences(published, plain):
        raise ValueError(
            f"transformers does not read {file} as it is written: {wrong[0]}. "
            "The model would read other texts than it was trained on; try another version of transformers."
        )
    return plain
