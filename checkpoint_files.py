"""The files of a checkpoint: which of them hold what; each either readable and whole, or refused by its name.

Knows safetensors, PyTorch's .bin, their indices and IR as files. Refuses to know what they mean together
(`checkpoint`). Needs neither torch nor transformers, and reads no weights: headers and sizes tell whether a
file is whole.
"""

import hashlib
import json
import math
import re
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from json_files import check_fetched, read_json

# The suffixes of a checkpoint's files that are read. Python files are left where they are.
METADATA_SUFFIXES = (".json", ".jinja", ".model", ".txt")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".xml")
# One file of this name holds the weights, or several that <name>.index.json lists.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
OPENVINO = "openvino_model.xml"
SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
# A header longer than this is none: the format's own limit.
LONGEST_HEADER = 100_000_000


def kind_of(names: Collection[str]) -> str:
    """The kind of a folder that holds, or will hold, files of these names: see `Checkpoint`.

    Weights count first: who has both can choose how exact the result is.
    """
    if any(single in names or f"{single}.index.json" in names for single in WEIGHTS):
        return "weights"
    if "adapter_config.json" in names:
        return "adapter"
    if OPENVINO in names:
        return "openvino"
    is_gguf = any(name.endswith(".gguf") for name in names) and not any(map(SHARD.fullmatch, names))
    return "gguf" if is_gguf else "weights"


def weight_files(folder: Path, names: Collection[str] | None = None) -> list[str]:
    """The names of the files that hold a checkpoint's weights; safetensors first, as in transformers.

    Args:
        names: those of all files that are there or can be had; None for those in the folder.

    Raises:
        ValueError: an index of several files cannot be read.
    """
    if names is None:
        names = {file.name for file in folder.iterdir() if file.is_file()}
    kind = kind_of(names)
    if kind == "openvino":
        return sorted(name for name in names if re.fullmatch(r"openvino_\w+\.(xml|bin)", name))
    if kind == "gguf":
        return sorted(name for name in names if name.endswith(".gguf"))
    for single in ADAPTERS if kind == "adapter" else WEIGHTS:
        if single in names:
            return [single]
        index = f"{single}.index.json"
        if index in names:
            return shards_of(folder / index)
    return []


def is_complete(folder: Path) -> bool:
    """Whether the files that must be there are there; quickly, without a look into them but the index."""
    if folder.is_file():
        return True
    try:
        files = weight_files(folder) if folder.is_dir() else []
    except ValueError:
        return False
    names = {file.name for file in folder.iterdir()} if files else set()
    settings = "adapter_config.json" if kind_of(names) == "adapter" else "config.json"
    return bool(files) and names.issuperset([*files, *([] if kind_of(names) == "gguf" else [settings])])


def fingerprint(folder: Path) -> str:
    """A hash over what a checkpoint folder, or a single file of weights, holds.

    Over the content of configuration and tokenizer, and over name, size and time of change of the weight
    files. Not over their content: reading gigabytes would take longer than what it saves, and samples of them
    would miss that one layer was exchanged. The price is a needless conversion after a copy with new times.
    """
    digest = hashlib.sha256()
    if folder.is_file():
        folder, weights, metadata = folder.parent, [folder.name], []
    else:
        weights = weight_files(folder)
        metadata = sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")])
    for file in metadata:
        if file.is_file() and file.suffix in METADATA_SUFFIXES:
            digest.update(f"{file.name}:{file.stat().st_size}:".encode() + file.read_bytes())
    for name in weights:
        status = (folder / name).stat()
        digest.update(f"{name}:{status.st_size}:{status.st_mtime_ns}:".encode())
    return digest.hexdigest()


class Tensor(NamedTuple):
    """What a file says of one tensor: safetensors' name of its type, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def check_weights(file: Path) -> None:
    """Refuse a file of weights that is not whole.

    Raises:
        ValueError: names the file and the way out.
    """
    check_fetched(file)
    if file.suffix == ".safetensors":
        read_header(file)
        return
    with file.open("rb") as opened:
        start = opened.read(2)
    # PyTorch writes a zip, whose list of contents is its end; before 1.6 it was a pickle, of protocol 2.
    if start == b"PK" and not zipfile.is_zipfile(file):
        raise ValueError(f"{file} ends too early: the list of contents is missing. Fetch the file again.")
    if start not in (b"PK", b"\x80\x02"):
        raise ValueError(f"{file} is no file of PyTorch's. Fetch the file again.")


def check_ir(graph: Path) -> None:
    """Refuse OpenVINO IR that is not whole: a graph, and the constants that it says are in the file beside.

    Raises:
        ValueError: names the file and the way out.
    """
    weights, needed, end = graph.with_suffix(".bin"), 0, ""
    with graph.open(encoding="utf-8", errors="replace") as opened:
        for line in opened:
            end = line.strip() or end
            if part := re.search(r'<data [^>]*offset="(\d+)" size="(\d+)"', line):
                needed = max(needed, int(part[1]) + int(part[2]))
    if not end.endswith("</net>"):
        raise ValueError(f"{graph} ends too early, or is no OpenVINO IR. Fetch it again.")
    if (size := weights.stat().st_size) < needed:
        raise ValueError(
            f"{weights} ends too early: {size} bytes, where {graph.name} needs {needed}. Fetch both again."
        )


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Format: 8 bytes that hold the length of a JSON header, the header, the tensors' bytes;
    https://huggingface.co/docs/safetensors.

    Raises:
        ValueError: it is none, or it is not as long as its header says.
    """
    check_fetched(file)
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST_HEADER
        header = opened.read(length) if length < LONGEST_HEADER else b""
    again = "Fetch the file again."
    if len(start) == 8 and header[:1] == b"{" and len(header) < length:
        raise ValueError(f"{file} ends too early: {size} bytes, where its header has {8 + length}. {again}")
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        tensors = {name: Tensor(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} is no safetensors file: its header cannot be read. {again}") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        ends_too = "ends too early" if size < expected else "is longer than its header says"
        raise ValueError(f"{file} {ends_too}: {size} bytes instead of {expected}. {again}")
    return tensors


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index of shards lists.

    Raises:
        ValueError: names the index and what is missing in it.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{index} does not say which file holds which weights: it has no weight_map. Fetch it again."
        )
    return sorted(set(map(str, weight_map.values())))


def missing_files(folder: Path, names: Collection[str]) -> list[str]:
    """Those of the names that the folder has no file for."""
    return [name for name in names if not (folder / name).is_file()]


def read_settings(checkpoint_folder: Path) -> dict:
    """The content of config.json."""
    return read_json(checkpoint_folder / "config.json")
