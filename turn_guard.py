"""Keeps the text of a message from ending its turn or beginning another.

Knows how chat templates mark turns: with tokens, with names in brackets, with plain words at the beginning of
a line. Refuses to know which template it is: it is given what a template writes around texts.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A Unicode noncharacter, which no text holds. The tokenizer never sees it: a prompt is cut there.
CUT = "\ufdd0"
# Another one, which marks the place where a reply goes on.
HERE = "\ufdd1"


@dataclass(frozen=True)
class TurnGuard:
    """What a template marks turns with: tokens, texts in brackets, words at the beginning of a line."""

    tokens: tuple[str, ...]
    texts: tuple[str, ...]
    words: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", skeleton: str, end_ids: Iterable[int]) -> "TurnGuard":
        """The guard against a template's marks.

        Args:
            skeleton: what the template writes around texts, with `CUT` in the place of each text.
            end_ids: tokens that end a reply.
        """
        end_ids = frozenset(end_ids)
        tokens = token_markers(tokenizer, skeleton, end_ids)
        return cls(
            tuple(tokens), tuple(text_markers(skeleton, tokens)), tuple(line_markers(skeleton, tokens))
        )

    def harmless(self, text: str) -> str:
        """The text of a turn, with nothing left in it that could end the turn or begin another.

        It has `CUT` inside each token of the template's, so that pieces are tokenized which are none, and
        spaces inside each of its words.
        """
        text = re.sub("[\ud800-\udfff]", "\ufffd", text).replace(CUT, "").replace(HERE, "")
        text = split_lines(text, self.words, " ")
        return split_each(split_each(text, self.texts, " "), self.tokens, CUT)


def token_markers(tokenizer: "PreTrainedTokenizerBase", skeleton: str, end_ids: Iterable[int]) -> list[str]:
    """The tokens that must not come out of a message: the special ones, and others that a template writes."""
    return [
        token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if (token.special or number in end_ids or token.content in skeleton)
        and len(token.content.strip()) > 1  # some tokenizers add line breaks
    ]


def text_markers(skeleton: str, tokens: Iterable[str]) -> list[str]:
    """The plain text by which a template marks turns: names in brackets, such as [/INST] or <human>:."""
    for known in (CUT, *tokens):
        skeleton = skeleton.replace(known, " ")
    name = r"[^\s<>\[\]{}]*\w[^\s<>\[\]{}]*"
    return sorted(set(re.findall(rf"[<\[{{|]+{name}[>\]}}|]+:?", skeleton)))


def line_markers(skeleton: str, tokens: Iterable[str]) -> list[str]:
    """The plain words by which a template marks turns: USER: or ### Instruction:, each just before a text.

    They begin a line, or follow a text or a special token.
    """
    for token in tokens:
        skeleton = skeleton.replace(token, CUT)
    words = rf"#*[^\S\n]?\w[^\n:<>\[\]{{}}{CUT}]*:"
    return sorted(set(re.findall(rf"(?:^|{CUT})[^\S\n]*({words})\s*(?={CUT}|\Z)", skeleton, re.MULTILINE)))


def split_lines(text: str, markers: Sequence[str], separator: str) -> str:
    """The text with the separator after the first character of each marker that a line of it begins with."""
    if not markers:
        return text
    lines = []
    for line in text.splitlines(keepends=True):
        begin = len(line) - len(line.lstrip())
        if line.startswith(tuple(markers), begin):
            line = line[: begin + 1] + separator + line[begin + 1 :]
        lines.append(line)
    return "".join(lines)


def split_each(text: str, markers: Iterable[str], separator: str) -> str:
    """The text with the separator after the first character of each marker in it."""
    for marker in markers:
        while marker in text:  # more than once where it overlaps itself
            text = text.replace(marker, marker[0] + separator + marker[1:])
    return text
