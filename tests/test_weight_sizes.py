"""How weights are stored, and how much disk and memory converting them takes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tiny_checkpoints import FAMILIES
from weight_sizes import (
    Weights,
    disk_for,
    expected_weights,
    first_weights,
    memory_for,
    stored_dtype,
    stored_weights,
)


class RunsCode:
    def __reduce__(self):
        return pytest.fail, ("its code was run",)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_with_code_in_them_are_refused_without_advice_to_run_it(llama_copy, zipped):
    (llama_copy / "model.safetensors").unlink()
    torch.save({"a": RunsCode()}, llama_copy / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin .* holds code, which is not run") as caught:
        stored_weights(llama_copy)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"dtype": "bfloat16", "vocab_size": 100, "hidden_size": 64}, (1000, 2, 6400)),
        ({"torch_dtype": "float16", "vocab_size": 100, "d_model": 32}, (1000, 2, 3200)),
        ({"torch_dtype": "float32"}, (500, 4, 0)),
        ({"text_config": {"dtype": "bfloat16", "vocab_size": 100, "hidden_size": 64}}, (1000, 2, 6400)),
        ({"dtype": "bfloat16", "text_config": {"vocab_size": 100, "hidden_size": 8}}, (1000, 2, 800)),
        ({}, (500, 4, 0)),
    ],
    ids=str,
)
def test_weights_to_come_are_estimated_from_the_configuration(tmp_path, settings, expected):
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert expected_weights(tmp_path, 1000) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_expected_of_weights_is_what_is_found(tiny_checkpoints, family):
    checkpoint = tiny_checkpoints[family]
    size = (checkpoint / "model.safetensors").stat().st_size
    assert expected_weights(checkpoint, size) == stored_weights(checkpoint)


def test_most_numbers_decide_of_what_type_the_weights_are(tmp_path):
    tensors = {
        "large": torch.zeros(100, dtype=torch.bfloat16),
        "small": torch.zeros(60, dtype=torch.float32),
        "quantized": torch.zeros(500, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert stored_dtype(tmp_path) == torch.bfloat16
    save_file(tensors | {"more": torch.zeros(60)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert stored_dtype(tmp_path) == torch.float32


def test_where_there_are_no_weights_that_is_said(tmp_path):
    with pytest.raises(ValueError, match="has no weights"):
        first_weights(tmp_path)


def test_tensors_are_known_without_their_content(llama_copy):
    tensors = first_weights(llama_copy)
    assert {tensor.device.type for tensor in tensors.values()} == {"meta"}
    assert tensors["model.norm.weight"].shape == (64,)


def test_disk_is_needed_for_all_precisions_and_twice_for_the_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(bytes(1000))
    (tmp_path / "model.safetensors").write_bytes(bytes(77))  # counted by what the weights say
    weights = Weights(at_16_bits=10_000, itemsize=2, largest=1)
    assert disk_for(tmp_path, weights, ["FP16"]) == 10_000 + 2000
    assert disk_for(tmp_path, weights, ["INT8", "INT4"]) == pytest.approx(5500 + 4000 + 4000)


@pytest.mark.parametrize(
    ("precisions", "weights", "expected"),
    [
        (["FP16"], Weights(10e9, 2, 2e9), 0.6e9 + 0.3e9),
        (["INT8"], Weights(10e9, 2, 1), 0.6e9 + 5.5e9),
        (["INT4"], Weights(10e9, 2, 1), 0.6e9 + 3.5e9),
        (["FP16", "INT4", "INT8"], Weights(10e9, 2, 1), 0.6e9 + 5.5e9),  # one after the other
        (["INT4"], Weights(1e9, 2, 200_000_000), 0.6e9 + 1.8e9),  # the embedding takes more than the rest
    ],
)
def test_memory_is_needed_for_the_hungriest_step(precisions, weights, expected):
    assert memory_for(weights, precisions) == pytest.approx(expected)
