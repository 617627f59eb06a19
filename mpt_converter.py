"""MPT by hand: from a transformers MptForCausalLM to an OpenVINO folder, without Optimum's exporter.

Knows the MPT architecture, tracing and weight compression. Refuses to know tokenizers, catalogue names and
where checkpoints come from (`conversion`), and how the result is run (`ov_mpt_model`).

The steps, each a function below: a forward pass with an explicit KV cache (`MptWithCache`), tracing it
(`trace`), making the cache a state inside the model (`make_stateful`), compressing (`compress`), saving.
"""

import gc
import json
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import nn

from model_source import stored_dtype

if TYPE_CHECKING:
    import openvino
    from transformers import MptConfig, MptForCausalLM

PRECISIONS = ("FP16", "INT8", "INT4")

# Settings whose other values change what a model computes and cannot be expressed here, with the values that
# can. Absent settings count as fine. Some exist only in newer versions of llm-foundry, which trained MPT.
HONOURED = {
    "no_bias": (True,),  # transformers' class has no biases: it would drop them
    "norm_type": ("low_precision_layernorm", "layernorm"),
    "attn_config.attn_type": ("multihead_attention",),
    "attn_config.alibi": (True,),
    "attn_config.prefix_lm": (False,),
    "attn_config.qk_ln": (False,),
    "attn_config.qk_gn": (False,),
    "attn_config.rope": (False,),
    "attn_config.sliding_window_size": (-1,),
    "attn_config.attn_logit_softcapping": (None,),
    "ffn_config.ffn_type": ("mptmlp",),
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

    settings = json.loads((Path(checkpoint_folder) / "config.json").read_text())
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
    try:
        return MptForCausalLM.from_pretrained(checkpoint_folder, config=config, dtype=dtype).eval()
    except RuntimeError as error:
        raise ValueError(f"transformers' MPT class cannot hold {checkpoint_folder}: {error}") from error


def convert_mpt(
    pt_model: "MptForCausalLM", model_path: str | Path, precision: str = "FP16", stateful: bool = True
) -> Path:
    """Write an MPT model as OpenVINO IR, with config.json and generation_config.json beside it.

    The model is left as it was. Its weights are not copied, except that 32-bit ones become 16-bit for FP16,
    in nameless files on the disk of `model_path`; bfloat16 weights stay bfloat16.

    Args:
        pt_model: float32, float16 or bfloat16, on the CPU.
        model_path: the folder to write.
        precision: "FP16" (weights of 16 bits), "INT8" or "INT4".
        stateful: the KV cache is a state inside the model; otherwise inputs and outputs of it.

    Raises:
        ValueError: unknown precision, or a setting of the model that cannot be honoured.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    check_settings(pt_model.config.to_dict())

    import openvino

    model_path = Path(model_path)
    model_path.mkdir(parents=True, exist_ok=True)
    model = trace(MptWithCache(pt_model, scratch=model_path if precision == "FP16" else None))
    if stateful:
        make_stateful(model, pt_model.config)
    model = compress(model, precision)
    # Not compress_to_fp16: it would round the ALiBi slopes too, which are multiplied by large distances.
    openvino.save_model(model, model_path / "openvino_model.xml", compress_to_fp16=False)
    pt_model.config.save_pretrained(model_path)
    pt_model.generation_config.save_pretrained(model_path)
    del model
    gc.collect()
    return model_path


def check_settings(settings: dict) -> None:
    """Refuse an MPT configuration that this module would compute wrongly.

    Args:
        settings: the content of config.json.

    Raises:
        ValueError: names the setting and its value.
    """
    for name, honoured in HONOURED.items():
        value: object = settings
        for key in name.split("."):
            value = value.get(key, honoured[0]) if isinstance(value, dict) else honoured[0]
        if value not in honoured:
            raise ValueError(
                f"This MPT model has {name} = {value!r}, which cannot be converted; only "
                f"{' or '.join(map(repr, honoured))} can."
            )
    # transformers' class has one width whatever the settings say; llm-foundry's class obeys them.
    foundry = "MPTForCausalLM" in (settings.get("architectures") or ())
    ratio = settings.get("expansion_ratio", 4) if foundry else 4
    hidden_size = (settings.get("ffn_config") or {}).get("ffn_hidden_size")
    if ratio != 4 or hidden_size not in (None, 4 * settings["d_model"]):
        given = f"expansion_ratio = {ratio}" if ratio != 4 else f"ffn_hidden_size = {hidden_size}"
        raise ValueError(
            f"This MPT model has {given}, which cannot be converted; only feed-forward layers four times as "
            "wide as d_model can."
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


def cache_names(config: "MptConfig", prefix: str) -> list[str]:
    """The names of a cache's tensors: <prefix>.0.key, <prefix>.0.value, <prefix>.1.key, ..."""
    return [f"{prefix}.{layer}.{part}" for layer in range(config.n_layers) for part in ("key", "value")]


def example_inputs(config: "MptConfig") -> tuple[torch.Tensor, ...]:
    """Three new tokens after two cached ones, twice: a tracer might cut corners where a size is 1."""
    cache = torch.zeros(2, config.n_heads, 2, config.d_model // config.n_heads)
    ids = torch.ones(2, 3, dtype=torch.int64)
    return ids, torch.ones(2, 5, dtype=torch.int64), *[cache] * (2 * config.n_layers)


def trace(model: MptWithCache) -> "openvino.Model":
    """Run the forward pass once on example inputs and keep the operations it used, as an OpenVINO graph.

    The graph has inputs input_ids, attention_mask and past_key_values.N.key / .value, outputs logits and
    present.N.key / .value, and every batch size and length is dynamic. Its constants are the model's tensors.
    """
    import openvino

    config = model.config
    ids = (openvino.PartialShape([-1, -1]), openvino.Type.i64)
    cache = (
        openvino.PartialShape([-1, config.n_heads, -1, config.d_model // config.n_heads]),
        openvino.Type.f32,
    )
    with torch.no_grad(), _weights_as_they_are(model), _no_torchscript_left():
        graph = openvino.convert_model(
            model, example_input=example_inputs(config), input=[ids, ids, *[cache] * (2 * config.n_layers)]
        )
    inputs = ["input_ids", "attention_mask", *cache_names(config, "past_key_values")]
    outputs = ["logits", *cache_names(config, "present")]
    for port, name in zip([*graph.inputs, *graph.outputs], inputs + outputs, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(graph.inputs, inputs, strict=True):
        port.get_node().set_friendly_name(name)
    return graph


@contextmanager
def _weights_as_they_are(model: MptWithCache) -> Iterator[None]:
    """Let 16-bit weights be traced without copies of 32 bits, and without computing with them."""
    from openvino.frontend.pytorch import patch_model

    # Private in OpenVINO, but Optimum calls it too. It changes the modules of `model`, which are our own, and
    # torch.bmm until it is undone.
    patch_model.__make_16bit_traceable(model)
    try:
        yield
    finally:
        patch_model.unpatch_model(model, "_openvino_module_extension_patch_orig_forward")


@contextmanager
def _no_torchscript_left() -> Iterator[None]:
    """Empty TorchScript's caches afterwards: they would keep the traced model and its weights alive."""
    from optimum.exporters.openvino.utils import clear_class_registry

    try:
        yield
    finally:
        clear_class_registry()


def make_stateful(graph: "openvino.Model", config: "MptConfig") -> None:
    """Turn the cache's inputs and outputs into variables inside the model, in place.

    A new input beam_idx [batch] says which sequence each one continues: beam search reorders the cache so.
    """
    from optimum.exporters.openvino.stateful import patch_stateful

    patch_stateful(config, graph)


def compress(graph: "openvino.Model", precision: str) -> "openvino.Model":
    """Compress the weights of a graph to 8 or 4 bits, or only note for FP16 that the cache wants 16 as well.

    INT8 has a scale and a zero point per output channel. INT4 has them per group of 64 input channels, or the
    next smaller number that divides the layer's width; embedding and head stay at 8 bits. Others are more
    exact (`benchmarks.quality --int4` has the table), but smaller groups decode more slowly, AWQ takes
    much more memory while converting, and scale estimation needs data.
    """
    import nncf

    if precision == "FP16":
        graph.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])
        return graph
    if precision == "INT8":
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
    adjust = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    return nncf.compress_weights(
        graph,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=64,
        ratio=1.0,
        advanced_parameters=adjust,
    )


def export_mpt_onnx(pt_model: "MptForCausalLM", path: str | Path) -> Path:
    """Write an MPT model as ONNX, for runtimes other than OpenVINO; the model is left as it was.

    The same forward pass with the same names; the cache is explicit, in inputs past_key_values.N.key / .value
    and outputs present.N.key / .value. Weights of 16 bits become 32-bit ones, in memory and in the file.

    Args:
        pt_model: float32, float16 or bfloat16, on the CPU.
        path: the .onnx file; large weights come to lie in files beside it.

    Raises:
        ValueError: a setting of the model cannot be honoured.
    """
    config = pt_model.config
    check_settings(config.to_dict())
    past, present = cache_names(config, "past_key_values"), cache_names(config, "present")
    axes = {"input_ids": {0: "batch", 1: "new"}, "attention_mask": {0: "batch", 1: "total"}}
    axes |= {name: {0: "batch", 2: "cached"} for name in past}
    axes |= {"logits": {0: "batch", 1: "new"}} | {name: {0: "batch", 2: "total"} for name in present}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), _no_torchscript_left(), warnings.catch_warnings():
        # torch recommends its newer exporter, which needs packages that nothing else here does.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            MptWithCache(pt_model).float(),
            example_inputs(config),
            path,
            input_names=["input_ids", "attention_mask", *past],
            output_names=["logits", *present],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    return path
