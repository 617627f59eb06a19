"""From a checkpoint to a folder that OpenVINO runs: FP16, INT8 or INT4 weights, configuration and tokenizer.

Knows the order of the work, and puts the tokenizer beside the model. Refuses to know where checkpoints come
from (`model_source`), how an architecture is exported (`routes`) and what is done with the model afterwards.
"""

import logging
import shutil
import tempfile
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from chat_templates import check_chat_template
from checkpoint import TOKENIZERS, Weights, disk_for, memory_for, read_settings, stored_weights
from compression import check_precision, compress_weights
from config import ModelConfig, get_model_config
from model_folder import (
    FOLDER_NAMES,
    MANIFEST,
    load_model,
    model_folder,
    newer_libraries,
    read_manifest,
    source_name,
)
from model_source import FoundCheckpoint, checkpoint_revision, fetch_weights, find_checkpoint
from plain_checkpoint import expected_plain_weights, plain_checkpoint
from quiet import quiet_libraries
from ready_made import find_ready_made, use_ready_made
from recipe import Recipe
from routes import route_of
from tokenizer_files import check_tokenizer, rewrite_tokenizer, write_tokenizer
from workspace import (
    PARTIAL,
    REPLACED,
    check_disk,
    check_memory,
    exclusive,
    link_or_copy,
    recover,
    show_progress,
    written_whole,
)

log = logging.getLogger(__name__)

__all__ = ["FOLDER_NAMES", "load_model", "model_folder", "prepare_model", "prepare_models"]

# What a manifest says of the checkpoint that a folder was made from.
STATE = ("revision", "published", "base", "adapter", "dequantized_from")

# It guards what libraries have at module level, hence it stands here too: while they trace a model, exporters
# exchange functions of PyTorch for all threads, and Optimum is not complete for one thread while another one
# imports it. Nor would two conversions leave each other the memory that each was told is free. Downloads
# are not guarded.
_CONVERTING = threading.Lock()


def prepare_model(
    name: str,
    precision: str = "INT8",
    models_dir: str | Path = "models",
    checkpoint: str | Path | None = None,
    for_chat: bool = False,
) -> Path:
    """Fetch, convert and compress a model; return its folder, at once if that is finished already.

    `prepare_models` for one precision: see there for what is in the folder and what is raised.

    Args:
        name: a catalogue name, a Hub id or a local checkpoint folder.
        precision: "FP16", "INT8" or "INT4".
        models_dir: the folder that holds `<name>/<precision>`.
        checkpoint: a Hub id or a local folder to use instead of the entry's own weights.
        for_chat: see `prepare_models`.
    """
    return prepare_models(name, (precision,), models_dir, checkpoint, for_chat)[precision]


def prepare_models(
    name: str,
    precisions: Iterable[str] = tuple(FOLDER_NAMES),
    models_dir: str | Path = "models",
    checkpoint: str | Path | None = None,
    for_chat: bool = False,
) -> dict[str, Path]:
    """Prepare a model in several precisions with one export; return their folders.

    A folder is complete by itself: IR, configuration, generation configuration, tokenizer, and the
    tokenizer and detokenizer as IR. It appears only when everything in it has been written. Folders that are
    finished already are kept, unless they were made from another state of the checkpoint, or otherwise than
    they would be now; where only the catalogue's template or stop strings differ, nothing is converted.

    What holds OpenVINO IR already is used as it is, whatever the precision.

    Args:
        name: a catalogue name, a Hub id, or a local checkpoint folder or .gguf file.
        precisions: some of "FP16", "INT8" and "INT4".
        models_dir: the folder that holds `<name>/<precision>`: see `model_folder`.
        checkpoint: a Hub id or a local folder to use instead of the entry's own weights.
        for_chat: do not begin to convert a model without a chat template.

    Raises:
        ValueError: unknown name or precision, or a checkpoint that cannot be converted.
        OSError: too little room on the disk or in memory; and whatever `fetch_checkpoint` raises.

    What the Hub's listing and the configuration tell is checked before weights are downloaded.
    """
    precisions = tuple(precisions)
    for precision in precisions:
        check_precision(precision)
    config = get_model_config(name)
    origin = source_name(checkpoint) if checkpoint else config
    home = model_folder(name, "FP16", models_dir, checkpoint).parent
    if ready := find_ready_made(origin):
        return use_ready_made(*ready, home, precisions)
    bundled = None if checkpoint else config.bundled
    source = f"{bundled.package} {bundled.version}" if bundled else source_name(checkpoint or config.model_id)
    recipe = Recipe(home, config, source)

    ready = None
    if recipe.to_do(precisions, checkpoint_revision(origin)):
        with exclusive(home):
            _clear_leftovers(home)
            if recipe.to_do(precisions, checkpoint_revision(origin)):  # nobody has made them meanwhile
                found = find_checkpoint(origin)
                if found.seen.kind == "openvino":
                    found = fetch_weights(found)
                    ready = found.folder, found.revision
                else:
                    _bring_up_to_date(recipe, found, precisions, for_chat)
    elif any(home.glob(f"*{PARTIAL}")):  # of a process at work, or of one killed at its very end
        with suppress(Timeout), exclusive(home).acquire(blocking=False):
            _clear_leftovers(home)
    if ready:
        return use_ready_made(*ready, home, precisions)
    for precision in precisions:
        if newer := newer_libraries(recipe.folder(precision)):
            log.warning("%s was converted with %s.", recipe.folder(precision), newer)
    return {precision: recipe.folder(precision) for precision in precisions}


def _bring_up_to_date(
    recipe: Recipe, found: FoundCheckpoint, precisions: tuple[str, ...], for_chat: bool
) -> None:
    with _CONVERTING:
        for precision in dict.fromkeys(["FP16", *precisions]):  # FP16 may be what the others are made from
            if recipe.state(precision, found.revision) == "tokenizer":
                _rewrite_tokenizer(recipe, precision)
        to_make = recipe.to_do(precisions, found.revision)
        has_fp16 = not recipe.to_do(["FP16"], found.revision)
        if not to_make:
            return
        if found.seen.kind != "gguf":
            own = any((found.folder / name).is_file() for name in TOKENIZERS)
            _check_tokenizer(found.folder if own or not found.base else found.base.folder, recipe, for_chat)
        if (weights := expected_plain_weights(found)) and not has_fp16:
            same_disk = recipe.home.parent.stat().st_dev == found.folder.stat().st_dev
            download = found.missing_bytes + (found.base.missing_bytes if found.base else 0)
            described = (found.base or found).folder
            _check_room(described, recipe.home, to_make, has_fp16, weights, download if same_disk else 0)
        recipe.home.mkdir(parents=True, exist_ok=True)
        if has_fp16:
            published = read_manifest(recipe.folder("FP16"))["published"]
            _compress(recipe, recipe.folder("FP16"), to_make, _state(found, published))
            return
    found = fetch_weights(found)  # an older copy where the Hub does not deliver
    if not (to_make := recipe.to_do(precisions, found.revision)):
        return
    with _CONVERTING, plain_checkpoint(found, recipe.home) as checkpoint_folder:
        _check_tokenizer(checkpoint_folder, recipe, for_chat)
        _check_room(checkpoint_folder, recipe.home, to_make, has_fp16, stored_weights(checkpoint_folder))
        _convert(recipe, checkpoint_folder, to_make, found)


def _check_tokenizer(checkpoint_folder: Path, recipe: Recipe, for_chat: bool) -> None:
    check_tokenizer(checkpoint_folder)
    if for_chat and not recipe.config.chat_template:
        check_chat_template(checkpoint_folder)


def _state(found: FoundCheckpoint, published: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of the state of the checkpoint."""
    state = {"revision": found.revision, "published": published}
    if found.base:
        state |= {"base": found.base.name, "adapter": found.name}
    if found.seen.quantization:
        state |= {"dequantized_from": found.seen.quantization}
    return state


def _convert(recipe: Recipe, checkpoint_folder: Path, precisions: list[str], found: FoundCheckpoint) -> None:
    """Make the folders of some precisions, those but FP16 from the FP16 one, which may be temporary."""
    if "FP16" in precisions:
        with written_whole(recipe.folder("FP16")) as partial:
            published = export_fp16(checkpoint_folder, partial, recipe.config)
            recipe.write_down(partial, "FP16", _state(found, published))
        _compress(recipe, recipe.folder("FP16"), precisions, _state(found, published))
        return
    with tempfile.TemporaryDirectory(dir=recipe.home, suffix=PARTIAL) as temporary:
        published = export_fp16(checkpoint_folder, Path(temporary), recipe.config)
        _compress(recipe, Path(temporary), precisions, _state(found, published))


def _compress(recipe: Recipe, fp16_folder: Path, precisions: list[str], state: dict[str, Any]) -> None:
    for precision in precisions:
        if precision != "FP16":
            with written_whole(recipe.folder(precision)) as partial:
                compress_weights(fp16_folder, partial, precision, leave=(MANIFEST,))
                recipe.write_down(partial, precision, state)


def _rewrite_tokenizer(recipe: Recipe, precision: str) -> None:
    """Bring template and end tokens of a folder up to date; the model itself is not touched."""
    folder = recipe.folder(precision)
    manifest = read_manifest(folder)
    with written_whole(folder) as partial, quiet_libraries():
        for file in folder.iterdir():
            if file.name.startswith("openvino_"):
                link_or_copy(file, partial / file.name)
            elif file.is_file() and file.name != MANIFEST:
                shutil.copy2(file, partial)
        rewrite_tokenizer(partial, recipe.config, manifest["published"])
        state = {key: manifest[key] for key in STATE if key in manifest}
        recipe.write_down(partial, precision, state)


def _clear_leftovers(home: Path) -> None:
    """Remove what killed processes left half written, and bring back what they were replacing.

    Only for the holder of the lock.
    """
    for aside in home.glob(f"*{REPLACED}"):
        recover(aside.with_name(aside.name.removesuffix(REPLACED)))
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


def export_fp16(checkpoint_folder: Path, output: Path, config: ModelConfig) -> dict[str, Any]:
    """Write a checkpoint as a stateful IR with 16-bit weights, with configuration and tokenizer beside it.

    Stateful: the KV cache is a variable inside the model, not an input and an output.

    Returns:
        What `tokenizer_files.write_tokenizer` does.
    """
    total = stored_weights(checkpoint_folder).at_16_bits
    with quiet_libraries(), show_progress("Exporting to FP16", output, total=total):
        route_of(read_settings(checkpoint_folder)).export(checkpoint_folder, output)
        return write_tokenizer(checkpoint_folder, output, config)
