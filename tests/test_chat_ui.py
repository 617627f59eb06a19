"""The chat page by its API: questions from gradio_client, answers from a fake model or the default one."""

import itertools
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

import chat_ui
import conversion
from chat import Message, ReplyStats
from chat_ui import EXAMPLES, build_ui, launch_ui, to_messages
from config import ModelConfig
from engine import SamplingParams

ROOT = Path(__file__).parents[1]
OUT_OF_RANGE = {
    "temperature": 2.1,
    "top_p": -0.1,
    "top_k": 2.5,
    "repetition_penalty": 0.9,
    "max_new_tokens": 0,
}


class FakeStream:
    """Gives texts as a ReplyStream gives deltas; an exception among them is raised in its turn."""

    def __init__(self, texts: Iterable[str | Exception]):
        self._texts = iter(texts)
        self.stats = ReplyStats(prompt_tokens=1)
        self.closed = False

    def __iter__(self) -> "FakeStream":
        return self

    def __next__(self) -> str:
        text = next(self._texts)
        if isinstance(text, Exception):
            raise text
        self.stats.new_tokens += 1
        return text

    def close(self) -> None:
        self.closed = True


class FakeChatModel:
    """Answers with what `answer` makes of the question, and remembers what it was asked."""

    def __init__(self, answer: Callable[[str], Iterable] = lambda question: ["You said ", question, "."]):
        self.config = ModelConfig("someone/Fake-1B")
        self.max_context = 2048
        self.answer = answer
        self.asked: list[list[Message]] = []
        self.samplings: list[SamplingParams] = []
        self.streams: list[FakeStream] = []

    def stream(self, messages: list[Message], sampling: SamplingParams) -> FakeStream:
        self.asked.append(messages)
        self.samplings.append(sampling)
        self.streams.append(FakeStream(self.answer(messages[-1]["content"])))
        return self.streams[-1]


def endless(question: str) -> Iterator[str]:
    """Words without end, so slowly that what a request takes is little in comparison."""
    for number in itertools.count():
        time.sleep(0.25)
        yield f"word{number} "


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def ask(client: Client, question: str, **options) -> str:
    return client.predict(question, api_name="/chat", **options)


def connect(address: str) -> Client:
    return Client(address, verbose=False)


@pytest.fixture(scope="module")
def served():
    """A fake model and the address where its page is served."""
    model = FakeChatModel()
    ui = build_ui(model)
    yield model, launch_ui(ui)
    ui.close()


@pytest.fixture
def model(served):
    served[0].__init__()  # as if nobody had asked it anything
    return served[0]


@pytest.fixture
def address(served):
    return served[1]


@pytest.fixture
def client(model, address):
    return connect(address)


def test_answer_streams_and_grows(client):
    job = client.submit("hello", api_name="/chat")
    assert job.result(timeout=30) == "You said hello."
    assert job.outputs() == ["You said ", "You said hello", "You said hello."]


def test_second_question_carries_the_first_turn(client, model):
    ask(client, "one", system_prompt="Be brief.")
    ask(client, "two", system_prompt="Be brief.")
    assert model.asked[1] == [system("Be brief."), user("one"), assistant("You said one."), user("two")]


def test_two_visitors_have_two_conversations(model, address):
    ask(connect(address), "my secret")
    ask(connect(address), "hello")
    assert model.asked[1] == [system(""), user("hello")]


def test_options_nobody_touched_are_the_defaults(client, model):
    ask(client, "hello")
    assert model.samplings == [SamplingParams()]


def test_options_arrive_as_set(client, model):
    chosen = {
        "temperature": 0.7,
        "top_p": 0.85,
        "top_k": 0,
        "repetition_penalty": 1.25,
        "max_new_tokens": 17,
    }
    ask(client, "hello", **chosen)
    assert model.samplings == [SamplingParams(**chosen)]
    assert type(model.samplings[0].top_k) is int
    assert type(model.samplings[0].max_new_tokens) is int


@pytest.mark.parametrize("option", OUT_OF_RANGE)
def test_refusal_names_the_option_that_is_out_of_range(client, model, option):
    with pytest.raises(AppError, match=f"^{option} must be .* not {OUT_OF_RANGE[option]}$"):
        ask(client, "hello", **{option: OUT_OF_RANGE[option]})
    assert not model.asked


@pytest.mark.parametrize("blank", ["", " \n\t"])
def test_blank_message_is_refused(client, model, blank):
    with pytest.raises(AppError, match="The message is empty"):
        ask(client, blank)
    assert not model.asked


@pytest.mark.parametrize(
    ("texts", "history"),
    [([], []), (["some ", "text"], [user("one"), assistant("some text")])],
    ids=["at once", "midway"],
)
def test_failing_model_is_reported_briefly_and_the_next_question_works(
    client, model, caplog, capfd, texts, history
):
    model.answer = lambda question: [*texts, RuntimeError("no more memory")]
    with pytest.raises(AppError) as failure:
        ask(client, "one")
    assert str(failure.value) == "The model failed (RuntimeError). The log has the details."
    (record,) = [record for record in caplog.records if record.name == "chat_ui"]
    assert record.levelno == logging.ERROR
    assert "no more memory" in caplog.text
    assert "Traceback (most recent call last)" in caplog.text
    assert "Traceback" not in capfd.readouterr().err  # Gradio's own, a second time
    assert model.streams[0].closed

    model.answer = lambda question: ["better"]
    assert ask(client, "two") == "better"
    assert model.asked[1] == [system(""), *history, user("two")]


def test_what_the_model_refuses_is_told_in_its_words(client, model, caplog):
    model.answer = lambda question: [ValueError("The conversation has 9000 tokens.")]
    with pytest.raises(AppError, match=r"^The conversation has 9000 tokens.$"):
        ask(client, "hello")
    assert not caplog.records


def test_answer_without_a_word_is_an_error(client, model):
    model.answer = lambda question: []
    with pytest.raises(AppError, match="ended its answer before the first word"):
        ask(client, "hello")


def test_cancelling_a_job_stops_the_model(client, model):
    model.answer = endless
    job = client.submit("tell me everything", api_name="/chat")
    wait_until(lambda: len(job.outputs()) > 1)
    seen = model.streams[0].stats.new_tokens
    job.cancel()
    wait_until(lambda: model.streams[0].closed)
    assert model.streams[0].stats.new_tokens <= seen + 2

    model.answer = lambda question: ["fine"]
    assert ask(client, "and now?") == "fine"


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "It did not come to pass."
        time.sleep(0.005)


def test_messages_hold_system_prompt_history_and_question():
    history = [user("one"), assistant("1"), user("two"), assistant("2")]
    assert to_messages("three", history, "Count.") == [system("Count."), *history, user("three")]


def test_empty_system_prompt_is_passed_on():
    assert to_messages("hello", [], "") == [system(""), user("hello")]


@pytest.mark.parametrize(
    "history",
    [
        [user("stopped"), user("one"), assistant("1")],
        [user("one"), assistant("1"), user("stopped")],
        [user("stopped"), user("again"), user("one"), assistant("1"), user("failed"), user("failed")],
    ],
)
def test_unanswered_questions_are_left_out(history):
    assert to_messages("two", history, "") == [system(""), user("one"), assistant("1"), user("two")]


def test_content_in_parts_becomes_text():
    parts = [
        {"type": "text", "text": "What is "},
        {"type": "file", "file": {}},
        {"type": "text", "text": "it?"},
    ]
    history = [{"role": "user", "content": parts, "metadata": None, "options": None}, assistant("That.")]
    assert to_messages("And now?", history, "")[1:3] == [user("What is it?"), assistant("That.")]


def test_page_is_served_to_this_machine_only():
    ui = build_ui(FakeChatModel())
    address = launch_ui(ui)
    try:
        assert address.startswith("http://127.0.0.1:")
        assert not ui.share
        assert ui.share_url is None
        # 127.0.0.2 is this machine too: whoever listens on 0.0.0.0 can be reached there.
        for host in {"127.0.0.2", *own_addresses()}:
            with pytest.raises(OSError):
                socket.create_connection((host, ui.server_port), timeout=2)
    finally:
        ui.close()


def own_addresses() -> set[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, but shows the address that would be used
        except OSError:  # no network at all
            return set()
        return {probe.getsockname()[0]} - {"127.0.0.1"}


def test_page_takes_its_title_from_the_model():
    assert build_ui(FakeChatModel()).title == "Chat with Fake-1B"
    assert build_ui(FakeChatModel(), title="My chat").title == "My chat"


def test_seven_examples_are_offered():
    ui = build_ui(FakeChatModel())
    assert [example["text"] for example in ui.chatbot.examples] == EXAMPLES
    assert len(EXAMPLES) == 7


def test_every_option_is_explained_and_has_its_range():
    options = {option.label: option for option in build_ui(FakeChatModel()).additional_inputs}
    assert all(option.info for option in options.values())
    sliders = {
        label: (option.minimum, option.maximum)
        for label, option in options.items()
        if isinstance(option, gr.Slider)
    }
    assert sliders == {
        "Temperature": (0, 2),
        "Top-p": (0, 1),
        "Top-k": (0, 200),
        "Repetition penalty": (1, 2),
        "Max new tokens": (1, 2048),
    }


@pytest.mark.parametrize(("context", "limit"), [(100, 100), (131072, 4096), (None, 4096)])
def test_longest_answer_fits_the_context(context, limit):
    model = FakeChatModel()
    model.max_context = context
    slider = build_ui(model).additional_inputs[-1]
    assert slider.maximum == limit
    assert slider.value == min(256, limit)


def test_system_prompt_of_the_catalogue_is_filled_in():
    model = FakeChatModel()
    model.config = ModelConfig("someone/Fake-1B", system_prompt="Be helpful.")
    assert build_ui(model).additional_inputs[0].value == "Be helpful."


@pytest.mark.slow
def test_default_model_streams_what_it_answers_elsewhere(smollm2_chat):
    ui = build_ui(smollm2_chat)
    try:
        client = connect(launch_ui(ui))
        options = {"temperature": 0, "max_new_tokens": 12}
        job = client.submit("What is the capital of France?", api_name="/chat", **options)
        first = job.result(timeout=120)
        second = ask(client, "And of Italy?", **options)
    finally:
        ui.close()
    outputs = job.outputs()
    assert len(outputs) > 5
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(outputs))
    history = [system(""), user("What is the capital of France?")]
    assert smollm2_chat.generate(history, SamplingParams(**options)) == first
    history += [assistant(first), user("And of Italy?")]
    assert smollm2_chat.generate(history, SamplingParams(**options)) == second


@pytest.mark.slow
def test_misspelt_model_ends_the_command_with_the_nearest_name():
    command = [sys.executable, "chat_ui.py", "--model", "smollm2-135m-instrukt"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert "Unknown model 'smollm2-135m-instrukt'" in run.stderr
    assert "smollm2-135m-instruct" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.fixture
def no_model_needed(monkeypatch):
    monkeypatch.setattr(conversion, "prepare_model", lambda *arguments: Path("nowhere"))
    monkeypatch.setattr(conversion, "load_model", lambda *arguments: ("model", "tokenizer"))


def test_command_names_the_port_that_is_taken(no_model_needed, monkeypatch):
    monkeypatch.setattr(chat_ui, "ChatModel", lambda *arguments: FakeChatModel())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port} is taken.*--port"):
            chat_ui.main(["--port", str(port)])


def test_command_explains_a_model_without_chat_template(no_model_needed, monkeypatch):
    def refuse(*arguments):
        raise ValueError("someone/base-model has no chat template")

    monkeypatch.setattr(chat_ui, "ChatModel", refuse)
    with pytest.raises(SystemExit, match=r"^Error: someone/base-model has no chat template$"):
        chat_ui.main([])
