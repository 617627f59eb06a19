"""MPT by hand: from a transformers MptForCausalLM to an OpenVINO folder, without Optimum's exporter.

Knows tracing and how a cache becomes a state. Refuses to know the architecture (`mpt_forward`), tokenizers,
catalogue names and where checkpoints come from (`conversion`), and how the result is run (`ov_mpt_model`).

The steps: a forward pass with an explicit KV cache (`mpt_forward.MptWithCache`), tracing it (`trace`), making
the cache a state inside the model (`make_stateful`), compressing (`compression.compress`), saving.
"""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compression import check_precision, compress
from mpt_forward import MptWithCache, alibi_slopes, check_settings, load_mpt

if TYPE_CHECKING:
    import openvino
    from transformers import MptConfig, MptForCausalLM

__all__ = [
    "MptWithCache",
    "alibi_slopes",
    "cache_names",
    "check_settings",
    "compress",
    "convert_mpt",
    "export_checkpoint",
    "export_mpt_onnx",
    "load_mpt",
    "make_stateful",
    "trace",
]


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
    check_precision(precision)
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
    pt_model.generation_config.to_json_file(model_path / "generation_config.json")  # whatever it says
    del model
    gc.collect()
    return model_path


def export_checkpoint(checkpoint_folder: Path, output: Path) -> None:
    """Write an MPT checkpoint as a stateful IR with 16-bit weights; see `load_mpt` for what is refused."""
    convert_mpt(load_mpt(checkpoint_folder), output, "FP16")


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
