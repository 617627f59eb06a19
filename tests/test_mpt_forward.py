"""MPT's slopes, and the checkpoints it is read from. What the graph computes is in test_mpt_converter."""

import json

import pytest
import torch
from transformers import MptConfig, MptForCausalLM
from transformers.models.mpt import modeling_mpt

import mpt_converter
from mpt_forward import alibi_slopes, load_mpt
from tiny_checkpoints import make_tiny_checkpoint, tiny_mpt


def test_slopes_of_eight_heads_are_those_of_the_paper():
    assert alibi_slopes(8, 8).tolist() == [2**-i for i in range(1, 9)]


@pytest.mark.parametrize("heads", [1, 3, 4, 6, 12, 32, 40])
def test_slopes_agree_with_transformers_where_it_has_any(heads):
    table = modeling_mpt.build_mpt_alibi_tensor(heads, 2, alibi_bias_max=8)  # heads, 1, 2
    torch.testing.assert_close(alibi_slopes(heads, 8), -table[:, 0, 0])


@pytest.mark.parametrize(
    "settings",
    [
        {"architectures": ["MPTForCausalLM"], "expansion_ratio": 4.0, "ffn_config": {"ffn_hidden_size": 256}},
        {"architectures": ["MptForCausalLM"], "expansion_ratio": 2},  # transformers writes it but ignores it
    ],
    ids=str,
)
def test_feed_forward_layers_of_the_usual_width_are_accepted_however_stated(tmp_path, settings):
    checkpoint = make_tiny_checkpoint(tmp_path, "mpt")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | settings))
    assert load_mpt(checkpoint).transformer.blocks[0].ffn.up_proj.out_features == 256


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("stored", "stated"),
    [(torch.bfloat16, "float32"), (torch.float16, "bfloat16"), (torch.float32, "float16")],
    ids=str,
)
def test_weights_are_loaded_as_they_are_stored(tmp_path, stored, stated, suffix):
    """Whatever the configuration says: in another type they would leave the mapped files for the memory."""
    model = tiny_mpt().to(stored)
    model.save_pretrained(tmp_path)
    if suffix == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": stated}))
    loaded = load_mpt(tmp_path)
    assert {weight.dtype for weight in loaded.parameters()} == {stored}
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)


def test_a_checkpoint_without_weights_is_named(tmp_path):
    (make_tiny_checkpoint(tmp_path, "mpt") / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path} has no weights"):
        load_mpt(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path):
    """llm-foundry can train feed-forward layers of other widths; transformers' class has one."""
    checkpoint = make_tiny_checkpoint(tmp_path / "checkpoint", "mpt")
    model = MptForCausalLM.from_pretrained(checkpoint)
    for block in model.transformer.blocks:
        block.ffn.up_proj.weight = torch.nn.Parameter(block.ffn.up_proj.weight[:128])
        block.ffn.down_proj.weight = torch.nn.Parameter(block.ffn.down_proj.weight[:, :128].contiguous())
    model.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"transformer\.blocks\.0\.ffn\.\w+\.weight has the shape"):
        load_mpt(checkpoint)


@pytest.mark.parametrize("absent", ["no_bias", "attn_config.alibi"])
def test_what_llm_foundry_takes_an_absent_setting_for_counts(absent):
    settings = MptConfig(architectures=["MPTForCausalLM"]).to_dict()
    mpt_converter.check_settings(settings)
    group, _, key = absent.rpartition(".")
    del (settings[group] if group else settings)[key]
    with pytest.raises(ValueError, match=f"{absent} = False"):
        mpt_converter.check_settings(settings)
    mpt_converter.check_settings(settings | {"architectures": ["MptForCausalLM"]})


@pytest.mark.parametrize(
    "settings",
    [{"norm_eps": 1e-5}, {"ffn_config": {"ffn_act_fn": {"name": "gelu"}}}, {"block_overrides": None}],
)
def test_new_settings_with_the_usual_values_are_accepted(settings):
    mpt_converter.check_settings(MptConfig().to_dict() | settings)
