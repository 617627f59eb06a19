"""The command of the endpoint: its options, its process and how that ends."""

import os
import queue
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import serving.api
from endpoint_clients import streaming
from fake_chat import DEADLINE
from serving.api import main


@contextmanager
def process(*words: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The server as a process of its own, and its address."""
    root = Path(__file__).parent.parent
    command = [sys.executable, Path(__file__).with_name("fake_chat.py"), *words]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        yield started, re.search(r"http://\S+(?=/v1)", started.stdout.readline())[0]
    finally:
        started.kill()
        started.communicate()


def test_sigterm_lets_answers_finish_and_refuses_new_ones():
    with process() as (server, address):
        assert server.stdout.readline() == f"Ready at {address}/v1\n"
        with streaming(address) as texts:
            server.terminate()
            text = "".join(texts)
        assert "ended" in text
        assert text.endswith("data: [DONE]\n\n")
        assert server.wait(DEADLINE) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")


def test_sigterm_does_not_wait_for_ever():
    with process("endless") as (server, address):
        server.stdout.readline()
        with streaming(address) as texts:
            server.terminate()
            with pytest.raises(httpx.RemoteProtocolError):
                list(texts)
        assert server.wait(DEADLINE) == 0


def test_sigterm_while_the_model_is_loaded():
    with process("slow") as (server, address):
        assert httpx.get(f"{address}/health").json() == {"status": "loading"}
        server.terminate()
        assert server.wait(DEADLINE) == 0


def test_model_that_cannot_be_loaded_ends_the_process():
    with process("fail") as (server, _):
        assert server.wait(DEADLINE) == 1
        assert server.stderr.read() == "Error: No such model.\n"


def test_command_says_that_a_port_is_taken(address):
    port = address.rpartition(":")[2]
    with pytest.raises(SystemExit, match=f"127.0.0.1 port {port} is taken"):
        main(["--port", port])


@pytest.mark.parametrize(
    "arguments, warns",
    [
        (["--host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--api-key", "secret"], False),
        (["--host", "localhost"], False),
        (["--host", "::1"], False),
        ([], False),
    ],
)
def test_command_warns_of_an_open_door(monkeypatch, capsys, arguments, warns):
    monkeypatch.delenv("LLM_CHATBOT_API_KEY", raising=False)
    real = socket.create_server
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: real(("127.0.0.1", 0)))
    monkeypatch.setattr(serving.api, "serve", lambda app, listener, *_: listener.close())
    main(arguments)
    assert ("Warning: whoever reaches this machine" in capsys.readouterr().err) == warns


def test_who_asks_does_not_wait_until_the_engine_has_settled(monkeypatch):
    chat, opened, settled, go_on = object(), [], queue.SimpleQueue(), threading.Event()

    def settle(chat) -> None:
        go_on.wait(DEADLINE)
        settled.put(chat)

    def serve(app, listener, load, *_) -> None:
        listener.close()
        opened.append(load())

    monkeypatch.setattr(serving.api, "open_chat", lambda options: chat)
    monkeypatch.setattr(serving.api, "settle", settle)
    monkeypatch.setattr(serving.api, "serve", serve)
    main(["--port", "0"])
    assert opened == [chat] and settled.empty()
    go_on.set()
    assert settled.get(timeout=DEADLINE) is chat
