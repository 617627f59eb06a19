"""What the chat page shows of a text, and what it loads, saves and hands out, in a real Chromium."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import expect
from test_chat_ui import wait_until

from chat import Delta
from chat_ui import build_ui, launch_ui
from chat_window import open_file, poll, wait_until_asked
from fakes import free_port
from scripted_chat import FakeChat, assistant, endless, user

pytest_plugins = ["chat_window"]
pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
TYPED = "2*3*4 and __init__, <br> if a<b and c>d\n    $$x$$ \\(y\\)\tend & &amp; `code` # no heading"
PERSIAN = "\u0633\u0644\u0627\u0645! OpenVINO \u0686\u06cc\u0633\u062a\u061f"


def test_question_is_shown_edited_and_copied_as_it_was_typed(fake_page, fake_model, open_window):
    window = open_window(fake_page[1], permissions=["clipboard-read", "clipboard-write"])
    window.send(TYPED)
    window.wait_for_rest()
    assert window.questions.inner_text() == TYPED
    window.press("Copy message", 0)
    poll(window, lambda: window.page.evaluate("navigator.clipboard.readText()") == TYPED)
    window.press("Edit")
    expect(window.page.locator(".edit-textarea")).to_have_value(TYPED)
    window.press("Submit")
    wait_until_asked(window, fake_model, 2)
    assert [messages[-1] for messages in fake_model.asked] == [user(TYPED), user(TYPED)]


def test_answer_is_copied_as_it_was_written(fake_page, fake_model, open_window):
    answer = "**Use** <br> and \\(x\\), \u0633 `<i>`\n\n```\n<b> $$ $$\n```"
    fake_model.answer = lambda question: [answer]
    window = open_window(fake_page[1], permissions=["clipboard-read", "clipboard-write"])
    window.ask("How?")
    window.press("Copy message")
    poll(window, lambda: window.page.evaluate("navigator.clipboard.readText()") == answer)


def test_formulas_are_typeset_but_not_in_code(fake_window, fake_model):
    answer = (
        "Root \\(x = \\frac{-b}{2a}\\), \\[E = mc^2\\] and $$a<b$$, but `$$c$$` and\n\n"
        "```\necho $$; x<y; echo $$\n```"
    )
    fake_model.answer = lambda question: [answer]
    fake_window.ask("A formula")
    expect(fake_window.answers.locator(".katex")).to_have_count(3)
    expect(fake_window.answers.locator(".katex-display")).to_have_count(2)
    expect(fake_window.answers.locator("code").first).to_have_text("$$c$$")
    expect(fake_window.answers.locator("pre code")).to_have_text("echo $$; x<y; echo $$")


def test_right_to_left_text_reads_right_to_left(fake_window, fake_model):
    fake_model.answer = lambda question: [PERSIAN]
    fake_window.ask(PERSIAN)
    for text in (fake_window.questions.locator("pre"), fake_window.answers.locator("p")):
        expect(text).to_have_css("direction", "rtl")
    expect(fake_window.saved.get_by_text(PERSIAN)).to_have_css("unicode-bidi", "plaintext")
    fake_model.answer = lambda question: ["Hello."]
    fake_window.ask("Hi")
    expect(fake_window.answers.last.locator("p")).to_have_css("direction", "ltr")


def test_thought_is_seen_while_it_lasts_and_an_empty_one_never(fake_window, fake_model):
    window = fake_window
    going_on = threading.Event()

    def answer(question):
        yield Delta("Let me <see>.", is_thought=True)
        assert going_on.wait(60)
        yield "Done."

    fake_model.answer = answer
    window.send("one")
    thought = window.page.get_by_text("Let me <see>.")
    expect(thought).to_be_visible()
    going_on.set()
    expect(window.answers.last).to_have_text("Done.")
    expect(thought).to_be_hidden()
    window.wait_for_rest()

    fake_model.answer = lambda question: [Delta("\n\n", is_thought=True), "Hello"]
    window.ask("two")
    expect(window.page.get_by_role("button", name="Thoughts")).to_have_count(1)


@pytest.mark.parametrize(
    "text", ["The <think> tag, </think> and <answer>.", "<think>" * 3000 + "</think>" * 3000]
)
def test_answer_about_thoughts_keeps_its_words(fake_window, fake_model, text):
    fake_model.answer = lambda question: [text]
    assert fake_window.ask("Why?") == text


def test_answer_can_be_continued(fake_window, fake_model):
    window = fake_window
    go_on = window.page.get_by_role("button", name="Continue")
    fake_model.answer = endless
    window.send("one")
    expect(window.answers).to_contain_text("word0")
    expect(go_on).to_be_hidden()
    window.stop_button.click()
    window.wait_for_rest()
    begun = window.answers.inner_text().strip()
    fake_model.answer = lambda text: ["and so on."]
    go_on.click()
    expect(window.answers).to_have_text(f"{begun} and so on.")
    window.wait_for_rest()
    expect(go_on).to_be_hidden()
    assert fake_model.asked[1][1:] == [user("one"), assistant(f"{begun} ")]


def test_answer_that_reached_its_limit_can_be_continued_later(fake_page, fake_model, open_window):
    messages = [user("one"), assistant("It is", thought="Hm.", finish="length")]
    window = open_window(fake_page[1])
    open_file(window, json.dumps({"messages": messages}))
    expect(window.questions).to_have_text(["one"])
    fake_model.answer = lambda text: [" late."]
    window.page.get_by_role("button", name="Continue").click()
    expect(window.answers.last).to_have_text("It is late.")
    window.wait_for_rest()
    assert fake_model.asked == [[*fake_model.asked[0][:1], user("one"), assistant("It is", thought="Hm.")]]


def test_unanswered_question_can_be_retried(fake_window, fake_model):
    window = fake_window
    fake_model.answer = lambda question: [RuntimeError("no more memory")]
    window.ask_in_vain("one")
    fake_model.answer = lambda question: ["better"]
    window.press("Retry")
    expect(window.answers).to_have_text(["better"])
    window.wait_for_rest()
    assert fake_model.asked[-1][1:] == [user("one")]
    expect(window.questions).to_have_text(["one"])


def test_conversation_is_saved_to_files_and_opened_again(
    fake_window, fake_model, fake_page, open_window, tmp_path
):
    window = fake_window
    fake_model.answer = lambda question: [Delta("Hm.", is_thought=True), "**ja** <br> \U0001f642"]
    window.send(TYPED)
    expect(window.answers.last).to_contain_text("ja <br>")
    window.wait_for_rest()
    window.page.get_by_role("button", name="Files").click()
    files = {}
    for kind in ("Markdown", "JSON"):
        with window.page.expect_download() as download:
            window.page.get_by_role("button", name=f"Download as {kind}").click()
        files[download.value.suggested_filename] = download.value.path().read_text("utf-8")
    assert files["conversation.md"] == (
        f"## Question\n\n{TYPED}\n\n## Answer\n\n> Hm.\n\n**ja** <br> \U0001f642\n"
    )
    other = open_window(fake_page[1])
    open_file(other, files["conversation.json"])
    expect(other.questions).to_have_text([window.questions.inner_text()])
    expect(other.saved).to_have_count(1)
    other.ask("Why?")
    assert fake_model.asked[-1][1:3] == [user(TYPED), assistant("**ja** <br> \U0001f642", thought="Hm.")]


def test_file_that_is_no_conversation_is_refused(fake_window):
    open_file(fake_window, '{"messages": [{"role": "user"}]}')
    expect(fake_window.toasts).to_contain_text('Message 1 has no text as "content".')
    assert fake_window.ask("one") == "You said one."


def test_two_tabs_keep_each_other_s_conversations(fake_page, fake_model, open_window):
    one = open_window(fake_page[1])
    other = type(one)(one.page.context.new_page(), fake_page[1])
    one.ask("one")
    other.ask("two")
    expect(other.saved).to_have_text(["two", "one"])
    one.ask("three")
    expect(one.saved).to_have_text(["one", "two"])
    one.page.reload()
    expect(one.questions).to_have_text(["one", "three"])


def test_browser_that_can_keep_no_more_says_so_and_the_chat_goes_on(fake_window):
    window = fake_window
    window.page.evaluate(
        """() => {
            for (const size of [1000000, 1000])
                for (let number = 0; ; number++)
                    try { localStorage.setItem(`other ${size} ${number}`, "x".repeat(size)) } catch { break }
        }"""
    )
    window.ask("long " * 500)
    expect(window.toasts).to_contain_text("This browser keeps no more conversations")
    expect(window.saved).to_have_count(0)
    window.page.evaluate("localStorage.clear()")
    window.ask("short")
    expect(window.questions).to_have_count(2)
    expect(window.saved).to_have_count(1)


def test_restart_of_the_server_loses_nothing_on_the_screen(open_window):
    port = free_port()
    ui = build_ui(FakeChat())
    window = open_window(launch_ui(ui, port=port))
    window.ask("one")
    ui.close()
    model = FakeChat()
    ui = build_ui(model)
    try:
        launch_ui(ui, port=port)
        window.ask("two")
        assert model.asked[0][1:] == [user("one"), assistant("You said one."), user("two")]
    finally:
        ui.close()


SERVE = """
import sys
from chat_ui import build_ui, launch_ui
from scripted_chat import FakeChat, endless
answer = endless if sys.argv[2] == "endless" else lambda text: ["the end."]
ui = build_ui(FakeChat(answer))
print(launch_ui(ui, port=int(sys.argv[1])), flush=True)
ui.block_thread()
"""


class Server:
    """The page in a process of its own, which can be killed."""

    def __init__(self, port: int, answer: str):
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        command = [sys.executable, "-c", SERVE, str(port), answer]
        self._process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
        )
        self.address = self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def test_death_of_the_server_in_an_answer_loses_nothing_that_stood_there(open_window):
    port = free_port()
    server = Server(port, "endless")
    try:
        window = open_window(server.address)
        window.send("one")
        expect(window.answers).to_contain_text("word1")
        server.kill()
        server = Server(port, "the end")
        go_on = window.page.get_by_role("button", name="Continue")
        expect(go_on).to_be_visible()  # the page has loaded itself anew
        begun = window.answers.inner_text().strip()
        assert begun.startswith("word0 word1")
        go_on.click()
        expect(window.answers).to_have_text(f"{begun} the end.")
        window.wait_for_rest()

        window.box.fill("two")
        draft = "sessionStorage.getItem('llm-chatbot-draft')"
        poll(window, lambda: window.page.evaluate(draft) == "two")
        server.kill()
        window.box.press("Enter")
        expect(window.toasts).to_contain_text("Connection to the server was lost")
        server = Server(port, "the end")
        expect(window.toasts).to_be_hidden()
        expect(window.box).to_have_value("two")  # it was not sent, and not lost
        expect(window.questions).to_have_text(["one"])
    finally:
        server.kill()


def test_switches_of_the_template_are_on_the_page(open_window):
    model = FakeChat()
    model.template_options = {"enable_thinking": (True, False)}
    ui = build_ui(model)
    try:
        window = open_window(launch_ui(ui))
        window.ask("one")
        window.page.get_by_label("Thinking").uncheck()
        window.ask("two")
        assert model.switches == [{"enable_thinking": True}, {"enable_thinking": False}]
    finally:
        ui.close()


def test_heading_says_what_answers(fake_window):
    expect(fake_window.page.get_by_role("heading", name="Chat with fake-1b")).to_be_visible()
    expect(fake_window.page.get_by_text("INT8 on CPU, FakeEngine")).to_be_visible()


class Listening(BaseHTTPRequestHandler):
    """Another site, which notes what is asked of it and serves a page that asks for more."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.server.page.encode())

    do_POST = do_GET

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def elsewhere():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listening)
    server.asked, server.page = [], ""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def leaks(site: str) -> str:
    """Markdown and HTML that would carry something to another site."""
    return f"""![a]({site}/image) ![b][r] [link]({site}/link "title") <{site}/auto> {site}/bare
<img src="{site}/img"><iframe src="{site}/frame"></iframe><link rel="prefetch" href="{site}/prefetch">
<style>@import url({site}/import); @font-face {{ font-family: x; src: url({site}/font) }}
p {{ font-family: x }}</style>
<p style="background: url({site}/css); font-family: x">styled</p><video src="{site}/video" autoplay></video>
<object data="{site}/object"></object><svg><image href="{site}/svg"></image></svg>
$$\\includegraphics{{{site}/latex}}$$

```mermaid
graph LR; A["<img src='{site}/mermaid'>"] --> B
```

[r]: {site}/reference
"""


def test_nothing_in_a_text_makes_the_browser_load_anything(fake_window, fake_model, elsewhere):
    window = fake_window
    site = f"http://127.0.0.1:{elsewhere.server_port}"
    fake_model.answer = lambda question: [Delta(leaks(site), is_thought=True), leaks(site)]
    window.send(leaks(site))
    expect(window.answers.last).to_contain_text("styled")
    window.wait_for_rest()
    window.page.get_by_role("button", name="Thoughts").click()
    window.answers.last.get_by_role("link", name="link", exact=True).hover()
    expect(window.page.get_by_text("styled")).to_have_count(3)
    window.page.evaluate("new Promise(done => requestIdleCallback(done))")
    assert elsewhere.asked == []


def test_browser_would_load_nothing_even_if_a_text_got_through(fake_window, elsewhere):
    site = f"http://127.0.0.1:{elsewhere.server_port}"
    fake_window.page.evaluate(
        """site => {
            window.blocked = [];
            document.addEventListener("securitypolicyviolation", event => blocked.push(event.blockedURI));
            document.body.insertAdjacentHTML("beforeend", `<img src="${site}/img">
                <iframe src="${site}/frame"></iframe><video src="${site}/video"></video>
                <object data="${site}/object"></object><link rel="stylesheet" href="${site}/css">
                <style>@font-face { font-family: x; src: url(${site}/font) }</style>
                <p style="font-family: x; background: url(${site}/background)">text</p>`);
            fetch(site + "/fetch").catch(() => 0);
            new FontFace("y", `url(${site}/face)`).load().catch(() => 0);
            new Image().src = site + "/image";
            navigator.sendBeacon(site + "/beacon");
        }""",
        site,
    )
    tried = ["img", "video", "css", "font", "background", "fetch", "face", "image", "beacon"]
    expected = {site, *(f"{site}/{name}" for name in tried)}  # of frames the site alone is told
    poll(fake_window, lambda: set(fake_window.page.evaluate("blocked")) >= expected)
    assert elsewhere.asked == []


def test_page_elsewhere_cannot_ask(fake_model, fake_page, fake_window, elsewhere, browser):
    target = f"{fake_page[1]}gradio_api/call/chat"
    elsewhere.page = f"""<script>(async () => {{
        const body = JSON.stringify({{data: ["stolen", "", 1, 1, 0, 1, 0, "", 5, ""]}});
        for (const type of ["text/plain", "application/json"])
            await fetch("{target}", {{
                method: "POST", mode: "no-cors", headers: {{"Content-Type": type}}, body
            }}).catch(() => 0);
        document.title = "tried";
    }})()</script>"""
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{elsewhere.server_port}/")
    expect(page).to_have_title("tried")
    page.close()
    assert fake_window.ask("mine") == "You said mine."
    assert [messages[-1] for messages in fake_model.asked] == [user("mine")]


def test_password_opens_the_page(browser):
    ui = build_ui(FakeChat())
    try:
        page = browser.new_page()
        page.goto(launch_ui(ui, auth=("me", "secret")))
        page.get_by_label("username").fill("me")
        page.get_by_label("password").fill("secret")
        page.get_by_role("button", name="Login").click()
        expect(page.get_by_role("textbox", name="Message")).to_be_visible()
        page.close()
    finally:
        ui.close()


def test_leaving_before_the_answer_stops_the_model_within_two_tokens(fake_window, fake_model):
    fake_model.answer = endless
    fake_window.send("tell me everything")
    expect(fake_window.answers).to_contain_text("word0")
    seen = fake_model.streams[0].stats.new_tokens
    fake_window.page.goto("about:blank")
    wait_until(lambda: fake_model.streams[0].closed)
    assert fake_model.streams[0].stats.new_tokens <= seen + 2
