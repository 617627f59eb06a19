"""Clients of the endpoint over a chat that is none, and what they get."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai
import pytest

from fake_chat import DEADLINE, FakeChat, served

HELLO = [{"role": "user", "content": "Hello"}]


def post(address: str, *, timeout: float = DEADLINE, **fields) -> httpx.Response:
    body = {"messages": HELLO} | fields
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=timeout)


def openai_client(address: str, api_key: str = "none", **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=api_key, **({"timeout": DEADLINE} | options))


def chunks(response: httpx.Response) -> list[dict]:
    """The JSON of the events of a stream; the last event must say that all was sent."""
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def error_of(response: httpx.Response, status: int) -> dict:
    """The error in a response, which must have the one shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


def wait_for(address: str, figure: str) -> None:
    """Return once the figures of the endpoint hold this line."""
    pause = threading.Event()
    for _ in range(200):
        if figure in httpx.get(f"{address}/metrics").text.splitlines():
            return
        pause.wait(0.05)
    raise AssertionError(f"never: {figure}")


def connected(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=DEADLINE)


@contextmanager
def asking(address: str, **fields) -> Iterator[None]:
    """A question whose client hangs up at the end of the block, answered or not."""
    body = json.dumps({"messages": HELLO} | fields).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(address) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield


@contextmanager
def streaming(address: str) -> Iterator[Iterator[str]]:
    """The text of a stream, which has begun."""
    body = {"messages": HELLO, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=DEADLINE) as response:
        texts = response.iter_text()
        next(texts)
        yield texts


# Fixtures, imported by conftest


@pytest.fixture(scope="module")
def fake_chat() -> FakeChat:
    """The chat behind the endpoint of a module's tests."""
    return FakeChat()


@pytest.fixture(scope="module")
def address(fake_chat) -> Iterator[str]:
    """Where that endpoint is."""
    with served(fake_chat) as address:
        yield address


@pytest.fixture
def client(address) -> Iterator[openai.OpenAI]:
    """OpenAI's client of it."""
    with openai_client(address) as client:
        yield client
