"""Messages in, text out: the turns of a conversation, the prompt they make, and the reply as a stream.

Knows tokenizers, chat templates, how much of a conversation fits into a context and where a reply ends.
Refuses to know how tokens are computed (any engine will do) and where the text is shown.
"""

import itertools
import math
import re
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
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
THINK, THINK_END = "<think>", "</think>"
# A Unicode noncharacter, which no text holds. The tokenizer never sees it: a prompt is cut there.
CUT = "\ufdd0"
SLICE = 100_000  # characters that a tokenizer reads in a moment


@dataclass
class ReplyStats:
    """What a reply cost.

    finish_reason: "stop" (the model ended it), "length", "cancelled" or "error"; None while it is running.
    reused_tokens: how many of the prompt's tokens the engine still had in its KV cache; None before the first
        token, and where the engine cannot tell.
    dropped_messages: how many of the oldest messages were left out because the context was full.
    """

    prompt_tokens: int
    dropped_messages: int = 0
    reused_tokens: int | None = None
    new_tokens: int = 0
    time_to_first_token: float | None = None  # seconds
    tokens_per_second: float | None = None  # of the tokens after the first
    finish_reason: str | None = None

    def count_token(self, elapsed: float) -> None:
        """Note a token that came `elapsed` seconds after the request."""
        self.new_tokens += 1
        if self.time_to_first_token is None:
            self.time_to_first_token = elapsed
        else:
            self.tokens_per_second = (self.new_tokens - 1) / (elapsed - self.time_to_first_token)

    def finish(self, reason: str) -> None:
        """Note why the reply is over; the first reason stays."""
        self.finish_reason = self.finish_reason or reason


class ReplyStream:
    """The text deltas of one reply. `close()` stops the model; `stats` is filled in as the reply goes."""

    def __init__(self, deltas: Iterator[str], tokens: Iterator[int], stats: ReplyStats):
        self._deltas = deltas
        self._tokens = tokens
        self._closed = False
        self.stats = stats

    def __iter__(self) -> "ReplyStream":
        return self

    def __next__(self) -> str:
        if self._closed:
            raise StopIteration
        return next(self._deltas)

    def close(self) -> None:
        """Stop the model, at the latest after the token it is computing; harmless when the reply is over.

        Any thread may call this, also while another one waits for the next delta: that one gets the text of
        the token being computed, or StopIteration.
        """
        self._closed = True
        self.stats.finish("cancelled")
        # Not `_deltas.close()`: a generator cannot be closed while another thread is inside it.
        self._tokens.close()


class ChatModel:
    """A conversation partner: a model, its tokenizer and the catalogue entry that says how to talk to it.

    Args:
        model: an OVModelForCausalLM, or an engine (see `engine.OptimumEngine` for what one offers).
        tokenizer: a fast tokenizer.
        config: the catalogue entry.

    What every conversation with the entry's system prompt begins with is computed at once, so that the first
    answer need not wait for it.

    Raises:
        ValueError: neither the entry nor the tokenizer has a chat template, or it refuses a plain question.
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
        skeleton = self._skeleton()
        self._token_markers = token_markers(tokenizer, skeleton, self.end_ids)
        self._text_markers = text_markers(skeleton, self._token_markers)
        self._line_markers = line_markers(skeleton, self._token_markers)
        self._opens_thought = skeleton.rstrip().endswith(THINK)
        self._prefill()

    def _skeleton(self) -> str:
        """What the template writes around texts, with `CUT` in the place of each text."""
        roles = ("system", "user", "assistant", "user")
        try:
            return self._render([{"role": role, "content": CUT} for role in roles])
        except ValueError:  # some templates know no system message
            return self._render([{"role": role, "content": CUT} for role in roles[1:]])

    def _prefill(self) -> None:
        one, other = (self.encode([{"role": "user", "content": text}]) for text in ("a", "b"))
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        prefix = [token for token, _ in same][: self.max_context]
        if prefix:
            self.engine.prefill(prefix)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt exactly as the model will read it, up to where the reply begins.

        What a message holds is text, whatever it looks like. A special token written out in it becomes
        ordinary tokens. Where a template marks turns with plain text, such as [INST] or <human>:, a marker in
        a message gets a space after its first character ("[ INST]"): that is what the model reads. Plain
        words, such as USER: or ### Instruction:, are markers only at the beginning of a line ("U SER:").
        Characters that cannot be encoded (lone surrogates) become U+FFFD, and what a model thought before an
        earlier answer (<think>...</think>) is left out.

        Args:
            messages: dicts with "role" (system, user, assistant) and "content". Without a system message
                the catalogue entry's system prompt is put first; an empty one sends none.

        Raises:
            ValueError: no message, an unknown role, content that is no text, or turns in an order that the
                model's template refuses.
        """
        return self._encode(self._turns(messages))

    def stream(self, messages: Sequence[Message], sampling: SamplingParams | None = None) -> ReplyStream:
        """The reply to the last message, as an iterator of text deltas.

        To stop the model, call `close()` or leave the loop. An error inside the model is raised by the
        iterator.

        Prompt and reply together never exceed the model's context: of a longer conversation the oldest turns
        are left out, and `stats.dropped_messages` says how many messages that were.

        Raises:
            ValueError: see `encode`; or the last message is too long for the model's context.
        """
        sampling = sampling or SamplingParams()
        turns = self._turns(messages)
        kept, ids = self._fit(turns, sampling.max_new_tokens)
        if self.max_context is not None:
            room = self.max_context - len(ids)
            sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        stats = ReplyStats(prompt_tokens=len(ids), dropped_messages=len(turns) - len(kept))
        tokens = self.engine.generate(ids, sampling)
        return ReplyStream(self._deltas(tokens, stats), tokens, stats)

    def generate(self, messages: Sequence[Message], sampling: SamplingParams | None = None) -> str:
        """The whole reply to the last message."""
        return "".join(self.stream(messages, sampling))

    def _turns(self, messages: Sequence[Message]) -> list[Message]:
        """The messages, checked, and with the system prompt that is the entry's or their own."""
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
        return turns

    def _harmless(self, text: str) -> str:
        """The text of a turn, with nothing left in it that could end the turn or begin another."""
        text = re.sub("[\ud800-\udfff]", "\ufffd", text).replace(CUT, "")
        text = split_lines(text, self._line_markers, " ")
        return split_each(split_each(text, self._text_markers, " "), self._token_markers, CUT)

    def _render(self, turns: Sequence[Message]) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                turns, chat_template=self.config.chat_template, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise ValueError(f"The template of {self.config.model_id} refuses this: {error}") from error

    def _encode(self, turns: Sequence[Message]) -> list[int]:
        harmless = []
        for turn in turns:
            text = without_thoughts(turn["content"]) if turn["role"] == "assistant" else turn["content"]
            harmless.append({"role": turn["role"], "content": self._harmless(text)})
        return self._ids(self._render(harmless))

    def _ids(self, text: str) -> list[int]:
        pieces = (self.tokenizer(piece, add_special_tokens=False, verbose=False) for piece in text.split(CUT))
        return [token for piece in pieces for token in piece["input_ids"]]

    def _fit(self, turns: list[Message], max_new_tokens: int) -> tuple[list[Message], list[int]]:
        """The turns that fit into the context beside the reply, and their tokens.

        System prompt and last question always stay. Of the rest the oldest turns (a question with its answer)
        go, by about half of the prompt's budget at a time: were it only as much as need be, then each
        question would begin its prompt with another turn, and the KV cache would be worth nothing.
        """
        if self.max_context is None:
            return turns, self._encode(turns)
        budget = self.max_context - min(max_new_tokens, self.max_context // 2)
        stays = [turn["content"] for turn in turns if turn["role"] == "system" or turn is turns[-1]]
        self._refuse_far_too_long("".join(stays), budget)
        ids = self._encode(turns)
        if len(ids) <= budget:
            return turns, ids
        starts = [position for position, turn in enumerate(turns) if turn["role"] == "user"]

        def since(start: int) -> list[Message]:
            return [
                turn for position, turn in enumerate(turns) if position >= start or turn["role"] == "system"
            ]

        def saved(start: int) -> int:
            return len(ids) - len(self._encode(since(start)))

        step = (budget + 1) // 2
        goal = math.ceil((len(ids) - budget) / step) * step  # tokens to save
        kept = since(starts[min(bisect_left(starts, goal, key=saved), len(starts) - 1)])
        kept_ids = self._encode(kept)
        if len(kept_ids) > budget:
            raise too_long(f"{len(kept_ids)} tokens", budget)
        return kept, kept_ids

    def _refuse_far_too_long(self, text: str, budget: int) -> None:
        """Spare the tokenizer a text that would take it minutes, where the beginning is too long already."""
        count = 0
        for end in range(SLICE, len(text) + 1, SLICE):
            count += len(self._ids(self._harmless(text[end - SLICE : end])))
            if count > budget:
                raise too_long(f"about {count * len(text) // end} tokens", budget)

    def _deltas(self, tokens: Iterator[int], stats: ReplyStats) -> Iterator[str]:
        decoder = TextDecoder(self.tokenizer)
        pending = ""  # text that might be the start of a stop string
        begun = False
        try:
            with closing(tokens):
                if self._opens_thought:  # the prompt holds the tag already: whoever shows the text needs it
                    yield f"{THINK}\n"
                started = time.perf_counter()
                for token in tokens:
                    stats.count_token(time.perf_counter() - started)
                    stats.reused_tokens = tokens.reused_tokens
                    if token in self.end_ids:
                        stats.finish("stop")
                        break
                    visible, pending, stopped = split_at_stop(pending + decoder.add(token), self.stop_strings)
                    if not begun:  # templates put their own space or newline before a reply
                        visible = visible.lstrip()
                        begun = bool(visible)
                    if visible:
                        yield visible
                    if stopped:
                        stats.finish("stop")
                        return
                else:
                    stats.finish("length")
            if stats.finish_reason == "cancelled":
                return
            rest = pending + decoder.flush()
            if rest if begun else rest.strip():
                yield rest if begun else rest.lstrip()
        except GeneratorExit:  # nobody holds the stream any more
            stats.finish("cancelled")
            raise
        except BaseException:
            stats.finish("error")
            raise


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


def without_thoughts(text: str) -> str:
    """An answer without its <think> blocks; one that was stopped while the model still thought is empty."""
    # A search behind the last end of a block would find none, and go through all the rest for each beginning.
    before, end, after = text.rpartition(THINK_END)
    answer = re.sub(f"{THINK}.*?{THINK_END}", "", before + end, flags=re.DOTALL) + after
    if answer != text:
        answer = answer.lstrip()
    return "" if answer.lstrip().startswith(THINK) else answer


def too_long(length: str, budget: int) -> ValueError:
    """The error for a last message that does not fit into the context, whatever else is left out."""
    return ValueError(
        f"The message (with the system prompt) has {length}, the model's context has room for {budget} "
        "tokens. Shorten it, or lower max_new_tokens."
    )


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
