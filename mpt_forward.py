"""MPT's forward pass, written out in PyTorch, and the checkpoints it accepts.

Knows the MPT architecture and each setting that changes its result. Refuses to know OpenVINO: how the pass is
traced and saved is `mpt_converter`'s.
"""

import math
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import nn

from checkpoint import read_settings, stored_dtype
from weight_names import check_weight_names

if TYPE_CHECKING:
    from transformers import MptForCausalLM

# Settings whose other values change what a model computes and cannot be expressed here, with the values that
# can. Absent settings count as fine. Some exist only in newer versions of llm-foundry, which trained MPT.
HONOURED = {
    "no_bias": (True,),  # transformers' class has no biases: it would drop them
    "norm_type": ("low_precision_layernorm", "layernorm"),
    "norm_eps": (1e-5,),  # llm-foundry's name, which transformers' class does not read
    "fc_type": ("torch", {"name": "torch"}),
    "residual_modification": (None,),
    "block_overrides": (None,),
    "final_logit_softcapping": (None,),
    "attn_config.attn_type": ("multihead_attention",),
    "attn_config.alibi": (True,),
    "attn_config.prefix_lm": (False,),
    "attn_config.qk_ln": (False,),
    "attn_config.qk_gn": (False,),
    "attn_config.fused_qkv": (True,),
    "attn_config.rope": (False,),
    "attn_config.sliding_window_size": (-1,),
    "attn_config.attn_logit_softcapping": (None,),
    "attn_config.kv_dim": (None,),
    "ffn_config.ffn_type": ("mptmlp",),
    "ffn_config.fc_type": ("torch", {"name": "torch"}),
    "ffn_config.ffn_act_fn": (None, {"name": "gelu"}, {"name": "gelu", "approximate": "none"}),
}
# What llm-foundry takes an absent setting for, where transformers takes it for the opposite.
FOUNDRY_DEFAULTS = {"no_bias": False, "attn_config.alibi": False}
# Settings that are obeyed whatever their value, or matter only in training, or beside rotary positions, which
# are refused. Any other that is neither here nor above nor common to all of transformers' models is refused.
KNOWN = {
    "": "d_model n_heads n_layers expansion_ratio max_seq_len vocab_size attn_config ffn_config logit_scale "
    "layer_norm_epsilon initializer_range learned_pos_emb resid_pdrop emb_pdrop embedding_fraction "
    "init_device init_config use_cache use_pad_tok_in_ffn residual_coeff verbose name loss_fn auto_map "
    "tokenizer_name torch_dtype tie_word_embeddings bos_token_id eos_token_id pad_token_id",
    "attn_config": "clip_qkv softmax_scale alibi_bias_max attn_pdrop attn_impl attn_uses_sequence_id "
    "kv_n_heads rope_theta rope_impl rope_dail_config rope_hf_config",
    "ffn_config": "ffn_hidden_size",
}
# Settings that transformers accepts as floats only. Checkpoints also write them as whole numbers:
# mpt-7b-storywriter has "clip_qkv": 6.
FLOATS = ("clip_qkv", "softmax_scale", "logit_scale", "layer_norm_epsilon")
# Far below any attention score, and together with ALiBi still a finite 16-bit number.
MASKED = -(2.0**15)


def load_mpt(checkpoint_folder: str | Path) -> "MptForCausalLM":
    """Load an MPT checkpoint with transformers' own class, in the precision it is stored in.

    Only then do the weights stay in the mapped files; the configuration may name another precision. Loads
    them also as the Hub stores MosaicML's: written for code of its own, which is never run.

    Raises:
        ValueError: a setting of the model cannot be honoured, or the weights are not those that
            transformers' class has.
    """
    from transformers import MptConfig, MptForCausalLM

    settings = read_settings(Path(checkpoint_folder))
    check_settings(settings)
    settings.pop("auto_map", None)
    if "expansion_ratio" in settings:
        settings["expansion_ratio"] = int(settings["expansion_ratio"])  # 4.0 is refused there
    attention = dict(settings.get("attn_config") or {})
    attention.pop("attn_pdrop", None)  # dropout ends with training, and transformers takes whole numbers only
    for part in (settings, attention):
        part |= {key: float(part[key]) for key in FLOATS if isinstance(part.get(key), int)}
    config = MptConfig.from_dict(settings | {"attn_config": attention})
    dtype = stored_dtype(Path(checkpoint_folder))
    check_weight_names(Path(checkpoint_folder), config)
    return MptForCausalLM.from_pretrained(checkpoint_folder, config=config, dtype=dtype).eval()


def check_settings(settings: dict) -> None:
    """Refuse an MPT configuration that this module would compute wrongly.

    Args:
        settings: the content of config.json.

    Raises:
        ValueError: names the setting and its value.
    """
    # transformers' class ignores some settings that llm-foundry's obeys.
    foundry = "MPTForCausalLM" in (settings.get("architectures") or ())
    for name, honoured in HONOURED.items():
        group, _, key = name.rpartition(".")
        given = (settings.get(group) or {}) if group else settings
        default = FOUNDRY_DEFAULTS.get(name, honoured[0]) if foundry else honoured[0]
        value = given.get(key, default)
        if value not in honoured:
            raise ValueError(
                f"This MPT model has {name} = {value!r}, which cannot be converted; only "
                f"{' or '.join(map(repr, honoured))} can."
            )
    for group, known in KNOWN.items():
        _refuse_unknown(group, (settings.get(group) or {}) if group else settings, known.split())
    # transformers' class has one width whatever the settings say.
    ratio = settings.get("expansion_ratio", 4) if foundry else 4
    hidden_size = (settings.get("ffn_config") or {}).get("ffn_hidden_size")
    if ratio != 4 or hidden_size not in (None, 4 * settings["d_model"]):
        given = f"expansion_ratio = {ratio}" if ratio != 4 else f"ffn_hidden_size = {hidden_size}"
        raise ValueError(
            f"This MPT model has {given}, which cannot be converted; only feed-forward layers four times as "
            "wide as d_model can."
        )


def _refuse_unknown(group: str, settings: dict, known: Collection[str]) -> None:
    from transformers import GenerationConfig, PreTrainedConfig

    common = PreTrainedConfig().to_dict().keys() | GenerationConfig().to_dict().keys()
    honoured = [name.rpartition(".")[2] for name in HONOURED if name.rpartition(".")[0] == group]
    unknown = settings.keys() - {*known, *honoured, *common}
    if unknown:
        name = ".".join(filter(None, [group, min(unknown)]))
        raise ValueError(
            f"This MPT model has {name} = {settings[min(unknown)]!r}, a setting that is not known here. "
            "Whether it changes what the model computes cannot be told, so it is not converted."
        )


def alibi_slopes(n_heads: int, bias_max: float) -> torch.Tensor:
    """How much a unit of distance lowers a head's attention scores: [heads], positive, float32.

    Source: section 3 of "Train Short, Test Long" (arXiv 2108.12409), and `gen_slopes` of MosaicML's
    llm-foundry for `bias_max` and for head counts that are no power of two: of the next power's slopes it
    takes every second one first, then the others, as many as there are heads.
    """
    power = 2 ** math.ceil(math.log2(n_heads))
    slopes = 2.0 ** -(torch.arange(1, power + 1) * (bias_max / power))
    if power != n_heads:
        slopes = torch.cat([slopes[1::2], slopes[::2]])[:n_heads]
    return slopes


class MptWithCache(nn.Module):
    """MPT's forward pass, written out: token ids and a cache in, logits and the longer cache out.

    The weights are the given model's own tensors, in modules of our own: whatever happens to these modules
    does not reach the model. Given a folder `scratch`, 32-bit matrices become 16-bit ones.
    """

    def __init__(self, pt_model: "MptForCausalLM", scratch: Path | None = None):
        super().__init__()

        def own(weight: torch.Tensor) -> nn.Parameter:
            weight = weight.detach()
            if scratch and weight.dtype == torch.float32 and weight.dim() == 2:
                weight = _half_on_disk(weight, scratch)
            return nn.Parameter(weight, requires_grad=False)

        def linear(layer: nn.Linear) -> nn.Linear:
            copy = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            copy.weight = own(layer.weight)
            return copy

        def norm(layer: nn.LayerNorm) -> nn.LayerNorm:
            copy = nn.LayerNorm(layer.normalized_shape, eps=layer.eps, bias=False, device="meta")
            copy.weight = own(layer.weight)
            return copy

        config, inner = pt_model.config, pt_model.transformer
        self.config = config
        self.embedding = nn.Embedding(*inner.wte.weight.shape, device="meta")
        self.embedding.weight = own(inner.wte.weight)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm_1": norm(block.norm_1),
                    "qkv": linear(block.attn.Wqkv),
                    "out": linear(block.attn.out_proj),
                    "norm_2": norm(block.norm_2),
                    "up": linear(block.ffn.up_proj),
                    "down": linear(block.ffn.down_proj),
                }
            )
            for block in inner.blocks
        )
        self.norm = norm(inner.norm_f)
        self.head = linear(pt_model.lm_head)
        if pt_model.lm_head.weight is inner.wte.weight:
            self.head.weight = self.embedding.weight  # one tensor here is one constant in the graph
        attention = config.attn_config
        self.softmax_scale = attention.softmax_scale  # None: 1 / sqrt(head size)
        self.clip_qkv = attention.clip_qkv
        self.logit_scale = config.logit_scale
        if self.logit_scale == "inv_sqrt_d_model":
            self.logit_scale = 1 / math.sqrt(config.d_model)
        # Negative, and first in the product below: in this form openvino_genai finds them in the graph.
        self.slopes = -alibi_slopes(config.n_heads, attention.alibi_bias_max)[:, None, None]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor) -> tuple:
        """Compute the logits of new tokens.

        Args:
            input_ids: [batch, new].
            attention_mask: [batch, cached + new], 0 where a token is padding.
            past: keys and values of layer 0, of layer 1, ...: each [batch, heads, cached, head size].

        Returns:
            Logits [batch, new, vocabulary], then the longer cache, with cached + new tokens.
        """
        bias = self.attention_bias(attention_mask, input_ids.shape[1])
        hidden = self.embedding(input_ids)
        present = []
        for index, block in enumerate(self.blocks):
            attended, *cache = self.attention(block, block["norm_1"](hidden), bias, *past[2 * index :][:2])
            present += cache
            hidden = hidden + attended
            hidden = hidden + block["down"](nn.functional.gelu(block["up"](block["norm_2"](hidden))))
        logits = self.head(self.norm(hidden))
        if self.logit_scale is not None:
            logits = logits * self.logit_scale
        return logits, *present

    def attention_bias(self, attention_mask: torch.Tensor, new: int) -> torch.Tensor:
        """What is added to the attention scores, [batch, heads, new, cached + new].

        ALiBi lowers a score in proportion to the distance between query and key. Nothing but that distance
        counts, so there is no table of positions, and no longest context. Distances are subtracted as whole
        numbers: near ones are then exact even where the rest is computed in 16 bits.
        """
        total = attention_mask.shape[1]
        keys = torch.arange(total)[None, :]
        queries = torch.arange(total - new, total)[:, None]
        alibi = self.slopes * (keys - queries).float().abs()[None]
        visible = (keys <= queries) & attention_mask.bool()[:, None, None, :]
        mask = torch.where(visible, 0.0, MASKED)
        return mask + alibi.expand(self.config.n_heads, new, total)[None]

    def attention(
        self, block: nn.ModuleDict, hidden: torch.Tensor, bias: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The attention of one layer, and its longer cache."""
        heads = {"h": self.config.n_heads, "d": self.config.d_model // self.config.n_heads}
        qkv = block["qkv"](hidden)
        if self.clip_qkv:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        parts = qkv.split(self.config.d_model, dim=-1)
        query, key, value = (rearrange(part, "b n (h d) -> b h n d", **heads) for part in parts)
        key = torch.cat([past[0], key], dim=2)
        value = torch.cat([past[1], value], dim=2)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, scale=self.softmax_scale
        )
        return block["out"](rearrange(attended, "b h n d -> b n (h d)")), key, value


def _half_on_disk(weight: torch.Tensor, folder: Path) -> torch.Tensor:
    """A 16-bit copy of a matrix in a mapped file without a name, so that it need not stay in memory."""
    with tempfile.TemporaryFile(dir=folder) as file:
        half = torch.from_numpy(np.memmap(file, np.float16, "w+", shape=tuple(weight.shape)))
    return half.copy_(weight)
