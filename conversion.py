"""From a checkpoint to a folder that OpenVINO runs: FP16, INT8 or INT4 weights, configuration and tokenizer.

Knows Optimum Intel's exporter and compression, and decides which architectures go another way. Refuses to
know where checkpoints come from (`model_source`) and what is done with the model afterwards.

OpenVINO, NNCF and Optimum are imported inside the functions that need them: finding a finished model again
takes no ten seconds of imports.
"""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from config import ModelConfig, get_model_config
from model_source import check_disk, exclusive, fetch_checkpoint, show_progress, written_whole

if TYPE_CHECKING:
    from optimum.intel import OVModelForCausalLM
    from transformers import PreTrainedTokenizerBase

FOLDER_NAMES = {"FP16": "FP16", "INT8": "INT8_compressed_weights", "INT4": "INT4_compressed_weights"}

# What `OVWeightQuantizationConfig` is given. INT8 has one scale and zero point per output channel. INT4 has
# them per group of 64 input channels; embedding and head stay at 8 bits. Where a layer's width is no
# multiple of 64, NNCF takes the next smaller group size that fits.
COMPRESSION = {
    "INT8": {"bits": 8, "sym": False},
    "INT4": {"bits": 4, "sym": False, "group_size": 64, "ratio": 1.0, "group_size_fallback": "adjust"},
}
# Bytes of the written model in relation to a 16-bit checkpoint, the FP16 step in between included.
DISK_SHARE = {"FP16": 1.0, "INT8": 1.55, "INT4": 1.4}

MANIFEST = "conversion.json"
REQUIRED_FILES = (
    "openvino_model.xml",
    "openvino_model.bin",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def prepare_model(
    name: str,
    precision: str = "INT8",
    models_dir: str | Path = "models",
    checkpoint: str | Path | None = None,
) -> Path:
    """Fetch, convert and compress a model; return its folder, at once if that is finished already.

    The folder is complete by itself: IR, configuration, generation configuration, tokenizer, and the
    tokenizer and detokenizer as IR. It appears only when everything in it has been written.

    Args:
        name: a catalogue name, a Hub id or a local checkpoint folder.
        precision: "FP16", "INT8" or "INT4".
        models_dir: the folder that holds `<name>/<precision>`.
        checkpoint: a Hub id or a local folder to use instead of the entry's own weights. A result that was
            made from another checkpoint is replaced.

    Raises:
        ValueError: unknown name or precision, or an architecture that cannot be exported.
        OSError: too little room on the disk; and whatever `fetch_checkpoint` raises.
    """
    if precision not in FOLDER_NAMES:
        raise ValueError(f"Unknown precision {precision!r}; choose one of {', '.join(FOLDER_NAMES)}.")
    config = get_model_config(name)
    source = str(checkpoint or config.model_id)
    if Path(source).expanduser().is_dir():
        source = str(Path(source).expanduser().resolve())
    folder = model_folder(name, precision, models_dir)
    with exclusive(folder):
        if not _is_finished(folder, source):
            checkpoint_folder = fetch_checkpoint(get_model_config(source) if checkpoint else config)
            model_type = check_architecture(checkpoint_folder)
            size = _checkpoint_size(checkpoint_folder)
            check_disk(folder, size * DISK_SHARE[precision], f"Converting {name} to {precision}")
            with written_whole(folder) as partial:
                if model_type == "mpt":
                    export_mpt(checkpoint_folder, partial, config, precision)
                elif precision == "FP16":
                    export_fp16(checkpoint_folder, partial, config)
                else:
                    kept = model_folder(name, "FP16", models_dir)
                    with _fp16_model(kept, partial, checkpoint_folder, source, config) as fp16_folder:
                        compress_weights(fp16_folder, partial, precision)
                _write_manifest(partial, source, precision)
    return folder


def model_folder(name: str, precision: str, models_dir: str | Path = "models") -> Path:
    """Where `prepare_model` keeps a model; Hub ids and paths become one folder name."""
    local = Path(name).expanduser()
    slug = local.resolve().name if local.is_dir() else name.replace("/", "--")
    return Path(models_dir) / slug / FOLDER_NAMES[precision]


def check_architecture(checkpoint_folder: Path) -> str:
    """The checkpoint's model type; refuses, before any work, one that cannot be exported.

    Raises:
        ValueError: names the architecture and what can be done, or the setting that cannot be honoured.
    """
    import optimum.exporters.openvino  # noqa: F401  (registers what the OpenVINO exporter supports)
    from optimum.exporters.tasks import TasksManager
    from transformers import CONFIG_MAPPING

    settings = json.loads((checkpoint_folder / "config.json").read_text())
    model_type = settings.get("model_type")
    known = TasksManager.get_supported_model_type_for_task("text-generation-with-past", exporter="openvino")
    if model_type not in known or model_type not in CONFIG_MAPPING:  # the latter: needs code of its own
        raise ValueError(
            f"{checkpoint_folder} holds a model of type {model_type!r}, which Optimum Intel cannot "
            "export for text generation. Choose one of a supported type (llama, qwen2, qwen3, mistral, phi3, "
            "gemma3_text, gpt_neox, mpt, ...); code that a checkpoint brings along is not run."
        )
    if model_type == "mpt":
        from mpt_converter import check_settings

        check_settings(settings)
    return model_type


def _checkpoint_size(checkpoint_folder: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(file.stat().st_size for file in checkpoint_folder.iterdir())


def export_fp16(checkpoint_folder: Path, output: Path, config: ModelConfig) -> None:
    """Write a checkpoint as a stateful IR with 16-bit weights, with configuration and tokenizer beside it.

    Stateful: the KV cache is a variable inside the model, not an input and an output.
    """
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    size = _checkpoint_size(checkpoint_folder)
    with _quiet_libraries(), show_progress("Exporting to FP16", output, total=size):
        main_export(
            str(checkpoint_folder),
            output=output,
            task="text-generation-with-past",
            ov_config=OVConfig(dtype="fp16"),
            trust_remote_code=False,
        )
        _convert_tokenizer(checkpoint_folder, output, config)


def export_mpt(checkpoint_folder: Path, output: Path, config: ModelConfig, precision: str) -> None:
    """Write an MPT checkpoint as a stateful IR, by hand: Optimum's export of MPT ends at max_seq_len.

    No FP16 step in between: the weights are compressed in the graph they were traced into.
    """
    from mpt_converter import convert_mpt, load_mpt

    with _quiet_libraries(), show_progress(f"Exporting to {precision}", output):
        convert_mpt(load_mpt(checkpoint_folder), output, precision)
        _convert_tokenizer(checkpoint_folder, output, config)


def _convert_tokenizer(checkpoint_folder: Path, output: Path, config: ModelConfig) -> None:
    """Put a checkpoint's tokenizer beside its IR, with the catalogue's template and end tokens."""
    from transformers import AutoConfig, AutoTokenizer

    # The configuration as it was converted: transformers may not accept the checkpoint's own.
    own = AutoConfig.from_pretrained(output, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_folder, config=own, trust_remote_code=False)
    if config.chat_template:
        tokenizer.chat_template = config.chat_template
    _save_tokenizer(tokenizer, output)
    _save_end_tokens(tokenizer, config, output)


def _save_tokenizer(tokenizer: "PreTrainedTokenizerBase", output: Path) -> None:
    """The tokenizer twice: for transformers, and as IR for runtimes without Python."""
    import openvino
    from openvino_tokenizers import convert_tokenizer

    tokenizer.padding_side = "left"  # a batch of prompts must end, not begin, at the same position
    tokenizer.save_pretrained(output)
    _unite_digit_split(tokenizer)
    tokenizer_model, detokenizer_model = convert_tokenizer(tokenizer, with_detokenizer=True)
    openvino.save_model(tokenizer_model, output / "openvino_tokenizer.xml")
    openvino.save_model(detokenizer_model, output / "openvino_detokenizer.xml")


def _unite_digit_split(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make one expression of "split off each digit, then split as GPT-2 does" (SmolLM2); same tokens.

    openvino_tokenizers would unite the two as well, but it forgets that spaces before a digit are the end of
    their part: its tokens for the lines of a numbered list are not those that the model was trained with.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    two_splits = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if tokenizer.is_fast and str(tokenizer.backend_tokenizer.pre_tokenizer) == str(two_splits):
        one = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Split(Regex(one), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
        )


def _save_end_tokens(tokenizer: "PreTrainedTokenizerBase", config: ModelConfig, output: Path) -> None:
    """Add the catalogue's end tokens to generation_config.json, where every runtime looks for them."""
    from transformers import GenerationConfig

    vocabulary = tokenizer.get_vocab()
    extra = [vocabulary[text] for text in config.stop_strings if text in vocabulary]
    if extra:
        generation_config = GenerationConfig.from_pretrained(output)
        own = generation_config.eos_token_id
        own = [] if own is None else own if isinstance(own, list) else [own]
        generation_config.eos_token_id = sorted({*own, *extra})
        generation_config.save_pretrained(output)


@contextmanager
def _fp16_model(
    kept: Path, workspace: Path, checkpoint_folder: Path, source: str, config: ModelConfig
) -> Iterator[Path]:
    """The FP16 folder that is kept, if it is there, else one that lasts only as long as it is needed.

    The latter is made in `workspace`: whatever clears that after a crash clears it too.
    """
    if _is_finished(kept, source):
        yield kept
    else:
        with tempfile.TemporaryDirectory(dir=workspace) as temporary:
            export_fp16(checkpoint_folder, Path(temporary), config)
            yield Path(temporary)


def compress_weights(fp16_folder: Path, output: Path, precision: str) -> None:
    """Compress the weights of an FP16 model to 8 or 4 bits and copy what stands beside them.

    The activations stay floating point: only what is read from memory for every token becomes smaller.
    """
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    with _quiet_libraries():
        model = OVModelForCausalLM.from_pretrained(
            fp16_folder,
            compile=False,
            quantization_config=OVWeightQuantizationConfig(**COMPRESSION[precision]),
            trust_remote_code=False,
        )
        with show_progress(f"Saving {precision}"):
            model.save_pretrained(output)
    for file in fp16_folder.iterdir():
        if file.name != MANIFEST and not (output / file.name).exists():
            shutil.copy2(file, output)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep notes on tracing and tables of bit widths, which ask nothing of a reader, off the screen."""
    thresholds = {
        "nncf": logging.ERROR,
        "optimum": logging.ERROR,
        "transformers": logging.ERROR,
        # "Failed to build model wrapper.": it is built to put the inputs in order, which Optimum does anyway.
        "openvino.frontend.pytorch.utils": logging.CRITICAL,
    }
    loggers = [logging.getLogger(name) for name in thresholds]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(thresholds[logger.name])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write_manifest(folder: Path, source: str, precision: str) -> None:
    """What the folder was made from, and the size of each file, so that damage is noticed."""
    libraries = ("openvino", "optimum-intel", "nncf", "transformers", "torch")
    manifest = {
        "checkpoint": source,
        "precision": precision,
        "versions": {library: version(library) for library in libraries},
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))


def _is_finished(folder: Path, source: str) -> bool:
    """Whether the folder is whole and was made from this checkpoint."""
    if not (folder / MANIFEST).is_file() or _damage(folder):
        return False
    return json.loads((folder / MANIFEST).read_text())["checkpoint"] == source


def _damage(folder: Path) -> str | None:
    """What is wrong with a converted folder, in words, or None."""
    for name in REQUIRED_FILES:
        if not (folder / name).is_file():
            return f"{name} is missing"
    if (folder / MANIFEST).is_file():
        try:
            sizes = json.loads((folder / MANIFEST).read_text())["files"]
        except (ValueError, KeyError, TypeError):
            return f"{MANIFEST} cannot be read"
        for name, size in sizes.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
    return None


def load_model(
    folder: str | Path, device: str = "CPU", ov_config: dict[str, str] | None = None
) -> "tuple[OVModelForCausalLM, PreTrainedTokenizerBase]":
    """Load a converted folder, compile the model for a device, and return it with its tokenizer.

    Args:
        folder: what `prepare_model` returned, or any folder that `optimum-cli export openvino` made.
        device: a device of `openvino.Core().available_devices`, or "AUTO".
        ov_config: properties for `compile_model`, for example {"INFERENCE_PRECISION_HINT": "f32"}.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is incomplete or damaged, or this machine has no such device.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}. Make it with conversion.prepare_model(name, precision)."
        )
    damage = _damage(folder)
    if damage:
        raise ValueError(
            f"{folder} is not a whole converted model: {damage}. Delete it and convert the model again."
        )

    import openvino
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoTokenizer

    from ov_mpt_model import OVMPTModel

    available = openvino.Core().available_devices
    if device.split(":")[0] not in {
        "AUTO",
        "HETERO",
        "MULTI",
        *available,
        *(name.split(".")[0] for name in available),
    }:
        raise ValueError(
            f"This machine has no OpenVINO device {device!r}; there is {', '.join(available)} and AUTO."
        )
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    model_class = OVMPTModel if model_type == "mpt" else OVModelForCausalLM
    try:
        with show_progress(f"Loading the model on {device}"):
            model = model_class.from_pretrained(
                folder, device=device, ov_config=ov_config, trust_remote_code=False
            )
    except RuntimeError as error:
        raise ValueError(f"OpenVINO cannot load {folder} on {device}: {error}") from error
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return model, tokenizer
