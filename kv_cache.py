"""One forward pass of a model on OpenVINO, with a KV cache that can be cut back.

Knows the graph of an OVModelForCausalLM, its inputs and where the KV cache lies. Refuses to know sampling,
requests and why a cache is cut.

Two forms of the same model have the same two methods, `cut` and `infer`:

`PagedModel` computes attention over a cache of blocks that belongs to us (Kwon et al., "Efficient Memory
Management for Large Language Model Serving with PagedAttention", arXiv 2309.06180). How much of the cache is
valid is a number given with each call, so cutting costs nothing.

`StatefulModel` is the graph as it was exported, with the cache in variables inside it, for the few models and
devices that have no paged form.
"""

from typing import TYPE_CHECKING

import numpy as np
import openvino
import torch
from openvino import opset13 as ops

if TYPE_CHECKING:
    from optimum.intel import OVModelForCausalLM

FIRST_CAPACITY = 1024  # tokens; doubled when they do not suffice
# Several tokens are computed as a multiple of this many. For every new number OpenVINO's CPU plugin generates
# code, which took 0.1 s and 1.6 MB with SmolLM2-135M, and keeps it.
STEP = 16
WANTED = "wanted_token"


def has_paged_form(model: "OVModelForCausalLM") -> bool:
    """Whether `PagedModel` can run this model on its device.

    It can if all that the model keeps from one call to the next are keys and values of its attention layers.
    """
    types = [operation.get_type_name() for operation in model.model.get_ops()]
    cache_only = types.count("ReadValue") == 2 * types.count("ScaledDotProductAttention") > 0
    return cache_only and model._device.split(".")[0] in ("CPU", "GPU", "AUTO")


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
        inputs = {
            "input_ids": np.array(new_ids + new_ids[-1:] * padding),
            "position_ids": np.minimum(np.arange(past, total), total - padding - 1),
            "past_lens": np.array([past], dtype=np.int32),
            "subsequence_begins": np.array([0, total - past], dtype=np.int32),
            "block_indices": np.arange(blocks, dtype=np.int32),
            "block_indices_begins": np.array([0, blocks], dtype=np.int32),
            "max_context_len": np.array(total, dtype=np.int32),
            WANTED: np.array([len(new_ids) - 1]),
        }
        self._request.infer({name: value for name, value in inputs.items() if name in self._input_names})
        return torch.from_numpy(self._request.get_tensor("logits").data[0, -1].copy())

    def _reserve(self, tokens: int, past: int) -> None:
        """Make room for this many tokens; the first `past` stay."""
        blocks, kept = -(-tokens // self._block_size), -(-past // self._block_size)
        for name, port in self._cache_ports.items():
            shape = [blocks, *(dimension.get_length() for dimension in list(port.get_partial_shape())[1:])]
            tensor = openvino.Tensor(port.get_element_type(), openvino.Shape(shape))
            if kept:
                begin, end = [0] * len(shape), [kept, *shape[1:]]
                old = self._request.get_tensor(name)
                openvino.Tensor(old, begin, end).copy_to(openvino.Tensor(tensor, begin, end))
            self._request.set_tensor(name, tensor)
        self._capacity = blocks * self._block_size


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
        return torch.from_numpy(self._request.get_tensor("logits").data[0, -1].copy())
