"""A converted folder: what it was made from, whether it is whole and current, what it says, and loading it.

Knows the names of its files and the manifest beside them. Refuses to know how it was made (`conversion`).

OpenVINO and Optimum are imported inside the functions that need them: finding a finished model again takes no
ten seconds of imports.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampling import OPTIONS, SamplingParams
from tokenizer_check import read_tokenizer
from tuning import fastest_properties
from workspace import show_progress

if TYPE_CHECKING:
    from optimum.intel import OVModelForCausalLM
    from transformers import PreTrainedTokenizerBase

FOLDER_NAMES = {"FP16": "FP16", "INT8": "INT8_compressed_weights", "INT4": "INT4_compressed_weights"}

MANIFEST = "conversion.json"
REQUIRED_FILES = (
    "openvino_model.xml",
    "openvino_model.bin",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def model_folder(name: str, precision: str, models_dir: str | Path = "models") -> Path:
    """Where `prepare_model` keeps a model; Hub ids and paths become one folder name."""
    local = Path(name).expanduser()
    slug = local.resolve().name if local.is_dir() else name.replace("/", "--")
    return Path(models_dir) / slug / FOLDER_NAMES[precision]


def write_manifest(folder: Path, made_from: dict, precision: str) -> None:
    """What the folder was made from, and the size of each file, so that damage is noticed."""
    libraries = ("openvino", "optimum-intel", "nncf", "transformers", "torch")
    manifest = made_from | {
        "precision": precision,
        "versions": {library: version(library) for library in libraries},
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))


def read_manifest(folder: Path) -> dict | None:
    """What `write_manifest` wrote, or None if that is not there or damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest if manifest["files"].keys() >= set(REQUIRED_FILES) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_finished(folder: Path, source: str, revision: str | None) -> bool:
    """Whether the folder is whole and was made from this checkpoint, at this revision if one is known."""
    manifest = read_manifest(folder)
    return (
        manifest is not None
        and manifest["checkpoint"] == source
        and revision in (None, manifest.get("revision"))
        and _damage(folder, manifest["files"]) is None
    )


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
    model_class = route_of(read_json(folder / "config.json")).model_class
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


def read_json(file: Path) -> dict:
    """The content of a JSON file beside a model; empty where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


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


def sampling_defaults(generation: dict[str, Any]) -> SamplingParams:
    """What generation_config.json recommends, as far as it is an option here and within its range."""
    given = {}
    for name in ("temperature", "top_p", "top_k", "repetition_penalty", "min_p"):
        value, option = generation.get(name), OPTIONS[name]
        if value is not None and option.low <= value <= (option.high or value):
            given[name] = option.kind(value)
    return SamplingParams(**given)
