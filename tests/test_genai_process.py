"""A process that computes, seen from outside: started, spoken to, ended. The worker in it is a stand-in."""

import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import genai_process
from genai_process import Failure, Process, Request, Settings

ROOT = Path(__file__).parents[1]
SETTINGS = Settings("some/folder", "CPU", {}, cache_gigabytes=1)
WORKER = """
import os, pickle, sys
sys.path.insert(0, {root!r})
from genai_process import Failure, Ready

def read():
    return pickle.load(sys.stdin.buffer)

def say(message):
    pickle.dump(message, sys.stdout.buffer)
    sys.stdout.buffer.flush()

def main():
    settings = read()
    {body}
"""


@pytest.fixture
def started(monkeypatch) -> Iterator[list[subprocess.Popen]]:
    """The processes that a test has started; they end with it."""
    processes, start = [], subprocess.Popen

    def noting(*arguments, **options):
        processes.append(start(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(genai_process.subprocess, "Popen", noting)
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def start(started, tmp_path, monkeypatch) -> Callable[[str], Process]:
    """Starts a process whose worker does as told once it has its settings."""

    def start(body: str) -> Process:
        text = WORKER.format(root=str(ROOT), body="\n    ".join(body.splitlines()))
        (tmp_path / "genai_worker.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(genai_process, "__file__", str(tmp_path / "genai_process.py"))
        return Process(SETTINGS)

    return start


def test_it_is_told_its_settings_and_says_what_its_cache_holds(start):
    assert start("say(Ready(len(settings.folder)))").cache_tokens == len("some/folder")


def test_messages_go_down_and_come_up_whole(start):
    process = start("say(Ready(1))\nwhile True:\n    say([read()])")
    request = Request(7, array("q", [1, 2**40]), {"max_new_tokens": 5}, others=3)
    process.send(request)
    process.send(7)
    assert [process.receive(), process.receive()] == [[request], [7]]


def test_what_keeps_it_from_loading_is_raised_and_the_process_is_gone(start, started):
    with pytest.raises(ValueError, match="no such folder"):
        start("say(Failure(ValueError('no such folder')))\nread()")
    assert started[0].poll() is not None


def test_an_interruption_while_it_loads_ends_it(start, started, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Process, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start("read()")
    assert started[0].poll() is not None


@pytest.mark.parametrize("last", ["", "sys.stdout.buffer.write(pickle.dumps('half a message' * 9)[:-5])"])
def test_its_end_is_a_failure_that_names_its_code(start, last):
    process = start(f"say(Ready(1))\n{last}\nsys.stdout.flush()\nos._exit(3)")
    failure = process.receive()
    assert isinstance(failure, Failure)
    assert "has ended with code 3. Ask again: the next request starts another one." in str(failure.error)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_where_it_was_killed_memory_is_named_as_a_reason(start):
    process = start("say(Ready(1))\nos.kill(os.getpid(), 9)")
    assert "code -9 (the system may have run out of memory)" in str(process.receive().error)


def test_a_message_to_one_that_has_died_is_no_error(start, started):
    process = start("say(Ready(1))\nread()")
    process.kill()
    assert started[0].poll() is not None
    for _ in range(2):
        process.send(SETTINGS)
    assert isinstance(process.receive(), Failure)


def test_it_ends_when_nobody_speaks_to_it_any_more(start):
    process = start("say(Ready(1))\ntry:\n    read()\nexcept EOFError:\n    os._exit(5)")
    process.hang_up()
    assert "code 5" in str(process.receive().error)


def test_no_file_in_the_current_folder_takes_the_place_of_a_module(start, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/pickle.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert start("say(Ready(1))").cache_tokens == 1
