"""What people have becomes an ordinary checkpoint: 16-bit weights, configuration and tokenizer in one folder.

Knows how an adapter is merged, which files must be cleaned, and whom to ask for the rest (`dequantize`,
`gguf_checkpoint`). Refuses to know where it came from and what it is converted to.
"""

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoint import TOKENIZERS, Checkpoint, Weights, expected_weights, look, stored_dtype, stored_weights
from checkpoint_files import METADATA_SUFFIXES, WEIGHTS, read_header, weight_files
from checkpoint_fit import EMBEDDINGS
from dequantize import dequantize
from gguf_checkpoint import convert_gguf
from json_files import read_json
from model_source import FoundCheckpoint
from quiet import quiet_libraries
from weight_names import check_weight_names
from workspace import PARTIAL, check_disk, check_memory, link_or_copy, show_progress

# Numbers in a byte of a quantized checkpoint, as far as it is quantized.
PER_BYTE = {"mxfp4": 2}


def expected_plain_weights(found: FoundCheckpoint) -> Weights | None:
    """What the ordinary checkpoint's weights will be, told before any are fetched; None of a GGUF file."""
    seen = found.base.seen if found.base else found.seen
    source = found.base or found
    if seen.kind == "gguf":
        return None
    if source.missing_bytes:
        weights = expected_weights(seen.folder, source.weight_bytes)
        stored = source.weight_bytes
    else:
        weights = stored_weights(seen.folder)
        stored = sum((seen.folder / name).stat().st_size for name in seen.files)
    if seen.quantization:
        return Weights(_plain_size(seen, stored), 2, weights.largest)
    return weights


@contextmanager
def plain_checkpoint(found: FoundCheckpoint, scratch: Path) -> Iterator[Path]:
    """The folder of an ordinary checkpoint, in a temporary one where there is none yet.

    Args:
        found: with its weights.
        scratch: an existing folder with room for the weights at 16 bits.

    Raises:
        ValueError, OSError: in words.
    """
    if _is_plain(found.seen):
        yield found.folder
        return
    with tempfile.TemporaryDirectory(dir=scratch, suffix=PARTIAL) as temporary:
        output = Path(temporary)
        if found.base:
            with plain_checkpoint(found.base, output) as base:
                merge_adapter(base, found.folder, output)
        else:
            _make_plain(found.seen, output)
        yield output


def _plain_size(seen: Checkpoint, stored: int) -> float:
    """Bytes at 16 bits of a quantized checkpoint's weights, at the most."""
    return 2 * PER_BYTE.get(seen.quantization, 1) * stored


def _is_plain(seen: Checkpoint) -> bool:
    return seen.kind == "weights" and not seen.quantization and not seen.marked


def _make_plain(seen: Checkpoint, output: Path) -> None:
    if seen.kind == "gguf":
        file = seen.folder if seen.folder.is_file() else seen.folder / seen.files[0]
        with show_progress(f"Reading {file.name}", output):
            convert_gguf(file, output)
        return
    if seen.quantization:
        size = _plain_size(seen, sum((seen.folder / name).stat().st_size for name in seen.files))
        check_disk(output, size, f"Dequantizing {seen.folder.name}")
        with show_progress(f"Dequantizing from {seen.quantization}", output, size):
            dequantize(seen.folder, output)
    else:
        indices = [f"{name}.index.json" for name in WEIGHTS if (seen.folder / f"{name}.index.json").is_file()]
        for name in [*seen.files, *indices]:
            link_or_copy(seen.folder / name, output / name)
    _copy_metadata(seen.folder, output)


def merge_adapter(base: Path, adapter: Path, output: Path) -> None:
    """Write a model with a LoRA adapter merged into its weights, in the type they are stored in.

    The tokenizer is the adapter's own, if it has one: it may have new tokens.

    Raises:
        ValueError: the adapter does not fit the model.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    dtype, what = stored_dtype(base), f"Merging the adapter {adapter.name}"
    size = stored_weights(base).at_16_bits * dtype.itemsize / 2
    check_disk(output, size, what)
    check_memory(size, what, "Close other programs, or merge it on a larger machine.")
    with quiet_libraries(), show_progress("Merging the adapter", output, size):
        check_weight_names(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=False)
        generation, model.generation_config = model.generation_config, GenerationConfig()
        rows = _embedding_rows(adapter)
        if rows > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(rows, mean_resizing=False)
        try:
            merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"The adapter {adapter} does not fit the model {base}: {error}") from error
        merged.save_pretrained(output)
        generation.to_json_file(output / "generation_config.json")  # transformers would not save every one
    own = any((adapter / name).is_file() for name in TOKENIZERS)
    _copy_metadata(adapter if own else base, output)
    look(output)


def _embedding_rows(adapter: Path) -> int:
    """How many tokens an adapter brings an embedding for, or has trained up to; 0 where it does neither."""
    trained = read_json(adapter / "adapter_config.json").get("trainable_token_indices") or []
    ids = itertools.chain(*trained.values()) if isinstance(trained, dict) else trained
    tensors = {}
    for name in weight_files(adapter):
        if name.endswith(".safetensors"):
            tensors |= read_header(adapter / name)
    rows = (tensor.shape[0] for name, tensor in tensors.items() if name.endswith(EMBEDDINGS))
    return max(0, 0, *rows, *(number + 1 for number in ids))


def _copy_metadata(folder: Path, output: Path) -> None:
    """Put the small files of a checkpoint beside new weights, whose own configuration counts."""
    for file in folder.iterdir():
        copy = output / file.name
        others = file.name.endswith((".index.json", "adapter_config.json"))
        if file.suffix in METADATA_SUFFIXES and file.is_file() and not others and not copy.exists():
            copy.write_bytes(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    if (templates := folder / "additional_chat_templates").is_dir():
        shutil.copytree(templates, output / templates.name)
