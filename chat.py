"""Messages in, text out: a conversation with a model, and its reply as a stream.

Knows where a reply ends, how tokens become text and what a reply cost. Refuses to know how a prompt is
written (`prompt`), how tokens are computed (any engine will do) and where the text is shown.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import ModelConfig
from prompt import Message, Prompt, PromptWriter
from reply import Chat, ReplyStats, ReplyStream
from sampling import SamplingParams
from text_stream import LogprobNotes, TextDecoder, TokenLogprob, special_marks, split_at_stop
from thoughts import Delta, ThoughtSplitter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from engine import Engine, TokenStream

__all__ = [
    "Chat",
    "ChatModel",
    "Delta",
    "Message",
    "ReplyStats",
    "ReplyStream",
    "SamplingParams",
    "TokenLogprob",
]


class ChatModel:
    """A `Chat`: a model, its tokenizer and the catalogue entry that says how to talk to it.

    Args:
        model: an OVModelForCausalLM, or an `engine.Engine`.
        tokenizer: of `chat_tokenizer.open_tokenizer`, or a fast one of transformers.
        config: the catalogue entry.
        description: how the model runs, in a few words.

    What every conversation with the entry's system prompt begins with is computed at once, so that the first
    answer need not wait for it.

    Attributes:
        defaults: the sampling that the entry recommends, or else the checkpoint.
        end_ids: the tokens that end a reply: those of checkpoint and entry, and the one that the template
            writes after an assistant's text, whatever the checkpoint calls its end.

    Raises:
        ValueError: neither the entry nor the tokenizer has a chat template, or it refuses a plain question.
    """

    def __init__(
        self,
        model: "Engine | Any",
        tokenizer: "PreTrainedTokenizerBase",
        config: ModelConfig,
        description: str = "",
    ):
        # Only transformers-style models carry a generation_config; engines know nothing of it.
        if hasattr(model, "generation_config"):
            from engine import OptimumEngine

            model = OptimumEngine(model)
        self.engine: Engine = model
        self.tokenizer = tokenizer
        self.config = config
        self.name = short_name(config.model_id)
        self.description = description
        self.system_prompt = config.system_prompt
        self.max_requests = self.engine.max_requests
        self.defaults = self.engine.defaults if config.sampling is None else SamplingParams(**config.sampling)
        vocabulary = tokenizer.get_vocab()
        end_ids = self.engine.end_ids | {vocabulary[s] for s in config.stop_strings if s in vocabulary}
        if tokenizer.eos_token_id is not None:
            end_ids |= {tokenizer.eos_token_id}
        self._prompts = PromptWriter(
            tokenizer, config.model_id, config.chat_template, config.system_prompt, frozenset(end_ids)
        )
        self.end_ids = self._prompts.end_ids
        self.template_options = self._prompts.options
        self.stop_strings = (
            *config.stop_strings,
            *self._prompts.stop_strings,
            *self._prompts.reasoning.answer_closes,
        )
        self._marks = special_marks(tokenizer, self._prompts.reasoning)
        if prefix := self._prompts.shared_prefix()[: self.max_context]:
            self.engine.prefill(prefix)

    @property
    def max_context(self) -> int | None:
        """Tokens of prompt and reply together: the smaller of what the entry and the engine say."""
        limits = (self.config.max_context, self.engine.max_context)
        return min((limit for limit in limits if limit is not None), default=None)

    def encode(
        self, messages: Sequence[Message], template_options: Mapping[str, Any] | None = None
    ) -> list[int]:
        """The prompt exactly as the model will read it, up to where the reply begins.

        What a message holds is text, whatever it looks like. A special token written out in it becomes
        ordinary tokens. Where a template marks turns with plain text, such as [INST] or <human>:, a marker in
        a message gets a space after its first character ("[ INST]"): that is what the model reads. Plain
        words, such as USER: or ### Instruction:, are markers only at the beginning of a line ("U SER:").
        Characters that cannot be encoded (lone surrogates) become U+FFFD, and what a model thought before an
        earlier answer is left out, unless its template asks for it.

        Args:
            messages: dicts with "role" (system, user, assistant) and "content". Without a system message
                the catalogue entry's system prompt is put first; an empty one sends none. Where the last one
                is the assistant's, the prompt ends with its text.
            template_options: values for the switches in `template_options`.

        Raises:
            ValueError: no message, an unknown role, content that is no text, turns in an order that the
                model's template refuses, or an unknown switch.
        """
        return self._prompts.write(messages, template_options).ids

    def stream(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> ReplyStream:
        """The reply to the last message, as an iterator of text deltas.

        Each delta is a `str` that knows whether it `is_thought`. Where the last message is the assistant's,
        the model goes on with it. To stop the model, call `close()` or leave the loop. An error inside the
        model is raised by the iterator.

        Prompt and reply together never exceed the model's context: of a longer conversation the oldest turns
        are left out, and `stats.dropped_messages` says how many messages that were.

        Args:
            messages, template_options: see `encode`.
            sampling: None takes `defaults`.

        Raises:
            ValueError: see `encode`; or the last message is too long for the model's context.
        """
        sampling = sampling or self.defaults
        prompt = self._prompts.write(messages, template_options, self.max_context, sampling.max_new_tokens)
        if self.max_context is not None:
            room = self.max_context - len(prompt.ids)
            sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        stats = ReplyStats(prompt_tokens=len(prompt.ids), dropped_messages=prompt.dropped_messages)
        spared = self.end_ids | self._prompts.template_ids
        tokens = self.engine.generate(prompt.ids, sampling, spared)
        notes = LogprobNotes(self.tokenizer, tokens, prompt.ids[-1])
        return ReplyStream(self._deltas(tokens, prompt, sampling, stats, notes), tokens, stats, notes.taken)

    def generate(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> str:
        """The whole answer to the last message, without thoughts."""
        deltas = self.stream(messages, sampling, template_options)
        return "".join(delta for delta in deltas if not delta.is_thought)

    def close(self) -> None:
        """Give back what the engine holds."""
        self.engine.close()

    def _deltas(
        self,
        tokens: "TokenStream",
        prompt: Prompt,
        sampling: SamplingParams,
        stats: ReplyStats,
        notes: LogprobNotes,
    ) -> Iterator[Delta]:
        splitter = ThoughtSplitter(self._prompts.reasoning, prompt.in_thought, prompt.in_answer)
        try:
            with closing(tokens):
                stops = (*self.stop_strings, *sampling.stop)
                for text in self._texts(tokens, stops, splitter, stats, notes):
                    yield from splitter.add(text)
            if stats.finish_reason != "cancelled":
                yield from splitter.flush()
        except GeneratorExit:  # nobody holds the stream any more
            stats.finish("cancelled")
            raise
        except BaseException:
            stats.finish("error")
            raise

    def _texts(
        self,
        tokens: "TokenStream",
        stops: Sequence[str],
        splitter: ThoughtSplitter,
        stats: ReplyStats,
        notes: LogprobNotes,
    ) -> Iterator[str]:
        """The reply's text as it comes, the marks of thoughts included, up to where it ends."""
        decoder = TextDecoder(self.tokenizer)
        pending = ""  # text that might be the start of a stop string
        started = time.perf_counter()
        for token in tokens:
            elapsed = time.perf_counter() - started
            stats.count_token(elapsed)
            stats.thought_tokens += splitter.inside
            stats.reused_tokens, stats.waited = tokens.reused_tokens, tokens.waited
            mark = self._marks.get(token, "")
            if token in self.end_ids and not (splitter.inside and mark == self._prompts.reasoning.closes):
                stats.finish("stop")
                break
            notes.take(token)
            new = decoder.add(token) + mark
            visible, pending, stopped = split_at_stop(pending + new, stops)
            if visible:
                yield visible
            if stopped:
                stats.finish("stop")
                return
        else:
            stats.finish("length")
        if stats.finish_reason != "cancelled":
            yield pending + decoder.flush()


def short_name(model_id: str) -> str:
    """The name alone, of a Hub id ("owner/name" or "owner/name@revision") or of a folder."""
    folder = Path(model_id).expanduser()
    return folder.resolve().name if folder.is_dir() else Path(model_id.partition("@")[0]).name
