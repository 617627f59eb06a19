"""One look at a checkpoint folder: what it holds, whether it is whole, and what converting it will take.

Knows the kinds of checkpoints that people have, and what their files must say to fit together. Refuses to
know where the folder comes from and how it is converted: nothing here depends on OpenVINO. Code that a
checkpoint brings along is never run, and no weights are read.
"""

import fnmatch
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from checkpoint_files import (
    ADAPTERS,
    METADATA_SUFFIXES,
    OPENVINO,
    SHARD,
    WEIGHT_SUFFIXES,
    WEIGHTS,
    check_ir,
    check_weights,
    fingerprint,
    kind_of,
    missing_files,
    read_settings,
    weight_files,
)
from checkpoint_fit import check_fit, quantization_of
from dequantize import is_dequantizable
from json_files import check_fetched, read_json
from weight_sizes import (
    DISK_SHARE,
    Weights,
    disk_for,
    expected_weights,
    first_weights,
    memory_for,
    stored_dtype,
    stored_weights,
)

__all__ = [
    "DISK_SHARE",
    "METADATA_SUFFIXES",
    "TOKENIZERS",
    "WEIGHTS",
    "Checkpoint",
    "Weights",
    "check_checkpoint",
    "check_metadata",
    "disk_for",
    "expected_weights",
    "fingerprint",
    "first_weights",
    "kind_of",
    "look",
    "memory_for",
    "missing_files",
    "read_settings",
    "stored_dtype",
    "stored_weights",
    "weight_files",
]

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "vocab.json",
)
# Formats of other programs, by their files, and what to take instead.
FORMAT = "take the same model in transformers' format"
FOREIGN = {
    "*.pth": f"weights in Meta's own format; {FORMAT}",
    "consolidated*.safetensors": f"weights in Mistral's own format; {FORMAT}",
    "tf_model.h5": f"weights for TensorFlow; {FORMAT}",
    "flax_model.msgpack": f"weights for Flax; {FORMAT}",
    "*.onnx": f"a model in ONNX; {FORMAT}",
    OPENVINO: "OpenVINO IR; fetch the config.json that belongs to it",
    "openvino_*_model.xml": "a model of several parts in OpenVINO IR, such as one that sees pictures; only "
    "text models in one part (openvino_model.xml) can be run here",
    "*.safetensors": "weights under another name than model.safetensors; rename the file if it holds all",
}
# Some configurations say how they were quantized without saying by what.
WITHOUT_METHOD = {"load_in_8bit": "bitsandbytes", "load_in_4bit": "bitsandbytes", "group_size": "mlx"}
# One of several files that hold one model, as llama.cpp splits it; and what belongs to a model, for pictures.
GGUF_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
GGUF_BESIDE = "mmproj*"


@dataclass(frozen=True)
class Checkpoint:
    """What `look` saw.

    kind: "weights" (a transformers checkpoint), "adapter" (LoRA), "openvino" (converted already) or "gguf".
    settings: the content of config.json, or of adapter_config.json; empty for "gguf".
    files: the names of the files of weights.
    missing: those of them that are not in the folder but can be had.
    base: the model that an adapter changes, as its configuration names it: a Hub id or a folder.
    quantization: the method by which others have quantized the weights; see `dequantize`; or None.
    marked: files that begin with a byte order mark, which not every library reads.
    """

    folder: Path
    kind: str
    settings: dict = field(default_factory=dict, repr=False)
    files: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    base: str | None = None
    quantization: str | None = None
    marked: tuple[str, ...] = ()

    @property
    def model_type(self) -> str | None:
        """The architecture, as config.json names it."""
        return self.settings.get("model_type")

    @property
    def whole(self) -> bool:
        """Whether all the weights are in the folder."""
        return not self.missing


def look(folder: Path, coming: Collection[str] = ()) -> Checkpoint:
    """Look at a checkpoint folder before any work is done with it; takes milliseconds for each file.

    Args:
        folder: with all the small files; or a single .gguf file.
        coming: names of files that are not there yet but can be fetched, such as those of a listing.

    Raises:
        ValueError: names the file or the key that is wrong, and the way out.
    """
    if folder.is_file():
        check_fetched(folder)
        _check_gguf_name(folder)
        return Checkpoint(folder, "gguf", files=(folder.name,))
    _check_links(folder, coming)
    names = {file.name for file in folder.iterdir() if file.is_file()} | set(coming)
    kind = kind_of(names)
    if kind == "gguf":
        return _look_at_gguf(folder, names)
    metadata = [file for file in folder.iterdir() if file.is_file() and file.suffix in METADATA_SUFFIXES]
    for file in metadata:
        if file.name in JSON_FILES:
            read_json(file)
        elif file.name in TOKENIZERS or file.suffix == ".jinja":
            check_fetched(file)
    if kind == "weights" and "adapter_config.json" in names:
        raise ValueError(
            f"{folder} holds the weights of a model and of an adapter (adapter_config.json). Move the "
            "adapter's files to a folder of their own, and name the one that is meant."
        )
    seen = Checkpoint(
        folder,
        kind,
        files=tuple(weight_files(folder, names)),
        marked=tuple(sorted(file.name for file in metadata if file.read_bytes()[:3] == b"\xef\xbb\xbf")),
    )
    fields = _look_at_adapter(seen) if kind == "adapter" else _look_at_settings(seen, names)
    missing = missing_files(folder, seen.files)
    lost = sorted(set(missing) - set(coming))
    if lost:
        raise ValueError(
            f"{folder} is incomplete: {len(lost)} of {len(seen.files)} weight files are missing, "
            f"the first is {lost[0]}. Fetch the checkpoint again."
        )
    for name in seen.files:
        if name not in missing:
            (check_fetched if kind == "openvino" else check_weights)(folder / name)
    if kind == "openvino" and not missing:
        check_ir(folder / OPENVINO)
    if kind == "weights":
        check_fit(folder, fields["settings"], seen.files)
    return Checkpoint(**vars(seen) | fields | {"missing": tuple(missing)})


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder that is not a whole checkpoint. Raises what `look` does."""
    look(folder)


def check_metadata(folder: Path, names: Collection[str] | None = None) -> None:
    """Refuse a transformers checkpoint without configuration or tokenizer, before its weights are there.

    Args:
        names: those of all files that are there or can be had; None for those in the folder.

    Raises:
        ValueError: names what is missing.
    """
    names = [file.name for file in folder.iterdir()] if names is None else names
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is not a checkpoint folder: it has no config.json.{_inside(folder) or _foreign(names)}"
        )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ValueError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json). "
            "Save it there with tokenizer.save_pretrained(folder)."
        )


def _look_at_settings(seen: Checkpoint, names: Collection[str]) -> dict:
    folder = seen.folder
    check_metadata(folder, names)
    if not seen.files:
        shards = sorted(filter(SHARD.fullmatch, names))
        if shards:
            index = re.sub(r"-\d+-of-\d+", "", shards[0]) + ".index.json"
            raise ValueError(
                f"{folder} has parts of weights, such as {shards[0]}, but no {index}. Fetch it too."
            )
        names = {*names, *(f"{file.parent.name}/{file.name}" for file in folder.glob("*/*.onnx"))}
        raise ValueError(f"{folder} has no {' or '.join(WEIGHTS)}.{_foreign(names)}")
    settings = read_settings(folder)
    quantized = quantization_of(settings)
    if seen.kind == "openvino" and "openvino_model.bin" not in seen.files:
        raise ValueError(f"{folder} has no openvino_model.bin beside {OPENVINO}. Fetch it again.")
    if not quantized or seen.kind == "openvino":
        return {"settings": settings}
    guess = next((method for key, method in WITHOUT_METHOD.items() if quantized.get(key)), "unknown")
    method = quantized.get("quant_method") or guess
    if not is_dequantizable(quantized):
        raise ValueError(
            f"{folder} has been quantized already, by the method {method!r} (quantization_config in "
            "config.json), which cannot be undone here. Take the original model that it was made from; "
            "it is compressed to INT8 or INT4 here."
        )
    return {"settings": settings, "quantization": method}


def _look_at_adapter(seen: Checkpoint) -> dict:
    folder = seen.folder
    file = folder / "adapter_config.json"
    settings = read_json(file)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{folder} is an adapter of type {kind!r} (peft_type in adapter_config.json); only LORA can be "
            "merged here. Merge it with the program that made it, and name the merged model's folder."
        )
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"{folder} is an adapter for {settings['task_type']} (task_type in adapter_config.json), and "
            "only one for CAUSAL_LM makes a model that writes text."
        )
    if settings.get("layer_replication"):
        raise ValueError(
            f"{folder} repeats layers of its model (layer_replication in adapter_config.json), which is not "
            "merged here. Merge it with the program that made it, and name the merged model's folder."
        )
    if not settings.get("base_model_name_or_path"):
        raise ValueError(
            f"{file} does not say which model the adapter changes: base_model_name_or_path is missing. Write "
            "the model's Hub id or folder there."
        )
    if not seen.files:
        raise ValueError(f"{folder} has no weights of the adapter ({' or '.join(ADAPTERS)}).")
    revision = f"@{settings['revision']}" if settings.get("revision") else ""
    return {"settings": settings, "base": settings["base_model_name_or_path"] + revision}


def _look_at_gguf(folder: Path, names: Collection[str]) -> Checkpoint:
    files = sorted(name for name in names if name.endswith(".gguf"))
    files = [name for name in files if not fnmatch.fnmatch(name, GGUF_BESIDE)] or files
    _check_gguf_name(folder / files[0])
    if len(files) > 1:
        raise ValueError(
            f"{folder} holds {len(files)} GGUF files. Name one of them instead of the folder, for example "
            f"{folder / files[0]}; or better the original model, whose weights were not yet quantized."
        )
    if (folder / files[0]).is_file():
        check_fetched(folder / files[0])
    return Checkpoint(folder, "gguf", files=tuple(files), missing=tuple(missing_files(folder, files)))


def _check_gguf_name(file: Path) -> None:
    if part := GGUF_PART.fullmatch(file.name):
        raise ValueError(
            f"{file} is one of {int(part[2])} files that hold one model. Join them with llama.cpp's "
            f"`llama-gguf-split --merge {file.name} {part[1]}.gguf` and name that; or take the original "
            "model, whose weights were not yet quantized."
        )


def _check_links(folder: Path, coming: Collection[str]) -> None:
    """Refuse links to files that are gone, as half a copy of a cache has them."""
    for file in sorted(folder.iterdir()):
        is_read = file.suffix in (*METADATA_SUFFIXES, *WEIGHT_SUFFIXES) and file.name not in coming
        if is_read and file.is_symlink() and not file.exists():
            raise ValueError(
                f"{file} is a link to {file.readlink()}, which is not there. Copy the folder with the files "
                "that its links stand for (cp -rL), or fetch the model again."
            )


def _foreign(names: Collection[str]) -> str:
    others = [name for name in names if name not in WEIGHTS and not SHARD.fullmatch(name)]
    found = next((words for pattern, words in FOREIGN.items() if fnmatch.filter(others, pattern)), None)
    return f" What it has is {found}." if found else ""


def _inside(folder: Path) -> str:
    """Where in a folder of folders a model is."""
    inner = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
    newest = max(inner, key=lambda file: file.stat().st_mtime, default=None)
    return f" One of its folders has one: name {newest.parent} instead." if newest else ""
