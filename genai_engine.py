"""Token ids in, token ids out, for many users at once: OpenVINO GenAI's continuous batching.

Knows how to hand requests to `ContinuousBatchingPipeline` and to take their tokens from it. Refuses to know
text, turns and end tokens, as `engine` does; and what the pipeline does itself: which requests are computed
together, where their caches lie, what prompts have in common, and sampling.
"""

import itertools
import math
import queue
import random
import threading
from collections.abc import Collection, Generator, Sequence
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from engine import Request, TokenStream
from model_folder import model_limits, read_json, sampling_defaults
from sampling import SamplingParams
from tuning import fastest_properties

CACHE_GIGABYTES = 2


class GenAIEngine:
    """Decoding on a converted folder, many requests at a time.

    The pipeline computes the next token of all running requests in one pass over the weights. A thread drives
    it as long as there are requests. What prompts have in common is computed once, in blocks of 32 tokens
    (16 on a GPU).

    Args:
        folder: what `conversion.prepare_model` returned.
        device: "CPU" or "GPU".
        ov_config: properties for `compile_model`, for example {"INFERENCE_NUM_THREADS": "4"}; they go before
            those of `tuning.fastest_properties`.

    Attributes:
        max_context: how many tokens prompt and reply may have together: what the model allows and the cache
            of `CACHE_GIGABYTES` can hold.
        end_ids: what the model's generation config calls the end of a sequence; not acted upon here.
        max_requests: how many requests are computed at the same time.
    """

    max_requests = 16

    def __init__(self, folder: str | Path, device: str = "CPU", ov_config: dict[str, str] | None = None):
        settings = read_json(Path(folder) / "config.json")
        generation = read_json(Path(folder) / "generation_config.json")
        limit, self.end_ids = model_limits(settings, generation)
        self.defaults = sampling_defaults(generation)
        self.max_context = min(limit or math.inf, tokens_in_cache(settings))
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = CACHE_GIGABYTES
        scheduler.max_num_seqs = self.max_requests
        properties = fastest_properties(folder, device) | (ov_config or {})
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, device, properties)
        self._numbers = itertools.count()
        self._running: dict[openvino_genai.GenerationHandle, queue.SimpleQueue] = {}
        self._driver: threading.Thread | None = None
        self._lock = threading.Lock()

    def generate(
        self, ids: Sequence[int], sampling: SamplingParams, spared: Collection[int] = ()
    ) -> TokenStream:
        """See `engine.Engine.generate`. OpenVINO GenAI's repetition penalty spares no token."""
        if not ids:
            raise ValueError("The prompt has no tokens.")
        request, arrived = Request(), queue.SimpleQueue()

        def cancel() -> None:
            request.cancelled = True
            arrived.put(None)

        return TokenStream(request, self._tokens(list(ids), sampling, arrived), cancel)

    def prefill(self, ids: Sequence[int]) -> None:
        """Compute a prefix that prompts are going to begin with, and keep it in the cache."""
        list(self.generate(ids, SamplingParams(temperature=0, max_new_tokens=1)))

    def close(self) -> None:
        """See `engine.Engine.close`."""
        self._pipeline = None

    def _tokens(
        self, ids: list[int], sampling: SamplingParams, arrived: queue.SimpleQueue
    ) -> Generator[int, None, None]:
        with self._lock:
            handle = self._pipeline.add_request(
                next(self._numbers), openvino.Tensor(np.array([ids])), generation_config(sampling)
            )
            self._running[handle] = arrived
            if self._driver is None:
                self._driver = threading.Thread(target=self._drive, daemon=True)
                self._driver.start()
        try:
            while (token := arrived.get()) is not None:
                if isinstance(token, Exception):
                    raise token
                yield token
        finally:
            handle.cancel()

    def _drive(self) -> None:
        """Compute tokens and hand them out until no request is left."""
        while True:
            with self._lock:
                if not self._pipeline.has_non_finished_requests():
                    self._driver = None
                    return
            try:
                self._pipeline.step()
            except Exception as error:  # belongs to those who wait for tokens
                self._end_all(error)
                return
            with self._lock:
                for handle, arrived in list(self._running.items()):
                    self._hand_out(handle, arrived)

    def _hand_out(self, handle: "openvino_genai.GenerationHandle", arrived: queue.SimpleQueue) -> None:
        while handle.can_read():
            for output in handle.read().values():
                for token in output.generated_ids:
                    arrived.put(token)
        status = handle.get_status()
        if status == openvino_genai.GenerationStatus.IGNORED:
            arrived.put(MemoryError(f"The request does not fit into the KV cache of {CACHE_GIGABYTES} GB."))
        if status != openvino_genai.GenerationStatus.RUNNING:
            arrived.put(None)
            del self._running[handle]

    def _end_all(self, error: Exception) -> None:
        with self._lock:
            for handle, arrived in self._running.items():
                handle.cancel()
                arrived.put(error)
            self._running.clear()
            self._driver = None  # the next request tries again


def tokens_in_cache(settings: dict) -> int:
    """How many tokens' keys and values the cache holds at least, which is if they have 16 bits.

    Args:
        settings: the content of config.json.
    """
    text = settings.get("text_config") or settings

    def size(*names: str) -> int:
        return next((text[name] for name in names if text.get(name)), 0)

    all_heads = size("num_attention_heads", "n_heads", "n_head")
    heads = size("num_key_value_heads") or all_heads
    head_size = size("head_dim") or size("hidden_size", "d_model", "n_embd") // all_heads
    layers = size("num_hidden_layers", "n_layers", "n_layer")
    return CACHE_GIGABYTES * 10**9 // (2 * layers * heads * head_size * 2)


def generation_config(sampling: SamplingParams) -> "openvino_genai.GenerationConfig":
    """The same rules as OpenVINO GenAI names them. End tokens do not end the request."""
    config = openvino_genai.GenerationConfig()
    config.ignore_eos = True
    config.max_new_tokens = sampling.max_new_tokens
    config.repetition_penalty = sampling.repetition_penalty
    # else one token is left
    config.do_sample = sampling.temperature > 0 and sampling.top_p > 0 and sampling.min_p < 1
    if config.do_sample:
        config.temperature = sampling.temperature
        config.rng_seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        config.top_p = sampling.top_p
        config.min_p = sampling.min_p
        if sampling.top_k:
            config.top_k = sampling.top_k
    return config
