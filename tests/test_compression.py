"""What INT8 and INT4 mean: every matrix becomes smaller, whatever the architecture."""

from collections import Counter

import openvino
import pytest
import torch
from transformers import AutoModelForCausalLM

from tiny_checkpoints import FAMILIES


@pytest.mark.parametrize("precision", ["INT8", "INT4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_matrix_is_compressed(converted, tiny_checkpoints, family, precision):
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoints[family])
    layers = sum(isinstance(module, torch.nn.Linear) for module in model.base_model.modules())
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    ends = 1 if tied else 2  # embedding and head: 8 bits in both precisions
    expected = {"i8": layers + ends} if precision == "INT8" else {"i4": layers, "i8": ends}

    ir = openvino.Core().read_model(converted(family, precision) / "openvino_model.xml")
    constants = [node for node in ir.get_ops() if node.get_type_name() == "Constant"]
    # A matrix, or its rows in groups of 64. Scales have one column.
    matrices = [
        node
        for node in constants
        if len(shape := node.get_output_shape(0)) >= 2 and shape[0] > 1 and shape[-1] >= 32
    ]
    assert Counter(node.get_element_type().to_string() for node in matrices) == expected
