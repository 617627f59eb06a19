"""An engine that is still being made: what it will be is known, and requests wait for it.

Knows the contract of an engine and threads. Refuses to know how an engine is made.
"""

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from engine import Engine, TokenStream
from sampling import SamplingParams

LOOK = 0.1  # seconds after which a waiting request sees that it was closed


class LoadingEngine:
    """An `Engine` that another one takes the place of, as soon as that is made.

    Args:
        make: makes it, in a thread of its own; what it raises is raised by every request, and by `result`.
        max_context: what is known of it by now; the engine's own counts as soon as that is there.
        end_ids, max_requests, defaults: those of the engine to come, see `Engine`.
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        max_context: int | None,
        end_ids: frozenset[int],
        max_requests: int,
        defaults: SamplingParams,
    ):
        self.end_ids, self.max_requests, self.defaults = end_ids, max_requests, defaults
        self._known_context = max_context
        self._prefix: list[int] = []
        pool = ThreadPoolExecutor(1, "load")
        self._made: Future[Engine] = pool.submit(self._make, make)
        pool.shutdown(wait=False)

    def _make(self, make: Callable[[], Engine]) -> Engine:
        engine = make()
        if self._prefix:  # it may come too late for this: then the first question computes it
            engine.prefill(self._prefix)
        return engine

    @property
    def max_context(self) -> int | None:
        """See `Engine`."""
        there = self.ready and not self._made.cancelled() and not self._made.exception()
        return self.result().max_context if there else self._known_context

    @property
    def ready(self) -> bool:
        """Whether the engine is there, or will never be."""
        return self._made.done()

    def result(self) -> Engine:
        """Wait for the engine; raises what went wrong with making it."""
        return self._made.result()

    def generate(
        self, ids: Sequence[int], sampling: SamplingParams, spared: Collection[int] = ()
    ) -> TokenStream:
        """See `Engine.generate`; until the engine is there, the stream is `waiting`."""
        if self.ready:
            return self.result().generate(ids, sampling, spared)
        if not ids:
            raise ValueError("The prompt has no tokens.")
        return _LaterStream(self._made, list(ids), sampling, spared)

    def prefill(self, ids: Sequence[int]) -> None:
        """See `Engine.prefill`; it returns at once, and the engine does it when it is there."""
        if self.ready:
            self.result().prefill(ids)
        else:
            self._prefix = list(ids)

    def settle(self) -> None:
        """See `Engine.settle`; raises what went wrong with making the engine."""
        self.result().settle()

    def close(self) -> None:
        """See `Engine.close`."""
        if not self._made.cancel() and not self._made.exception():
            self.result().close()


class _LaterStream:
    """The tokens of a request that came before the engine; a `TokenStream`."""

    def __init__(
        self, made: "Future[Engine]", ids: list[int], sampling: SamplingParams, spared: Collection[int]
    ):
        self._made = made
        self._arguments = (ids, sampling, spared)
        self._inner: TokenStream | None = None
        self._closed = False
        self._waiting = False
        self._waited = 0.0

    def __iter__(self) -> "_LaterStream":
        return self

    def __next__(self) -> int:
        if self._inner is None:
            started, self._waiting = time.perf_counter(), True
            while not self._made.done() and not self._closed:
                wait([self._made], timeout=LOOK)
            self._waiting, self._waited = False, time.perf_counter() - started
            if not self._closed:
                self._inner = self._made.result().generate(*self._arguments)
        if self._closed:
            raise StopIteration
        return next(self._inner)

    def close(self) -> None:
        self._closed = True
        if self._inner:
            self._inner.close()

    @property
    def waiting(self) -> bool:
        return self._inner.waiting if self._inner else self._waiting

    @property
    def waited(self) -> float:
        return self._waited + (self._inner.waited if self._inner else 0.0)

    @property
    def reused_tokens(self) -> int | None:
        return self._inner.reused_tokens if self._inner else None

    @property
    def logprobs(self) -> list[tuple[float, dict[int, float]]]:
        return self._inner.logprobs if self._inner else []
