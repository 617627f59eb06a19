"""Token ids in, token ids out, for many users at once: OpenVINO GenAI's continuous batching.

Knows how requests and tokens travel between this process and the one that computes (`genai_worker`), which it
starts, watches and replaces. Refuses to know text, turns and end tokens, as `engine` does; and what the
pipeline does itself: which requests are computed together, where their caches lie, and sampling.
"""

import itertools
import math
import queue
import random
import threading
import time
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import engine
import genai_process
from engine import TokenStream
from genai_process import Failure, News, Process, Settings
from json_files import read_json_if_there
from model_folder import check_folder, model_limits, sampling_defaults, vocabulary_size
from sampling import SamplingParams

CACHE_GIGABYTES = 2


class GenAIEngine:
    """Decoding on a converted folder, many requests at a time, in a process of its own.

    The pipeline computes the next token of all running requests in one pass over the weights, as long as
    there are requests. What prompts have in common is computed once, in blocks of 32 tokens (16 on a GPU).

    If the process dies, its requests end with a RuntimeError, and the next request starts another one. It
    ends with this process, however that ends.

    Args:
        folder: what `conversion.prepare_model` returned.
        device: "CPU" or "GPU".
        ov_config: properties for `compile_model`, for example {"INFERENCE_NUM_THREADS": "4"}; they go before
            those of `tuning.fastest_properties`.

    Attributes:
        max_context: how many tokens prompt and reply may have together: what the model allows and the cache
            of `CACHE_GIGABYTES` holds.
        end_ids: what the model's generation config calls the end of a sequence; not acted upon here.
        cache_tokens: how many tokens the cache holds, of all requests together.
        max_requests: how many requests are computed at the same time; others wait.
        defaults: how the model's publisher wants it sampled.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is incomplete or damaged, or this machine has no such device.
        RuntimeError: OpenVINO GenAI cannot load the model.
    """

    max_requests = 16

    def __init__(self, folder: str | Path, device: str = "CPU", ov_config: dict[str, Any] | None = None):
        folder = check_folder(folder)
        settings = read_json_if_there(folder / "config.json")
        generation = read_json_if_there(folder / "generation_config.json")
        limit, self.end_ids = model_limits(settings, generation)
        self.defaults = sampling_defaults(generation)
        self._vocabulary = vocabulary_size(settings) or math.inf
        self._numbers = itertools.count(1)
        self._desk = _Desk(Settings(str(folder), device, ov_config or {}, CACHE_GIGABYTES), self.max_requests)
        self.cache_tokens = self._desk.cache_tokens
        self.max_context = min(limit or math.inf, self.cache_tokens)
        self._stop = weakref.finalize(self, self._desk.stop)  # also when nobody holds the engine, and at exit

    def generate(
        self, ids: Sequence[int], sampling: SamplingParams, spared: Collection[int] = ()
    ) -> TokenStream:
        """Yield `sampling.max_new_tokens` token ids; `.close()` stops between two of them.

        With `sampling.json_schema` the reply is JSON that satisfies it, and ends with an end token. How many
        tokens of the prompt were in the cache (`reused_tokens`) is a lower bound.

        Args:
            ids: the prompt, at least one token.
            sampling: the rules.
            spared: has no effect here. OpenVINO GenAI's repetition penalty has no exemptions: it makes the
                tokens that end a turn less probable the earlier turns of a conversation.

        Raises:
            ValueError: the prompt is empty, too long for the cache, or holds what is no token of the model.
        """
        if not ids:
            raise ValueError("The prompt has no tokens.")
        if len(ids) >= self.cache_tokens:
            raise ValueError(
                f"The prompt has {len(ids)} tokens, and the KV cache of {CACHE_GIGABYTES} GB holds "
                f"{self.cache_tokens}. Shorten it."
            )
        if min(ids) < 0 or max(ids) >= self._vocabulary:
            raise ValueError(f"The prompt holds ids beyond the model's {self._vocabulary} tokens.")
        order = _Order(
            request=genai_process.Request(
                next(self._numbers),
                array("q", ids),
                generation_options(sampling),
                sampling.logprobs,
                sampling.json_schema,
            )
        )
        return TokenStream(order, self._tokens(order), lambda: self._desk.cancel(order))

    def _tokens(self, order: "_Order") -> Generator[int, None, None]:
        if order.cancelled:
            return
        self._desk.add(order)
        try:
            while (item := order.arrived.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                token, log_probability = item
                if log_probability:
                    order.logprobs.append(log_probability)
                yield token
        finally:
            self._desk.cancel(order)

    def prefill(self, ids: Sequence[int]) -> None:
        """Compute a prefix that prompts are going to begin with, and keep it in the cache."""
        list(self.generate(ids, SamplingParams(temperature=0, max_new_tokens=1)))

    def settle(self) -> None:
        """See `Engine.settle`: nothing is compiled later."""

    @property
    def silent(self) -> float:
        """Seconds for which nothing has come from the process, though it has something to compute.

        While it computes it lets one hear from it every second, or after each step where that takes longer.
        """
        return self._desk.silent

    def close(self) -> None:
        """End the process; requests end with a RuntimeError. Harmless the second time."""
        self._stop()


@dataclass(eq=False)
class _Order(engine.Request):
    """A request, and what has come for it: (token, log-probability or None), None at its end, errors."""

    request: genai_process.Request | None = None
    arrived: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    handed_in: float = 0.0


class _Desk:
    """Where requests are handed in: the process has as many as it may have, the others wait.

    All that happens goes into one queue, and one thread works it off. So nothing here needs a lock, and
    nobody who hands something in waits for the process.
    """

    def __init__(self, settings: Settings, max_requests: int):
        self._settings = settings
        self._max_requests = max_requests
        self._events: queue.SimpleQueue[tuple[Callable, Any]] = queue.SimpleQueue()
        self._pending: deque[_Order] = deque()
        self._running: dict[int, _Order] = {}
        self._closed = self._finished = False
        self._heard = time.monotonic()  # when something came from the process, or went to an idle one
        self._process: Process | None = Process(settings)
        self.cache_tokens = self._process.cache_tokens
        self._read_from(self._process)
        threading.Thread(target=self._work, name="GenAIEngine", daemon=True).start()

    @property
    def silent(self) -> float:
        """See `GenAIEngine`."""
        return time.monotonic() - self._heard if self._running else 0.0

    def add(self, order: _Order) -> None:
        """Hand in an order."""
        order.waiting, order.handed_in = True, time.perf_counter()
        self._events.put((self._on_add, order))
        if self._closed:
            order.arrived.put(closed())

    def cancel(self, order: _Order) -> None:
        """Take an order back; harmless when it is over."""
        order.cancelled, order.waiting = True, False
        order.arrived.put(None)
        self._events.put((self._on_cancel, order))

    def stop(self) -> None:
        """End the process, and all orders with an error."""
        self._closed = True
        if self._process:
            self._process.kill()
        self._events.put((self._on_stop, None))

    def _work(self) -> None:
        while not (self._finished and self._events.empty()):
            action, argument = self._events.get()
            action(argument)

    def _on_add(self, order: _Order) -> None:
        if self._closed:
            order.arrived.put(closed())
        elif not order.cancelled:
            self._pending.append(order)
            self._send_more()

    def _on_cancel(self, order: _Order) -> None:
        if order in self._pending:
            self._pending.remove(order)
        elif order.request.number in self._running and self._process:
            self._process.send(order.request.number)  # it will say when that is done

    def _on_end(self, number: int) -> None:
        self._running.pop(number, None)
        self._send_more()

    def _on_death(self, error: Exception) -> None:
        self._process.hang_up()
        self._process = None
        for order in self._running.values():
            order.arrived.put(closed() if self._closed else copy(error))  # each raises its own
        self._running.clear()
        self._send_more()

    def _on_stop(self, _: None) -> None:
        for order in (*self._running.values(), *self._pending):
            order.arrived.put(closed())
        self._pending.clear()
        if self._process:
            self._process.hang_up()
        self._finished = True

    def _send_more(self) -> None:
        while self._pending and len(self._running) < self._max_requests and not self._closed:
            order = self._pending.popleft()
            if self._process is None:
                try:
                    self._process = Process(self._settings)
                except Exception as error:  # belongs to who asks
                    order.arrived.put(error)
                    continue
                self._read_from(self._process)
            if not self._running:
                self._heard = time.monotonic()
            self._running[order.request.number] = order
            order.waiting, order.waited = False, time.perf_counter() - order.handed_in
            self._process.send(order.request)

    def _read_from(self, process: Process) -> None:
        threading.Thread(target=self._read, args=(process,), name="GenAIEngine news", daemon=True).start()

    def _read(self, process: Process) -> None:
        """Hand out what a process sends, until it has ended."""
        while not isinstance(message := process.receive(), Failure):
            self._heard = time.monotonic()
            for news in message:
                self._hand_out(news)
        process.kill()
        self._events.put((self._on_death, message.error))

    def _hand_out(self, news: News) -> None:
        order = self._running.get(news.number)
        if order is None:
            return
        if news.reused is not None:
            order.reused_tokens = news.reused
        for item in itertools.zip_longest(news.tokens, news.log_probabilities):
            order.arrived.put(item)
        if news.over:
            order.arrived.put(news.error)
            self._events.put((self._on_end, news.number))


def closed() -> RuntimeError:
    """What requests to a closed engine end with."""
    return RuntimeError("The engine has been closed.")


def generation_options(sampling: SamplingParams) -> dict[str, Any]:
    """The same rules as `openvino_genai.GenerationConfig` names them. End tokens do not end the request."""
    options: dict[str, Any] = {
        "ignore_eos": sampling.json_schema is None,
        "max_new_tokens": sampling.max_new_tokens,
        "repetition_penalty": float(sampling.repetition_penalty),
        # Otherwise one token is left to choose among.
        "do_sample": sampling.temperature > 0 and sampling.top_p > 0 and sampling.min_p < 1,
    }
    if sampling.logprobs is not None:
        options["logprobs"] = 1
    if options["do_sample"]:
        options |= {
            "temperature": float(sampling.temperature),
            "top_p": float(sampling.top_p),
            "min_p": float(sampling.min_p),
            "rng_seed": random.getrandbits(63) if sampling.seed is None else sampling.seed,
        }
        if sampling.top_k:
            options["top_k"] = sampling.top_k
    return options
