"""What INT8 and INT4 mean: every matrix becomes smaller, whatever the architecture."""

import shutil
from collections import Counter

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13 as ops
from transformers import AutoModelForCausalLM

import compression
from compression import PRECISIONS, check_precision, compress, compress_weights
from kv_cache import StatefulModel
from tiny_checkpoints import FAMILIES
from tuning import EXACT


@pytest.mark.parametrize("precision", ["INT8", "INT4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_matrix_is_compressed(converted, tiny_checkpoints, family, precision):
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoints[family])
    layers = sum(isinstance(module, torch.nn.Linear) for module in model.base_model.modules())
    # Joined in two layers: queries, keys and values; gates and what they gate. GPT-NeoX: attention and MLP.
    layers -= {"llama": 6, "gpt_neox": 2, "mpt": 0}[family]
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    ends = 1 if tied else 2  # embedding and head: 8 bits in both precisions
    expected = {"u8": layers + ends} if precision == "INT8" else {"i4": layers, "u8": ends}

    ir = openvino.Core().read_model(converted(family, precision) / "openvino_model.xml")
    constants = [node for node in ir.get_ops() if node.get_type_name() == "Constant"]
    # A matrix, or its rows in groups of 32. Scales and zero points have one column.
    matrices = [
        node
        for node in constants
        if len(shape := node.get_output_shape(0)) >= 2 and shape[0] > 1 and shape[-1] >= 32
    ]
    assert Counter(node.get_element_type().to_string() for node in matrices) == expected


@pytest.mark.parametrize("precision", ["INT2", "int8", "", None])
def test_other_precisions_are_refused_with_those_that_exist(precision):
    with pytest.raises(ValueError, match="choose one of FP16, INT8, INT4"):
        check_precision(precision)


def layer(width: int) -> openvino.Model:
    """A layer of 256 rows, between a gather and a product so that it is neither embedding nor head."""
    random = np.random.default_rng(0)
    ids = ops.parameter([-1], np.int64)
    x = ops.gather(ops.constant(random.standard_normal((300, width), np.float32)), ids, ops.constant(0))
    x = ops.matmul(x, ops.constant(random.standard_normal((256, width), np.float32)), False, True)
    x = ops.matmul(x, ops.constant(random.standard_normal((300, 256), np.float32)), False, True)
    return openvino.Model([x], [ids])


@pytest.mark.parametrize(("width", "groups"), [(128, 4), (96, 3)])
def test_int4_has_a_scale_for_32_columns(width, groups):
    graph = compress(layer(width), "INT4")
    shapes = {
        tuple(node.get_output_shape(0))
        for node in graph.get_ops()
        if node.get_element_type() == openvino.Type.i4
    }
    assert (256, groups, 32) in shapes


def test_a_layer_that_32_does_not_divide_keeps_8_bits():
    kinds = {node.get_element_type() for node in compress(layer(80), "INT4").get_ops()}
    assert openvino.Type.u8 in kinds
    assert openvino.Type.i4 not in kinds


def test_fewer_bits_are_less_exact_but_still_close():
    ids = np.arange(300)
    answers = {
        precision: openvino.compile_model(compress(layer(128), precision), "CPU", EXACT)(ids)[0]
        for precision in PRECISIONS
    }
    size = answers["FP16"].std()
    errors = {p: float(np.abs(answers[p] - answers["FP16"]).mean() / size) for p in ("INT8", "INT4")}
    assert 0 < errors["INT8"] < 0.02 < errors["INT4"] < 0.2


def test_weights_of_16_bits_note_that_the_cache_wants_16_as_well():
    graph = compress(layer(128), "FP16")
    assert graph.get_rt_info(["runtime_options", "KV_CACHE_PRECISION"]).astype(str) == "f16"


def test_what_stands_beside_the_weights_is_copied_except_what_is_left(converted, tmp_path):
    source = shutil.copytree(converted("llama", "FP16"), tmp_path / "FP16")
    (source / "templates").mkdir()
    (source / "templates/tool_use.jinja").write_text("x")
    (output := tmp_path / "INT8").mkdir()
    (output / "config.json").write_text("ours")
    compress_weights(source, output, "INT8", leave=["conversion.json"])
    names = {file.name for file in source.iterdir()} - {"conversion.json"}
    assert {file.name for file in output.iterdir()} == names
    assert (output / "templates/tool_use.jinja").read_text() == "x"
    assert (output / "config.json").read_text() == "ours"
    graph = openvino.Core().read_model(output / "openvino_model.xml")
    assert not graph.has_rt_info(["runtime_options", "KV_CACHE_PRECISION"])


@pytest.mark.parametrize("precision", ["INT8", "INT4"])
def test_products_of_small_models_are_joined_without_another_result(
    converted, tmp_path, monkeypatch, precision
):
    products, logits = {}, {}
    for title, limit in (("joined", 1e9), ("large", 1000)):
        monkeypatch.setattr(compression, "SMALL_MODEL", limit)
        (output := tmp_path / title).mkdir()
        compress_weights(converted("llama", "FP16"), output, precision)
        graph = openvino.Core().read_model(output / "openvino_model.xml")
        products[title] = sum(node.get_type_name() == "MatMul" for node in graph.get_ops())
        model = StatefulModel(graph, "CPU", EXACT)
        logits[title] = model.infer(list(range(5, 60)), past=0)
    assert products["large"] - products["joined"] == 6
    np.testing.assert_allclose(logits["joined"], logits["large"], atol=1e-5)
