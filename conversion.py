"""From a checkpoint to a folder that OpenVINO runs: FP16, INT8 or INT4 weights, configuration and tokenizer.

Knows the order of the work, and puts the tokenizer beside the model. Refuses to know where checkpoints come
from (`model_source`), how an architecture is exported (`routes`) and what is done with the model afterwards.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from chat_tokenizer import open_tokenizer
from checkpoint import (
    Weights,
    disk_for,
    expected_weights,
    memory_for,
    read_settings,
    stored_weights,
)
from compression import check_precision, compress_weights
from config import ModelConfig, get_model_config
from model_folder import (
    FOLDER_NAMES,
    MANIFEST,
    is_finished,
    load_model,
    model_folder,
    write_manifest,
)
from model_source import checkpoint_revision, fetch_weights, find_checkpoint
from quiet import quiet_libraries
from routes import route_of
from tokenizer_check import graph_differences, read_tokenizer
from workspace import PARTIAL, check_disk, check_memory, exclusive, show_progress, written_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

__all__ = ["FOLDER_NAMES", "load_model", "model_folder", "prepare_model", "prepare_models"]


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
        check_precision(precision)
    config = get_model_config(name)
    source = str(checkpoint or config.model_id)
    if Path(source).expanduser().is_dir():
        source = str(Path(source).expanduser().resolve())
    origin = source if checkpoint else config
    folders = {precision: model_folder(name, precision, models_dir) for precision in precisions}
    home = model_folder(name, "FP16", models_dir).parent

    def unfinished(revision: str | None) -> list[str]:
        return [p for p, folder in folders.items() if not is_finished(folder, source, revision)]

    def has_fp16(revision: str | None) -> bool:
        return is_finished(home / FOLDER_NAMES["FP16"], source, revision)

    if unfinished(checkpoint_revision(origin)):
        with exclusive(home):
            _clear_leftovers(home)
            if unfinished(checkpoint_revision(origin)):  # no other process has made them meanwhile
                found = find_checkpoint(origin)
                if found.missing_bytes and (to_make := unfinished(found.revision)):
                    expected = expected_weights(found.folder, found.weight_bytes)
                    same_disk = home.parent.stat().st_dev == found.folder.stat().st_dev
                    download = found.missing_bytes if same_disk else 0
                    _check_room(found.folder, home, to_make, has_fp16(found.revision), expected, download)
                if unfinished(found.revision):
                    found = fetch_weights(found)  # an older copy where the Hub does not deliver
                if to_make := unfinished(found.revision):
                    made_from = {"checkpoint": source, "revision": found.revision}
                    weights = stored_weights(found.folder)
                    _check_room(found.folder, home, to_make, has_fp16(found.revision), weights)
                    _convert(found.folder, home, config, to_make, has_fp16(found.revision), made_from)
    elif any(home.glob(f"*{PARTIAL}")):  # of a process at work, or of one killed at its very end
        with suppress(Timeout), exclusive(home).acquire(blocking=False):
            _clear_leftovers(home)
    return folders


def _convert(
    checkpoint_folder: Path,
    home: Path,
    config: ModelConfig,
    precisions: list[str],
    has_fp16: bool,
    made_from: dict,
) -> None:
    """Make the folders of some precisions in `home`, the others from the FP16 one, which may be temporary."""
    fp16_folder = home / FOLDER_NAMES["FP16"]
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if "FP16" in precisions:
            with written_whole(fp16_folder) as partial:
                export_fp16(checkpoint_folder, partial, config)
                write_manifest(partial, made_from, "FP16")
        elif not has_fp16:
            temporary = tempfile.TemporaryDirectory(dir=home, suffix=PARTIAL)
            fp16_folder = Path(stack.enter_context(temporary))
            export_fp16(checkpoint_folder, fp16_folder, config)
        for precision in precisions:
            if precision != "FP16":
                with written_whole(home / FOLDER_NAMES[precision]) as partial:
                    compress_weights(fp16_folder, partial, precision, leave=(MANIFEST,))
                    write_manifest(partial, made_from, precision)


def _clear_leftovers(home: Path) -> None:
    """Remove what killed processes left half written; only for the holder of the lock."""
    for leftover in home.glob(f"*{PARTIAL}"):
        shutil.rmtree(leftover)


def _check_room(
    checkpoint_folder: Path,
    home: Path,
    precisions: list[str],
    has_fp16: bool,
    weights: Weights,
    download: int = 0,
) -> None:
    """Refuse, before any work, what cannot be exported, or for which disk or memory do not suffice.

    Args:
        download: bytes that are still to come onto the same disk.

    Raises:
        ValueError: the architecture, or a setting of it, cannot be honoured.
        OSError: in numbers, with the way out.
    """
    settings = read_settings(checkpoint_folder)
    route = route_of(settings)
    try:
        route.check_settings(settings)
    except ValueError as error:
        raise ValueError(f"{checkpoint_folder} cannot be converted. {error}") from error
    written = [p for p in FOLDER_NAMES if p in precisions or (p == "FP16" and not has_fp16)]
    disk = download + disk_for(checkpoint_folder, weights, written)
    if "FP16" in written and route.traces_16_bits and weights.itemsize > 2:
        disk += weights.at_16_bits
    work = "Downloading and converting" if download else "Converting"
    what = f"{work} {home.name} to {', '.join(precisions)}"
    check_disk(home, disk, what)
    check_memory(
        memory_for(weights, written),
        what,
        "Close other programs, raise the container's limit, choose a smaller model, or copy the folder from "
        "a machine that has converted it.",
    )


def export_fp16(checkpoint_folder: Path, output: Path, config: ModelConfig) -> None:
    """Write a checkpoint as a stateful IR with 16-bit weights, with configuration and tokenizer beside it.

    Stateful: the KV cache is a variable inside the model, not an input and an output.
    """
    total = stored_weights(checkpoint_folder).at_16_bits
    with quiet_libraries(), show_progress("Exporting to FP16", output, total=total):
        route_of(read_settings(checkpoint_folder)).export(checkpoint_folder, output)
        _convert_tokenizer(checkpoint_folder, output, config)


def _convert_tokenizer(checkpoint_folder: Path, output: Path, config: ModelConfig) -> None:
    """Put a checkpoint's tokenizer beside its IR, with the catalogue's template and end tokens."""
    from transformers import AutoConfig

    # The configuration as it was converted: transformers may not accept the checkpoint's own.
    own = AutoConfig.from_pretrained(output, trust_remote_code=False)
    tokenizer = read_tokenizer(checkpoint_folder, own)
    if config.chat_template:
        tokenizer.chat_template = config.chat_template
    _save_tokenizer(tokenizer, output)
    _save_end_tokens(tokenizer, config, output)


def _save_tokenizer(tokenizer: "PreTrainedTokenizerBase", output: Path) -> None:
    """The tokenizer twice: for us and transformers, and as IR for runtimes without Python.

    No IR is better than one that reads other texts than the model was trained on.
    """
    import openvino
    from openvino_tokenizers import convert_tokenizer

    tokenizer.padding_side = "left"  # a batch of prompts must end, not begin, at the same position
    tokenizer.save_pretrained(output)
    _unite_digit_split(tokenizer)
    tokenizer_model, detokenizer_model = convert_tokenizer(tokenizer, with_detokenizer=True)
    if wrong := graph_differences(open_tokenizer(output), tokenizer_model, detokenizer_model):
        log.warning("The tokenizer is not written as IR, since that is not the same: there %s.", wrong[0])
        return
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
