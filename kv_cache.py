"""One forward pass of a model on OpenVINO, with a KV cache that can be cut back.

Knows the graph of a stateful language model, its inputs and where the KV cache lies. Refuses to know
sampling, requests and why a cache is cut.

Two forms of the same model have the same two methods, `cut` and `infer`:

`PagedModel` computes attention over a cache of blocks that belongs to us (Kwon et al., "Efficient Memory
Management for Large Language Model Serving with PagedAttention", arXiv 2309.06180). How much of the cache is
valid is a number given with each call, so cutting costs nothing. A small model is compiled twice: for prompts
of any length, and then, when the first token follows or `settle` asks for it, for one token. Until that is
there, tokens are computed by the first form.

`StatefulModel` is the graph as it was exported, with the cache in variables inside it, for the few models and
devices that have no paged form.
"""

import math
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import openvino

from compression import SMALL_MODEL
from graph_edits import WANTED, join_products, keep_wanted_logits, weight_bytes
from workspace import check_memory, give_back_memory

GROWTH = 512  # tokens for which the cache has room beyond a prompt, and by which it grows at least
# Several tokens are computed as a multiple of this many. For every new number OpenVINO's CPU plugin generates
# code, which took 0.1 s and 1.6 MB with SmolLM2-135M, and keeps it.
STEP = 16


def has_paged_form(graph: openvino.Model, device: str) -> bool:
    """Whether `PagedModel` can run this graph on a device.

    It can on a CPU, if all that the model keeps from one call to the next are keys and values of its
    attention layers. A graphics card could not write into memory of ours, where the paged form has its cache.
    """
    types = [operation.get_type_name() for operation in graph.get_ops()]
    cache_only = types.count("ReadValue") == 2 * types.count("ScaledDotProductAttention") > 0
    on_cpu = device == "CPU" or (device == "AUTO" and openvino.Core().available_devices == ["CPU"])
    return cache_only and on_cpu


class PagedModel:
    """A model with paged attention and one sequence in its cache.

    The given graph is not changed: it is copied, the weights are not.

    Args:
        graph: as exported, with the cache in variables inside it.
        device: "CPU", or "AUTO" where there is nothing else.
        properties: for `compile_model`.
        max_context: tokens beyond which the cache need not grow, None if that is not known.
    """

    def __init__(
        self,
        graph: openvino.Model,
        device: str,
        properties: Mapping[str, str],
        max_context: int | None = None,
    ):
        from openvino._offline_transformations import paged_attention_transformation

        graph = graph.clone()
        paged_attention_transformation(graph)
        keep_wanted_logits(graph)
        properties = dict(properties)
        if device == "AUTO":  # the cache is laid out for one device, so none may stand in at first
            properties["ENABLE_STARTUP_FALLBACK"] = "NO"
        compiled = openvino.Core().compile_model(graph, device, properties)
        self._request = compiled.create_infer_request()
        ports = {port.get_any_name(): port for port in compiled.inputs}
        self._input_names = set(ports)
        self._cache_ports = {name: port for name, port in ports.items() if "_cache." in name}
        self._block_size = ports["value_cache.0"].get_partial_shape()[2].get_length()
        self._longest = math.inf if max_context is None else max_context
        self._capacity = 0
        self._one_token: OneTokenRequest | None = None
        self._coming: Future[OneTokenRequest] | None = None
        is_small = device == "CPU" and weight_bytes(graph) <= SMALL_MODEL
        self._to_compile = (graph, properties) if is_small else None
        self._begins = threading.Lock()

    @property
    def capacity(self) -> int:
        """How many tokens the cache has room for."""
        return self._capacity

    def settle(self) -> None:
        """Compile the form for one token, which takes over from the next one on; any thread may call this."""
        if coming := self._compiling():
            coming.result()

    def _compiling(self) -> "Future[OneTokenRequest] | None":
        """The form for one token, begun by whoever asks first; None where there is none to come."""
        with self._begins:
            if self._to_compile:
                beside = ThreadPoolExecutor(1, "compile for one token")
                self._coming = beside.submit(_compiled_for_one_token, *self._to_compile)
                beside.shutdown(wait=False)
                self._to_compile = None
            return self._coming

    def _take_over(self) -> None:
        """From this single token on, use the form for one token, if it is there."""
        coming = self._compiling()
        if coming and coming.done():
            self._one_token, self._coming = self._coming.result(), None
            for name in ("block_indices", *self._cache_ports):
                self._one_token.request.set_tensor(name, self._request.get_tensor(name))

    def cut(self, wanted: int, coming: int) -> int:
        """Forget all but the first `wanted` cached tokens; returns how many could be kept.

        The cache grows at once to what is coming, so that it is not copied between parts of a prompt. Where
        a long conversation is over, its cache is given back.

        Args:
            coming: how many tokens the sequence is going to have next.

        Raises:
            OSError: the cache would have to grow, and there is no memory for it.
        """
        roomy = max(coming, min(coming + GROWTH, self._longest))
        if coming > self._capacity:
            self._reserve(roomy, wanted)
        elif self._capacity > 2 * roomy:
            self._reserve(roomy, wanted)
            give_back_memory()
        return wanted

    def infer(self, new_ids: list[int], past: int) -> np.ndarray:
        """Run the model on tokens that follow the first `past` cached ones.

        Returns:
            Logits [vocabulary] of the last position.

        Raises:
            OSError: the cache would have to grow, and there is no memory for it.
        """
        # The last token once more, as often as need be. Tokens do not see those after them, and what is
        # cached of these is behind the part that counts.
        padding = -len(new_ids) % STEP if len(new_ids) > 1 else 0
        total = past + len(new_ids) + padding
        if total > self._capacity:
            larger = self._capacity + max(GROWTH, self._capacity // 4)
            self._reserve(max(total, min(larger, self._longest)), past)
        blocks = -(-total // self._block_size)
        if len(new_ids) == 1:
            self._take_over()
            if self._one_token:
                return self._one_token.infer(new_ids[0], past, blocks)
        inputs = {
            "input_ids": np.array(new_ids + new_ids[-1:] * padding),
            "position_ids": np.minimum(np.arange(past, total), total - padding - 1),
            "past_lens": np.array([past], dtype=np.int32),
            "subsequence_begins": np.array([0, total - past], dtype=np.int32),
            "block_indices_begins": np.array([0, blocks], dtype=np.int32),
            "max_context_len": np.array(total, dtype=np.int32),
            WANTED: np.array([len(new_ids) - 1]),
        }
        self._request.infer({name: value for name, value in inputs.items() if name in self._input_names})
        return last_logits(self._request)

    def _reserve(self, tokens: int, past: int) -> None:
        """Make room for this many tokens; the first `past` stay."""
        blocks, kept = -(-tokens // self._block_size), -(-past // self._block_size)
        shapes = {
            name: [blocks, *(dimension.get_length() for dimension in list(port.get_partial_shape())[1:])]
            for name, port in self._cache_ports.items()
        }
        types = {name: port.get_element_type() for name, port in self._cache_ports.items()}
        needed = sum(math.prod(shape) * types[name].bitwidth // 8 for name, shape in shapes.items())
        check_memory(
            needed,
            f"A KV cache of {blocks * self._block_size} tokens",
            "Close other programs, begin a new conversation, or choose a smaller model.",
        )
        tensors = {"block_indices": openvino.Tensor(np.arange(blocks, dtype=np.int32))}
        for name, shape in shapes.items():
            tensors[name] = openvino.Tensor(types[name], openvino.Shape(shape))
            if kept:
                begin, end = [0] * len(shape), [kept, *shape[1:]]
                old = self._request.get_tensor(name)
                openvino.Tensor(old, begin, end).copy_to(openvino.Tensor(tensors[name], begin, end))
        for name, tensor in tensors.items():
            self._request.set_tensor(name, tensor)
            if self._one_token:
                self._one_token.request.set_tensor(name, tensor)
        self._capacity = blocks * self._block_size


class OneTokenRequest:
    """The same graph for one token at a time, on the same cache; its weights are in memory once more.

    Where all shapes are known beforehand, OpenVINO has nothing to work out between two operations. That and
    joined products took SmolLM2-135M at INT8 from 7.6 to 5.6 ms a token, on two cores of an AMD EPYC. Large
    models hardly notice. What this project compresses is joined already; joined here, products are in memory
    once more.

    Its shapes are fixed, and so is the memory of its inputs: OpenVINO spends 0.4 ms on getting used to other
    memory. It is lent by us, which is safe as long as the compiled graph has no second request.
    """

    def __init__(self, graph: openvino.Model, config: dict[str, str]):
        names = {port.get_any_name() for port in graph.inputs}
        self._inputs = {
            "input_ids": np.zeros(1, dtype=np.int64),
            "position_ids": np.zeros(1, dtype=np.int64),
            "past_lens": np.zeros(1, dtype=np.int32),
            "subsequence_begins": np.array([0, 1], dtype=np.int32),
            "block_indices_begins": np.zeros(2, dtype=np.int32),
            "max_context_len": np.zeros((), dtype=np.int32),
            WANTED: np.zeros(1, dtype=np.int64),
        }
        used = {name: array for name, array in self._inputs.items() if name in names}
        graph = graph.clone()
        graph.reshape({name: array.shape for name, array in used.items()})
        join_products(graph)
        self.request = openvino.Core().compile_model(graph, "CPU", config).create_infer_request()
        for name, array in used.items():
            self.request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def infer(self, token: int, past: int, blocks: int) -> np.ndarray:
        """Logits [vocabulary] after a token that follows `past` cached ones; the cache then has `blocks`."""
        self._inputs["input_ids"][0] = token
        self._inputs["position_ids"][0] = self._inputs["past_lens"][0] = past
        self._inputs["block_indices_begins"][1] = blocks
        self._inputs["max_context_len"][...] = past + 1
        self.request.infer(share_outputs=True)
        return last_logits(self.request)


def _compiled_for_one_token(graph: openvino.Model, properties: Mapping[str, str]) -> OneTokenRequest:
    request = OneTokenRequest(graph, properties)
    give_back_memory()  # what compiling has left behind
    return request


def last_logits(request: openvino.InferRequest) -> np.ndarray:
    """Logits [vocabulary] of the last position that a request has computed."""
    return request.get_tensor("logits").data[0, -1].astype(np.float32)


class StatefulModel:
    """A model as it was exported, with one sequence in its cache, which can be emptied but not cut."""

    def __init__(self, graph: openvino.Model, device: str, properties: Mapping[str, str]):
        compiled = openvino.Core().compile_model(graph, device, dict(properties))
        self._input_names = {port.get_any_name() for port in compiled.inputs}
        self._request = compiled.create_infer_request()
        self._cached = 0

    def settle(self) -> None:
        """Nothing is compiled beside it."""

    def cut(self, wanted: int, coming: int) -> int:
        """Forget all but the first `wanted` cached tokens; returns how many could be kept."""
        return wanted if wanted == self._cached else 0

    def infer(self, new_ids: list[int], past: int) -> np.ndarray:
        """Run the model on tokens that follow the first `past` cached ones.

        Returns:
            Logits [vocabulary] of the last position.
        """
        if past == 0:
            self._request.reset_state()
        total = past + len(new_ids)
        inputs = {
            "input_ids": np.array([new_ids]),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(past, total)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        self._cached = -1  # not known if the inference fails
        self._request.infer({name: value for name, value in inputs.items() if name in self._input_names})
        self._cached = total
        return last_logits(self._request)
