"""Folders that appear whole, locks between processes, progress; and how much room there is, read from
imitations of the kernel's files.
"""

import mmap
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from filelock import Timeout

import workspace
from workspace import (
    available_memory,
    check_disk,
    check_memory,
    exclusive,
    link_or_copy,
    recover,
    written_whole,
)

ROOT = Path(__file__).parents[1]
WAY_OUT = "Choose a smaller model."

# Folders that appear whole


def run_python(script: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_written_whole_leaves_nothing_after_an_exception(tmp_path):
    with pytest.raises(RuntimeError), written_whole(tmp_path / "deep/model") as partial:
        (partial / "half").touch()
        raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []


def test_written_whole_keeps_the_older_folder_until_the_end(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(RuntimeError), written_whole(folder):
        raise RuntimeError
    assert [path.name for path in folder.iterdir()] == ["old"]
    with written_whole(folder) as partial:
        (partial / "new").touch()
        assert [path.name for path in folder.iterdir()] == ["old"]
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_is_replaced_is_always_there_whole(tmp_path, monkeypatch):
    folder, seen, rename = tmp_path / "model", [], Path.rename
    folder.mkdir()
    (folder / "old").touch()

    def watched(path, target):
        seen.append(sorted(found.name for found in tmp_path.rglob("*") if found.is_file()))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    with written_whole(folder) as partial:
        (partial / "new").touch()
    assert seen == [["new", "old"], ["new", "old"]]
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_if_the_new_folder_cannot_take_its_place_the_old_one_does(tmp_path, monkeypatch):
    folder, rename = tmp_path / "model", Path.rename
    folder.mkdir()
    (folder / "old").touch()

    def refused(path, target):
        if path.name.endswith(".partial"):
            raise PermissionError("in use")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError), written_whole(folder) as partial:
        (partial / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_an_old_folder_that_cannot_be_renamed_stays_and_is_named(tmp_path, monkeypatch):
    """As on Windows, where another process has its files mapped."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()

    def refused(path, target):
        raise PermissionError("in use")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match=r"model is in use and cannot be replaced.*End the programs"):  # noqa: SIM117
        with written_whole(folder) as partial:
            (partial / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("killed", ["before", "after"])
def test_what_a_killed_process_had_renamed_aside_is_recovered(tmp_path, killed):
    folder, aside = tmp_path / "model", tmp_path / "model.replaced"
    aside.mkdir()
    (aside / "old").touch()
    if killed == "after":
        folder.mkdir()
        (folder / "new").touch()
    recover(folder)
    assert [path.name for path in folder.iterdir()] == ["old" if killed == "before" else "new"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not rename what is mapped")
def test_who_has_the_old_folder_mapped_keeps_its_content(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"old")
    with (folder / "weights").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as old:
        with written_whole(folder) as partial:
            (partial / "weights").write_bytes(b"new")
        assert old[:] == b"old"
    assert (folder / "weights").read_bytes() == b"new"


def test_a_link_has_the_content_and_a_copy_stands_in_for_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"content")
    link_or_copy(tmp_path / "file", tmp_path / "link")
    monkeypatch.setattr(workspace.os, "link", Mock(side_effect=OSError("no links here")))
    link_or_copy(tmp_path / "file", tmp_path / "copy")
    assert (tmp_path / "link").read_bytes() == (tmp_path / "copy").read_bytes() == b"content"
    assert (tmp_path / "copy").stat().st_nlink == 1


# Progress


@pytest.mark.parametrize(
    ("share", "size", "total", "shown"),
    [
        ([], None, None, ""),
        ([0.456], None, None, "46%, "),
        ([0.5], 900, 1000, "50%, "),
        ([], 0, None, ""),
        ([], 10, 1000, ""),  # configurations
        ([], 500, 1000, "500B of 1.00kB, "),
        ([], 2000, 1000, "1.00kB of 1.00kB, "),
        ([], 2000, None, "2.00kB, "),
    ],
    ids=str,
)
def test_how_far_the_work_is(tmp_path, share, size, total, shown):
    if size is not None:
        (tmp_path / "file").write_bytes(bytes(size))
    assert workspace._how_far(share, None if size is None else tmp_path, total) == shown


def test_what_the_work_counts_reaches_the_bar_around_it_only(monkeypatch):
    seen = []
    monkeypatch.setattr(workspace, "_how_far", lambda share, *_: seen.append(list(share)) or "")
    workspace.report_progress(0.1)  # nobody shows it
    with workspace.show_progress("Outer"), workspace.show_progress("Inner"):
        workspace.report_progress(0.5)
        assert workspace._share.get() == [0.5]
    assert workspace._share.get() is None


def test_a_killed_process_leaves_no_lock_and_its_partial_folder_is_cleared(tmp_path):
    script = """
import sys, time
from pathlib import Path
from workspace import exclusive, written_whole
with exclusive(Path(sys.argv[1])), written_whole(Path(sys.argv[1])) as partial:
    (partial / "half").touch()
    print("writing", flush=True)
    time.sleep(60)
"""
    folder = tmp_path / "model"
    with run_python(script, folder) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "model.partial/half").exists()
    with exclusive(folder).acquire(timeout=5), written_whole(folder) as partial:
        assert list(partial.iterdir()) == []
    assert list(folder.iterdir()) == []


def test_two_processes_build_the_same_folder_one_after_the_other(tmp_path):
    script = """
import sys
from pathlib import Path
from workspace import exclusive, written_whole
folder, me = map(Path, sys.argv[1:])
print("comes", flush=True)
with exclusive(folder), written_whole(folder) as partial:
    print("begins", flush=True)
    (partial / me.name).touch()
    sys.stdin.readline()
"""
    folder = tmp_path / "model"
    with run_python(script, folder, "one") as one:
        assert [one.stdout.readline(), one.stdout.readline()] == ["comes\n", "begins\n"]
        with run_python(script, folder, "two") as two:
            assert two.stdout.readline() == "comes\n"
            with pytest.raises(Timeout):  # nobody else gets in before the first has ended
                exclusive(folder).acquire(timeout=0)
            one.communicate("go on\n", timeout=60)
            assert two.stdout.readline() == "begins\n"
            assert [file.name for file in folder.iterdir()] == ["one"]
            two.communicate("go on\n", timeout=60)
    assert (one.returncode, two.returncode) == (0, 0)
    assert [file.name for file in folder.iterdir()] == ["two"]
    assert len(list((tmp_path / "model").iterdir())) == 1


# Room on the disk and in memory


def test_a_full_disk_is_said_in_numbers_with_the_way_out_for_a_folder_that_is_not_there_yet(
    tmp_path, monkeypatch
):
    asked = []

    def disk_usage(folder):
        asked.append(folder)
        return shutil._ntuple_diskusage(9e9, 8.5e9, 0.5e9)

    monkeypatch.setattr(workspace.shutil, "disk_usage", disk_usage)
    check_disk(tmp_path / "deep/model", 0.5e9, "Work")
    with pytest.raises(
        OSError, match=r"Work needs 0\.6 GB in .*model, but only 0\.5 GB .*LLM_CHATBOT_MODELS_DIR"
    ):
        check_disk(tmp_path / "deep/model", 0.6e9, "Work")
    assert asked == [tmp_path, tmp_path]


MEMINFO = "MemTotal:       24576000 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n"
MACHINE = 20_000_000 * 1024
STAT = {
    "v1": "cache 9\ntotal_active_file {}\ntotal_inactive_file {}\n",
    "v2": "active_file {}\ninactive_file {}\n",
}
NAMES = {
    "v1": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    "v2": ("sys/fs/cgroup", "memory.max", "memory.current"),
}


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    return tmp_path


def add_group(root: Path, version: str, group: str, limit: object, used: int, cached: int = 0) -> None:
    mount, limit_name, usage_name = NAMES[version]
    folder = root / mount / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / usage_name).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(STAT[version].format(cached, cached))


def put_into_group(root: Path, version: str, group: str) -> None:
    lines = {"v1": f"12:pids:/else\n3:cpu,memory:/{group}\n0::/\n", "v2": f"0::/{group}\n"}
    (root / "proc/self/cgroup").write_text(lines[version])


def test_without_control_groups_it_is_what_the_machine_has(root):
    assert available_memory(root) == MACHINE


def test_a_machine_without_proc_does_not_say(tmp_path, monkeypatch):
    assert available_memory(tmp_path) is None
    monkeypatch.setattr(workspace, "available_memory", lambda: None)
    check_memory(1e15, "Anything", WAY_OUT)


@pytest.mark.parametrize("version", NAMES)
def test_a_group_leaves_its_limit_less_what_is_used_and_cannot_be_dropped(root, version):
    put_into_group(root, version, "outer/inner")
    add_group(root, version, "outer/inner", 12_000_000_000, used=9_000_000_000, cached=1_000_000_000)
    assert available_memory(root) == 5_000_000_000
    add_group(root, version, "outer", 10_000_000_000, used=9_000_000_000)  # the outer limit holds too
    assert available_memory(root) == 1_000_000_000


@pytest.mark.parametrize(("version", "unlimited"), [("v1", 9223372036854771712), ("v2", "max")])
def test_a_group_without_a_limit_leaves_what_the_machine_has(root, version, unlimited):
    put_into_group(root, version, "group")
    add_group(root, version, "group", unlimited, used=9_000_000_000)
    assert available_memory(root) == MACHINE


@pytest.mark.parametrize("version", NAMES)
def test_in_a_container_the_group_is_the_mount(root, version):
    put_into_group(root, version, "docker/0123")  # a path of the host
    add_group(root, version, "", 4_000_000_000, used=1_000_000_000)
    assert available_memory(root) == 3_000_000_000


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads /proc")
def test_this_machine_says_something_sensible():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() <= total


def test_too_little_is_said_in_numbers_with_the_way_out(monkeypatch):
    monkeypatch.setattr(workspace, "available_memory", lambda: 3_210_000_000)
    check_memory(3.2e9, "Work", WAY_OUT)
    with pytest.raises(OSError, match=r"Work needs 8\.7 GB of memory, but only 3\.2 GB .*smaller model"):
        check_memory(8.7e9, "Work", WAY_OUT)
