"""Checkpoints whose text model is another architecture's."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import conversion
from config import ModelConfig
from routes import route_of
from text_models import check_granite_hybrid, check_text_part, load_granite
from tiny_architectures import load_pytorch, make_tiny_architecture
from weight_sizes import stored_dtype


@pytest.mark.parametrize(
    ("settings", "message"),
    [
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


def test_a_granite_4_without_mamba_layers_is_a_granite_3_that_computes_the_same(tmp_path):
    folder = make_tiny_architecture(tmp_path / "checkpoint", "granite4")
    hybrid = load_pytorch(folder, "granite4")
    granite = load_granite(folder)
    assert granite.config.model_type == "granite"
    assert granite.dtype == stored_dtype(folder)
    assert granite.generation_config.eos_token_id == hybrid.generation_config.eos_token_id
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        expected, found = hybrid(ids, use_cache=False).logits, granite.float()(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_types": ["attention"], "position_embedding_type": "rope"},
        {"layer_types": ["attention"] * 2, "position_embedding_type": "rope", "num_local_experts": 0},
    ],
    ids=str,
)
def test_a_plain_granite_4_is_accepted(settings):
    check_granite_hybrid(settings)


def test_without_a_word_about_its_layers_a_granite_4_is_taken_for_one_with_mamba():
    with pytest.raises(ValueError, match="Mamba"):
        check_granite_hybrid({"position_embedding_type": "rope"})


@pytest.mark.parametrize(
    "settings",
    [{"model_type": "gemma3"}, {"model_type": "mistral3", "text_config": {"model_type": "mistral"}}],
)
def test_a_text_part_that_can_be_exported_is_accepted(settings):
    check_text_part(settings)
