"""Changes to a graph leave its results as they are."""

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

import graph_edits
from compression import compress
from conftest import EXACT
from tiny_checkpoints import FAMILIES


def count(graph, kind: str) -> int:
    return sum(node.get_type_name() == kind for node in graph.get_ops())


def constant(values: np.ndarray, kind: str) -> openvino.Node:
    if kind in ("u4", "i4"):
        low, high = np.resize(values, values.size + values.size % 2).reshape(-1, 2).T
        kind = getattr(openvino.Type, kind)
        return ops.constant(openvino.Tensor(low | high << 4, openvino.Shape(values.shape), kind))
    return ops.constant(values)


def compressed(rows: int, kind: str, groups: int = 2, zero_points: int | None = None) -> openvino.Node:
    """Weights [rows, 64] as NNCF writes them: without a zero point where the integers have a sign."""
    choice = np.random.default_rng(rows)
    numbers = choice.integers(0, 16, (rows, groups, 64 // groups), dtype=np.uint8)
    node = ops.convert(constant(numbers, kind), "f32")
    if kind != "i4":
        zeros = choice.integers(0, 16, (zero_points or rows, groups, 1), dtype=np.uint8)
        node = ops.subtract(node, ops.convert(constant(zeros, kind), "f32"))
    node = ops.multiply(node, ops.constant(choice.random((rows, groups, 1), dtype=np.float32)))
    return ops.reshape(node, [rows, 64], special_zero=False)


def products(*weights: openvino.Node) -> openvino.Model:
    numbers = ops.parameter([-1, 64], np.float32)
    return openvino.Model([ops.matmul(numbers, node, False, True) for node in weights], [numbers])


@pytest.mark.parametrize("kind", ["u8", "u4", "i4"])
@pytest.mark.parametrize("groups", [1, 2])
def test_products_in_groups_are_joined_and_give_the_same(kind, groups):
    graph = products(*(compressed(rows, kind, groups) for rows in (8, 4, 16)))
    numbers = np.random.default_rng(0).random((3, 64), dtype=np.float32)
    expected = openvino.compile_model(graph, "CPU", EXACT)(numbers)
    graph_edits.join_products(graph)
    assert count(graph, "MatMul") == 1
    found = openvino.compile_model(graph, "CPU", EXACT)(numbers)
    for place in range(3):
        np.testing.assert_allclose(found[place], expected[place], rtol=1e-5)


@pytest.mark.parametrize(
    "weights",
    [
        lambda: (compressed(8, "u8"), compressed(8, "u4")),
        lambda: (compressed(8, "u8", groups=1), compressed(8, "u8", groups=2)),
        lambda: (compressed(8, "u8", zero_points=1), compressed(4, "u8", zero_points=1)),
        lambda: (compressed(3, "u4", groups=1), compressed(5, "u4", groups=1)),  # half a byte would be left
        lambda: [ops.unsqueeze(compressed(8, "u8"), [0])] * 2,
    ],
    ids=["types", "groups", "one zero point for all rows", "odd", "three dimensions"],
)
def test_what_cannot_be_stacked_is_left_alone(weights):
    graph = products(*weights())
    graph_edits.join_products(graph)
    assert count(graph, "MatMul") == 2


def test_products_with_whole_weights_are_not_joined(converted):
    graph = openvino.Core().read_model(converted("llama", "FP16") / "openvino_model.xml")
    before = count(graph, "MatMul")
    graph_edits.join_products(graph)
    assert count(graph, "MatMul") == before


@pytest.mark.parametrize("precision", ["INT8", "INT4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_products_of_the_same_input_are_joined(converted, family, precision):
    graph = openvino.Core().read_model(converted(family, "FP16") / "openvino_model.xml")
    graph = compress(graph, precision)
    before = count(graph, "MatMul")
    graph_edits.join_products(graph)
    # Of two layers. Llama: queries, keys and values; gates and what they gate. GPT-NeoX: attention and MLP.
    assert before - count(graph, "MatMul") == {"llama": 6, "gpt_neox": 2, "mpt": 0}[family]


def test_the_bytes_of_all_constants_are_counted():
    whole = ops.constant(np.zeros((8, 64), np.float32))
    halves = ops.constant(openvino.Tensor(np.zeros(32, np.uint8), openvino.Shape([1, 64]), openvino.Type.u4))
    graph = products(whole, ops.convert(halves, "f32"))
    assert graph_edits.weight_bytes(graph) == 8 * 64 * 4 + 64 // 2


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_of_all_logits_those_of_the_wanted_token_are_computed(scaled):
    numbers = ops.parameter([-1, 4], np.float32, name="numbers")
    weights = np.random.default_rng(0).random((10, 4), dtype=np.float32)
    product = ops.matmul(numbers, ops.constant(weights), False, True)
    logits = ops.tanh(ops.multiply(product, np.float32(0.5))) if scaled else product
    graph = openvino.Model([logits], [numbers])
    given = np.random.default_rng(1).random((7, 4), dtype=np.float32)
    expected = openvino.compile_model(graph, "CPU", EXACT)(given)[0]
    graph_edits.keep_wanted_logits(graph)
    assert graph_edits.WANTED in graph.inputs[-1].get_names()
    compiled = openvino.compile_model(graph, "CPU", EXACT)
    for wanted in (0, 6):
        found = compiled([given, np.array([wanted])])[0]
        np.testing.assert_allclose(found, expected[wanted : wanted + 1], rtol=1e-5)


@pytest.mark.parametrize(
    ("node", "rows", "known"),
    [
        (lambda: ops.constant(np.zeros((4, 6), np.uint8)), 4, True),
        (lambda: ops.constant(np.zeros((4, 6), np.uint8)), 5, False),  # not one row for each
        (lambda: ops.constant(np.zeros((4, 1), np.float32)), 4, True),  # a scale
        (lambda: ops.constant(np.zeros((4, 6), np.float32)), 4, False),  # whole weights
        (lambda: ops.constant(np.zeros(4, np.uint8)), 4, False),
        (lambda: ops.exp(ops.constant(np.zeros((4, 1), np.float32))), 4, False),
    ],
)
def test_only_what_compressed_weights_are_made_of_has_a_layout(node, rows, known):
    assert (graph_edits.compressed_layout(node(), rows) is not None) == known
