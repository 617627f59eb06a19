"""What a process holds in memory, together with the one that computes for a GenAIEngine in it. Linux only."""

import re
from pathlib import Path


def resident(pid: int | str) -> tuple[int, int, int]:
    """Anonymous memory and mapped files in bytes, and the number of threads."""
    pid = Path(f"/proc/{pid}").resolve().name  # also of "self"
    anonymous = mapped = threads = 0
    for one in (pid, *_workers(pid)):
        lines = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{one}/status").read_text(encoding="utf-8").splitlines()
        )
        anonymous += int(lines["RssAnon"].split()[0]) * 1024
        mapped += int(lines["RssFile"].split()[0]) * 1024
        threads += int(lines["Threads"])
    return anonymous, mapped, threads


def _workers(parent: str) -> list[str]:
    """Its children that compute for an engine."""
    workers = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (
                (process / "status").read_text(encoding="utf-8"),
                (process / "cmdline").read_bytes(),
            )
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        if re.search(rf"^PPid:\s+{parent}$", status, re.MULTILINE) and b"genai_worker" in command:
            workers.append(process.name)
    return workers
