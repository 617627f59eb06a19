"""Token ids in, token ids out: sampling and the decode loop on an OVModelForCausalLM.

Knows token ids, logits and which tokens are in the KV cache. Refuses to know text, turns and end tokens:
whoever reads the ids decides when the reply is over and closes the iterator, which stops the model at once,
because every token is computed only when it is asked for.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from kv_cache import PagedModel, StatefulModel, has_paged_form

if TYPE_CHECKING:
    from optimum.intel import OVModelForCausalLM
    from transformers import GenerationConfig, PretrainedConfig

# Tokens of a prompt that are computed in one go; between two goes a request can be stopped.
PREFILL_CHUNK = 512


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen from the logits.

    temperature: divides the logits, 0 to 2; 0 is greedy: the most probable token, every time the same.
    top_p: keep the smallest set of tokens whose probabilities add up to this, 0 to 1; 1 keeps all.
        (Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv 1904.09751)
    top_k: keep this many of the most probable tokens; 0 keeps all.
    repetition_penalty: divides the positive logits (multiplies the negative ones) of tokens that the prompt
        or the reply holds already, 1 to 2; 1 changes nothing. (Keskar et al., "CTRL", arXiv 1909.05858)
    max_new_tokens: the reply's largest length.
    seed: the same seed gives the same reply; None draws a new one each time.

    Raises:
        ValueError: a value out of range; the message names the field.
    """

    temperature: float = 0.1
    top_p: float = 1.0
    top_k: int = 50
    repetition_penalty: float = 1.1
    max_new_tokens: int = 256
    seed: int | None = None

    def __post_init__(self):
        _check_number("temperature", self.temperature, 0, 2)
        _check_number("top_p", self.top_p, 0, 1)
        _check_integer("top_k", self.top_k, 0)
        _check_number("repetition_penalty", self.repetition_penalty, 1, 2)
        _check_integer("max_new_tokens", self.max_new_tokens, 1)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0)


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low} to {high}, not {_shown(value)}")


def _check_integer(name: str, value: int, low: int) -> None:
    # 2**63 is where torch's integers end
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
        raise ValueError(f"{name} must be a whole number, {low} or more, not {_shown(value)}")


def _shown(value: object) -> str:
    endless = isinstance(value, int) and abs(value) >= 2**63  # Python refuses to write out the longest
    return "so large a number" if endless else repr(value)[:40]


def candidates(
    logits: torch.Tensor, ids: Sequence[int], sampling: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that `sampling` chooses among, and the probability of each.

    The rules are those of transformers, and on the few tokens that top-k leaves they are its own code. What
    works on the whole vocabulary, once per token of the reply, is NumPy: PyTorch would share it out among
    threads, which costs more than the work, and OpenVINO's threads would wait for the processor.

    Args:
        logits: [vocabulary], of the last position.
        ids: prompt and reply so far, for the repetition penalty.

    Returns:
        Token ids [n] and their probabilities [n]: n is 1 for greedy decoding, else `top_k`, or without it the
        size of the vocabulary.
    """
    scores = logits.float().numpy().copy()
    if sampling.repetition_penalty != 1:
        seen = np.array(ids)
        factor = np.where(scores[seen] < 0, sampling.repetition_penalty, 1 / sampling.repetition_penalty)
        scores[seen] = scores[seen] * factor
    if sampling.temperature == 0:
        return torch.tensor([scores.argmax()]), torch.ones(1)
    tokens = np.arange(len(scores))
    if 0 < sampling.top_k < len(scores):
        # Before the temperature, which does not change the order.
        tokens = np.argpartition(scores, -sampling.top_k)[-sampling.top_k :]
    rules = LogitsProcessorList()
    if sampling.temperature != 1:
        rules.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_p < 1:
        rules.append(TopPLogitsWarper(top_p=float(sampling.top_p)))
    # Less the largest, which changes nothing but that a tiny temperature does not make it infinite.
    kept = rules(None, torch.from_numpy(scores[tokens] - scores.max())[None])[0]
    return torch.from_numpy(tokens), torch.softmax(kept, dim=-1)


def next_token_probabilities(
    logits: torch.Tensor, ids: Sequence[int], sampling: SamplingParams
) -> torch.Tensor:
    """The distribution that `sampling` draws the next token from.

    Args:
        logits: [vocabulary], of the last position.
        ids: prompt and reply so far, for the repetition penalty.

    Returns:
        Probabilities [vocabulary]; all on one token where the temperature is 0.
    """
    tokens, probabilities = candidates(logits, ids, sampling)
    return torch.zeros(len(logits)).scatter(0, tokens, probabilities)


def draw(tokens: torch.Tensor, probabilities: torch.Tensor, generator: torch.Generator) -> int:
    """One of the token ids [n], by their probabilities [n]."""
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


class TokenStream:
    """The tokens of one request, each computed when it is asked for.

    Attributes:
        reused_tokens: how many tokens of the prompt the KV cache held already; None before the first token.
    """

    def __init__(self, request: "Request", tokens: Generator[int, None, None], cancel: Callable[[], None]):
        self._request = request
        self._tokens = tokens
        self._cancel = cancel
        self._advancing = threading.Lock()

    @property
    def reused_tokens(self) -> int | None:  # noqa: D102
        return self._request.reused_tokens

    def __iter__(self) -> "TokenStream":
        return self

    def __next__(self) -> int:
        with self._advancing:
            token = next(self._tokens)
        if self._request.cancelled:  # meanwhile, by another thread, which could not close what runs
            self.close()
            raise StopIteration
        return token

    def close(self) -> None:
        """Stop the request; harmless when it is over.

        Any thread may call this. If another one waits for a token at that moment, the engine is free when it
        has been computed.
        """
        self._cancel()
        if self._advancing.acquire(blocking=False):
            try:
                self._tokens.close()
            finally:
                self._advancing.release()


@dataclass(eq=False)
class Request:
    """What the engine keeps of a request while that waits and runs."""

    reused_tokens: int | None = None
    cancelled: bool = False
    thread: threading.Thread | None = None  # the one that asked for the newest token


class OptimumEngine:
    """Decoding on an OVModelForCausalLM, one request at a time, first come first served.

    The KV cache outlives a request: the tokens that a prompt and the cache begin with in common are not
    computed again. Where the two part, the cache is cut back.

    The given model is left as it was, and still serves `generate` and whatever else it could. Its graph is
    compiled anew, with a cache that can be cut (`kv_cache.PagedModel`); a model that has never been used
    itself has not been compiled, so the weights of a large model are in memory once, those of a small one
    twice.

    Attributes:
        max_context: how many tokens prompt and reply may have together, or None if the model does not say.
        end_ids: what the model's generation config calls the end of a sequence; not acted upon here.
        max_requests: how many requests are computed at the same time.
    """

    max_requests = 1

    def __init__(self, model: "OVModelForCausalLM"):
        self.max_context, self.end_ids = model_limits(model.config, model.generation_config)
        self._model = PagedModel(model) if has_paged_form(model) else StatefulModel(model)
        self._cached_ids: list[int] = []
        self._line: deque[Request] = deque()  # the first one has the engine, the others wait
        self._line_moves = threading.Condition()

    def generate(self, ids: Sequence[int], sampling: SamplingParams) -> TokenStream:
        """Yield `sampling.max_new_tokens` token ids; `.close()` stops between two of them.

        A request that finds another one running waits until that is over or closed. Only where the main
        thread itself has left the other one half read, it would wait for ever: those two take turns, and each
        computes again what the other displaced.

        Args:
            ids: the prompt, at least one token.

        Raises:
            ValueError: the prompt is empty.
        """
        if not ids:
            raise ValueError("The prompt has no tokens.")
        request = Request()
        return TokenStream(request, self._decode(request, list(ids), sampling), lambda: self._cancel(request))

    def prefill(self, ids: Sequence[int]) -> None:
        """Compute a prefix that prompts are going to begin with, and keep it in the cache."""
        request = Request()
        try:
            self._wait_for_turn(request)
            self._logits(request, list(ids))
        finally:
            self._leave(request)

    def _decode(
        self, request: Request, ids: list[int], sampling: SamplingParams
    ) -> Generator[int, None, None]:
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        try:
            for _ in range(sampling.max_new_tokens):
                self._wait_for_turn(request)
                logits = self._logits(request, ids)
                if request.cancelled:
                    return
                tokens, probabilities = candidates(logits, ids, sampling)
                ids.append(draw(tokens, probabilities, generator))
                yield ids[-1]
        finally:
            self._leave(request)

    def _logits(self, request: Request, ids: list[int]) -> torch.Tensor | None:
        """Logits [vocabulary] of the place after `ids`; None if the request was cancelled meanwhile."""
        reused = self._model.cut(shared_prefix(self._cached_ids, ids))
        if request.reused_tokens is None:
            request.reused_tokens = reused
        logits, done = None, reused
        while done < len(ids) and not request.cancelled:
            new_ids = ids[done : done + PREFILL_CHUNK]
            self._cached_ids = []  # what the cache holds is not known if this fails
            logits = self._model.infer(new_ids, past=done)
            done += len(new_ids)
            self._cached_ids = ids[:done]
        return logits

    def _wait_for_turn(self, request: Request) -> None:
        """Return when the engine is this request's, or when that is cancelled."""
        request.thread = threading.current_thread()
        with self._line_moves:
            if request not in self._line:
                self._line.append(request)
            if self._line[0].thread is request.thread is threading.main_thread():
                self._line.remove(request)
                self._line.appendleft(request)
            self._line_moves.wait_for(lambda: self._line[0] is request or request.cancelled)

    def _leave(self, request: Request) -> None:
        with self._line_moves:
            if request in self._line:
                self._line.remove(request)
            self._line_moves.notify_all()

    def _cancel(self, request: Request) -> None:
        with self._line_moves:
            request.cancelled = True
            self._line_moves.notify_all()


def model_limits(
    config: "PretrainedConfig", generation_config: "GenerationConfig"
) -> tuple[int | None, frozenset[int]]:
    """A model's context length in tokens, None if it does not say; and its end tokens.

    LongRoPE (Ding et al., arXiv 2402.13753) has one set of rotary frequencies for short sequences and another
    for long ones. A kept cache would mix them, so such a model's context ends where the short ones do.
    """
    context = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        context = min(context, rope.get("original_max_position_embeddings", context))
    eos = generation_config.eos_token_id
    end_ids = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])
    return context, end_ids


def shared_prefix(cached: list[int], ids: list[int]) -> int:
    """How many tokens need not be computed again. Never all of `ids`: the last one's logits are wanted."""
    if len(cached) < len(ids) and cached == ids[: len(cached)]:
        return len(cached)
    pairs = zip(cached, ids[:-1], strict=False)
    return next((n for n, (old, new) in enumerate(pairs) if old != new), min(len(cached), len(ids) - 1))
