"""Messages in, text out: the turns of a conversation, the prompt they make, and the reply as a stream.

Knows tokenizers, chat templates and where a reply ends. Refuses to know how tokens are computed (any engine
will do) and where the text is shown.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from config import ModelConfig
from engine import OptimumEngine, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatModel", "Message", "ReplyStats", "ReplyStream", "SamplingParams"]

Message = dict[str, str]
ROLES = ("system", "user", "assistant")


@dataclass
class ReplyStats:
    """What a reply cost. `finish_reason` is "stop" (the model ended it), "length", "cancelled" or "error"."""

    prompt_tokens: int
    new_tokens: int = 0
    time_to_first_token: float | None = None  # seconds
    tokens_per_second: float | None = None  # of the tokens after the first
    finish_reason: str | None = None  # None while the reply is running

    def count_token(self, elapsed: float) -> None:
        """Note a token that came `elapsed` seconds after the request."""
        self.new_tokens += 1
        if self.time_to_first_token is None:
            self.time_to_first_token = elapsed
        else:
            self.tokens_per_second = (self.new_tokens - 1) / (elapsed - self.time_to_first_token)


class ReplyStream:
    """The text deltas of one reply. `close()` stops the model; `stats` is filled in as the reply goes."""

    def __init__(self, deltas: Iterator[str], stats: ReplyStats):
        self._deltas = deltas
        self.stats = stats

    def __iter__(self) -> "ReplyStream":
        return self

    def __next__(self) -> str:
        return next(self._deltas)

    def close(self) -> None:
        """Stop the model; harmless when the reply is over."""
        self._deltas.close()
        if self.stats.finish_reason is None:  # closed before the first delta was asked for
            self.stats.finish_reason = "cancelled"


class ChatModel:
    """A conversation partner: a model, its tokenizer and the catalogue entry that says how to talk to it.

    Args:
        model: an OVModelForCausalLM, or an engine (see `engine.OptimumEngine` for what one offers).
        tokenizer: a fast tokenizer.
        config: the catalogue entry.

    Raises:
        ValueError: neither the entry nor the tokenizer has a chat template.
    """

    def __init__(self, model, tokenizer: "PreTrainedTokenizerBase", config: ModelConfig):
        # Only transformers-style models carry a generation_config; engines know nothing of it.
        self.engine = OptimumEngine(model) if hasattr(model, "generation_config") else model
        self.tokenizer = tokenizer
        self.config = config
        if not config.chat_template and not tokenizer.chat_template:
            raise ValueError(
                f"{config.model_id} has no chat template, so it is probably no chat model. If it is one, "
                "set ModelConfig.chat_template to the Jinja text of its model card."
            )
        # They differ where another checkpoint takes the place of the entry's own.
        limits = (config.max_context, self.engine.max_context)
        self.max_context = min((limit for limit in limits if limit is not None), default=None)
        vocabulary = tokenizer.get_vocab()
        self.end_ids = self.engine.end_ids | {vocabulary[s] for s in config.stop_strings if s in vocabulary}
        if tokenizer.eos_token_id is not None:
            self.end_ids |= {tokenizer.eos_token_id}
        self.stop_strings = config.stop_strings

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt exactly as the model will read it, up to where the reply begins.

        Args:
            messages: dicts with "role" (system, user, assistant) and "content". Without a system message
                the catalogue entry's system prompt is put first; an empty one sends none.

        Raises:
            ValueError: no message, an unknown role, content that is no text, or turns in an order that the
                model's template refuses.
        """
        for message in messages:
            if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
                raise ValueError(
                    f"A message has a role ({', '.join(ROLES)}) and text as content, not {message!r}"
                )
        turns = [message for message in messages if message["role"] != "system" or message["content"].strip()]
        if not any(message["role"] == "system" for message in messages) and self.config.system_prompt:
            turns.insert(0, {"role": "system", "content": self.config.system_prompt})
        if not turns or turns[-1]["role"] != "user":
            raise ValueError("The last message must be the user's.")
        try:
            return self.tokenizer.apply_chat_template(
                turns, chat_template=self.config.chat_template, add_generation_prompt=True, return_dict=False
            )
        except TemplateError as error:
            raise ValueError(f"The template of {self.config.model_id} refuses this: {error}") from error

    def stream(self, messages: Sequence[Message], sampling: SamplingParams | None = None) -> ReplyStream:
        """The reply to the last message, as an iterator of text deltas.

        The model computes a token only when the next delta is asked for: to stop it, call `close()` or
        leave the loop. An error inside the model is raised by the iterator.

        Raises:
            ValueError: see `encode`; or the prompt leaves no room for a reply in the model's context.
        """
        sampling = sampling or SamplingParams()
        ids = self.encode(messages)
        if self.max_context is not None:
            room = self.max_context - len(ids)
            if room < 1:
                raise ValueError(
                    f"The conversation has {len(ids)} tokens, the model's context holds {self.max_context}. "
                    "Shorten the message or begin a new conversation."
                )
            sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        stats = ReplyStats(prompt_tokens=len(ids))
        return ReplyStream(self._deltas(ids, sampling, stats), stats)

    def generate(self, messages: Sequence[Message], sampling: SamplingParams | None = None) -> str:
        """The whole reply to the last message."""
        return "".join(self.stream(messages, sampling))

    def _deltas(self, ids: list[int], sampling: SamplingParams, stats: ReplyStats) -> Iterator[str]:
        decoder = TextDecoder(self.tokenizer)
        pending = ""  # text that might be the start of a stop string
        begun = False
        started = time.perf_counter()
        try:
            with closing(self.engine.generate(ids, sampling)) as tokens:
                for token in tokens:
                    stats.count_token(time.perf_counter() - started)
                    if token in self.end_ids:
                        stats.finish_reason = "stop"
                        break
                    visible, pending, stopped = split_at_stop(pending + decoder.add(token), self.stop_strings)
                    if not begun:  # templates put their own space or newline before a reply
                        visible = visible.lstrip()
                        begun = bool(visible)
                    if visible:
                        yield visible
                    if stopped:
                        stats.finish_reason = "stop"
                        return
                else:
                    stats.finish_reason = "length"
            rest = pending + decoder.flush()
            if rest if begun else rest.strip():
                yield rest if begun else rest.lstrip()
        except GeneratorExit:
            stats.finish_reason = stats.finish_reason or "cancelled"
            raise
        except BaseException:
            stats.finish_reason = "error"
            raise


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
    for start in range(max(0, len(text) - max(map(len, stop_strings), default=0) + 1), len(text)):
        if any(stop.startswith(text[start:]) for stop in stop_strings):
            return text[:start], text[start:], False
    return text, "", False
