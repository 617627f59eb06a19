"""Checkpoints on the Hugging Face Hub: what is there, what of it is on this disk, and fetching the rest.

Knows the Hub's library and its cache, and that a half-finished download is none. Refuses to know local
folders and what a checkpoint is good for (`checkpoint`).
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from checkpoint import Checkpoint, look
from checkpoint_files import METADATA_SUFFIXES, WEIGHTS, is_complete, kind_of, shards_of, weight_files
from workspace import check_disk

# A download is written once; the rest is room for the file system.
DISK_MARGIN = 1.05
TEMPLATES = "additional_chat_templates/"  # the only folder of a checkpoint that is read


@dataclass(frozen=True)
class HubCheckpoint:
    """A model on the Hub whose small files are in the cache.

    commit: which state it is.
    sizes: bytes of each file of weights, those of `missing` not yet here; empty where the Hub did not answer
        and the copy in the cache is taken.
    """

    seen: Checkpoint
    commit: str
    sizes: dict[str, int]
    missing: tuple[str, ...] = ()


def find_on_hub(name: str) -> HubCheckpoint:
    """Bring all but the weights of a model onto this disk and look at it.

    Args:
        name: "owner/name" or "owner/name@revision": a branch, tag or commit.

    Raises:
        ValueError: the model is of no use here.
        PermissionError, FileNotFoundError, ConnectionError: in words that say what helps.
        OSError: the disk has too little room.
    """
    model_id, _, revision = name.partition("@")
    try:
        with _hub_errors_in_words(name):
            info = HfApi().model_info(model_id, revision=revision or None, files_metadata=True)
            sizes = {file.rfilename: file.size or 0 for file in info.siblings}
            metadata = [name for name in sizes if name.endswith(METADATA_SUFFIXES) and _is_read(name)]
            root = {name for name in sizes if "/" not in name}
            weights = _weight_files(model_id, info.sha, root)
            missing = [name for name in metadata + weights if not _in_cache(model_id, name, info.sha)]
            needed = sum(sizes[name] for name in missing) * DISK_MARGIN
            check_disk(Path(constants.HF_HUB_CACHE), needed, f"Downloading {model_id}")
            folder = Path(snapshot_download(model_id, revision=info.sha, allow_patterns=metadata))
    except ConnectionError:
        if (folder := cached_snapshot(name)) is None:
            raise
        return HubCheckpoint(look(folder), folder.name, {})
    seen = look(folder, coming=root)
    return HubCheckpoint(seen, info.sha, {name: sizes[name] for name in seen.files}, seen.missing)


def fetch_from_hub(name: str, found: HubCheckpoint) -> Path:
    """Bring the weights as well; returns the folder. Raises what `find_on_hub` does."""
    model_id, _, revision = name.partition("@")
    try:
        with _hub_errors_in_words(name):
            # Weights last: a snapshot that has them all is whole, however the download ended.
            snapshot_download(model_id, revision=found.commit, allow_patterns=list(found.seen.files))
            _note_commit(model_id, revision or "main", found.commit)
    except ConnectionError:
        if (folder := cached_snapshot(name)) is None:
            raise
        return folder
    return found.seen.folder


def cached_snapshot(name: str) -> Path | None:
    """The whole snapshot of a revision in the Hub's cache, if any; its name is the commit.

    An interrupted download does not count. Without a revision it is the snapshot of branch main; where that
    is not whole, or not known, the newest one that was not fetched as some other revision.
    """
    model_id, _, revision = name.partition("@")
    cache = _cache_folder(model_id)
    notes = {
        note.relative_to(cache / "refs").as_posix(): note.read_text(encoding="utf-8")
        for note in cache.glob("refs/**/*")
        if note.is_file()
    }
    if revision:
        candidates = [cache / "snapshots" / notes.get(revision, revision)]
    else:
        main = notes.pop("main", "unknown")
        by_age = sorted(cache.glob("snapshots/*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
        unnamed = [folder for folder in by_age if folder.name not in notes.values()]
        candidates = [cache / "snapshots" / main, *unnamed]
    return next((folder for folder in candidates if is_complete(folder)), None)


@contextmanager
def _hub_errors_in_words(name: str) -> Iterator[None]:
    """What goes wrong with the Hub, as built-in exceptions that say what helps."""
    model_id, _, revision = name.partition("@")
    try:
        yield
    except GatedRepoError as error:
        raise PermissionError(
            f"{model_id} is gated. Accept its licence at https://huggingface.co/{model_id}, then log in with "
            "`hf auth login` (or huggingface_hub.notebook_login() in a notebook) and try again."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"The Hugging Face Hub has no public model {model_id!r}. Check the spelling; for a private model "
            "log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{model_id} on the Hugging Face Hub has no revision {revision!r}. Take a branch, a tag or one "
            f"of https://huggingface.co/{model_id}/commits/main."
        ) from error
    # ConnectionError comes from HF_HUB_OFFLINE=1 and from Xet.
    except (httpx.TransportError, HfHubHTTPError, ConnectionError, LocalEntryNotFoundError) as error:
        raise ConnectionError(
            f"The Hugging Face Hub did not deliver {name}, and no whole copy is in the local cache. "
            "Check the network or proxy and try again, name a local folder instead, or take the default "
            f"model, which needs no Hub. The cause: {error}"
        ) from error


def _is_read(name: str) -> bool:
    return "/" not in name or name.startswith(TEMPLATES)


def _in_cache(model_id: str, name: str, revision: str) -> bool:
    return isinstance(try_to_load_from_cache(model_id, name, revision=revision), str)


def _weight_files(model_id: str, revision: str, names: Collection[str]) -> list[str]:
    """The weights in one format, without other variants of them such as model.fp16.safetensors.

    Raises:
        ValueError: a repository of GGUF files: nothing says which of them is meant.
    """
    if kind_of(names) == "gguf":
        example = min(name for name in names if name.endswith(".gguf"))
        raise ValueError(
            f"{model_id} on the Hugging Face Hub holds GGUF files. Take the model that they were made from, "
            f"which its page names; or fetch one, `hf download {model_id} {example} --local-dir .`, and name "
            f"the file instead: ./{example}."
        )
    for single in WEIGHTS:
        index = f"{single}.index.json"
        if single not in names and index in names:
            listed = shards_of(Path(hf_hub_download(model_id, index, revision=revision)))
            return [name for name in listed if name in names]
    return weight_files(_cache_folder(model_id), names)


def _cache_folder(model_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model_id, repo_type="model"))


def _note_commit(model_id: str, revision: str, commit: str) -> None:
    """Write down in the Hub's cache what a branch, tag or commit stands for, once its copy is whole.

    In the cache's own form, but for commits too: whoever asks for the model without a revision must not get
    a copy that was fetched for the sake of another one.
    """
    note = _cache_folder(model_id) / "refs" / revision
    with suppress(OSError):  # a cache that may only be read
        note.parent.mkdir(parents=True, exist_ok=True)
        new = note.with_name(f"{note.name}.{os.getpid()}.tmp")
        new.write_text(commit, encoding="utf-8")
        new.replace(note)  # nobody reads half of it
