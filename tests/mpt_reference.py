"""MPT by PyTorch: what the converted model is compared with, and the prompts it is given."""

import math
from pathlib import Path

import numpy as np
import torch
from transformers import MptConfig, MptForCausalLM

from mpt_converter import convert_mpt
from ov_mpt_model import OVMPTModel
from tiny_checkpoints import MPT_VOCABULARY
from tuning import EXACT

GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}


def with_length(model: MptForCausalLM, max_seq_len: int) -> MptForCausalLM:
    """The same weights with a longer ALiBi table."""
    config = MptConfig.from_dict(model.config.to_dict() | {"max_seq_len": max_seq_len})
    longer = MptForCausalLM(config).eval()
    longer.load_state_dict(model.state_dict())
    return longer


def random_ids(*shape: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(0).integers(1, MPT_VOCABULARY, shape))


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four sequences of 20, 5, 11 and 17 tokens, padded on the left."""
    ids, mask = random_ids(4, 20), torch.ones(4, 20, dtype=torch.int64)
    for row, length in enumerate((20, 5, 11, 17)):
        mask[row, : 20 - length] = 0
    return ids * mask, mask


@torch.no_grad()
def reference_logits(model: MptForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """MPT written once more, one head and one query at a time, after its paper and llm-foundry.

    What transformers' class does not know is done here: alibi_bias_max and logit_scale.
    """
    config, attention = model.config, model.config.attn_config
    heads, size = config.n_heads, config.d_model // config.n_heads
    power = 1
    while power < heads:
        power *= 2
    exponents = [attention.alibi_bias_max * (head + 1) / power for head in range(power)]
    if power != heads:
        exponents = (exponents[1::2] + exponents[0::2])[:heads]

    def norm(x, layer):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred
            / (centred.square().mean(-1, keepdim=True) + config.layer_norm_epsilon).sqrt()
            * layer.weight
        )

    x = model.transformer.wte.weight[ids]
    for block in model.transformer.blocks:
        qkv = norm(x, block.norm_1) @ block.attn.Wqkv.weight.T
        if attention.clip_qkv is not None:
            qkv = qkv.clip(-attention.clip_qkv, attention.clip_qkv)
        mixed = torch.zeros_like(x)
        for head in range(heads):
            q, k, v = (part[:, head * size :][:, :size] for part in qkv.split(config.d_model, dim=1))
            scale = size**-0.5 if attention.softmax_scale is None else attention.softmax_scale
            for position in range(len(ids)):
                distances = position - torch.arange(position + 1)
                scores = k[: position + 1] @ q[position] * scale - distances * 2.0 ** -exponents[head]
                mixed[position, head * size :][:size] = scores.softmax(0) @ v[: position + 1]
        x = x + mixed @ block.attn.out_proj.weight.T
        inner = norm(x, block.norm_2) @ block.ffn.up_proj.weight.T
        x = x + (inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))) @ block.ffn.down_proj.weight.T
    logits = norm(x, model.transformer.norm_f) @ model.lm_head.weight.T
    scale = config.logit_scale
    return logits * (config.d_model**-0.5 if scale == "inv_sqrt_d_model" else scale or 1)


def logits(model, ids: torch.Tensor, mask: torch.Tensor | None = None, **cache) -> torch.Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, **cache).logits


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()


def converted_mpt(model: MptForCausalLM, folder: Path, precision: str = "FP16") -> OVMPTModel:
    return OVMPTModel.from_pretrained(convert_mpt(model, folder, precision), ov_config=EXACT)
