"""Every architecture of the catalogue, and every one whose cap is lifted, computes what PyTorch computes.

Each is a tiny random checkpoint, converted as any other, and compared in the exact mode: prompts, single
tokens on a cache, beyond the window of its attention, on both engines, and after the cache was cut.
"""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino
import pytest
import torch
from safetensors.torch import load_file, save_file

import conversion
from config import SUPPORTED_MODELS
from engine import OptimumEngine
from genai_engine import GenAIEngine
from sampling import SamplingParams
from tiny_architectures import ARCHITECTURES, load_pytorch, make_tiny_architecture
from tuning import EXACT

if TYPE_CHECKING:
    from optimum.intel import OVModelForCausalLM

# More than a window of 32 tokens, and more than a block of the cache.
LONG = np.random.default_rng(0).integers(260, 480, 60).tolist()
SHORT = LONG[:7]
# Shares 20 tokens with LONG: what the cache holds beyond has to be forgotten.
BRANCH = LONG[:20] + LONG[40:55]
REPLIES = {
    "grows beyond the window": (SHORT, 40),
    "long": (LONG, 24),
    "cut": (BRANCH, 16),
    "back": (LONG, 24),
}
CLOSE = 1e-4  # of logits between 1 and 10; what is rounded to 16 bits somewhere differs by more than 1e-3


@dataclass
class Tiny:
    """A converted model, and what PyTorch says to the same ids. Computed first: exporters change PyTorch."""

    folder: Path
    model: "OVModelForCausalLM"
    logits: torch.Tensor
    replies: dict[str, list[int]]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tiny(request, tmp_path_factory) -> Tiny:
    root = tmp_path_factory.mktemp(request.param)
    checkpoint = make_tiny_architecture(root / "checkpoint", request.param)
    model = load_pytorch(checkpoint, request.param)
    logits = pytorch_logits(model, LONG)
    replies = {name: pytorch_reply(model, ids, length) for name, (ids, length) in REPLIES.items()}
    folder = conversion.prepare_model(str(checkpoint), "FP16", root)
    converted, _ = conversion.load_model(folder, ov_config=EXACT)
    return Tiny(folder, converted, logits, replies)


def pytorch_logits(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def pytorch_reply(model, ids: list[int], length: int) -> list[int]:
    ids = list(ids)
    for _ in range(length):
        ids.append(int(pytorch_logits(model, ids)[-1].argmax()))
    return ids[-length:]


@pytest.mark.slow
def test_logits_of_a_prompt(tiny):
    torch.testing.assert_close(tiny.model(torch.tensor([LONG])).logits[0], tiny.logits, atol=CLOSE, rtol=0)


@pytest.mark.slow
def test_logits_of_single_tokens_on_a_cache(tiny):
    output = tiny.model(torch.tensor([SHORT]))
    for place in range(len(SHORT), len(LONG)):
        output = tiny.model(
            torch.tensor([LONG[place : place + 1]]),
            attention_mask=torch.ones(1, place + 1, dtype=torch.int64),
            position_ids=torch.tensor([[place]]),
            past_key_values=output.past_key_values,
        )
        torch.testing.assert_close(output.logits[0, -1], tiny.logits[place], atol=CLOSE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("open_engine", [OptimumEngine.from_folder, GenAIEngine], ids=["optimum", "genai"])
def test_replies_of_an_engine(tiny, open_engine):
    engine = open_engine(tiny.folder, ov_config=EXACT)
    found = {
        name: list(engine.generate(ids, SamplingParams(temperature=0, max_new_tokens=length)))
        for name, (ids, length) in REPLIES.items()
    }
    engine.close()
    assert found == tiny.replies


# What the catalogue's checkpoints are, by their config.json.
FAMILIES = {
    "smollm2-135m-instruct": "llama",
    "gemma-3-270m-it": "gemma3_text",
    "smollm2-360m-instruct": "llama",
    "qwen2.5-0.5b-instruct": "qwen2",
    "qwen3-0.6b": "qwen3",
    "gemma-3-1b-it": "gemma3_text",
    "tiny-llama-1b-chat": "llama",
    "llama-3.2-1b-instruct": "llama",
    "olmo-2-1b-instruct": "olmo2",
    "qwen2.5-1.5b-instruct": "qwen2",
    "granite-4.0-1b": "granite4",
    "smollm2-1.7b-instruct": "llama",
    "qwen3-1.7b": "qwen3",
    "deepseek-r1-distill-qwen-1.5b": "qwen2",
    "granite-3.3-2b-instruct": "granite",
    "gemma-2-2b-it": "gemma2",
    "red-pajama-3b-chat": "gpt_neox",
    "smollm3-3b": "smollm3",
    "llama-3.2-3b-instruct": "llama",
    "granite-4.0-micro": "granite4",
    "ministral-3-3b-instruct": "mistral3",
    "phi-4-mini-instruct": "phi3",
    "phi-4-mini-reasoning": "phi3",
    "gemma-3-4b-it": "gemma3",
    "qwen3-4b": "qwen3",
    "mpt-7b-chat": "mpt",
    "llama-2-chat-7b": "llama",
    "mistral-7b-instruct": "mistral",
    "olmo-2-7b-instruct": "olmo2",
    "qwen2.5-7b-instruct": "qwen2",
    "deepseek-r1-distill-qwen-7b": "qwen2",
    "ministral-8b-instruct": "ministral",
    "llama-3.1-8b-instruct": "llama",
    "deepseek-r1-distill-llama-8b": "llama",
    "granite-3.3-8b-instruct": "granite",
    "qwen3-8b": "qwen3",
    "glm-4-9b": "glm4",
    "gpt-oss-20b": "gpt_oss",
    "qwen3-8b-int4": "qwen3",
    "qwen3-14b-int4": "qwen3",
    "gpt-oss-20b-int4": "gpt_oss",
}


def test_every_model_of_the_catalogue_is_of_an_architecture_that_is_tried():
    assert FAMILIES.keys() == SUPPORTED_MODELS.keys()
    assert set(FAMILIES.values()) <= ARCHITECTURES.keys()


@pytest.mark.slow
def test_gpt_oss_as_it_is_published(tmp_path):
    """Its experts are floats of 4 bits; transformers' own reading of them is the measure."""
    from transformers import AutoModelForCausalLM, Mxfp4Config

    checkpoint = make_tiny_architecture(tmp_path / "checkpoint", "gpt_oss")
    quantize_experts(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True)
    )
    expected = pytorch_logits(model.float().eval(), LONG)
    folder = conversion.prepare_model(str(checkpoint), "FP16", tmp_path)
    converted, _ = conversion.load_model(folder, ov_config=EXACT)
    torch.testing.assert_close(converted(torch.tensor([LONG])).logits[0], expected, atol=CLOSE, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="OpenVINO has this on x86 only")
@pytest.mark.parametrize("precision", ["FP16", "INT8", "INT4"])
def test_of_a_mixture_only_the_experts_that_were_chosen_are_computed(tmp_path, precision):
    """What `forecast.WEIGHTS_READ` counts on."""
    checkpoint = make_tiny_architecture(tmp_path / "checkpoint", "gpt_oss")
    folder = conversion.prepare_model(str(checkpoint), precision, tmp_path)
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU")
    kinds = [node.get_rt_info()["layerType"] for node in compiled.get_runtime_model().get_ops()]
    assert kinds.count("GatherMatmul") == 2 * 2  # two products in each of two layers


def quantize_experts(folder: Path) -> None:
    """Put random MXFP4 numbers in the place of the experts' matrices, named and laid out as on the Hub."""
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in weights if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = weights.pop(name).shape
        shape = (experts, rows, columns // 32)
        weights[f"{name}_blocks"] = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        weights[f"{name}_scales"] = torch.randint(122, 126, shape, generator=generator, dtype=torch.uint8)
    save_file(
        {
            name: weight.bfloat16() if weight.is_floating_point() else weight
            for name, weight in weights.items()
        },
        folder / "model.safetensors",
        {"format": "pt"},
    )
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}))
