"""The chat page in a real Chromium, on the default model, or on a fake one that fails or never ends."""

import re
import threading
import time
from contextlib import closing
from itertools import pairwise

import pytest
from playwright.sync_api import expect
from test_chat_ui import wait_until, waiting_for

import chat_ui
from chat import ChatModel, Delta
from chat_ui import EXAMPLES, build_ui, launch_ui
from chat_window import ChatWindow, poll, wait_until_asked
from config import ModelConfig
from fakes import ScriptedEngine, free_port
from loading_engine import LoadingEngine
from prompt_formats import PROMPT_FORMATS, make_tokenizer
from sampling import SamplingParams
from scripted_chat import FakeChat, assistant, endless, user

pytest_plugins = ["chat_window"]
pytestmark = [pytest.mark.browser, pytest.mark.slow]


class CountingEngine:
    """An engine that counts the tokens it computes, and takes its time over them if told to."""

    def __init__(self, engine):
        self.engine = engine
        self.max_context = engine.max_context
        self.max_requests = engine.max_requests
        self.end_ids = engine.end_ids
        self.defaults = engine.defaults
        self.count = 0
        self.running = 0
        self.pause = 0.0

    def prefill(self, ids):
        self.engine.prefill(ids)

    def generate(self, ids, sampling, spared=()):
        return CountingTokens(self, self.engine.generate(ids, sampling, spared))


class CountingTokens:
    """One request of a CountingEngine."""

    def __init__(self, engine, tokens):
        self.engine, self.tokens = engine, tokens
        self.engine.running += 1
        self.open = True

    def __iter__(self):
        return self

    def __next__(self):
        token = next(self.tokens)
        time.sleep(self.engine.pause)
        self.engine.count += 1
        return token

    def __getattr__(self, name):  # what the engine tells about the request
        return getattr(self.tokens, name)

    def close(self):
        self.tokens.close()
        if self.open:
            self.open = False
            self.engine.running -= 1


class RecordingChatModel(ChatModel):
    """Remembers what it was asked."""

    def __init__(self, model, tokenizer, config):
        super().__init__(model, tokenizer, config)
        self.asked = []
        self.samplings = []

    def stream(self, messages, sampling=None, template_options=None):
        self.asked.append(messages)
        self.samplings.append(sampling)
        return super().stream(messages, sampling, template_options)


@pytest.fixture(scope="module")
def real_page(smollm2_chat):
    """The default model and the address where its page is served."""
    model = RecordingChatModel(
        CountingEngine(smollm2_chat.engine), smollm2_chat.tokenizer, smollm2_chat.config
    )
    ui = build_ui(model)
    yield model, launch_ui(ui)
    ui.close()


@pytest.fixture
def real_model(real_page):
    return real_page[0]


@pytest.fixture
def window(real_page, open_window) -> ChatWindow:
    return open_window(real_page[1])


def words(text: str) -> list[str]:
    """What Markdown leaves alone."""
    return re.findall(r"[A-Za-z]+", text)


def test_answer_is_seen_growing(window, real_model, monkeypatch):
    expect(window.page).to_have_title("Chat with SmolLM2-135M-Instruct")
    monkeypatch.setattr(real_model.engine, "pause", 0.05)  # however fast the machine is
    window.set_option("Max new tokens", 40)
    window.send("What is Python?")
    expect(window.answers).to_have_text(re.compile(r"\w"))
    texts = []
    while window.stop_button.is_visible():
        texts.append(window.answers.inner_text())
        window.page.wait_for_timeout(50)
    window.wait_for_rest()
    texts.append(window.answers.inner_text())
    lengths = [len(words(text)) for text in texts]
    assert len(set(lengths)) >= 5
    assert all(earlier <= later for earlier, later in pairwise(lengths))
    assert "programming language" in texts[-1]
    assert window.console_errors == []


def test_stop_keeps_the_text_and_frees_the_model(window, real_model, monkeypatch):
    engine = real_model.engine
    monkeypatch.setattr(engine, "pause", 0.2)  # so slow that the way of the click is not a token's time
    window.set_option("Max new tokens", 1000)
    window.send("Write a blog post of 100 words about a walk in the rain.")
    expect(window.answers).to_have_text(re.compile(r"\w+ \w+ \w+"))
    seen = window.answers.inner_text()
    with window.page.expect_request("**/cancel"):
        window.stop_button.click()
    computed = engine.count
    window.wait_for_rest()
    assert engine.running == 0
    assert engine.count <= computed + 2
    stopped = window.answers.inner_text()
    assert stopped.startswith(seen)

    monkeypatch.setattr(engine, "pause", 0.0)
    window.set_option("Max new tokens", 5)
    assert window.ask("Thank you.")
    question, partial_answer = real_model.asked[-1][1:3]
    assert question["content"].startswith("Write a blog post")
    assert words(partial_answer["content"]) == words(stopped)


def test_retry_undo_and_edit(window, real_model):
    window.set_option("Max new tokens", 8)
    window.set_option("Temperature", 0)
    first = window.ask("What is the capital of France?")
    window.ask("What is the capital of Italy?")
    history = real_model.asked[-1][:-1]

    window.press("Undo")
    expect(window.questions).to_have_text(["What is the capital of France?"])
    expect(window.answers).to_have_text([first])
    expect(window.box).to_have_value("What is the capital of Italy?")

    window.ask("And of Spain?")
    assert real_model.asked[-1] == [*history, user("And of Spain?")]

    asked = len(real_model.asked)
    window.press("Retry")
    wait_until_asked(window, real_model, asked + 1)
    assert real_model.asked[-1] == [*history, user("And of Spain?")]

    window.edit(0, "What is the capital of Norway?")
    wait_until_asked(window, real_model, asked + 2)
    assert real_model.asked[-1] == [history[0], user("What is the capital of Norway?")]
    expect(window.questions).to_have_count(1)
    expect(window.answers).to_have_count(1)
    assert window.console_errors == []


def test_conversations_are_kept_opened_and_cleared(window, real_model):
    window.set_option("Max new tokens", 5)
    answer = window.ask("What is the capital of France?")
    expect(window.saved).to_have_text(["What is the capital of France?"])
    window.new_chat_button.click()
    expect(window.answers).to_have_count(0)
    window.ask("Who are you?")
    assert real_model.asked[-1][1:] == [user("Who are you?")]
    expect(window.saved).to_have_text(["Who are you?", "What is the capital of France?"])

    window.page.reload()
    expect(window.saved).to_have_text(["Who are you?", "What is the capital of France?"])
    expect(window.questions).to_have_text(["Who are you?"])
    window.saved.nth(1).click()
    expect(window.questions).to_have_text(["What is the capital of France?"])
    expect(window.answers).to_have_text([answer])
    window.set_option("Max new tokens", 5)
    window.ask("And of Italy?")
    assert real_model.asked[-1][1] == user("What is the capital of France?")

    window.press("Clear")
    expect(window.questions).to_have_count(0)
    expect(window.saved).to_have_text(["Who are you?"])
    window.ask("Hello!")
    assert real_model.asked[-1][1:] == [user("Hello!")]


def test_example_is_sent_by_a_click_and_its_conversation_is_kept(window, real_model):
    window.set_option("Max new tokens", 5)
    asked = len(real_model.asked)
    window.choose_example(EXAMPLES[3])
    wait_until_asked(window, real_model, asked + 1)
    assert real_model.asked[-1][1:] == [user(EXAMPLES[3])]
    expect(window.answers).to_have_text(re.compile(r"\w"))
    expect(window.saved).to_have_text([EXAMPLES[3]])


def test_advanced_options_take_effect(window, real_model):
    window.set_option("Temperature", 0)
    window.set_option("Max new tokens", 20)
    first = window.ask("Tell me a fairy tale in one sentence.")
    asked = len(real_model.asked)
    window.press("Retry")
    wait_until_asked(window, real_model, asked + 1)
    expect(window.answers).to_have_text(first)

    window.set_option("Max new tokens", 5)
    before = real_model.engine.count
    window.press("Retry")
    wait_until_asked(window, real_model, asked + 2)
    assert real_model.engine.count == before + 5
    assert first.startswith(window.answers.inner_text())
    assert [sampling.temperature for sampling in real_model.samplings[-3:]] == [0, 0, 0]


def test_who_asks_while_the_model_is_loading_waits_and_is_told_so(open_window):
    prompt_format = PROMPT_FORMATS["chatml"]
    tokenizer = make_tokenizer(prompt_format)
    script = tokenizer.encode("I am an assistant." + prompt_format.turn_end, add_special_tokens=False)
    loaded = threading.Event()

    def load() -> ScriptedEngine:
        assert loaded.wait(60)
        return ScriptedEngine(script, max_context=512)

    coming = LoadingEngine(load, 512, frozenset(), 1, SamplingParams())
    with closing(build_ui(ChatModel(coming, tokenizer, ModelConfig("test/model")))) as ui:
        window = open_window(launch_ui(ui))
        window.send("Who are you?")
        expect(window.stats).to_contain_text("Waiting for the model")
        expect(window.answers).to_have_count(0)
        loaded.set()
        window.wait_for_rest()
        expect(window.answers).to_have_text("I am an assistant.")
        expect(window.stats).not_to_contain_text("Waiting")


def test_html_in_an_answer_is_text(fake_window, fake_model):
    html = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
    fake_model.answer = lambda question: [
        html,
        f"\n\n```html\n{html}\n```\n\n`{html}`\n\n**bold** if a<b and c>d",
    ]
    fake_window.ask(html)
    expect(fake_window.answers.locator("strong")).to_have_text("bold")
    assert fake_window.answers.inner_text().count(html) == 3
    assert "bold if a<b and c>d" in fake_window.answers.inner_text()
    assert fake_window.questions.inner_text() == html
    assert fake_window.page.evaluate("window.pwned") is None


@pytest.mark.parametrize("texts", [[], ["Some ", "text"]], ids=["at once", "midway"])
def test_failing_model_is_reported_and_the_page_goes_on(fake_window, fake_model, texts):
    window = fake_window
    fake_model.answer = lambda question: [*texts, RuntimeError("no more memory")]
    words = "The model failed (RuntimeError)"
    message = window.toasts.get_by_text(words)
    window.send("one")
    expect(message).to_be_visible()
    window.wait_for_rest()
    expect(window.stats).to_contain_text(words)  # the other one goes after some seconds
    expect(window.questions).to_have_text(["one"])
    expect(window.answers).to_have_text(["".join(texts)] if texts else [])
    window.edit(0, "two")
    expect(message).to_have_count(2)
    window.wait_for_rest()

    fake_model.answer = lambda question: ["better"]
    expect(window.page.get_by_role("button", name="Continue" if texts else "Retry").last).to_be_visible()
    assert window.ask("three") == "better"
    history = [user("two"), assistant("Some text")] if texts else []
    assert fake_model.asked[-1][1:] == [*history, user("three")]
    expect(window.stats).not_to_contain_text(words)


def test_blank_message_is_not_sent(fake_window, fake_model):
    fake_window.box.fill("   ")
    fake_window.box.press("Enter")
    expect(fake_window.page.get_by_text("Type a question first.")).to_be_visible()
    assert fake_window.ask("hello") == "You said hello."
    expect(fake_window.page.get_by_text("Type a question first.")).to_be_hidden()
    assert [messages[-1] for messages in fake_model.asked] == [user("hello")]


def test_answer_to_an_edited_question_can_be_stopped(fake_window, fake_model):
    window = fake_window
    window.ask("one")
    fake_model.answer = endless
    window.edit(0, "two")
    expect(window.answers).to_contain_text("word0")
    window.stop_button.click()
    window.wait_for_rest()
    assert fake_model.streams[-1].closed
    assert "word0" in window.answers.inner_text()
    expect(window.stats).to_contain_text(", stopped")
    fake_model.answer = lambda question: ["fine"]
    assert window.ask("three") == "fine"
    assert fake_model.asked[-1][1] == user("two")


def test_answer_to_an_example_can_be_stopped(fake_window, fake_model):
    window = fake_window
    fake_model.answer = endless
    window.choose_example(EXAMPLES[3])
    expect(window.answers).to_contain_text("word0")
    expect(window.box).to_be_disabled()
    window.stop_button.click()
    window.wait_for_rest()
    assert fake_model.streams[-1].closed
    expect(window.saved).to_have_text([EXAMPLES[3]])
    expect(window.stats).to_contain_text(", stopped")


def test_conversation_cannot_be_changed_under_a_running_answer(fake_window, fake_model):
    window = fake_window
    window.ask("one")
    window.new_chat_button.click()
    expect(window.questions).to_have_count(0)
    fake_model.answer = endless
    window.send("two")
    expect(window.stop_button).to_be_visible()
    clear = window.page.get_by_role("button", name="Clear", exact=True)
    for control in (window.new_chat_button, window.saved.first, clear):
        expect(control).to_have_css("pointer-events", "none")
    window.stop_button.click()
    window.wait_for_rest()
    expect(window.saved).to_have_text(["two", "one"])
    for control in (window.new_chat_button, window.saved.first, clear):
        expect(control).to_have_css("pointer-events", "auto")


def test_closing_the_page_stops_the_model(fake_window, fake_model):
    fake_model.answer = endless
    fake_window.send("tell me everything")
    expect(fake_window.answers).to_contain_text("word0")
    words_so_far = fake_model.streams[0].stats.new_tokens
    fake_window.page.close()
    wait_until(lambda: fake_model.streams[0].closed)
    assert fake_model.streams[0].stats.new_tokens <= words_so_far + 2


def test_stop_before_the_first_word_frees_the_model(fake_window, fake_model, first_token):
    window = fake_window
    fake_model.answer = waiting_for(first_token)
    window.send("a long story")
    poll(window, lambda: fake_model.streams and fake_model.streams[0].waiting)
    expect(window.stats).to_contain_text("Waiting for the model")
    window.stop_button.click()
    window.wait_for_rest()
    assert fake_model.streams[0].closed
    expect(window.stats).to_have_text("")
    fake_model.answer = lambda question: ["fine"]
    assert window.ask("And now?") == "fine"
    assert fake_model.asked[-1][1:] == [user("And now?")]


def test_closing_the_page_before_the_first_word_frees_the_model(fake_window, fake_model, first_token):
    fake_model.answer = waiting_for(first_token)
    fake_window.send("a long story")
    poll(fake_window, lambda: fake_model.streams and fake_model.streams[0].waiting)
    fake_window.page.close()
    wait_until(lambda: fake_model.streams[0].closed)


def test_questions_wait_in_a_queue_and_can_be_stopped_there(open_window, monkeypatch):
    monkeypatch.setattr(chat_ui, "QUEUE_LENGTH", 1)
    model = FakeChat(endless)
    ui = build_ui(model)
    try:
        address = launch_ui(ui)
        answered, waiting, refused = (open_window(address) for _ in range(3))
        answered.send("one")
        expect(answered.answers).to_contain_text("word0")
        waiting.send("two")
        expect(waiting.page.get_by_text("queue: 1/1")).to_be_visible()

        refused.box.fill("three")
        refused.box.press("Enter")
        expect(refused.toasts).to_contain_text("currently busy. Please try again")
        expect(refused.box).to_have_value("three")
        refused.box.click()  # nothing covers it
        refused.page.get_by_role("button", name=EXAMPLES[3]).click()  # gets no answer either
        refused.wait_for_rest()
        expect(refused.questions).to_have_count(0)

        waiting.stop_button.click()
        waiting.wait_for_rest()
        expect(waiting.page.get_by_text("queue: 1/1")).to_be_hidden()
        answered.stop_button.click()
        answered.wait_for_rest()
        model.answer = lambda question: ["fine"]
        assert waiting.ask("four") == "fine"
        assert refused.ask("five") == "fine"
        assert [messages[-1]["content"] for messages in model.asked] == ["one", "four", "five"]
    finally:
        ui.close()


def test_line_under_the_answer_tells_its_cost_and_goes_with_it(fake_window, fake_model):
    window = fake_window
    window.ask("one")
    expect(window.stats).to_have_text("1 prompt token · 3 tokens")
    fake_model.answer = endless
    window.send("two")
    expect(window.answers.last).to_contain_text("word1")
    window.stop_button.click()
    window.wait_for_rest()
    expect(window.stats).to_have_text(re.compile(r"^\s*1 prompt token · \d+ tokens?, stopped\s*$"))
    window.new_chat_button.click()
    expect(window.stats).to_have_text("")


def test_thoughts_are_folded(fake_window, fake_model):
    window = fake_window
    fake_model.answer = lambda question: [Delta("Let me", True), Delta(" see.", True), "Paris."]
    window.send("Where?")
    expect(window.answers.last).to_contain_text("Paris.")
    window.wait_for_rest()
    thoughts = window.page.get_by_text("Let me see.")
    expect(thoughts).to_be_hidden()
    window.page.get_by_role("button", name="Thoughts").click()
    expect(thoughts).to_be_visible()
    fake_model.answer = lambda question: ["Yes."]
    window.ask("Really?")
    thoughtful = assistant("Paris.", thought="Let me see.")  # to be left out or not is the model's affair
    assert fake_model.asked[-1][1:] == [user("Where?"), thoughtful, user("Really?")]
    window.press("Retry")
    wait_until_asked(window, fake_model, 3)
    assert fake_model.asked[-1] == fake_model.asked[-2]


def test_retry_leaves_an_unanswered_question_alone(fake_window, fake_model):
    window = fake_window
    fake_model.answer = lambda question: [RuntimeError("no more memory")]
    window.ask_in_vain("one")
    fake_model.answer = lambda question: ["You said ", question]
    window.ask("two")
    window.press("Retry")
    wait_until_asked(window, fake_model, 3)
    assert fake_model.asked[-1][1:] == [user("two")]
    expect(window.answers).to_have_text(["You said two"])


def test_any_text_can_be_sent(fake_window, fake_model):
    window = fake_window
    window.box.evaluate(
        """box => {
            box.value = "half \\ud83d of it, \\0 and \u05e9\u05dc\u05d5\u05dd";
            box.dispatchEvent(new Event("input"));
        }"""
    )
    window.box.press("Enter")
    expect(window.answers).to_contain_text("\u05e9\u05dc\u05d5\u05dd")
    window.wait_for_rest()
    assert fake_model.asked[-1][-1] == user("half \ufffd of it, \0 and \u05e9\u05dc\u05d5\u05dd")
    window.ask("word " * 20_000)
    assert len(fake_model.asked[-1][-1]["content"]) == 100_000
    assert window.ask("next") == "You said next."
    assert window.console_errors == []


def test_keyboard_alone_suffices(fake_window, fake_model):
    window = fake_window
    keyboard = window.page.keyboard

    def press_with_keyboard(control) -> None:
        """Tab to the control, then Enter; the focus must come by on its way through the page."""
        for _ in range(40):
            if control.evaluate("element => element === document.activeElement"):
                keyboard.press("Enter")
                return
            keyboard.press("Tab")
        raise AssertionError(f"Tab does not lead to {control}")

    expect(window.box).to_be_focused()
    keyboard.type("one")
    keyboard.press("Enter")
    expect(window.answers).to_have_text("You said one.")
    expect(window.box).to_be_focused()  # without a click
    press_with_keyboard(window.page.get_by_role("button", name="Retry"))
    wait_until_asked(window, fake_model, 2)
    press_with_keyboard(window.page.get_by_role("button", name="Edit"))
    expect(window.page.locator(".edit-textarea")).to_be_focused()
    window.page.locator(".edit-textarea").fill("two")
    press_with_keyboard(window.page.get_by_role("button", name="Submit"))
    wait_until_asked(window, fake_model, 3)

    fake_model.answer = endless
    expect(window.box).to_be_focused()
    keyboard.type("three")
    keyboard.press("Enter")
    expect(window.answers.last).to_contain_text("word0")
    press_with_keyboard(window.stop_button)
    window.wait_for_rest()
    press_with_keyboard(window.page.get_by_role("button", name="Undo"))
    expect(window.box).to_have_value("three")
    press_with_keyboard(window.new_chat_button)
    expect(window.questions).to_have_count(0)
    press_with_keyboard(window.saved.first)
    expect(window.questions).to_have_text(["two"])
    press_with_keyboard(window.page.get_by_role("button", name="Advanced options"))
    expect(window.page.get_by_label("System prompt")).to_be_visible()
    press_with_keyboard(window.page.get_by_role("button", name="Clear", exact=True))
    expect(window.questions).to_have_count(0)


UNNAMED = """() => Array.from(document.querySelectorAll("button, input, textarea, [role=gridcell]"))
    .filter(element => element.checkVisibility())
    .filter(element => !(element.ariaLabel || element.title || element.innerText || element.labels?.length))
    .map(element => element.outerHTML)"""


def test_every_control_has_a_name_for_screen_readers(fake_window):
    fake_window.ask("one")
    fake_window.page.get_by_role("button", name="Advanced options").click()
    expect(fake_window.page.get_by_label("System prompt")).to_be_visible()
    assert fake_window.page.evaluate(UNNAMED) == []


def test_code_is_highlighted_and_copied(fake_page, fake_model, open_window):
    fake_model.answer = lambda question: [RICH_ANSWER]
    window = open_window(fake_page[1], permissions=["clipboard-read", "clipboard-write"])
    window.ask("What is Python?")
    expect(window.answers.locator("code .token.string")).to_contain_text("a line of code")
    for name, copied in (("copy", "print("), ("Copy message", "Python is a **programming language**")):
        window.press(name)
        poll(window, lambda: window.page.evaluate("navigator.clipboard.readText()").startswith(copied))  # noqa: B023


def test_conversations_outlive_the_server(open_window):
    port = free_port()
    ui = build_ui(FakeChat())
    window = open_window(launch_ui(ui, port=port))
    window.ask("one")
    expect(window.saved).to_have_text(["one"])
    ui.close()
    ui = build_ui(FakeChat())
    try:
        window.page.goto(launch_ui(ui, port=port))
        expect(window.saved).to_have_text(["one"])
    finally:
        ui.close()


def test_conversation_emptied_by_undo_does_not_move_the_others(fake_window):
    window = fake_window
    window.ask("one")
    window.new_chat_button.click()
    expect(window.questions).to_have_count(0)
    window.ask("two")
    expect(window.saved).to_have_text(["two", "one"])
    window.press("Undo")
    expect(window.saved).to_have_text(["one"])
    window.saved.click()
    expect(window.questions).to_have_text(["one"])


RICH_ANSWER = (
    """\
Python is a **programming language**:

```python
print("a line of code that is much too long for the display of a phone, whichever way one holds it")
```

| Language | Year | Author | Typing | Best known for |
| --- | --- | --- | --- | --- |
| Python | 1991 | Guido van Rossum | dynamic | readability |

"""
    + 20 * "averyveryverylongword"
)


def test_page_fits_a_phone(fake_page, fake_model, open_window, tmp_path):
    window = open_window(fake_page[1], viewport={"width": 390, "height": 844})

    def check(moment: str) -> None:
        window.page.evaluate("scrollTo(0, 0)")
        window.page.screenshot(path=tmp_path / f"phone_{moment}.png")
        assert window.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        expect(window.box).to_be_in_viewport()

    check("empty")
    fake_model.answer = lambda question: [RICH_ANSWER]
    window.ask("What is Python?")
    check("answered")
    for count in (1, 2, 3):
        expect(window.saved).to_have_count(count)
        window.new_chat_button.click()
        expect(window.questions).to_have_count(0)
        window.ask("And what is it not?")
    expect(window.saved).to_have_count(4)
    check("with_saved_conversations")


@pytest.mark.parametrize("text", ["$$" + "x + " * 60 + "y$$", RICH_ANSWER], ids=["formula", "table"])
def test_what_is_too_wide_for_a_phone_is_scrolled(fake_page, fake_model, open_window, text):
    fake_model.answer = lambda question: [text]
    window = open_window(fake_page[1], viewport={"width": 390, "height": 844})
    window.ask("What?")
    widest = window.answers.locator(".katex-display, table")
    assert widest.evaluate("wide => wide.scrollWidth > wide.clientWidth")
    assert widest.evaluate("wide => wide.getBoundingClientRect().right <= innerWidth")


def test_examples_can_all_be_seen_on_a_phone(fake_page, open_window):
    window = open_window(fake_page[1], viewport={"width": 390, "height": 844})
    for text in EXAMPLES:
        expect(window.page.get_by_role("button", name=text)).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_small_letters_stand_out_from_what_is_behind_them(fake_page, fake_model, open_window, theme):
    window = open_window(f"{fake_page[1]}?__theme={theme}")
    window.ask("one")
    window.page.get_by_role("button", name="Advanced options").click()
    information = window.page.get_by_text("What the model is told of its role.")
    expect(information).to_be_visible()
    heading = window.page.get_by_text("INT8 on CPU")
    for words in (information, heading, window.stats.locator("p"), window.new_chat_button, window.box):
        assert words.evaluate(CONTRAST) >= 4.5  # what WCAG 2 asks for


# Of a text, or of a placeholder, with the first background behind it that is not transparent.
CONTRAST = """element => {
    const channels = color => color.match(/[\\d.]+/g).map(Number);
    const luminance = color => channels(color).slice(0, 3).map(value => value / 255)
        .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
    let behind = element;
    const background = () => getComputedStyle(behind).backgroundColor;
    while (behind.parentElement && channels(background())[3] === 0) behind = behind.parentElement;
    const color = getComputedStyle(element, element.placeholder ? "::placeholder" : null).color;
    const [light, dark] = [luminance(color), luminance(background())].sort().reverse();
    return (light + 0.05) / (dark + 0.05);
}"""


def test_page_has_a_dark_mode(fake_page, fake_model, open_window, tmp_path):
    fake_model.answer = lambda question: [RICH_ANSWER]
    window = open_window(fake_page[1] + "?__theme=dark")
    window.ask("What is Python?")
    window.page.screenshot(path=tmp_path / "dark.png")
    backdrop = window.page.locator("gradio-app").evaluate("app => getComputedStyle(app).backgroundColor")
    text = window.answers.evaluate("answer => getComputedStyle(answer).color")
    assert brightness(backdrop) < 60
    assert brightness(text) > 180


def brightness(color: str) -> float:
    red, green, blue = map(float, re.findall(r"[\d.]+", color)[:3])
    return (red + green + blue) / 3


def test_stopped_answers_are_never_covered_by_an_error(fake_page, fake_model, open_window):
    fake_model.answer = endless
    window = open_window(fake_page[1])
    for number in range(5):
        window.send(f"question {number}")
        window.stop_button.click()
        window.wait_for_rest()
        expect(window.page.locator(".conversation .clear-status").locator("visible=true")).to_have_count(0)
        window.questions.last.click(timeout=5000)  # nothing lies over it
