"""What a model thinks before it answers: how it is marked in the text, and telling it from the answer.

Knows reasoning formats, one table of them, and text. Refuses to know tokens, templates and where a thought is
shown.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningFormat:
    """How a model marks its thoughts.

    opens, closes: the texts before and after a thought; either may be a special token or several.
    answer_opens: texts between thought and answer that belong to neither.
    answer_closes: texts that end the answer, and the reply.
    known_by: a text by which a template shows that it is this format; `opens` if it is empty.
    """

    opens: str
    closes: str
    answer_opens: tuple[str, ...] = ()
    answer_closes: tuple[str, ...] = ()
    known_by: str = ""


# Sources: the model cards of Granite 3.3, Magistral, EXAONE Deep and Seed-OSS; of DeepSeek-R1, Qwen3, SmolLM3
# and Phi-4-reasoning for the last; "OpenAI harmony response format" for gpt-oss. The first one that a model's
# template or vocabulary speaks of is the model's.
FORMATS = (
    ReasoningFormat(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        ("<|start|>assistant<|channel|>final<|message|>", "<|channel|>final<|message|>"),
    ),
    ReasoningFormat("<think>", "</think>", ("<response>",), ("</response>",), known_by="<response>"),
    ReasoningFormat("[THINK]", "[/THINK]"),
    ReasoningFormat("<thought>", "</thought>"),
    ReasoningFormat("<seed:think>", "</seed:think>"),
    ReasoningFormat("<think>", "</think>"),
)
USUAL = FORMATS[-1]


def format_of(template: str, vocabulary: Iterable[str]) -> ReasoningFormat:
    """The format that a chat template or a vocabulary speaks of; the usual one if it speaks of none."""
    known = set(vocabulary)
    for row in FORMATS:
        mark = row.known_by or row.opens
        pieces = re.findall(r"<\|\w+\|>", mark) or [mark]
        if mark in template or known.issuperset(pieces):
            return row
    return USUAL


class Delta(str):
    """A piece of a reply's text, as it is shown; `is_thought` tells what the model thinks from its answer."""

    __slots__ = ("is_thought",)

    def __new__(cls, text: str, is_thought: bool = False) -> "Delta":
        """Make a piece."""
        delta = super().__new__(cls, text)
        delta.is_thought = is_thought
        return delta


class ThoughtSplitter:
    """Splits a reply's text, as it comes, into thoughts and answer; the marks themselves are not shown.

    A thought begins a reply. A mark inside the answer is a word like any other.

    Args:
        reasoning: the model's format.
        inside: whether the prompt has opened a thought already.
        answering: whether the prompt ends inside an answer.

    Attributes:
        inside: whether the text so far ends inside a thought.
    """

    def __init__(self, reasoning: ReasoningFormat, inside: bool = False, answering: bool = False):
        self._format = reasoning
        self.inside = inside
        self._answering = answering
        self._begun = answering  # whether anything has been shown of what is being written
        self._pending = ""

    def add(self, text: str) -> Iterator[Delta]:
        """What can be shown, now that this text has come."""
        self._pending += text
        while (shown := self._next()) is not None:
            if shown:
                yield shown

    def flush(self) -> Iterator[Delta]:
        """What is left at the end: the beginning of a mark that never came."""
        rest = self._pending if self._begun else self._pending.strip()
        self._pending = ""
        if rest and (rest.strip() or not self.inside):
            yield Delta(rest, self.inside)

    def _next(self) -> Delta | None:
        """One more piece, maybe empty; None where more text must come first."""
        if not self._pending:
            return None
        if self.inside:
            return self._thought()
        if self._answering:
            shown, self._pending = self._pending, ""
            return Delta(shown)
        return self._between()

    def _thought(self) -> Delta | None:
        if not self._begun:
            self._pending = self._pending.lstrip()
        before, mark, after = self._pending.partition(self._format.closes)
        if mark:
            self._pending, self.inside, self._begun = after, False, False
            return Delta(before.rstrip(), True)
        safe = len(before) - unfinished(before, (self._format.closes,))
        shown = before[:safe].rstrip()  # spaces wait, since none are shown before the end of a thought
        if not shown:
            return None
        self._pending, self._begun = self._pending[len(shown) :], True
        return Delta(shown, True)

    def _between(self) -> Delta | None:
        """At the beginning, or after a thought: is this another, or the answer?"""
        self._pending = self._pending.lstrip()
        for mark in (self._format.opens, *self._format.answer_opens):
            if self._pending.startswith(mark):
                self._pending = self._pending.removeprefix(mark)
                self.inside = mark == self._format.opens
                self._answering = not self.inside
                return Delta("")
            if mark.startswith(self._pending):
                return None
        self._answering = self._begun = True
        return Delta("")


def unfinished(text: str, marks: Iterable[str]) -> int:
    """The length of the longest end of `text` that could grow into one of the marks."""
    marks = tuple(marks)
    longest = max(map(len, marks), default=0) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0


def without_thoughts(text: str, reasoning: ReasoningFormat = USUAL) -> str:
    """An answer without the thoughts in it; one that was stopped while the model still thought is empty."""
    opens, closes = reasoning.opens, reasoning.closes
    # A search behind the last end of a block would find none, and go through all the rest for each beginning.
    before, end, after = text.rpartition(closes)
    thought = f"{re.escape(opens)}.*?{re.escape(closes)}"
    answer = re.sub(thought, "", before + end, flags=re.DOTALL) + after
    if answer != text:
        answer = answer.lstrip()
    return "" if answer.lstrip().startswith(opens) else answer
