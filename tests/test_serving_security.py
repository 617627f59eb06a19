"""Who may ask, how much and how slowly; and what is said to those who may not."""

import itertools
import json
import threading
from contextlib import suppress

import httpx
import openai
import pytest

import serving.security
from endpoint_clients import HELLO, connected, error_of, openai_client, post
from fake_chat import FakeChat, after, served


def test_key_is_needed_for_everything_but_health():
    with served(FakeChat(), api_key="secret") as address:
        for given in (None, "Bearer wrong", "Bearer sécret", "Bearer", "Basic secret", "secret"):
            headers = {"Authorization": given.encode()} if given else {}
            for path in ("/v1/models", "/metrics", "/nowhere"):
                response = httpx.get(f"{address}{path}", headers=headers)
                assert error_of(response, 401)["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{address}/health").status_code == 200
        with openai_client(address, "secret") as client:
            assert client.models.list().data
        with openai_client(address, "wrong") as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="fake-chat", messages=HELLO)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "10.0.0.7"])
def test_own_names(address, host):
    assert httpx.get(f"{address}/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[", ""]
)
def test_other_names_are_refused(address, host):
    response = httpx.get(f"{address}/health", headers={"Host": host})
    assert error_of(response, 400)["code"] == "host_not_allowed"


def test_allowed_name():
    with served(FakeChat(), hosts=["Chat.Example"]) as address:
        assert httpx.get(f"{address}/health", headers={"Host": "chat.example:8000"}).status_code == 200


@pytest.mark.parametrize("by_length", [True, False])
def test_large_body(address, by_length):
    body = b" " * (serving.security.BODY_LIMIT + 1)
    content = body if by_length else iter([body[:9], body[9:]])
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{address}/v1/chat/completions", content=content, headers=headers)
    assert error_of(response, 413)["code"] == "body_too_large"


def test_body_of_another_type(address):
    # What a page from elsewhere may send without asking first.
    response = httpx.post(f"{address}/v1/chat/completions", content=json.dumps({"messages": HELLO}))
    assert "Content-Type" in error_of(response, 400)["message"]


def test_pages_from_elsewhere_are_not_let_in(address):
    headers = {"Origin": "https://evil.example"}
    assert "access-control-allow-origin" not in httpx.get(f"{address}/v1/models", headers=headers).headers
    headers["Access-Control-Request-Method"] = "POST"
    error_of(httpx.options(f"{address}/v1/chat/completions", headers=headers), 405)


def test_pages_that_were_allowed():
    with served(FakeChat(), cors=["https://good.example"], api_key="secret") as address:
        headers = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
        response = httpx.options(f"{address}/v1/chat/completions", headers=headers)
        assert response.headers["access-control-allow-origin"] == "https://good.example"
        headers["Origin"] = "https://evil.example"
        response = httpx.options(f"{address}/v1/chat/completions", headers=headers)
        assert "access-control-allow-origin" not in response.headers


def test_slow_body(monkeypatch):
    monkeypatch.setattr(serving.security, "BODY_SECONDS", 0.2)
    with served(FakeChat()) as address, connected(address) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("head", [b"", b"GET /health HTTP/1.1\r\nHost: local"])
def test_slow_head(monkeypatch, head):
    monkeypatch.setattr(serving.security, "HEAD_SECONDS", 0.2)
    with served(FakeChat()) as address, connected(address) as connection:
        connection.sendall(head)
        assert connection.recv(1000) == b""


CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01 no HTTP at all\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",  # no Host
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n",
        CHUNKED + b"zz\r\n{}\r\n",
    ],
)
def test_what_is_no_http_is_refused_in_the_one_shape_and_the_server_lives(address, sent):
    with connected(address) as connection:
        connection.sendall(sent)
        received = b""
        while more := connection.recv(10_000):
            received += more
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"
    assert post(address).status_code == 200


def test_giant_head_is_not_kept(address):
    with connected(address) as connection, suppress(ConnectionError):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000)
        received = connection.recv(100)
        assert received == b"" or received.startswith(b"HTTP/1.1 400 ")
    assert post(address).status_code == 200


def test_requests_sent_at_once_are_answered_one_after_the_other(address):
    with connected(address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = b""
        while more := connection.recv(10_000):
            received += more
    assert received.count(b'{"status":"ready"}') == 3


def test_long_answer_is_no_slow_head(monkeypatch):
    """However often the server looks whether a head is missing."""
    look, looks, go_on = serving.security.ImpatientProtocol._look, itertools.count(1), threading.Event()

    def counted(protocol, before):
        look(protocol, before)
        if next(looks) == 4:
            go_on.set()

    monkeypatch.setattr(serving.security, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(serving.security.ImpatientProtocol, "_look", counted)
    with served(FakeChat(after(go_on, "done"))) as address:
        assert post(address).status_code == 200
        assert go_on.is_set()


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("localhost:8000", True),
        ("chat.localhost", True),
        ("Chat.Example:80", True),
        ("[fe80::1]:80", True),
        ("other.example", False),
        ("example", False),
        ("localhost.other.example", False),
        ("user@other.example", False),
        ("[", False),
    ],
)
def test_a_host_header_names_this_machine_or_not(host, is_own):
    assert serving.security.is_own_name(host, {"chat.example"}) == is_own


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.7", False),
        ("localhost.example", False),
    ],
)
def test_what_can_be_reached_from_here_only(host, is_loopback):
    assert serving.security.is_loopback(host) == is_loopback


def test_own_names_are_those_of_the_network_and_the_one_listened_on(monkeypatch):
    monkeypatch.setattr(serving.security.socket, "gethostname", lambda: "Desk")
    assert serving.security.own_names("Chat.Example") == {"desk", "desk.local", "chat.example"}
