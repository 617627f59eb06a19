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
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino
import openvino_genai
from transformers import AutoConfig, GenerationConfig

from engine import Request, SamplingParams, TokenStream, model_limits
from resources import fastest_properties

if TYPE_CHECKING:
    from transformers import PretrainedConfig

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
            those of `resources.fastest_properties`.

    Attributes:
        max_context: how many tokens prompt and reply may have together: what the model allows and the cache
            of `CACHE_GIGABYTES` can hold.
        end_ids: what the model's generation config calls the end of a sequence; not acted upon here.
        max_requests: how many requests are computed at the same time.
    """

    max_requests = 16

    def __init__(self, folder: str | Path, device: str = "CPU", ov_config: dict[str, str] | None = None):
        config = AutoConfig.from_pretrained(folder)
        limit, self.end_ids = model_limits(config, GenerationConfig.from_pretrained(folder))
        self.max_context = min(limit or math.inf, tokens_in_cache(config))
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

    def generate(self, ids: Sequence[int], sampling: SamplingParams) -> TokenStream:
        """Yield `sampling.max_new_tokens` token ids; `.close()` stops between two of them.

        Args:
            ids: the prompt, at least one token.

        Raises:
            ValueError: the prompt is empty.
        """
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


def tokens_in_cache(config: "PretrainedConfig") -> int:
    """How many tokens' keys and values the cache holds at least, which is if they have 16 bits."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return CACHE_GIGABYTES * 10**9 // (2 * config.num_hidden_layers * heads * head_size * 2)


def generation_config(sampling: SamplingParams) -> "openvino_genai.GenerationConfig":
    """The same rules as OpenVINO GenAI names them. End tokens do not end the request."""
    config = openvino_genai.GenerationConfig()
    config.ignore_eos = True
    config.max_new_tokens = sampling.max_new_tokens
    config.repetition_penalty = sampling.repetition_penalty
    config.do_sample = sampling.temperature > 0 and sampling.top_p > 0  # else one token is left
    if config.do_sample:
        config.temperature = sampling.temperature
        config.rng_seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        config.top_p = sampling.top_p
        if sampling.top_k:
            config.top_k = sampling.top_k
    return config
