"""Numbers of 8 and 4 bits become those that they stand for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, Mxfp4Config

from damaged_checkpoints import SHARDS, as_bin, change, shard
from dequantize import dequantize, from_float8, from_mxfp4, is_dequantizable


def test_blocks_at_the_edge_may_be_smaller():
    weight = torch.ones(5, 7).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = from_float8(weight, scale, (4, 4))
    assert found[3].tolist() == [1, 1, 1, 1, 2, 2, 2]
    assert found[4].tolist() == [3, 3, 3, 3, 4, 4, 4]


@pytest.fixture
def gpt_oss(tmp_path, tiny_checkpoints) -> Path:
    """A tiny gpt-oss whose experts are random blocks of 4-bit floats."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=600, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=16,
        layer_types=["sliding_attention"],
    )  # fmt: skip
    folder = tmp_path / "gpt-oss"
    GptOssForCausalLM(config).bfloat16().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        tensors[name + "_blocks"] = torch.randint(
            0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8
        )
        tensors[name + "_scales"] = torch.randint(118, 126, (experts, rows, columns // 32), dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    change(folder / "config.json", quantization_config={"quant_method": "mxfp4"})
    return folder


def test_4_bit_floats_become_what_transformers_makes_of_them(gpt_oss, tmp_path):
    settings = Mxfp4Config(dequantize=True)
    reference = AutoModelForCausalLM.from_pretrained(
        gpt_oss, quantization_config=settings, dtype=torch.bfloat16
    )
    (tmp_path / "plain").mkdir()
    dequantize(gpt_oss, tmp_path / "plain")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert found.dtype == torch.bfloat16
    for name, weight in reference.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name


def test_all_sixteen_numbers_of_4_bits():
    blocks = torch.arange(16, dtype=torch.uint8).reshape(1, 16)
    numbers = from_mxfp4(blocks | blocks << 4, torch.tensor([128], dtype=torch.uint8))[::2]
    assert numbers.tolist() == [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]


@pytest.mark.parametrize(
    ("method", "known"),
    [
        ({"quant_method": "fp8"}, True),
        ({"quant_method": "mxfp4"}, True),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, True),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, False),
        ({"quant_method": "gptq"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_methods_whose_numbers_are_exact_are_known(method, known):
    assert is_dequantizable(method) == known


def test_a_scale_of_the_exponent_makes_blocks_larger_or_smaller():
    """127 stands for 1: each step up doubles; the first number of a byte is its low half."""
    blocks = torch.full((2, 16), 0x42, dtype=torch.uint8)  # 1.0 and 2.0
    numbers = from_mxfp4(blocks, torch.tensor([126, 129], dtype=torch.uint8))
    assert numbers.shape == (64,)
    assert (numbers[:2].tolist(), numbers[32:34].tolist()) == ([0.5, 1.0], [4.0, 8.0])


def test_shards_stay_shards_with_scales_in_whichever_of_them(llama_copy, tmp_path):
    shard(llama_copy)
    tensors = {file: load_file(llama_copy / file) for file in SHARDS}
    name = next(name for name in tensors[SHARDS[0]] if tensors[SHARDS[0]][name].dim() == 2)
    weight = tensors[SHARDS[0]][name].float()
    tensors[SHARDS[0]][name] = (weight / 2).to(torch.float8_e4m3fn)
    tensors[SHARDS[1]][name + "_scale_inv"] = torch.tensor([2.0])
    expected = tensors[SHARDS[0]][name].float() * 2
    for file, part in tensors.items():
        save_file(part, llama_copy / file, {"format": "pt"})
    change(llama_copy / "config.json", quantization_config={"quant_method": "fp8"}, torch_dtype="float16")
    (output := tmp_path / "output").mkdir()
    dequantize(llama_copy, output)
    written = {file: load_file(output / file) for file in SHARDS}
    assert torch.equal(written[SHARDS[0]][name], expected.bfloat16())
    index = json.loads((output / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"] == {name: file for file, part in written.items() for name in part}
    sizes = sum(tensor.nbytes for part in written.values() for tensor in part.values())
    assert index["metadata"]["total_size"] == sizes
    settings = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert (settings["dtype"], settings.keys() & {"quantization_config", "torch_dtype"}) == (
        "bfloat16",
        set(),
    )


def test_quantized_weights_in_pytorch_s_format_are_refused(llama_copy, tmp_path):
    with pytest.raises(ValueError, match=r"quantized weights in pytorch_model\.bin; only safetensors"):
        dequantize(as_bin(llama_copy), tmp_path)
