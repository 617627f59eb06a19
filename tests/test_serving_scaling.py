"""What clients see while Ray Serve replaces an engine that hangs, adds one, and takes one away."""

import json
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import psutil
import pytest

from conftest import PROJECT
from impatient_cluster import TARGET, states
from ray_cluster import (
    DEADLINE,
    GREEDY,
    HEADERS,
    Lines,
    ended,
    engines,
    last_event,
    question,
    started,
    wait_for,
)

IMPATIENT = (str(PROJECT / "tests" / "impatient_cluster.py"),)

# An answer that cannot end before its limit of tokens does.
ENDLESS = {"type": "array", "items": {"const": "and so on"}, "minItems": 1000}
LONG = {"response_format": {"type": "json_schema", "json_schema": {"name": "long", "schema": ENDLESS}}}


def computing(engine: psutil.Process) -> psutil.Process:
    """The process that computes for an engine."""
    (process,) = engine.children()
    return process


@pytest.fixture(scope="module")
def impatient(ray_is_there, smollm2_folder) -> Iterator:
    """Starts the command that waits for nothing long; ends what it started."""
    processes = []

    def start(*words: str):
        processes.append(started(*words, command=IMPATIENT))
        lines = Lines(processes[-1])
        lines.until(f"Ready at {processes[-1].address}")
        return processes[-1], lines

    yield start
    for process in processes:
        ended(process)


@pytest.mark.slow
def test_an_engine_that_hangs_is_replaced_and_no_question_is_left_without_an_end(impatient):
    process, _ = impatient("--replicas", "2")
    before = engines(process)
    hung, other = map(computing, before)

    def ask(number: int) -> httpx.Response:
        body = GREEDY | {"messages": question(f"Question {number}")}
        return httpx.post(f"{process.address}/chat/completions", json=body, headers=HEADERS, timeout=DEADLINE)

    begun = threading.Barrier(17)
    with ThreadPoolExecutor(32) as pool:
        streams = [
            pool.submit(last_event, process.address, f"{n}", LONG | {"max_tokens": 300}, begun)
            for n in range(16)
        ]
        begun.wait(DEADLINE)
        hung.suspend()
        answers = list(pool.map(ask, range(16)))
        ends = [stream.result() for stream in streams]
    broken = [end for end in ends if end != "data: [DONE]"]
    assert 0 < len(broken) < 16
    assert {json.loads(end.removeprefix("data: "))["error"]["code"] for end in broken} == {"replica_gone"}
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert all("error" in answer.json() for answer in answers if answer.status_code == 503)
    wait_for("another engine", lambda: len(set(engines(process)) - {before[0]}) == 2)
    assert not before[0].is_running()
    wait_for("the end of the process that hung", lambda: not hung.is_running())
    assert other.is_running()
    assert [ask(number).status_code for number in range(16)] == [200] * 16


@contextmanager
def crowd(address: str, users: int) -> Iterator[tuple[Counter, threading.Event]]:
    """So many clients, who ask again and again as long as this lasts, or until they have had enough.

    Gives how their answers end, and what tells them to have had enough.
    """
    ends, enough = Counter(), threading.Event()

    def client(number: int) -> None:
        while not enough.is_set():
            ends[last_event(address, f"Client {number}", LONG | {"max_tokens": 200})] += 1

    with ThreadPoolExecutor(users) as pool:
        clients = [pool.submit(client, number) for number in range(users)]
        try:
            yield ends, enough
        finally:
            enough.set()
    for one in clients:
        one.result()


def work_of_the_one_that_goes(process: subprocess.Popen) -> float:
    """Seconds of processor time that the process of an engine still takes before it is gone."""
    times = {one: [one.cpu_times().user] for one in map(computing, engines(process))}

    def gone() -> bool:
        for one in times:
            try:
                times[one].append(one.cpu_times().user)
            except psutil.NoSuchProcess:
                return True
        return False

    wait_for("the end of an engine", gone)
    (took,) = (taken[-1] - taken[0] for one, taken in times.items() if not one.is_running())
    return took


@pytest.mark.slow
def test_engines_come_and_go_with_the_crowd_and_no_answer_is_lost(impatient):
    process, lines = impatient("--min-replicas", "1", "--max-replicas", "2")
    assert len(engines(process)) == 1
    staying, leaving = crowd(process.address, TARGET - 1), crowd(process.address, TARGET + 1)
    with staying as (stayed, _), leaving as (left, enough):
        lines.until(states(RUNNING=2))
        enough.set()
        lines.until(states(RUNNING=1, STOPPING=1))
        worked = work_of_the_one_that_goes(process)
    assert worked > 0.2  # it had answers to finish: those who stay ask both engines all the time
    assert set(stayed) == set(left) == {"data: [DONE]"}
    lines.until(states(RUNNING=1))
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 0
