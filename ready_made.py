"""Models that somebody has converted to OpenVINO already: used as they are, whatever the precision asked for.

Knows what such a folder may lack. Refuses to change it: what is missing is made in a copy.
"""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from checkpoint import fingerprint, kind_of, look
from compression import check_precision
from config import ModelConfig
from hub_source import cached_snapshot
from model_folder import MANIFEST, REQUIRED_FILES, precision_of, state_of, write_manifest
from model_source import is_local
from quiet import quiet_libraries
from tokenizer_check import TOKENIZER_IR, folder_differences, read_tokenizer
from tokenizer_files import write_tokenizer_ir
from workspace import exclusive, link_or_copy, show_progress, written_whole

log = logging.getLogger(__name__)

COPY = "as_published"


def find_ready_made(model: str | ModelConfig) -> tuple[Path, str] | None:
    """The folder on this disk that holds a model's OpenVINO IR, and its state; None if there is none."""
    name = model if isinstance(model, str) else model.model_id
    bundled = isinstance(model, ModelConfig) and model.bundled
    if is_local(name):
        folder = Path(name).expanduser()
    else:
        folder = None if bundled or Path(name).is_absolute() else cached_snapshot(name)
    if folder is None:
        return None
    if not folder.is_dir() or kind_of([file.name for file in folder.iterdir()]) != "openvino":
        return None
    return folder, fingerprint(folder) if is_local(name) else folder.name


def use_ready_made(folder: Path, revision: str, home: Path, precisions: Iterable[str]) -> dict[str, Path]:
    """The folder to run for each of the precisions; says so where the model has another one.

    Args:
        folder: holds OpenVINO IR.
        revision: its state.
        home: the folder for a copy, if one is needed because the tokenizer is not there as IR.

    Raises:
        ValueError: something is missing that cannot be made.
    """
    look(folder)
    own = precision_of(folder)
    for precision in precisions:
        check_precision(precision)
        if precision != own:
            log.warning("%s is converted already and used as it is: %s, not %s.", folder, own, precision)
    if not (folder / MANIFEST).is_file():
        folder = _completed(folder, revision, home)
    return dict.fromkeys(precisions, folder)


def _lacks_a_form(folder: Path) -> bool:
    """Whether the tokenizer is not there in every form, or these are not the same."""
    if any(not (folder / name).is_file() for name in (*TOKENIZER_IR, *REQUIRED_FILES)):
        return True
    if wrong := folder_differences(folder):
        log.warning(
            "The tokenizer's IR in %s is not that of its tokenizer.json, which is used: there %s.",
            folder,
            wrong[0],
        )
    return bool(wrong)


def _completed(folder: Path, revision: str, home: Path) -> Path:
    """The folder; or a copy of it with the tokenizer in every form, if one is missing or another's."""
    copy = home / COPY
    says = {"checkpoint": str(folder), "precision": precision_of(folder)}
    if state_of(copy, says, revision) == "current":
        return copy
    if not _lacks_a_form(folder):
        return folder
    with exclusive(home):
        if state_of(copy, says, revision) == "current":  # another process has made it meanwhile
            return copy
        with written_whole(copy) as partial, quiet_libraries(), show_progress("Converting the tokenizer"):
            for file in folder.iterdir():
                if file.is_file():
                    large = file.name == "openvino_model.bin"  # the others may be written anew
                    (link_or_copy if large else shutil.copy2)(file, partial / file.name)
            tokenizer = read_tokenizer(folder)
            tokenizer.save_pretrained(partial)
            write_tokenizer_ir(tokenizer, partial)
            write_manifest(partial, says | {"revision": revision})
    return copy
