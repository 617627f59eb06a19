"""A reply as it comes, and the contract of whatever gives one.

Knows text deltas and what they cost. Refuses to know where they come from: a model here, an endpoint there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prompt import Message
from sampling import SamplingParams
from text_stream import TokenLogprob
from thoughts import Delta

if TYPE_CHECKING:
    from engine import TokenStream


@dataclass
class ReplyStats:
    """What a reply cost.

    finish_reason: "stop" (the model ended it), "length", "cancelled" or "error"; None while it is running.
    reused_tokens: how many of the prompt's tokens the engine still had in its KV cache; None before the first
        token, and where the engine cannot tell.
    dropped_messages: how many of the oldest messages were left out because the context was full.
    new_tokens: of thought and answer; thought_tokens: those of the thought alone.
    resumed: whether a reply from elsewhere broke off and was asked for once more.
    """

    prompt_tokens: int
    dropped_messages: int = 0
    reused_tokens: int | None = None
    new_tokens: int = 0
    thought_tokens: int = 0
    waited: float = 0.0  # seconds, until the engine had ended what came before
    time_to_first_token: float | None = None  # seconds, the waiting included
    tokens_per_second: float | None = None  # of the tokens after the first
    finish_reason: str | None = None
    resumed: bool = False

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
    """The text deltas of one reply. `close()` stops the model; `stats` is filled in as the reply goes.

    So are `logprobs`, for each token of the reply, where `SamplingParams.logprobs` asks for them.
    """

    def __init__(
        self,
        deltas: Iterator[Delta],
        tokens: "TokenStream",
        stats: ReplyStats,
        logprobs: list[TokenLogprob],
    ):
        self._deltas = deltas
        self._tokens = tokens
        self._closed = False
        self.stats = stats
        self.logprobs = logprobs

    @property
    def waiting(self) -> bool:
        """Whether the engine still computes other replies, so that this one has to wait."""
        return self._tokens.waiting

    def __iter__(self) -> "ReplyStream":
        return self

    def __next__(self) -> Delta:
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


class Chat(Protocol):
    """What a page or an endpoint uses of a conversation partner, here or behind another endpoint.

    name: of the model.
    description: how it runs, in a few words; may be empty.
    system_prompt: what a conversation without a system message begins with.
    max_context: tokens of prompt and reply together, None if that is not known.
    defaults: the sampling of a reply for which none is given.
    max_requests: how many replies are computed at the same time.
    template_options: the switches of the chat template, each with its values, the default first.
    """

    name: str
    description: str
    system_prompt: str | None
    max_context: int | None
    defaults: SamplingParams
    max_requests: int
    template_options: Mapping[str, tuple]

    def stream(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> ReplyStream:
        """The reply to the last message, as text deltas; see `chat.ChatModel.stream`."""

    def close(self) -> None:
        """Give back what the model holds."""
