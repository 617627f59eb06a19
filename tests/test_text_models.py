"""Checkpoints whose text model is another architecture's."""

import pytest
from safetensors.torch import load_file, save_file

import conversion
from config import ModelConfig
from routes import route_of
from tiny_architectures import make_tiny_architecture


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "falcon", "alibi": True}, "ALiBi"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma4_text"}}, "gemma4_text"),
        ({"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"]}, "Mamba"),
        ({"model_type": "granitemoehybrid", "layer_types": ["attention"], "num_local_experts": 8}, "experts"),
        ({"model_type": "granitemoehybrid", "layer_types": ["attention"]}, "rotary"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        route_of(settings).check_settings(settings)


def test_weights_that_a_checkpoint_with_pictures_lacks_are_named(tmp_path):
    folder = make_tiny_architecture(tmp_path / "checkpoint", "gemma3")
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj"):
        conversion.export_fp16(folder, tmp_path / "model", ModelConfig(model_id="x"))
