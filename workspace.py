"""Work on disk that is never half done: locks, folders that appear whole, progress, and room to work in.

Knows files, processes and what the machine has left; formats of the Linux kernel and of its control groups.
Refuses to know what the work is: no word of models here.
"""

import ctypes
import math
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

# The ends of the names of folders that are being written, and of those that are being replaced.
PARTIAL = ".partial"
REPLACED = ".replaced"
# A folder that is filled holds configurations long before the weights: a smaller share is no progress.
SMALL_FILES = 0.05


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder that appears only when it is finished.

    Yields an empty folder beside `folder` to write into and renames it at the end. What was there is renamed
    aside before, and deleted last: at every moment either the old or the new one is whole on the disk.
    After an exception the old one is what it was; after a crash `recover` finds it, and the next attempt
    clears what was half written. Where several processes may want the same folder, hold `exclusive(folder)`.

    Raises:
        OSError: the old folder is in use and cannot be renamed, which happens on Windows.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        recover(folder)
        aside = folder.with_name(folder.name + REPLACED)
        if folder.exists():
            _rename_unused(folder, aside)
        try:
            partial.rename(folder)
        except BaseException:
            recover(folder)
            raise
        # A process that has the old files mapped keeps them on Linux; on Windows they go another time.
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def recover(folder: Path) -> None:
    """Bring back a folder that a killed process had renamed aside, or delete that copy if there is a newer.

    Only for the holder of `exclusive(folder)`, where several processes may want the same folder.
    """
    aside = folder.with_name(folder.name + REPLACED)
    if aside.exists() and not folder.exists():
        aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _rename_unused(folder: Path, aside: Path) -> None:
    try:
        folder.rename(aside)
    except OSError as error:
        raise OSError(
            f"{folder} is in use and cannot be replaced: {error}. It was left as it is. End the "
            "programs that have it open, and try again."
        ) from error


def link_or_copy(file: Path, copy: Path) -> None:
    """The same file in another place, without a copy of its content where both are on a disk that has links.

    A link is the same content: replace such a file, never write into it.
    """
    try:
        os.link(file.resolve(), copy)
    except OSError:
        shutil.copy2(file, copy)


def exclusive(folder: Path) -> FileLock:
    """A lock between processes for the work that makes `folder`; a killed process frees it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))


# What share of the present step is done, by the work's own count; of the thread that does it.
_share: ContextVar[list[float] | None] = ContextVar("share", default=None)


def report_progress(share: float) -> None:
    """Tell the bar of `show_progress` around this, if there is one, what share is done, 0 to 1."""
    if (shown := _share.get()) is not None:
        shown[:] = [share]


@contextmanager
def show_progress(title: str, folder: Path | None = None, total: float | None = None) -> Iterator[None]:
    """Show, after two seconds, that something is going on: the elapsed time, and how much is done.

    The latter is told by `report_progress`; or by how a folder grows, once it holds more than small files.

    Args:
        folder: what is being filled.
        total: bytes that the folder will have in the end, as far as known.
    """
    done = threading.Event()
    share: list[float] = []

    def watch() -> None:
        if done.wait(2):
            return
        with tqdm(
            desc=title, total=total, unit_scale=True, leave=False, bar_format="{desc}: {elapsed}"
        ) as bar:
            bar.start_t -= 2
            while not done.wait(0.5):
                bar.bar_format = "{desc}: " + _how_far(share, folder, total) + "{elapsed}"
                bar.refresh()

    watcher = threading.Thread(target=watch)
    watcher.start()
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)
        done.set()
        watcher.join()


def _how_far(share: list[float], folder: Path | None, total: float | None) -> str:
    """What is done, for a progress bar; without a rate and the time left, since folders grow in leaps."""
    if share:
        return f"{share[0]:.0%}, "
    size = min(_folder_size(folder), total or math.inf) if folder else 0
    if size < (total or 0) * SMALL_FILES or size == 0:
        return ""
    return (
        f"{tqdm.format_sizeof(size)}B, "
        if total is None
        else (f"{tqdm.format_sizeof(size)}B of {tqdm.format_sizeof(total)}B, ")
    )


def _folder_size(folder: Path) -> int:
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # files are moved while we look
                size += Path(root, name).stat().st_size
    return size


def check_disk(folder: Path, needed: float, what: str) -> None:
    """Refuse work whose result does not fit.

    Args:
        folder: where the result goes; it need not exist yet.
        needed: bytes.
        what: what needs them, for the message.

    Raises:
        OSError: in numbers, with the way out.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"{what} needs {needed / 1e9:.1f} GB in {folder}, but only {free / 1e9:.1f} GB are free there. "
            "Free some space, or choose another disk: the environment variable HF_HOME moves downloads, "
            "LLM_CHATBOT_MODELS_DIR converted models."
        )


def check_memory(needed: float, what: str, way_out: str) -> None:
    """Refuse work for which the memory does not suffice; where that cannot be told, let it begin.

    Args:
        needed: bytes.
        what: what needs them, for the message.
        way_out: a sentence that says what helps.

    Raises:
        OSError: in numbers, with the way out.
    """
    available = available_memory()
    if available is not None and available < needed:
        raise OSError(
            f"{what} needs {needed / 1e9:.1f} GB of memory, but only {available / 1e9:.1f} GB are available. "
            f"{way_out}"
        )


def give_back_memory() -> None:
    """Let the system have what this process has freed, where the C library can: glibc keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still have, or None where the system does not say: there is no /proc.

    The least of what the machine has available and what the process's control groups leave it.
    """
    if not (root / "proc/meminfo").is_file():
        return None
    meminfo = dict(
        line.split(":") for line in (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    )
    return min(int(meminfo["MemAvailable"].split()[0]) * 1024, *_left_by_control_groups(root))


def _left_by_control_groups(root: Path) -> Iterator[float]:
    """What each memory limit on this process leaves, in bytes; infinity comes last.

    Cached files do not count as used: the kernel drops them when memory is needed.
    Formats: https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html
    """
    groups = root / "proc/self/cgroup"
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else []:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            mount, limit, usage, prefix = "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            mount, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"
        else:
            continue
        # Inside a container the path may be the host's, and the mount itself the container's group.
        innermost = (root / mount).joinpath(group.strip("/"))
        for folder in (innermost, *innermost.parents):
            if folder.is_relative_to(root / mount) and (folder / limit).is_file():
                statistics = dict(
                    map(str.split, (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
                )
                cached = sum(int(statistics[f"{prefix}{state}_file"]) for state in ("active", "inactive"))
                bytes_allowed = float((folder / limit).read_text(encoding="utf-8").replace("max", "inf"))
                yield bytes_allowed - int((folder / usage).read_text(encoding="utf-8")) + cached
    yield float("inf")
