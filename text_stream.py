"""Token ids to text, piece by piece, up to where a reply ends.

Knows tokenizers' decoders and stop strings. Refuses to know engines and conversations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thoughts import ReasoningFormat, unfinished

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from engine import TokenStream


@dataclass(frozen=True)
class TokenLogprob:
    """How probable a token of a reply was (as a natural logarithm), and the most probable ones there."""

    text: str
    logprob: float
    others: tuple[tuple[str, float], ...]


class LogprobNotes:
    """Notes, as tokens come, how probable they were; none where the engine was not asked for that.

    Args:
        tokens: the reply.
        before: the prompt's last token.

    Attributes:
        taken: the notes so far. Bytes that are no whole character are U+FFFD there.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", tokens: "TokenStream", before: int):
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._before = before
        self.taken: list[TokenLogprob] = []

    def take(self, token: int) -> None:
        """Note the token that has come."""
        number = len(self.taken)
        if number < len(self._tokens.logprobs):
            logprob, others = self._tokens.logprobs[number]
            named = tuple((self._text(other), value) for other, value in others.items())
            self.taken.append(TokenLogprob(self._text(token), logprob, named))
        self._before = token

    def _text(self, token: int) -> str:
        """As it is written after the token before; special tokens too."""
        start = len(self._decode([self._before]))
        return self._decode([self._before, token])[start:]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class TextDecoder:
    """Token ids to text, one at a time, and never half a character.

    A token's text depends on its neighbours: bytes of one character may be spread over several tokens, and
    some tokenizers write the space between words only when something stands before it. So a window of ids
    is decoded each time: those that gave the newest text, and those that came after.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = tokenizer
        self._shown_ids: list[int] = []
        self._waiting_ids: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._waiting_ids.append(token)
        text = self._waiting_text()
        # U+FFFD is what decoders write for bytes that are no character (yet). A token without text, such as a
        # special one, is no window to decode the next one in: that would lose its space.
        if not text or text.endswith("\ufffd"):
            return ""
        self._shown_ids, self._waiting_ids = self._waiting_ids, []
        return text

    def flush(self) -> str:
        """What is left at the end: the bytes of a character that was never finished."""
        return self._waiting_text()

    def _waiting_text(self) -> str:
        shown = self._decode(self._shown_ids)
        return self._decode(self._shown_ids + self._waiting_ids)[len(shown) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def split_at_stop(text: str, stop_strings: Sequence[str]) -> tuple[str, str, bool]:
    """Split a reply's newest text into what may be shown, what must wait, and whether the reply is over.

    The part that must wait is the longest end of `text` that could grow into a stop string.
    """
    ends = [position for stop in stop_strings if (position := text.find(stop)) >= 0]
    if ends:
        return text[: min(ends)], "", True
    safe = len(text) - unfinished(text, stop_strings)
    return text[:safe], text[safe:], False


def special_marks(tokenizer: "PreTrainedTokenizerBase", reasoning: ReasoningFormat) -> dict[int, str]:
    """The special tokens by which a model marks its thoughts, and their texts, which decoders leave out."""
    marks = " ".join((reasoning.opens, reasoning.closes, *reasoning.answer_opens, *reasoning.answer_closes))
    added = tokenizer.added_tokens_decoder.items()
    return {number: token.content for number, token in added if token.special and token.content in marks}
