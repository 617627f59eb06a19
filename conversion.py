"""From a checkpoint to a folder that OpenVINO runs: FP16, INT8 or INT4 weights, configuration and tokenizer.

Knows Optimum Intel's exporter and compression, and decides which architectures go another way. Refuses to
know where checkpoints come from (`model_source`) and what is done with the model afterwards.

OpenVINO, NNCF and Optimum are imported inside the functions that need them: finding a finished model again
takes no ten seconds of imports.
"""

import functools
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import Timeout
from packaging.version import Version

from config import ModelConfig, get_model_config
from model_source import (
    METADATA_SUFFIXES,
    PARTIAL,
    checkpoint_revision,
    exclusive,
    fetch_checkpoint,
    first_weights,
    show_progress,
    stored_dtype,
    weight_files,
    written_whole,
)
from resources import check_disk, check_memory, fastest_properties

if TYPE_CHECKING:
    from optimum.intel import OVModelForCausalLM
    from transformers import PreTrainedTokenizerBase

FOLDER_NAMES = {"FP16": "FP16", "INT8": "INT8_compressed_weights", "INT4": "INT4_compressed_weights"}

# Bytes of the written model in relation to the weights at 16 bits. Measured for a model shaped like
# Llama-2-7B (13.5 GB): 1.00, 0.50 and 0.27; where embedding and head are a larger part, INT4 takes more.
DISK_SHARE = {"FP16": 1.0, "INT8": 0.55, "INT4": 0.4}
# Anonymous memory of a conversion: this many bytes, and so much in relation to the weights at 16 bits.
# Measured for the same model: 0.9, 7.4 and 4.3 GB. Where the embedding is the larger part, compressing that
# is what takes most, per element: 50432 x 4096 with three layers of MPT-7B took 2.3 GB at INT8 and INT4.
MEMORY_BASE = 0.6e9
MEMORY_SHARE = {"FP16": 0.03, "INT8": 0.55, "INT4": 0.35}
MEMORY_PER_ELEMENT = {"FP16": 0, "INT8": 9, "INT4": 9}

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

    `prepare_models` for one precision: see there for what is in the folder and what is raised.

    Args:
        name: a catalogue name, a Hub id or a local checkpoint folder.
        precision: "FP16", "INT8" or "INT4".
        models_dir: the folder that holds `<name>/<precision>`.
        checkpoint: a Hub id or a local folder to use instead of the entry's own weights.
    """
    return prepare_models(name, (precision,), models_dir, checkpoint)[precision]


def prepare_models(
    name: str,
    precisions: Iterable[str] = tuple(FOLDER_NAMES),
    models_dir: str | Path = "models",
    checkpoint: str | Path | None = None,
) -> dict[str, Path]:
    """Prepare a model in several precisions with one export; return their folders.

    A folder is complete by itself: IR, configuration, generation configuration, tokenizer, and the
    tokenizer and detokenizer as IR. It appears only when everything in it has been written. Folders that are
    finished already are kept, unless they were made from another checkpoint or another state of it.

    Args:
        name: a catalogue name, a Hub id or a local checkpoint folder.
        precisions: some of "FP16", "INT8" and "INT4".
        models_dir: the folder that holds `<name>/<precision>`.
        checkpoint: a Hub id or a local folder to use instead of the entry's own weights.

    Raises:
        ValueError: unknown name or precision, or an architecture that cannot be exported.
        OSError: too little room on the disk or in memory; and whatever `fetch_checkpoint` raises.

    What the Hub's listing and the configuration tell is checked before weights are downloaded.
    """
    precisions = tuple(precisions)
    for precision in precisions:
        if precision not in FOLDER_NAMES:
            raise ValueError(f"Unknown precision {precision!r}; choose one of {', '.join(FOLDER_NAMES)}.")
    config = get_model_config(name)
    source = str(checkpoint or config.model_id)
    if Path(source).expanduser().is_dir():
        source = str(Path(source).expanduser().resolve())
    origin = ModelConfig(model_id=source) if checkpoint else config
    folders = {precision: model_folder(name, precision, models_dir) for precision in precisions}
    home = model_folder(name, "FP16", models_dir).parent

    def unfinished(revision: str | None) -> list[str]:
        return [p for p, folder in folders.items() if not _is_finished(folder, source, revision)]

    def check_before_download(checkpoint_folder: Path, weight_bytes: int, to_fetch: int) -> None:
        revision = checkpoint_revision(origin, checkpoint_folder)
        if to_make := unfinished(revision):
            check_architecture(checkpoint_folder)
            has_fp16 = _is_finished(home / FOLDER_NAMES["FP16"], source, revision)
            expected = _expected_weights(checkpoint_folder, weight_bytes)
            same_disk = home.parent.stat().st_dev == checkpoint_folder.stat().st_dev
            download = to_fetch if same_disk else 0
            _check_resources(checkpoint_folder, home, to_make, has_fp16, expected, download)

    if unfinished(checkpoint_revision(origin)):
        with exclusive(home):
            _clear_leftovers(home)
            if unfinished(checkpoint_revision(origin)):  # no other process has made them meanwhile
                entry = get_model_config(source) if checkpoint else config
                checkpoint_folder = fetch_checkpoint(entry, check_before_download)
                made_from = {"checkpoint": source, "revision": checkpoint_revision(origin, checkpoint_folder)}
                _convert(checkpoint_folder, home, config, unfinished(made_from["revision"]), made_from)
    elif any(home.glob(f"*{PARTIAL}")):  # of a process at work, or of one killed at its very end
        with suppress(Timeout), exclusive(home).acquire(blocking=False):
            _clear_leftovers(home)
    return folders


def _convert(
    checkpoint_folder: Path, home: Path, config: ModelConfig, precisions: list[str], made_from: dict
) -> None:
    """Make the folders of some precisions in `home`, the others from the FP16 one, which may be temporary."""
    if not precisions:  # what was asked for is up to date after all
        return
    check_architecture(checkpoint_folder)
    fp16_folder = home / FOLDER_NAMES["FP16"]
    has_fp16 = _is_finished(fp16_folder, made_from["checkpoint"], made_from["revision"])
    _check_resources(checkpoint_folder, home, precisions, has_fp16)
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if "FP16" in precisions:
            with written_whole(fp16_folder) as partial:
                export_fp16(checkpoint_folder, partial, config)
                _write_manifest(partial, made_from, "FP16")
        elif not has_fp16:
            temporary = tempfile.TemporaryDirectory(dir=home, suffix=PARTIAL)
            fp16_folder = Path(stack.enter_context(temporary))
            export_fp16(checkpoint_folder, fp16_folder, config)
        for precision in precisions:
            if precision != "FP16":
                with written_whole(home / FOLDER_NAMES[precision]) as partial:
                    compress_weights(fp16_folder, partial, precision)
                    _write_manifest(partial, made_from, precision)


def _clear_leftovers(home: Path) -> None:
    """Remove what killed processes left half written; only for the holder of the lock."""
    for leftover in home.glob(f"*{PARTIAL}"):
        shutil.rmtree(leftover)


def model_folder(name: str, precision: str, models_dir: str | Path = "models") -> Path:
    """Where `prepare_model` keeps a model; Hub ids and paths become one folder name."""
    local = Path(name).expanduser()
    slug = local.resolve().name if local.is_dir() else name.replace("/", "--")
    return Path(models_dir) / slug / FOLDER_NAMES[precision]


def check_architecture(checkpoint_folder: Path) -> None:
    """Refuse, before any work, a checkpoint that cannot be exported.

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
            "gpt_neox, mpt, ...); code that a checkpoint brings along is not run."
        )
    exporter = TasksManager.get_exporter_config_constructor(
        "openvino", model_type=model_type, task="text-generation-with-past", library_name="transformers"
    ).func
    newest = getattr(exporter, "MAX_TRANSFORMERS_VERSION", None)
    if newest and Version(version("transformers")) > Version(str(newest)):
        raise ValueError(
            f"{checkpoint_folder} holds a model of type {model_type!r}, which this version of Optimum Intel "
            f"exports with transformers up to {newest} only, and transformers {version('transformers')} is "
            "installed. Choose a model of another type, or a newer Optimum Intel."
        )
    if model_type == "mpt":
        from mpt_converter import check_settings

        check_settings(settings)


class Weights(NamedTuple):
    """What tells how much disk and memory a conversion takes."""

    at_16_bits: float  # bytes
    itemsize: int  # bytes of one number as it is stored
    largest: int  # numbers in the largest tensor


def _check_resources(
    checkpoint_folder: Path,
    home: Path,
    precisions: list[str],
    has_fp16: bool,
    expected: Weights | None = None,
    download: int = 0,
) -> None:
    """Refuse, before any work, a conversion for which disk or memory do not suffice.

    Args:
        expected: where the weights are not there yet.
        download: bytes that are still to come onto the same disk.

    Raises:
        OSError: in numbers, with the way out.
    """
    written = [p for p in FOLDER_NAMES if p in precisions or (p == "FP16" and not has_fp16)]
    weights = expected or _stored_weights(checkpoint_folder)
    metadata = [file for file in checkpoint_folder.iterdir() if file.suffix in METADATA_SUFFIXES]
    beside = 2 * sum(file.stat().st_size for file in metadata)  # tokenizers are written twice
    disk = download + sum(weights.at_16_bits * DISK_SHARE[precision] + beside for precision in written)
    if "FP16" in written and _model_type(checkpoint_folder) == "mpt":
        disk += weights.at_16_bits * (weights.itemsize > 2)  # what is traced has 16 bits
    work = "Downloading and converting" if download else "Converting"
    what = f"{work} {home.name} to {', '.join(precisions)}"
    check_disk(home, disk, what)
    needed = [
        max(weights.at_16_bits * MEMORY_SHARE[p], weights.largest * MEMORY_PER_ELEMENT[p]) for p in written
    ]
    check_memory(MEMORY_BASE + max(needed), what)


def _stored_weights(checkpoint_folder: Path) -> Weights:
    return Weights(
        _bytes_at_16_bits(checkpoint_folder),
        stored_dtype(checkpoint_folder).itemsize,
        max(tensor.numel() for tensor in first_weights(checkpoint_folder).values()),
    )


def _expected_weights(checkpoint_folder: Path, weight_bytes: int) -> Weights:
    """What the configuration lets expect of weights that are not there yet.

    What it does not say is taken for the least: the weights themselves are looked at once they are there.
    """
    settings = json.loads((checkpoint_folder / "config.json").read_text())
    itemsize = 2 if (settings.get("dtype") or settings.get("torch_dtype")) in ("float16", "bfloat16") else 4
    width = settings.get("hidden_size") or settings.get("d_model") or 0
    return Weights(weight_bytes * 2 / itemsize, itemsize, (settings.get("vocab_size") or 0) * width)


def _bytes_at_16_bits(checkpoint_folder: Path) -> float:
    """The size of a checkpoint's weights at 16 bits each."""
    stored = sum((checkpoint_folder / name).stat().st_size for name in weight_files(checkpoint_folder))
    return stored * 2 / stored_dtype(checkpoint_folder).itemsize


def _model_type(checkpoint_folder: Path) -> str:
    return json.loads((checkpoint_folder / "config.json").read_text()).get("model_type")


def export_fp16(checkpoint_folder: Path, output: Path, config: ModelConfig) -> None:
    """Write a checkpoint as a stateful IR with 16-bit weights, with configuration and tokenizer beside it.

    Stateful: the KV cache is a variable inside the model, not an input and an output. The weights are loaded
    in the type they are stored in: only then do they stay in the mapped files. bfloat16 stays bfloat16.
    """
    total = _bytes_at_16_bits(checkpoint_folder)
    with quiet_libraries(), show_progress("Exporting to FP16", output, total=total):
        if _model_type(checkpoint_folder) == "mpt":  # by hand: Optimum's export of MPT ends at max_seq_len
            from mpt_converter import convert_mpt, load_mpt

            convert_mpt(load_mpt(checkpoint_folder), output, "FP16")
        else:
            from optimum.exporters.openvino import main_export
            from optimum.intel import OVConfig

            main_export(
                str(checkpoint_folder),
                output=output,
                task="text-generation-with-past",
                ov_config=OVConfig(dtype="fp16"),
                trust_remote_code=False,
                model_loading_kwargs={"torch_dtype": stored_dtype(checkpoint_folder)},
            )
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


def compress_weights(fp16_folder: Path, output: Path, precision: str) -> None:
    """Compress the weights of an FP16 model to 8 or 4 bits and copy what stands beside them.

    The activations stay floating point: only what is read from memory for every token becomes smaller.
    """
    import openvino

    from mpt_converter import compress

    with quiet_libraries(), show_progress(f"Compressing to {precision}", output):
        graph = openvino.Core().read_model(fp16_folder / "openvino_model.xml")
        options = graph.get_rt_info("runtime_options").value
        # A note for 16-bit weights; with smaller ones the runtime chooses a smaller cache too.
        options.pop("KV_CACHE_PRECISION")
        graph.set_rt_info(options, "runtime_options")
        openvino.save_model(compress(graph, precision), output / "openvino_model.xml", compress_to_fp16=False)
    for file in fp16_folder.iterdir():
        if file.name != MANIFEST and not (output / file.name).exists():
            shutil.copy2(file, output)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep notes on tracing, tables of bit widths and the libraries' progress bars off the screen.

    The libraries are imported first: they set their loggers' levels at that moment.
    """
    import optimum.exporters.openvino  # noqa: F401
    from nncf.quantization.algorithms.weight_compression import algorithm
    from transformers.utils import logging as transformers_logging

    thresholds = {
        "nncf": logging.ERROR,
        "optimum": logging.ERROR,
        "transformers": logging.ERROR,
        # "Failed to build model wrapper.": it is built to put the inputs in order, which Optimum does anyway.
        "openvino.frontend.pytorch.utils": logging.CRITICAL,
    }
    loggers = [logging.getLogger(name) for name in thresholds]
    levels = [logger.level for logger in loggers]
    track, loading_bars = algorithm.track, transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(thresholds[logger.name])
    algorithm.track = functools.partial(track, disable=True)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        algorithm.track = track
        if loading_bars:
            transformers_logging.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write_manifest(folder: Path, made_from: dict, precision: str) -> None:
    """What the folder was made from, and the size of each file, so that damage is noticed."""
    libraries = ("openvino", "optimum-intel", "nncf", "transformers", "torch")
    manifest = made_from | {
        "precision": precision,
        "versions": {library: version(library) for library in libraries},
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))


def _read_manifest(folder: Path) -> dict | None:
    """What `_write_manifest` wrote, or None if that is not there or damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest if manifest["files"].keys() >= set(REQUIRED_FILES) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_finished(folder: Path, source: str, revision: str | None) -> bool:
    """Whether the folder is whole and was made from this checkpoint, at this revision if one is known."""
    manifest = _read_manifest(folder)
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


def load_model(
    folder: str | Path, device: str = "CPU", ov_config: dict[str, str] | None = None
) -> "tuple[OVModelForCausalLM, PreTrainedTokenizerBase]":
    """Load a converted folder for a device; returns the model and its tokenizer.

    The model is compiled when it is first used: by itself, or in another form by `engine.OptimumEngine`.

    Args:
        folder: what `prepare_model` returned, or any folder that `optimum-cli export openvino` made.
        device: a device of `openvino.Core().available_devices`, or "AUTO".
        ov_config: properties for `compile_model`, for example {"INFERENCE_NUM_THREADS": "4"}; they go before
            those of `resources.fastest_properties`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is incomplete or damaged, or this machine has no such device.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}. Make it with conversion.prepare_model(name, precision)."
        )
    manifest = _read_manifest(folder)
    if manifest is None and (folder / MANIFEST).is_file():
        damage = f"{MANIFEST} cannot be read"
    else:
        damage = _damage(folder, dict.fromkeys(REQUIRED_FILES) | (manifest["files"] if manifest else {}))
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
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return model, tokenizer
