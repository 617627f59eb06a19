"""How weights are stored, and how much disk and memory converting them takes."""

import json

import pytest
import torch

from checkpoint import expected_weights, stored_weights
from tiny_checkpoints import FAMILIES


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
