"""The command for clusters, and what clients see of two replicas on this machine, one of which is killed."""

import json
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import openai
import psutil
import pytest

from ray_cluster import DEADLINE, GREEDY, HEADERS, KEY, TOKEN, ended, engines, last_event, question, started
from sampling import SamplingParams
from serving import cluster
from serving.client import RemoteChatModel

LONG = {"max_tokens": 400}

# The command line


def test_one_replica_unless_told_otherwise():
    options = cluster.parsed([])
    assert (options.replicas, options.max_replicas, options.host) == (1, None, "127.0.0.1")


def test_autoscaling_begins_with_one():
    options = cluster.parsed(["--max-replicas", "4"])
    assert (options.replicas, options.min_replicas, options.max_replicas) == (None, 1, 4)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--engine", "optimum"], "genai"),
        (["--replicas", "0"], "at least 1"),
        (["--replicas", "2", "--max-replicas", "3"], "Either"),
        (["--min-replicas", "2"], "needs --max-replicas"),
        (["--min-replicas", "3", "--max-replicas", "2"], "at most"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, complaint, capsys):
    with pytest.raises(SystemExit):
        cluster.parsed(words)
    assert complaint in capsys.readouterr().err


def test_without_ray_the_way_out_is_told(monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=re.escape("requirements-cluster.txt")):
        cluster.main([])


def test_a_port_that_is_taken_is_told(monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with pytest.raises(SystemExit, match=f"port {port} is taken"):
            cluster.main(["--port", port])


@pytest.mark.parametrize(
    ("nodes", "replicas", "each"),
    [([2.0], 1, 2), ([2.0], 2, 1), ([8.0, 4.0], 3, 4), ([8.0, 4.0], 4, 2), ([5.0], 2, 2)],
)
def test_processors_are_shared_among_the_replicas(nodes, replicas, each):
    assert cluster.cpus_each(nodes, replicas) == each


def test_more_replicas_than_processors_are_refused():
    with pytest.raises(ValueError, match=r"3 replicas .* has 2"):
        cluster.cpus_each([2.0], 3)


def test_a_file_for_serve_deploy_has_the_options_of_the_command(monkeypatch):
    monkeypatch.setattr(cluster, "on_this_cluster", lambda options: options)
    options = cluster.build({"replicas": 2, "precision": "INT4", "allow_host": ["a", "b"]})
    assert (options.replicas, options.precision, options.allow_host) == (2, "INT4", ["a", "b"])


# With Ray


@pytest.fixture(scope="module")
def two(ray_is_there, smollm2_folder) -> Iterator[subprocess.Popen]:
    process = started("--replicas", "2")
    try:
        assert process.stdout.readline() == f"Ready at {process.address}\n"
        yield process
    finally:
        ended(process)


@pytest.fixture
def client(two):
    with openai.OpenAI(base_url=two.address, api_key=KEY, max_retries=0, timeout=DEADLINE) as client:
        yield client


@pytest.mark.slow
def test_streamed_and_whole_answers_are_the_same(client):
    ask = question("What is rain?")
    whole = client.chat.completions.create(messages=ask, **GREEDY)
    parts = client.chat.completions.create(messages=ask, stream=True, **GREEDY)
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 24


@pytest.mark.slow
def test_conversations_find_their_caches(client):
    for number in range(6):  # by chance, all would in one of 64 cases
        ask = question(f"Tell me a long story about {number} dogs, each of which has a name of its own.")
        first = client.chat.completions.create(messages=ask, **GREEDY)
        reply = {"role": "assistant", "content": first.choices[0].message.content}
        second = client.chat.completions.create(messages=[*ask, reply, *question("And then?")], **GREEDY)
        whole_blocks = (first.usage.prompt_tokens + 23) // 32 * 32
        assert second.usage.prompt_tokens_details.cached_tokens >= whole_blocks


@pytest.mark.slow
def test_errors_have_the_one_shape(two):
    def ask(headers: dict, **body):
        return httpx.post(f"{two.address}/chat/completions", json=body, headers=headers, timeout=DEADLINE)

    answers = {
        401: ask({}, messages=question("Hello")),
        400: ask(HEADERS, messages=None),
        404: ask(HEADERS, model="another", messages=question("Hello")),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.slow
def test_what_the_engine_refuses_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError, match="room for"):
        client.chat.completions.create(messages=question("one two three four " * 5000), **GREEDY)


@pytest.mark.slow
def test_too_many_questions_are_told_to_come_back(two):
    refused, enough = [], threading.Event()

    def ask(number: int) -> None:
        body = GREEDY | {"messages": question(f"Story {number}"), "stream": True, "max_tokens": 1000}
        body["user"] = str(number)
        url = f"{two.address}/chat/completions"
        with httpx.stream("POST", url, json=body, headers=HEADERS, timeout=DEADLINE) as response:
            if response.status_code == 429:
                refused.append((response.headers["retry-after"], json.loads(response.read())))
                enough.set()
            enough.wait(DEADLINE)

    # 2 * 16 are computed and 32 wait. Twice as many ask, since on a busy machine the first ones have their
    # answers before the last ones have asked.
    with ThreadPoolExecutor(128) as pool:
        list(pool.map(ask, range(128)))
    after, body = refused[0]
    assert int(after) > 0
    assert body["error"]["code"] == "queue_full"


@pytest.mark.slow
def test_what_others_can_reach_of_ray_asks_for_its_token(two):
    """That is a port of each replica, of which Ray Serve makes no use here; it is no matter of settings."""
    import grpc

    def answer(port: int, *metadata: tuple[str, str]) -> grpc.StatusCode:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as error:
                call(b"", metadata=metadata, timeout=DEADLINE)
            return error.value.code()

    open_to_others = [
        connection.laddr.port
        for process in psutil.Process(two.pid).children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and not connection.laddr.ip.endswith("127.0.0.1")
    ]
    assert len(open_to_others) == 3  # two engines, one ingress
    for port in open_to_others:
        assert answer(port) == grpc.StatusCode.UNAUTHENTICATED
        assert answer(port, ("authorization", "Bearer another")) == grpc.StatusCode.UNAUTHENTICATED
        assert answer(port, ("authorization", f"Bearer {TOKEN}")) != grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.slow
def test_killed_replica_breaks_its_own_answers_off_and_no_others(two, client):
    before = engines(two)
    assert len(before) == 2
    begun = threading.Barrier(17)
    with ThreadPoolExecutor(16) as pool:
        lasts = [
            pool.submit(last_event, two.address, f"A long story, number {n}.", LONG, begun) for n in range(16)
        ]
        begun.wait(DEADLINE)
        before[0].kill()
        answer = client.chat.completions.create(messages=question("Still there?"), **GREEDY)
        ends = [last.result() for last in lasts]
    assert answer.choices[0].message.content
    broken = [end for end in ends if end != "data: [DONE]"]
    assert 0 < len(broken) < 16
    assert {json.loads(end.removeprefix("data: "))["error"]["code"] for end in broken} == {"replica_gone"}


@pytest.mark.slow
def test_remote_chat_goes_on_with_an_answer_whose_replica_was_killed(two):
    with closing(RemoteChatModel(two.address, api_key=KEY)) as chat:
        ask = question("Write a long story about a walk in the rain.")
        stream = chat.stream(ask, SamplingParams(temperature=0, max_new_tokens=200))
        shown = [next(stream) for _ in range(3)]
        for engine in engines(two):  # whichever has it; Ray Serve starts others
            engine.kill()
        rest = list(stream)
    assert stream.stats.resumed
    assert stream.stats.finish_reason in ("stop", "length")
    assert shown and rest


@pytest.mark.slow
def test_being_told_to_end_lets_answers_finish(ray_is_there, smollm2_folder):
    process = started()
    try:
        assert process.stdout.readline() == f"Ready at {process.address}\n"
        begun = threading.Barrier(2)
        with ThreadPoolExecutor(1) as pool:
            last = pool.submit(last_event, process.address, "A long story.", LONG, begun)
            begun.wait(DEADLINE)
            process.send_signal(signal.SIGTERM)
            assert last.result() == "data: [DONE]"
        assert process.wait(DEADLINE) == 0
    finally:
        ended(process)
