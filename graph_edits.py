"""Changes to a model's graph with which it decodes faster and in less memory.

Knows operations of OpenVINO graphs and the layout of NNCF's compressed weights. Refuses to know requests and
caches.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import openvino
from openvino import opset13 as ops

WANTED = "wanted_token"


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
    products = _products_by_input(graph)
    while products:
        _join(products.pop())  # so that what has been joined is in memory no longer
    graph.validate_nodes_and_infer_types()


def _products_by_input(graph: openvino.Model) -> list[list[openvino.Node]]:
    """Products that can be joined, those of one input together."""
    products = defaultdict(list)
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.get_attributes()["transpose_b"]:
            weights, source = node.input_value(1).get_node(), node.input_value(0)
            rows, *columns = weights.get_output_partial_shape(0).to_shape()
            layout = compressed_layout(weights, rows)
            if layout is not None and len(columns) == 1:
                products[source.get_node().get_name(), source.get_index(), layout].append(node)
    return [nodes for nodes in products.values() if len(nodes) > 1]


def _join(products: list[openvino.Node]) -> None:
    weights = stacked([node.input_value(1).get_node() for node in products])
    joined = ops.matmul(products[0].input_value(0), weights, False, True)
    widths = [node.get_output_partial_shape(0)[-1].get_length() for node in products]
    parts = ops.variadic_split(joined, np.int64(-1), np.array(widths))
    for node, part in zip(products, parts.outputs(), strict=True):
        node.output(0).replace(part)


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
