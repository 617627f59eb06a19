"""Weights that others have quantized, back to 16 bits, one tensor at a time.

Knows the methods whose numbers are exact in a formula: floats of 8 bits with scales, and blocks of floats of
4 bits. Refuses to guess: any other method is refused by its name, in `checkpoint`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint_files import read_settings, weight_files
from checkpoint_fit import quantization_of

if TYPE_CHECKING:
    import torch

# What is beside an 8-bit weight: its scale, by which it is multiplied. Scales of activations are not needed.
SCALES = ("_scale_inv", "_scale")
DROPPED = ("input_scale", "activation_scale", "output_scale", "k_scale", "v_scale")
# The 16 numbers of E2M1: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E8M0_BIAS = 127


def is_dequantizable(quantization: dict) -> bool:
    """Whether `dequantize` knows the method.

    Args:
        quantization: config.json's quantization_config.
    """
    method = quantization.get("quant_method")
    if method == "compressed-tensors":
        return quantization.get("format") == "float-quantized"
    return method in ("fp8", "mxfp4")


def dequantize(folder: Path, output: Path) -> None:
    """Write a checkpoint's weights, as bfloat16, and its configuration without a word of quantization.

    Args:
        folder: a checkpoint that `checkpoint.look` has seen as one that can be dequantized.
        output: a folder. The tokenizer is not written.

    Raises:
        ValueError: the weights are not in safetensors files, or a scale is missing.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    files = weight_files(folder)
    if not all(name.endswith(".safetensors") for name in files):
        raise ValueError(f"{folder} has quantized weights in {files[0]}; only safetensors can be read here.")
    settings = read_settings(folder)
    block = ((quantization_of(settings) or {}).get("weight_block_size") or (None, None))[:2]
    weight_map, total = {}, 0
    with ExitStack() as stack:
        opened = {name: stack.enter_context(safe_open(folder / name, framework="pt")) for name in files}
        where = {tensor: file for file in opened.values() for tensor in file.keys()}  # noqa: SIM118

        def get(name: str) -> "torch.Tensor":
            return where[name].get_tensor(name)

        for name, file in opened.items():
            tensors = dict(_plain_tensors(sorted(file.keys()), get, where, block))
            save_file(tensors, output / name, {"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
            total += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (output / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for part in (settings, settings.get("text_config") or {}):
        part.pop("quantization_config", None)
        part.pop("torch_dtype", None)
    (output / "config.json").write_text(
        json.dumps(settings | {"dtype": "bfloat16"}, indent=2), encoding="utf-8"
    )


def _plain_tensors(
    names: list[str], get: "Callable[[str], torch.Tensor]", known: dict, block: tuple[int | None, int | None]
) -> "Iterator[tuple[str, torch.Tensor]]":
    """The tensors of one file, each with its name; those that only help to compute others are left out."""
    import torch

    for name in names:
        scale = next((name + suffix for suffix in SCALES if name + suffix in known), None)
        if scale:
            yield name, from_float8(get(name), get(scale), block).bfloat16()
        elif name.endswith("_blocks") and (packed := name.removesuffix("_blocks")) + "_scales" in known:
            # gpt-oss keeps the experts' matrices the other way round
            yield packed, from_mxfp4(get(name), get(packed + "_scales")).transpose(-1, -2).contiguous()
        elif not name.endswith(("_scales", *SCALES, *DROPPED)):
            tensor = get(name)
            if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
                raise ValueError(f"{name} is quantized, but its scale is not there. Take the original model.")
            yield name, tensor.bfloat16() if tensor.dtype == torch.float32 else tensor


def from_float8(
    weight: "torch.Tensor", scale: "torch.Tensor", block: tuple[int | None, int | None] = (None, None)
) -> "torch.Tensor":
    """8-bit floats times their scales, [rows, columns], float32.

    Args:
        weight: [rows, columns].
        scale: one for all, one per row [rows, 1], or one per block of rows and columns.
        block: the size of these blocks; the last ones may be smaller.
    """
    scale = scale.float()
    if scale.numel() > 1 and block[0]:
        for axis, size in enumerate(block):
            scale = scale.repeat_interleave(size, axis).narrow(axis, 0, weight.shape[axis])
    return weight.float() * scale


def from_mxfp4(blocks: "torch.Tensor", scales: "torch.Tensor") -> "torch.Tensor":
    """Microscaling floats of 4 bits, bfloat16, which holds each of them exactly.

    Args:
        blocks: [..., blocks, 16] bytes: of the 32 numbers two in a byte, the first in its low half.
        scales: [..., blocks] bytes, exponents of two.

    Returns:
        [..., blocks * 32]
    """
    import torch

    numbers = torch.tensor([*E2M1, *(-number for number in E2M1)])
    halves = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2)
    exponents = scales.int() - E8M0_BIAS
    return torch.ldexp(numbers[halves.long()], exponents[..., None]).flatten(-2).bfloat16()
