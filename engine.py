"""Token ids in, token ids out: the contract of an engine, and the decode loop on OpenVINO that keeps it.

Knows token ids, logits and which tokens are in the KV cache. Refuses to know text, turns and end tokens:
whoever reads the ids decides when the reply is over and closes the iterator, which stops the model at once,
because every token is computed only when it is asked for.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from json_files import read_json_if_there
from kv_cache import PagedModel, StatefulModel, has_paged_form
from model_folder import check_device, check_folder, model_limits, sampling_defaults
from sampling import Sampler, SamplingParams, log_probabilities
from tuning import fastest_properties

if TYPE_CHECKING:
    import openvino
    from optimum.intel import OVModelForCausalLM

# Tokens of a prompt that are computed in one go; between two goes a request can be stopped.
PREFILL_CHUNK = 512
# Seconds after which a reply that stands still, and was read last by the thread that now waits for it, counts
# as left behind. A thread of a pool may have read a reply that another thread goes on with.
PATIENCE = 10.0


class Engine(Protocol):
    """What `chat.ChatModel` asks of an engine; `tests/test_engine_contract.py` holds every engine to it.

    max_context: how many tokens prompt and reply may have together, None if that is not known.
    end_ids: what the model's generation config calls the end of a sequence; not acted upon by the engine.
    max_requests: how many requests are computed at the same time; others wait, first come first served.
    defaults: how the model's publisher wants it sampled, neutral where that is not said.
    """

    max_context: int | None
    end_ids: frozenset[int]
    max_requests: int
    defaults: SamplingParams

    def generate(
        self, ids: Sequence[int], sampling: SamplingParams, spared: Collection[int] = ()
    ) -> "TokenStream":
        """Yield `sampling.max_new_tokens` token ids; nothing is computed before the first is asked for.

        Args:
            ids: the prompt, at least one token; left as it is.
            sampling: `stop` is not acted upon, since it is text.
            spared: token ids that the repetition penalty leaves alone, where the engine can.

        Raises:
            ValueError: the prompt is empty. What goes wrong later is raised by the stream.
        """

    def prefill(self, ids: Sequence[int]) -> None:
        """Compute a prefix that prompts are going to begin with, and keep it in the cache."""

    def settle(self) -> None:
        """Return when it computes tokens as fast as it is going to, with nothing left to compile."""

    def close(self) -> None:
        """Give back what the engine holds; it is of no use afterwards. Harmless the second time."""


@dataclass(eq=False)
class Request:
    """What an engine keeps of a request while that waits and runs."""

    reused_tokens: int | None = None
    waiting: bool = False
    waited: float = 0.0
    cancelled: bool = False
    logprobs: list[tuple[float, dict[int, float]]] = field(default_factory=list)
    thread: threading.Thread | None = None  # the one that asked for the newest token
    asked: int = 0  # how often a token was asked for


class TokenStream:
    """The tokens of one request, as an iterator.

    Attributes:
        reused_tokens: how many tokens of the prompt the KV cache held already; None before the first token,
            and where the engine cannot tell.
        waiting: whether the request waits for others to end; waited: how long it did, in seconds.
        logprobs: for each token so far its log-probability and those of the most probable tokens, where
            `SamplingParams.logprobs` asks for them.
    """

    def __init__(self, request: Request, tokens: Generator[int, None, None], cancel: Callable[[], None]):
        self._request = request
        self._tokens = tokens
        self._cancel = cancel
        self._advancing = threading.Lock()

    @property
    def reused_tokens(self) -> int | None:  # noqa: D102
        return self._request.reused_tokens

    @property
    def waiting(self) -> bool:  # noqa: D102
        return self._request.waiting

    @property
    def waited(self) -> float:  # noqa: D102
        return self._request.waited

    @property
    def logprobs(self) -> list[tuple[float, dict[int, float]]]:  # noqa: D102
        return self._request.logprobs

    def __iter__(self) -> "TokenStream":
        return self

    def __next__(self) -> int:
        with self._advancing:
            self._request.thread = threading.current_thread()
            self._request.asked += 1
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


class OptimumEngine:
    """Decoding on OpenVINO, one request at a time, first come first served. An `Engine`.

    The KV cache outlives a request: the tokens that a prompt and the cache begin with in common are not
    computed again. Where the two part, the cache is cut back.

    A given model is left as it was, and still serves `generate` and whatever else it could. Its graph is
    compiled anew, with a cache that can be cut (`kv_cache.PagedModel`); a model that has never been used
    itself has not been compiled, so the weights of a large model are in memory once, those of a small one
    twice.

    Args:
        model: as `conversion.load_model` returns it; `from_folder` needs none.
    """

    max_requests = 1

    def __init__(self, model: "OVModelForCausalLM"):
        settings, generation = model.config.to_dict(), model.generation_config.to_diff_dict()
        self._open(model.model, model._device, model.ov_config, settings, generation)

    @classmethod
    def from_folder(
        cls, folder: str | Path, device: str = "CPU", ov_config: Mapping[str, str] | None = None
    ) -> "OptimumEngine":
        """The same on a converted folder's graph, without Optimum, transformers and torch.

        Args and errors: see `model_folder.load_model`.
        """
        import openvino

        folder = check_folder(folder)
        check_device(device)
        properties = fastest_properties(folder, device) | dict(ov_config or {})
        settings = read_json_if_there(folder / "config.json")
        generation = read_json_if_there(folder / "generation_config.json")
        engine = cls.__new__(cls)
        try:
            graph = openvino.Core().read_model(folder / "openvino_model.xml")
            engine._open(graph, device, properties, settings, generation)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot load {folder} on {device}: {error}") from error
        return engine

    def _open(
        self,
        graph: "openvino.Model",
        device: str,
        properties: Mapping[str, str],
        settings: dict,
        generation: dict,
    ) -> None:
        self.max_context, self.end_ids = model_limits(settings, generation)
        self.defaults = sampling_defaults(generation)
        if has_paged_form(graph, device):
            self._model = PagedModel(graph, device, properties, self.max_context)
        else:
            self._model = StatefulModel(graph, device, properties)
        self._cached_ids: list[int] = []
        self._line: deque[Request] = deque()  # the first one has the engine, the others wait
        self._line_moves = threading.Condition()

    def generate(
        self, ids: Sequence[int], sampling: SamplingParams, spared: Collection[int] = ()
    ) -> TokenStream:
        """See `Engine.generate`.

        The stream raises RuntimeError where it would wait for ever: for another one that the same thread has
        left half read. A `json_schema` is refused with a ValueError; GenAIEngine can follow one.
        """
        if not ids:
            raise ValueError("The prompt has no tokens.")
        if sampling.json_schema is not None:
            raise ValueError("OptimumEngine cannot follow a json_schema; GenAIEngine can (--engine genai).")
        request = Request()
        tokens = self._decode(request, list(ids), sampling, spared)
        return TokenStream(request, tokens, lambda: self._cancel(request))

    def prefill(self, ids: Sequence[int]) -> None:
        """See `Engine.prefill`."""
        request = Request(thread=threading.current_thread())
        try:
            self._wait_for_turn(request)
            self._logits_of_prompt(request, list(ids))
        finally:
            self._leave(request)

    def settle(self) -> None:
        """See `Engine.settle`. What it compiles is else compiled beside a first answer, and slows that."""
        if model := self._model:  # None where it has been closed meanwhile
            model.settle()

    def close(self) -> None:
        """See `Engine.close`."""
        self._model = None

    def _decode(
        self, request: Request, ids: list[int], sampling: SamplingParams, spared: Collection[int]
    ) -> Generator[int, None, None]:
        sampler = Sampler(sampling, ids, spared)
        try:
            self._wait_for_turn(request)
            logits = self._logits_of_prompt(request, ids)
            for number in range(1, sampling.max_new_tokens + 1):
                if request.cancelled:
                    return
                token = sampler.draw(logits)
                if sampling.logprobs is not None:
                    request.logprobs.append(log_probabilities(logits, token, sampling.logprobs))
                yield token
                if number < sampling.max_new_tokens and not request.cancelled:
                    logits = self._infer([token])
        finally:
            self._leave(request)

    def _logits_of_prompt(self, request: Request, ids: list[int]) -> np.ndarray | None:
        """Logits [vocabulary] of the place after `ids`; None if the request was cancelled meanwhile."""
        if self._model is None:
            raise RuntimeError("The engine is closed.")
        wanted = shared_prefix(self._cached_ids, ids)
        request.reused_tokens = self._model.cut(wanted, len(ids))
        del self._cached_ids[request.reused_tokens :]
        logits = None
        while len(self._cached_ids) < len(ids) and not request.cancelled:
            done = len(self._cached_ids)
            logits = self._infer(ids[done : done + PREFILL_CHUNK])
        return logits

    def _infer(self, new_ids: list[int]) -> np.ndarray:
        cached, self._cached_ids = self._cached_ids, []  # what the cache holds is not known if this fails
        logits = self._model.infer(new_ids, past=len(cached))
        cached += new_ids
        self._cached_ids = cached
        return logits

    def _wait_for_turn(self, request: Request) -> None:
        """Return when the engine is this request's, or when that is cancelled."""
        with self._line_moves:
            self._line.append(request)
            started = time.perf_counter()
            while self._line[0] is not request and not request.cancelled:
                request.waiting = True
                ahead = self._line[0]
                asked, is_own = ahead.asked, ahead.thread is request.thread
                left_behind = is_own and request.thread is threading.main_thread()
                moved = not left_behind and self._line_moves.wait(PATIENCE)
                if is_own and not moved and ahead.asked == asked:
                    raise RuntimeError(
                        "This thread has left another reply of the same engine half read, so waiting for it "
                        "would never end. Read that one to its end, or close it, first."
                    )
            if request.waiting:
                request.waiting, request.waited = False, time.perf_counter() - started

    def _leave(self, request: Request) -> None:
        with self._line_moves:
            if request in self._line:
                self._line.remove(request)
            self._line_moves.notify_all()

    def _cancel(self, request: Request) -> None:
        with self._line_moves:
            request.cancelled = True
            self._line_moves.notify_all()


def shared_prefix(cached: list[int], ids: list[int]) -> int:
    """How many tokens need not be computed again. Never all of `ids`: the last one's logits are wanted."""
    if len(cached) < len(ids) and cached == ids[: len(cached)]:
        return len(cached)
    pairs = zip(cached, ids[:-1], strict=False)
    return next((n for n, (old, new) in enumerate(pairs) if old != new), min(len(cached), len(ids) - 1))
