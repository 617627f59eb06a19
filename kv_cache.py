"""One forward pass of a model on OpenVINO, with a KV cache that can be cut back.

Knows the graph of an OVModelForCausalLM, its inputs and where the KV cache lies. Refuses to know sampling,
requests and why a cache is cut.

Two forms of the same model have the same two methods, `cut` and `infer`:

`PagedModel` computes attention over a cache of blocks that belongs to us (Kwon et al., "Efficient Memory
Management for Large Language Model Serving with PagedAttention", arXiv 2309.06180). How much of the cache is
valid is a number given with each call, so cutting costs nothing. A small model is compiled twice: for prompts
of any length, and for one token.

`StatefulModel` is the graph as it was exported, with the cache in variables inside it, for the few models and
devices that have no paged form.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import openvino
import torch
from openvino import opset13 as ops

from resources import SMALL_MODEL

if TYPE_CHECKING:
    from optimum.intel import OVModelForCausalLM

FIRST_CAPACITY = 1024  # tokens; doubled when they do not suffice
# Several tokens are computed as a multiple of this many. For every new number OpenVINO's CPU plugin generates
# code, which took 0.1 s and 1.6 MB with SmolLM2-135M, and keeps it.
STEP = 16
WANTED = "wanted_token"


def has_paged_form(model: "OVModelForCausalLM") -> bool:
    """Whether `PagedModel` can run this model on its device.

    It can on a CPU, if all that the model keeps from one call to the next are keys and values of its
    attention layers. A graphics card could not write into memory of ours, where the paged form has its cache.
    """
    types = [operation.get_type_name() for operation in model.model.get_ops()]
    cache_only = types.count("ReadValue") == 2 * types.count("ScaledDotProductAttention") > 0
    on_cpu = model._device == "CPU" or (
        model._device == "AUTO" and openvino.Core().available_devices == ["CPU"]
    )
    return cache_only and on_cpu


class PagedModel:
    """A model with paged attention and one sequence in its cache.

    The given model is not changed, and not compiled: its graph is copied, the weights are not.
    """

    def __init__(self, model: "OVModelForCausalLM"):
        from openvino._offline_transformations import paged_attention_transformation

        graph = model.model.clone()
        paged_attention_transformation(graph)
        keep_wanted_logits(graph)
        config = dict(model.ov_config)
        if model._device == "AUTO":  # the cache is laid out for one device, so none may stand in at first
            config["ENABLE_STARTUP_FALLBACK"] = "NO"
        compiled = openvino.Core().compile_model(graph, model._device, config)
        self._request = compiled.create_infer_request()
        ports = {port.get_any_name(): port for port in compiled.inputs}
        self._input_names = set(ports)
        self._cache_ports = {name: port for name, port in ports.items() if "_cache." in name}
        self._block_size = ports["value_cache.0"].get_partial_shape()[2].get_length()
        self._capacity = 0
        self._one_token = None
        if model._device == "CPU" and weight_bytes(graph) <= SMALL_MODEL:
            self._one_token = OneTokenRequest(graph, config)

    def cut(self, wanted: int) -> int:
        """Forget all but the first `wanted` cached tokens; returns how many could be kept."""
        return wanted

    def infer(self, new_ids: list[int], past: int) -> torch.Tensor:
        """Run the model on tokens that follow the first `past` cached ones.

        Returns:
            Logits [vocabulary] of the last position.
        """
        # The last token once more, as often as need be. Tokens do not see those after them, and what is
        # cached of these is behind the part that counts.
        padding = -len(new_ids) % STEP if len(new_ids) > 1 else 0
        total = past + len(new_ids) + padding
        if total > self._capacity:
            self._reserve(max(total, 2 * self._capacity, FIRST_CAPACITY), past)
        blocks = -(-total // self._block_size)
        if self._one_token and len(new_ids) == 1:
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
        tensors = {"block_indices": openvino.Tensor(np.arange(blocks, dtype=np.int32))}
        for name, port in self._cache_ports.items():
            shape = [blocks, *(dimension.get_length() for dimension in list(port.get_partial_shape())[1:])]
            tensors[name] = openvino.Tensor(port.get_element_type(), openvino.Shape(shape))
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
    models hardly notice.

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

    def infer(self, token: int, past: int, blocks: int) -> torch.Tensor:
        """Logits [vocabulary] after a token that follows `past` cached ones; the cache then has `blocks`."""
        self._inputs["input_ids"][0] = token
        self._inputs["position_ids"][0] = self._inputs["past_lens"][0] = past
        self._inputs["block_indices_begins"][1] = blocks
        self._inputs["max_context_len"][...] = past + 1
        self.request.infer(share_outputs=True)
        return last_logits(self.request)


def last_logits(request: openvino.InferRequest) -> torch.Tensor:
    """Logits [vocabulary] of the last position that a request has computed."""
    return torch.from_numpy(request.get_tensor("logits").data[0, -1].copy())


def weight_bytes(graph: openvino.Model) -> int:
    """The size of all constants in a graph."""
    return sum(node.get_byte_size() for node in graph.get_ops() if node.get_type_name() == "Constant")


def keep_wanted_logits(graph: openvino.Model) -> None:
    """Let a graph whose first dimension is the tokens compute the logits of one of them, in place.

    A new input, `WANTED`, says which one. All logits of 2500 tokens and a vocabulary of 49,152 are 0.5 GB.
    """
    node = graph.get_results()[0]
    while node.get_type_name() != "MatMul":  # scaling and soft-capping may come after it
        node = node.input_value(0).get_node()
    wanted = ops.parameter([1], dtype=np.int64, name=WANTED)
    wanted.output(0).get_tensor().set_names({WANTED})
    one = ops.gather(node.input_value(0), wanted, np.int64(0))
    node.input(0).replace_source_output(one.output(0))
    graph.add_parameters([wanted])
    graph.validate_nodes_and_infer_types()


def join_products(graph: openvino.Model) -> None:
    """Let matrix products of the same input with compressed weights be one product, in place.

    Those of queries, keys and values, for example. Each product of a single token has to be shared out among
    threads, which takes as long as reading the smaller matrices does.
    """
    products = defaultdict(list)
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.get_attributes()["transpose_b"]:
            weights, source = node.input_value(1).get_node(), node.input_value(0)
            rows, *columns = weights.get_output_partial_shape(0).to_shape()
            layout = compressed_layout(weights, rows)
            if layout is not None and len(columns) == 1:
                products[source.get_node().get_name(), source.get_index(), layout].append(node)
    for nodes in products.values():
        if len(nodes) > 1:
            weights = stacked([node.input_value(1).get_node() for node in nodes])
            joined = ops.matmul(nodes[0].input_value(0), weights, False, True)
            widths = [node.get_output_partial_shape(0)[-1].get_length() for node in nodes]
            parts = ops.variadic_split(joined, np.int64(-1), np.array(widths))
            for node, part in zip(nodes, parts.outputs(), strict=True):
                node.output(0).replace(part)
    graph.validate_nodes_and_infer_types()


def compressed_layout(node: openvino.Node, rows: int) -> Hashable | None:
    """What weights must have in common to be stacked; None if these cannot be, or are no compressed integers.

    NNCF writes them as integers [rows, columns] or [rows, groups, columns of a group]; a zero point may be
    subtracted, a scale is multiplied, both with one column, and groups are brought to [rows, columns].
    """
    kind, shape = node.get_type_name(), tuple(node.get_output_partial_shape(0).to_shape())
    if kind == "Constant":
        kind = node.get_element_type()
        known = len(shape) > 1 and shape[0] == rows and (kind.is_integral() or shape[-1] == 1)
        whole_bytes = kind.bitwidth * math.prod(shape) % 8 == 0
        return (str(kind), shape[1:]) if known and whole_bytes else None
    if kind not in ("Convert", "Subtract", "Multiply", "Reshape"):
        return None
    inputs = node.input_values()[: 1 if kind == "Reshape" else None]
    layouts = [compressed_layout(value.get_node(), rows) for value in inputs]
    return None if None in layouts else (kind, str(node.get_output_element_type(0)), shape[1:], *layouts)


def stacked(nodes: Sequence[openvino.Node]) -> openvino.Node:
    """Weights of the same layout, one above the other."""
    kind = nodes[0].get_type_name()
    shape = [sum(node.get_output_shape(0)[0] for node in nodes), *nodes[0].get_output_shape(0)[1:]]
    if kind == "Constant":
        tensor = openvino.Tensor(nodes[0].get_element_type(), openvino.Shape(shape))
        # Bytes, since two numbers of 4 bits share one.
        np.concatenate(
            [node.data.reshape(-1).view(np.uint8) for node in nodes],
            out=tensor.data.reshape(-1).view(np.uint8),
        )
        return ops.constant(tensor, shared_memory=True)
    inputs = [
        stacked([node.input_value(place).get_node() for node in nodes])
        for place in range(1 if kind == "Reshape" else nodes[0].get_input_size())
    ]
    if kind == "Reshape":
        return ops.reshape(inputs[0], shape, special_zero=False)
    if kind == "Convert":
        return ops.convert(inputs[0], nodes[0].get_output_element_type(0))
    return {"Subtract": ops.subtract, "Multiply": ops.multiply}[kind](*inputs)


class StatefulModel:
    """A model as it was exported, with one sequence in its cache, which can be emptied but not cut."""

    def __init__(self, model: "OVModelForCausalLM"):
        model.compile()
        compiled = model.request.get_compiled_model()
        self._input_names = {port.get_any_name() for port in compiled.inputs}
        self._request = compiled.create_infer_request()
        self._cached = 0

    def cut(self, wanted: int) -> int:
        """Forget all but the first `wanted` cached tokens; returns how many could be kept."""
        return wanted if wanted == self._cached else 0

    def infer(self, new_ids: list[int], past: int) -> torch.Tensor:
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
