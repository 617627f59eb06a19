"""A browser window on the chat page, as its user knows it, and the fixtures that open one."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from chat_ui import build_ui, launch_ui
from scripted_chat import FakeChat

PATIENCE = 60_000  # milliseconds; an answer of a hundred tokens on two busy cores
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


class ChatWindow:
    """A browser window on the chat page, as its user knows it."""

    def __init__(self, page: Page, address: str):
        self.page = page
        self.console_errors: list[str] = []
        self.hosts: set[str | None] = set()
        page.on("console", lambda line: line.type == "error" and self.console_errors.append(line.text))
        page.on("pageerror", lambda error: self.console_errors.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname))
        self.box = page.get_by_role("textbox", name="Message")
        self.questions = page.get_by_test_id("user")
        self.answers = page.get_by_test_id("bot")
        self.stop_button = page.locator(".stop-button")
        self.new_chat_button = page.get_by_role("button", name="New chat")
        self.saved = page.locator("[data-testid^=dataset-cell]")
        self.stats = page.locator(".prose.stats")
        self.toasts = page.get_by_test_id("toast-body")
        page.goto(address)
        expect(self.box).to_be_enabled()

    def send(self, question: str) -> None:
        before = self.questions.count()
        self.box.fill(question)
        self.box.press("Enter")
        expect(self.questions).to_have_count(before + 1)

    def wait_for_rest(self) -> None:
        expect(self.stop_button).to_be_hidden()
        expect(self.box).to_be_enabled()

    def ask(self, question: str) -> str:
        self.send(question)
        self.wait_for_rest()
        return self.answers.last.inner_text()

    def ask_in_vain(self, question: str) -> None:
        self.send(question)
        expect(self.toasts).to_be_visible()
        self.wait_for_rest()

    def press(self, name: str, position: int = -1) -> None:
        self.page.get_by_role("button", name=name, exact=True).nth(position).click()

    def edit(self, position: int, question: str) -> None:
        self.press("Edit", position)
        self.page.locator(".edit-textarea").fill(question)
        self.press("Submit")
        expect(self.questions.nth(position)).to_have_text(question)

    def choose_example(self, text: str) -> None:
        self.page.get_by_role("button", name=text).click()
        expect(self.questions).to_have_text([text])

    def set_option(self, label: str, value: float) -> None:
        number = self.page.get_by_label(f"number input for {label}")
        slider = self.page.get_by_label(f"range slider for {label}")
        if not number.is_visible():
            self.page.get_by_role("button", name="Advanced options").click()
        deadline = time.monotonic() + PATIENCE / 1000
        while slider.input_value() != str(value) and time.monotonic() < deadline:
            # More than once: what is typed while an accordion opens, Gradio may take back.
            number.fill(str(value))
            number.press("Tab")
            self.page.wait_for_timeout(100)
        expect(slider).to_have_value(str(value))


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        reason = "Neither chromium nor google-chrome is installed; the chat page was not tried in a browser."
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_window(browser):
    """Opens the page in a browser of its own, with its own saved conversations."""
    windows = []

    def open_window(address: str, **options) -> ChatWindow:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE)
        windows.append(ChatWindow(context.new_page(), address))
        return windows[-1]

    yield open_window
    for window in windows:
        window.page.context.close()
    hosts = {host for window in windows for host in window.hosts}
    assert hosts - {None} == {"127.0.0.1"}  # None is what data: URLs have


@pytest.fixture(scope="module")
def fake_page():
    """A fake model and the address where its page is served."""
    model = FakeChat()
    ui = build_ui(model)
    yield model, launch_ui(ui)
    ui.close()


@pytest.fixture
def fake_model(fake_page):
    fake_page[0].__init__()  # as if nobody had asked it anything
    return fake_page[0]


@pytest.fixture
def first_token():
    """A model that asks for it waits until this is set; at the latest when the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def fake_window(fake_model, fake_page, open_window) -> ChatWindow:
    return open_window(fake_page[1])


def wait_until_asked(window: ChatWindow, model, times: int) -> None:
    poll(window, lambda: len(model.asked) == times)
    window.wait_for_rest()


def poll(window: ChatWindow, condition: Callable[[], bool]) -> None:
    """Wait for what happens outside of the page; the page's own events go on arriving."""
    end = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < end, "It did not come to pass."
        window.page.wait_for_timeout(20)


def open_file(window, text: str) -> None:
    window.page.get_by_role("button", name="Files").click()
    with window.page.expect_file_chooser() as chooser:
        window.page.get_by_role("button", name="Open a JSON file").click()
    chooser.value.set_files({"name": "c.json", "mimeType": "application/json", "buffer": text.encode()})
