"""Who may ask the page, and what it lets a browser load. (What a browser makes of that: test_browser.)"""

import socket
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import urlsplit

import gradio as gr
import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gradio_client import Client

from chat_ui import CSS, THEME, build_ui, launch_ui
from page_guard import LARGEST_BODY, PageGuard
from scripted_chat import FakeChat


@pytest.fixture(scope="module")
def address():
    ui = build_ui(FakeChat())
    yield launch_ui(ui)
    ui.close()


def ask(address: str, **headers: str) -> httpx.Response:
    body = {"data": ["hello", "", 1, 1, 0, 1, 0, "", 5, ""]}
    return httpx.post(f"{address}gradio_api/call/chat", json=body, headers=headers)


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "localhost:7860", "[::1]:80", "192.168.1.7", socket.gethostname()]
)
def test_page_answers_to_addresses_and_to_the_machine_s_names(address, name):
    assert httpx.get(address, headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["evil.example", "evil.example:7860", "localhost.evil.example", "", "[x", "127.0.0.1.evil.example"],
)
def test_page_answers_to_no_other_name(address, name):
    assert httpx.get(address, headers={"Host": name}).status_code == 403
    assert ask(address, Host=name).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},  # a form that sends itself
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
    ],
)
def test_other_pages_cannot_ask(address, headers):
    assert ask(address, **headers).status_code == 403


def test_own_page_and_programs_can_ask(address):
    origin = address.rstrip("/")
    assert ask(address, **{"Sec-Fetch-Site": "same-origin", "Origin": origin}).status_code == 200
    assert ask(address).status_code == 200


def test_other_pages_can_only_lead_here(address):
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert httpx.get(address, headers=visit).status_code == 200
    assert httpx.get(f"{address}config", headers=visit | {"Sec-Fetch-Mode": "no-cors"}).status_code == 403


def test_files_cannot_be_sent(address):
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("x.txt", b"x")})
    assert answer.status_code == 403


def test_size_of_a_request_is_bounded(address):
    with closing(HTTPConnection("127.0.0.1", urlsplit(address).port)) as connection:
        connection.putrequest("POST", "/gradio_api/queue/join")
        connection.putheader("Content-Length", str(LARGEST_BODY + 1))
        connection.endheaders()  # and nothing else
        assert connection.getresponse().status == 413
    assert httpx.post(f"{address}gradio_api/queue/join", content=iter([b"x"])).status_code == 413


@pytest.mark.parametrize("path", ["", "config", "assets/nothing.js"])
def test_every_answer_says_what_a_browser_may_load(address, path):
    policy = httpx.get(address + path).headers["Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'self' data:"
    assert rules["connect-src"] == "'self'"
    assert not {"img-src", "font-src", "media-src", "style-src-elem"} & set(rules)  # as default-src says
    assert "http" not in policy.replace(rules["frame-ancestors"], "")


def test_password_is_asked_for():
    ui = build_ui(FakeChat())
    try:
        address = launch_ui(ui, auth=("me", "secret"))
        assert ask(address).status_code == 401
        with pytest.raises(ValueError, match="Could not login"):
            Client(address, verbose=False, auth=("me", "wrong"))
        client = Client(address, verbose=False, auth=("me", "secret"))
        assert client.predict("hello", api_name="/chat") == "You said hello."
    finally:
        ui.close()


def test_page_in_an_application_of_one_s_own_is_guarded_too():
    app = gr.mount_gradio_app(FastAPI(), build_ui(FakeChat()), path="/chat", css=CSS, theme=THEME)
    app.add_middleware(PageGuard)
    with TestClient(app, base_url="http://127.0.0.1") as web:
        page = web.get("/chat/")
        assert page.status_code == 200
        assert "default-src 'self' data:" in page.headers["Content-Security-Policy"]
        assert web.get("/chat/", headers={"Host": "evil.example"}).status_code == 403
        assert web.post("/chat/gradio_api/upload", files={"files": ("x.txt", b"x")}).status_code == 403
        body = {"data": ["hello", "", 1, 1, 0, 1, 0, "", 5, ""]}
        assert web.post("/chat/gradio_api/call/chat", json=body).status_code == 200
