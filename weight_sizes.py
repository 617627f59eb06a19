"""How a checkpoint's weights are stored, and how much disk and memory converting them takes.

Knows types and sizes, and what conversions were measured to need. Refuses to know whether the checkpoint is
any good (`checkpoint`), and how it is converted.
"""

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from checkpoint_files import METADATA_SUFFIXES, read_settings, weight_files

if TYPE_CHECKING:
    import torch

# Bytes of the written model in relation to the weights at 16 bits. Measured for a model shaped like
# Llama-2-7B (13.5 GB): 1.00, 0.50 and 0.27; where embedding and head are a larger part, INT4 takes more.
DISK_SHARE = {"FP16": 1.0, "INT8": 0.55, "INT4": 0.4}
# Anonymous memory of a conversion: this many bytes, and so much in relation to the weights at 16 bits.
# Measured for the same model: 0.9, 7.4 and 4.3 GB. Where the embedding is the larger part, compressing that
# is what takes most, per element: 50432 x 4096 with three layers of MPT-7B took 2.3 GB at INT8 and INT4.
MEMORY_BASE = 0.6e9
MEMORY_SHARE = {"FP16": 0.03, "INT8": 0.55, "INT4": 0.35}
MEMORY_PER_ELEMENT = {"FP16": 0, "INT8": 9, "INT4": 9}


def first_weights(checkpoint_folder: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a checkpoint's first file, the embedding among them, without their content.

    Raises:
        ValueError: there are no weights, or the file holds something else; the message names it.
    """
    from transformers.modeling_utils import load_state_dict

    names = weight_files(checkpoint_folder)
    if not names:
        raise ValueError(f"{checkpoint_folder} has no weights (*.safetensors or *.bin).")
    file = checkpoint_folder / names[0]
    try:
        return load_state_dict(str(file), map_location="meta")
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:  # PyTorch's advice would be to run it
        raise ValueError(
            f"{file} cannot be read as weights alone: it is damaged, or holds code, which is not run. Fetch "
            "it again, or take the same model as safetensors."
        ) from error


def stored_dtype(checkpoint_folder: Path) -> "torch.dtype":
    """The 16-bit or 32-bit type of most weights in a checkpoint's first file.

    The configuration's word is not enough: it may name another type than that of the files.
    """
    import torch

    elements = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 0)
    for tensor in first_weights(checkpoint_folder).values():
        if tensor.dtype in elements:  # in a quantized checkpoint the rest
            elements[tensor.dtype] += tensor.numel()
    return max(elements, key=elements.get)


class Weights(NamedTuple):
    """What tells how much disk and memory a conversion takes."""

    at_16_bits: float  # bytes
    itemsize: int  # bytes of one number as it is stored
    largest: int  # numbers in the largest tensor


def stored_weights(checkpoint_folder: Path) -> Weights:
    """The weights as they lie in the folder."""
    itemsize = stored_dtype(checkpoint_folder).itemsize
    stored = sum((checkpoint_folder / name).stat().st_size for name in weight_files(checkpoint_folder))
    largest = max(tensor.numel() for tensor in first_weights(checkpoint_folder).values())
    return Weights(stored * 2 / itemsize, itemsize, largest)


def expected_weights(checkpoint_folder: Path, weight_bytes: int) -> Weights:
    """What the configuration lets expect of weights that are not there yet.

    What it does not say is taken for the least: the weights themselves are looked at once they are there.

    Args:
        weight_bytes: the size of the weights' files.
    """
    settings = read_settings(checkpoint_folder)
    text = settings | (settings.get("text_config") or {})  # of a model that sees pictures too
    dtypes = (part.get(key) for part in (settings, text) for key in ("dtype", "torch_dtype"))
    itemsize = 2 if next(filter(None, dtypes), None) in ("float16", "bfloat16") else 4
    width = text.get("hidden_size") or text.get("d_model") or 0
    return Weights(weight_bytes * 2 / itemsize, itemsize, (text.get("vocab_size") or 0) * width)


def disk_for(checkpoint_folder: Path, weights: Weights, precisions: Collection[str]) -> float:
    """Bytes that the folders of these precisions will take."""
    metadata = [file for file in checkpoint_folder.iterdir() if file.suffix in METADATA_SUFFIXES]
    beside = 2 * sum(file.stat().st_size for file in metadata)  # tokenizers are written twice
    return sum(weights.at_16_bits * DISK_SHARE[precision] + beside for precision in precisions)


def memory_for(weights: Weights, precisions: Collection[str]) -> float:
    """Bytes of anonymous memory that writing these precisions takes, one after the other."""
    return MEMORY_BASE + max(
        max(weights.at_16_bits * MEMORY_SHARE[precision], weights.largest * MEMORY_PER_ELEMENT[precision])
        for precision in precisions
    )
