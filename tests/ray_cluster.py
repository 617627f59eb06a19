"""The command for clusters as a process: how tests start it, look at it and end it."""

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import psutil
import pytest

from conftest import MODELS_DIR, PROJECT
from fakes import free_port

KEY = "a secret"
NAME = "smollm2-135m-instruct"
TOKEN = "f" * 64  # Ray's own, in place of the one in the home folder
HEADERS = {"Authorization": f"Bearer {KEY}"}
GREEDY = {"model": NAME, "temperature": 0, "max_tokens": 24}
ENGINE = "ray::ServeReplica:chat:Engine"  # how Ray calls the process
DEADLINE = 180  # seconds after which a test gives up; Ray is slow on a busy machine


def question(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def last_event(address: str, text: str, asked: dict, begun: threading.Barrier | None = None) -> str:
    """How a streamed answer ends: the last line that came; "" where none did.

    asked: fields of the request besides those of `GREEDY`.
    begun: passed when the first words are there.
    """
    body = GREEDY | asked | {"messages": question(text), "stream": True}
    url, last = f"{address}/chat/completions", ""
    with httpx.stream("POST", url, json=body, headers=HEADERS, timeout=DEADLINE) as response:
        for line in response.iter_lines():
            if begun and '"content":"' in line and '"content":""' not in line:
                begun.wait(DEADLINE)
                begun = None
            last = line or last
    return last


def started(*words: str, command: tuple[str, ...] = ("-m", "serving.cluster")) -> subprocess.Popen:
    """The command on the default model; when it returns, the cluster is loading.

    On a busy machine Ray gives up after 15 seconds of starting; then it is told to again.
    """
    for _ in range(8):
        process = begun(command, *words)
        if line := process.stdout.readline():
            process.address = re.search(r"http://\S+", line)[0]
            return process
        process.wait(DEADLINE)
    pytest.fail("The command ended before it loaded a model, eight times.")


def begun(command: tuple[str, ...], *words: str) -> subprocess.Popen:
    """The command, as a process."""
    return subprocess.Popen(
        [sys.executable, *command, "--port", str(free_port()), "--api-key", KEY, *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env=os.environ
        | {"LLM_CHATBOT_MODELS_DIR": str(MODELS_DIR), "PYTHONPATH": str(PROJECT), "RAY_AUTH_TOKEN": TOKEN},
    )


def ended(process: subprocess.Popen) -> None:
    """End the command, and whatever of its Ray is left."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(DEADLINE)
    finally:
        for child in [process, *family]:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()


def engines(process: subprocess.Popen) -> list[psutil.Process]:
    """The engines' replicas among the command's processes."""
    there = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if ENGINE in " ".join(child.cmdline()):
                there.append(child)
    return there


def wait_for(what: str, is_there: Callable[[], object]) -> None:
    """Until it is there, which fails after `DEADLINE`."""
    until = time.monotonic() + DEADLINE
    while not is_there():
        if time.monotonic() > until:
            pytest.fail(f"Not after {DEADLINE} seconds: {what}")
        time.sleep(0.1)


class Lines:
    """What a command prints, read while it runs."""

    def __init__(self, process: subprocess.Popen):
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()

    def _read(self, stream) -> None:
        for line in stream:
            self._lines.put(line.strip())
        self._lines.put(None)

    def until(self, line: str) -> None:
        """Until this one comes, which fails after `DEADLINE`."""
        end, seen = time.monotonic() + DEADLINE, []
        while not seen or seen[-1] not in (line, None):
            try:
                seen.append(self._lines.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                break
        assert seen and seen[-1] == line, f"{line!r} did not come, but {seen}"
