"""The process in which OpenVINO GenAI computes, seen from outside; and what is said between the two.

Knows how that process is started, spoken to and ended. Refuses to know what is in the messages, and what it
does with them (`genai_worker`). Imports nothing heavy.

Messages are pickled, one after the other. Down go `Settings`, then `Request`s and the numbers of requests to
cancel. Up come `Ready`, then lists of `News`, one after each step; a `Failure` is the last of them.
"""

import contextlib
import pickle
import subprocess
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Settings:
    """What the process computes with.

    properties: for `compile_model`; they go before those that are fastest on this machine.
    cache_gigabytes: size of the KV cache.
    """

    folder: str
    device: str
    properties: dict[str, Any]
    cache_gigabytes: int


class Ready(NamedTuple):
    """The model is loaded, and its cache holds so many tokens."""

    cache_tokens: int


class Failure(NamedTuple):
    """The process is about to end, for this reason."""

    error: Exception


@dataclass(frozen=True)
class Request:
    """A prompt to go on with.

    ids: the prompt, as 64-bit integers.
    options: fields of `openvino_genai.GenerationConfig`.
    others: how many of the most probable tokens to tell with each token; None for no log-probabilities.
    json_schema: what the reply has to satisfy, if anything.
    """

    number: int
    ids: array
    options: dict[str, Any]
    others: int | None = None
    json_schema: str | None = None


LogProbability = tuple[float, dict[int, float]]  # of a token, and of the most probable ones


class News(NamedTuple):
    """What a step brought for one request.

    reused: how many tokens of its prompt the cache held; None where it was told before.
    over: nothing follows; `error` is why, if it went wrong.
    """

    number: int
    tokens: list[int]
    log_probabilities: list[LogProbability]
    reused: int | None
    over: bool
    error: Exception | None = None


class Process:
    """This side of a process that computes.

    Raises:
        Exception: what it says when it cannot load the model.
    """

    def __init__(self, settings: Settings):
        run = "import sys; sys.path.insert(0, sys.argv[1]); import genai_worker; genai_worker.main()"
        home = str(Path(__file__).parent)
        self._popen = subprocess.Popen(
            # -P: no module in the current folder takes the place of another
            [sys.executable, "-P", "-c", run, home],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        try:
            self.send(settings)
            first = self.receive()
            if isinstance(first, Failure):
                raise first.error
        except BaseException:  # KeyboardInterrupt above all: loading may take minutes
            self.kill()
            raise
        self.cache_tokens = first.cache_tokens

    def send(self, message: object) -> None:
        """Send a message. If the process has died, whoever reads from it will notice."""
        with contextlib.suppress(OSError):
            pickle.dump(message, self._popen.stdin)
            self._popen.stdin.flush()

    def receive(self) -> Any:
        """The next message; `Failure` when the process has ended."""
        try:
            return pickle.load(self._popen.stdout)
        except (EOFError, pickle.UnpicklingError):  # the latter if it died in the middle of a message
            code = self._popen.wait()
            memory = " (the system may have run out of memory)" if code == -9 else ""
            return Failure(
                RuntimeError(
                    f"The process that computes for GenAIEngine has ended with code {code}{memory}. "
                    "Ask again: the next request starts another one."
                )
            )

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self._popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(5)

    def hang_up(self) -> None:
        """Close the way to it, after which it ends: on Windows `kill` may have ended only what started it."""
        with contextlib.suppress(OSError):
            self._popen.stdin.close()
