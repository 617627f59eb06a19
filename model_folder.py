"""A converted folder: what it was made from, whether it is whole and current, what it says, and loading it.

Knows the names of its files and the manifest beside them. Refuses to know how it was made (`conversion`).

OpenVINO and Optimum are imported inside the functions that need them: finding a finished model again takes no
ten seconds of imports.
"""

import hashlib
import json
import math
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from config import SUPPORTED_MODELS
from json_files import read_json, read_json_if_there
from sampling import OPTIONS, SamplingParams
from tokenizer_check import read_tokenizer
from tuning import fastest_properties
from workspace import show_progress

if TYPE_CHECKING:
    from optimum.intel import OVModelForCausalLM
    from transformers import PreTrainedTokenizerBase

FOLDER_NAMES = {"FP16": "FP16", "INT8": "INT8_compressed_weights", "INT4": "INT4_compressed_weights"}

MANIFEST = "conversion.json"
LIBRARIES = ("openvino", "openvino-tokenizers", "optimum-intel", "nncf", "transformers", "torch")
# What is written again without converting.
TOKENIZER_SIDE = {"template", "stop_strings"}
REQUIRED_FILES = (
    "openvino_model.xml",
    "openvino_model.bin",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def model_folder(
    name: str, precision: str, models_dir: str | Path = "models", checkpoint: str | Path | None = None
) -> Path:
    """Where `prepare_model` keeps a model.

    A catalogue name is the name of its folder. Hub ids, paths and other checkpoints for a catalogue name get
    a short hash behind it: of two that look alike, each has its own folder.
    """
    label = name
    if name not in SUPPORTED_MODELS or checkpoint:
        if name not in SUPPORTED_MODELS:
            local = Path(name).expanduser()
            label = local.resolve().name if local.exists() else name.replace("/", "--")
        identity = "\n".join(map(source_name, filter(None, (name, checkpoint))))
        label += "-" + hashlib.sha256(identity.encode()).hexdigest()[:8]
    return Path(models_dir).expanduser() / label / FOLDER_NAMES[precision]


def source_name(checkpoint: str | Path) -> str:
    """A checkpoint's name that means the same in every working folder: a Hub id, or an absolute path."""
    local = Path(checkpoint).expanduser()
    return str(local.resolve()) if local.exists() or local.is_absolute() else str(checkpoint)


def write_manifest(folder: Path, entries: dict[str, Any]) -> None:
    """What the folder was made from, and the size of each file, so that damage is noticed.

    Of all but the model itself also what they hold: a tokenizer of another model may have the same size.
    """
    files = {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
    manifest = entries | {
        "versions": {library: version(library) for library in LIBRARIES},
        "files": {name: file.stat().st_size for name, file in files.items()},
        "digests": {
            name: _digest(file) for name, file in files.items() if not name.startswith("openvino_model.")
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_manifest(folder: Path) -> dict | None:
    """What `write_manifest` wrote, or None if that is not there or damaged."""
    try:
        manifest = read_json(folder / MANIFEST)
        return manifest if manifest["files"].keys() >= set(REQUIRED_FILES) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def state_of(folder: Path, says: dict[str, Any], revision: str | None) -> str:
    """Whether a folder is whole and what it should be.

    Args:
        says: what its manifest must say.
        revision: the state of the checkpoint that it must have been made from, None where that is not known.

    Returns:
        "current"; "tokenizer" where only the template or the stop strings are others than they should be;
        or "stale".
    """
    manifest = read_manifest(folder)
    if manifest is None or _damage(folder, manifest["files"]):
        return "stale"
    if revision is not None:
        says = says | {"revision": revision}
    others = {key for key, value in says.items() if manifest.get(key) != value}
    return "current" if not others else "tokenizer" if others <= TOKENIZER_SIDE else "stale"


def newer_libraries(folder: Path) -> str | None:
    """The libraries that are installed in newer versions than those that made the folder, in words."""
    manifest = read_manifest(folder) or {}
    newer = [
        f"{library} {made_by} ({version(library)} is installed)"
        for library, made_by in (manifest.get("versions") or {}).items()
        if library in LIBRARIES and Version(version(library)) > Version(made_by)
    ]
    return ", ".join(newer) or None


def precision_of(folder: Path) -> str:
    """The precision of a converted model's weights, whoever made it: "FP16", "INT8", "INT4", "BF16", ...

    That of most numbers in the graph's constants; both kinds of 4 bits are "INT4", and so on.
    """
    if precision := (read_manifest(folder) or {}).get("precision"):
        return precision
    bits = Counter()
    for line in (folder / "openvino_model.xml").open(encoding="utf-8"):
        if constant := re.search(r'<data element_type="(\w+)" shape="([\d, ]+)" offset=', line):
            bits[constant[1]] += math.prod(map(int, constant[2].split(",")))
    if not bits:
        return "unknown"
    return re.sub(r"^[IU]", "INT", re.sub(r"^F(?=\d)", "FP", bits.most_common(1)[0][0].upper()))


def _damage(folder: Path, sizes: dict[str, int | None]) -> str | None:
    """The first file that is missing or has not the size it should have, in words, or None."""
    for name, size in sizes.items():
        try:
            found = (folder / name).stat().st_size
        except FileNotFoundError:
            return f"{name} is missing"
        if found != size and size is not None:
            return f"{name} has {found} bytes instead of {size}"
    return None


def _exchanged(folder: Path, digests: dict[str, str]) -> str | None:
    """The first file that holds something else than when it was written, in words, or None."""
    others = (name for name, digest in digests.items() if _digest(folder / name) != digest)
    return next((f"{name} is not the one that was written for it" for name in others), None)


def check_folder(folder: str | Path) -> Path:
    """The folder, if it holds a whole converted model.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is incomplete or damaged; the message names the file.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}. Make it with conversion.prepare_model(name, precision)."
        )
    manifest = read_manifest(folder)
    if manifest is None and (folder / MANIFEST).is_file():
        damage = f"{MANIFEST} cannot be read"
    else:
        damage = _damage(folder, dict.fromkeys(REQUIRED_FILES) | (manifest["files"] if manifest else {}))
        damage = damage or _exchanged(folder, (manifest or {}).get("digests") or {})
    if damage:
        raise ValueError(
            f"{folder} is not a whole converted model: {damage}. Delete it and convert the model again."
        )
    return folder


def check_device(device: str) -> None:
    """Refuse an OpenVINO device that this machine has not.

    Raises:
        ValueError: names those it has.
    """
    import openvino

    available = openvino.Core().available_devices
    families = {name.split(".")[0] for name in available}
    if device.split(":")[0] not in {"AUTO", "HETERO", "MULTI", *available, *families}:
        raise ValueError(
            f"This machine has no OpenVINO device {device!r}; there is {', '.join(available)} and AUTO."
        )


def load_model(
    folder: str | Path, device: str = "CPU", ov_config: dict[str, str] | None = None
) -> "tuple[OVModelForCausalLM, PreTrainedTokenizerBase]":
    """Load a converted folder for a device; returns the model and its tokenizer.

    The model is compiled when it is first used: by itself, or in another form by `engine.OptimumEngine`.

    Args:
        folder: what `prepare_model` returned, or any folder that `optimum-cli export openvino` made.
        device: a device of `openvino.Core().available_devices`, or "AUTO".
        ov_config: properties for `compile_model`, for example {"INFERENCE_NUM_THREADS": "4"}; they go before
            those of `tuning.fastest_properties`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is incomplete or damaged, this machine has no such device, or transformers
            cannot read the tokenizer as it is written.
    """
    folder = check_folder(folder)

    import openvino

    from routes import route_of

    check_device(device)
    model_class = route_of(read_json_if_there(folder / "config.json")).model_class
    ov_config = fastest_properties(folder, device) | (ov_config or {})
    try:
        # A bad property would show only when the model is compiled. A model of one operation tells now.
        number = openvino.opset13.parameter([1])
        tiny = openvino.Model([openvino.opset13.relu(number)], [number])
        openvino.Core().compile_model(tiny, device, ov_config)
        with show_progress("Loading the model"):
            model = model_class.from_pretrained(
                folder, compile=False, device=device, ov_config=ov_config, trust_remote_code=False
            )
    except RuntimeError as error:
        raise ValueError(f"OpenVINO cannot load {folder} on {device}: {error}") from error
    return model, read_tokenizer(folder)


def model_limits(settings: dict, generation: dict) -> tuple[int | None, frozenset[int]]:
    """A model's context length in tokens, None if it does not say; and its end tokens.

    LongRoPE (Ding et al., arXiv 2402.13753) has one set of rotary frequencies for short sequences and another
    for long ones. A kept cache would mix them, so such a model's context ends where the short ones do.

    Args:
        settings: the content of config.json.
        generation: the content of generation_config.json.
    """
    text = settings.get("text_config") or settings
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
    context = next((text[name] for name in names if text.get(name)), None)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        short = rope.get("original_max_position_embeddings") or text.get("original_max_position_embeddings")
        context = min(context, short or context)
    eos = (generation or text).get("eos_token_id")
    return context, frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])


def vocabulary_size(settings: dict) -> int | None:
    """How many tokens a model tells apart, if it says so: often more than its tokenizer has.

    Args:
        settings: the content of config.json.
    """
    return (settings.get("text_config") or settings).get("vocab_size")


def sampling_defaults(generation: dict[str, Any]) -> SamplingParams:
    """What generation_config.json recommends, as far as it is an option here and a number in its range."""
    given = {}
    for name, option in OPTIONS.items():
        is_rule = option.slider is not None and name != "max_new_tokens"
        value = generation.get(name) if is_rule else None
        if isinstance(value, int | float) and option.low <= value <= (option.high or value):
            given[name] = option.kind(value)
    return SamplingParams(**given)
