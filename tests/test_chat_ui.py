"""The chat page by its API: questions from gradio_client, answers from a fake model or the default one."""

import importlib.util
import itertools
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from gradio_client.client import Job
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError, Status

import chat_ui
import conversion
from chat import Message, ReplyStats
from chat_ui import EXAMPLES, build_ui, describe, launch_ui, shown_messages, stopped, text_of, to_messages
from config import ModelConfig
from sampling import SamplingParams

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
        self.waiting = False  # for the next text

    def __iter__(self) -> "FakeStream":
        return self

    def __next__(self) -> str:
        self.waiting = True
        try:
            text = next(self._texts)
        finally:
            self.waiting = False
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
        self.engine = SimpleNamespace(max_requests=1)
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
    assert job.outputs() == ["You said ", "You said hello", "You said hello.", "You said hello."]


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


def test_cancelling_a_job_that_waits_takes_it_out_of_the_queue(model, address):
    model.answer = endless
    first, second = (connect(address).submit(question, api_name="/chat") for question in ("one", "two"))
    wait_until(lambda: first.outputs())
    wait_until(lambda: second.status().rank == 0)
    second.cancel()
    first.cancel()
    wait_until(lambda: model.streams[0].closed)
    model.answer = lambda question: ["fine"]
    assert ask(connect(address), "three") == "fine"
    assert [messages[-1]["content"] for messages in model.asked] == ["one", "three"]


def is_running(job: Job) -> bool:
    """Whether its client has heard that the job has begun; before that it cannot cancel it."""
    return job.status().code is Status.PROCESSING


@pytest.fixture
def first_token():
    """A model that asks for it waits until this is set; at the latest when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def waiting_for(event: threading.Event) -> Callable[[str], Iterator[str]]:
    """An answer that begins when the event is set."""

    def answer(question: str) -> Iterator[str]:
        assert event.wait(60)
        yield "at last"

    return answer


def test_cancelling_a_job_reaches_the_model_before_its_first_token(client, model, first_token):
    model.answer = waiting_for(first_token)
    job = client.submit("a long story", api_name="/chat")
    wait_until(lambda: is_running(job) and model.streams[0].waiting)
    job.cancel()
    wait_until(lambda: model.streams[0].closed, seconds=5)
    model.answer = lambda question: ["fine"]
    assert ask(client, "and now?") == "fine"


def test_going_away_reaches_the_model_before_its_first_token(client, model, address, first_token):
    model.answer = waiting_for(first_token)
    with httpx.stream(
        "GET", f"{address}gradio_api/heartbeat/{client.session_hash}"
    ):  # as an open page has one
        client.submit("a long story", api_name="/chat")
        wait_until(lambda: model.streams and model.streams[0].waiting)
    wait_until(lambda: model.streams[0].closed)
    model.answer = lambda question: ["fine"]
    assert ask(connect(address), "and now?") == "fine"


def test_stopped_answers_leave_no_thread_behind(client, model, first_token):
    model.answer = waiting_for(first_token)
    for number in range(5):
        job = client.submit("a long story", api_name="/chat")
        wait_until(lambda: is_running(job) and model.streams[number].waiting)  # noqa: B023
        job.cancel()
        wait_until(lambda: model.streams[number].closed, seconds=5)  # noqa: B023
    first_token.set()
    wait_until(lambda: not any(stream.waiting for stream in model.streams))
    model.answer = lambda question: ["fine"]
    threads = threading.active_count()
    for _ in range(5):
        assert ask(client, "and now?") == "fine"
    assert threading.active_count() <= threads


def test_answers_are_written_as_many_at_a_time_as_the_engine_computes():
    model = FakeChatModel(endless)
    model.engine.max_requests = 2
    ui = build_ui(model)
    try:
        address = launch_ui(ui)
        jobs = [connect(address).submit(question, api_name="/chat") for question in ("one", "two", "three")]
        wait_until(lambda: sum(len(job.outputs()) > 1 for job in jobs) == 2)
        assert [bool(job.outputs()) for job in jobs].count(False) == 1
        assert [job.status().rank for job in jobs].count(0) == 1
        for job in jobs:
            job.cancel()
    finally:
        ui.close()


def test_full_queue_refuses_a_question_and_takes_one_when_there_is_room(monkeypatch):
    monkeypatch.setattr(chat_ui, "QUEUE_LENGTH", 1)
    model = FakeChatModel(endless)
    ui = build_ui(model)
    try:
        address = launch_ui(ui)
        answered, waiting = (connect(address).submit(text, api_name="/chat") for text in ("one", "two"))
        wait_until(lambda: waiting.status().rank == 0)
        with pytest.raises(QueueError, match="Queue is full"):
            ask(connect(address), "three")
        model.answer = lambda question: ["fine"]
        answered.cancel()
        assert waiting.result(timeout=30) == "fine"
        assert ask(connect(address), "three") == "fine"
    finally:
        ui.close()


def test_of_many_pages_the_server_remembers_those_used_last(monkeypatch):
    monkeypatch.setattr(chat_ui, "SESSIONS", 2)
    model = FakeChatModel()
    ui = build_ui(model)
    try:
        address = launch_ui(ui)
        first, second, third = (connect(address) for _ in range(3))
        for page, question in [(first, "one"), (second, "two"), (first, "three"), (third, "four")]:
            ask(page, question)
        assert len(ui.app.state_holder.session_data) == 2
        ask(first, "five")
        assert [turn["content"] for turn in model.asked[-1] if turn["role"] == "user"] == [
            "one",
            "three",
            "five",
        ]
    finally:
        ui.close()


@pytest.mark.parametrize(
    "question",
    ["x" * 100_000, "a\0b", "\u05e9\u05dc\u05d5\u05dd \u202eolleh", "a\tb\n    c", "<think>Hm</think>"],
    ids=["long", "NUL", "right to left", "white space", "think"],
)
def test_any_text_arrives_unchanged(client, model, question):
    assert ask(client, question) == f"You said {question}."
    assert ask(client, "next") == "You said next."
    assert model.asked[1] == [system(""), user(question), assistant(f"You said {question}."), user("next")]


def test_half_a_character_is_replaced(client, model, address):
    post(address, '"a \\ud83d b", "c \\ude00 d", 0.1, 1, 50, 1.1, 256')
    assert model.asked[0] == [system("c \ufffd d"), user("a \ufffd b")]
    assert ask(client, "next") == "You said next."


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 4000, '"' + "9" * 10_000 + '"', "null"])
def test_number_that_is_none_is_refused(client, model, address, number):
    answer = post(address, f'"hello", "", 0.1, 1, {number}, 1.1, 256')
    assert "top_k must be a whole number, 0 or more, not" in answer
    assert len(answer) < 300
    assert ask(client, "next") == "You said next."


def test_number_too_long_to_read_is_refused(client, model, address):
    with pytest.raises(httpx.HTTPStatusError, match="400 Bad Request"):
        post(address, f'"hello", "", 0.1, 1, 1{"0" * 10_000}, 1.1, 256')
    assert ask(client, "next") == "You said next."


def post(address: str, values: str) -> str:
    """What the page sends back for these values in JSON, which gradio_client would refuse to send."""
    url = f"{address}gradio_api/call/chat"
    with httpx.Client(timeout=30, headers={"Content-Type": "application/json"}) as web:
        event = web.post(url, content=f'{{"data": [{values}]}}').raise_for_status().json()["event_id"]
        return web.get(f"{url}/{event}").text


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


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ("Paris.", [("Paris.", None)]),
        ("<think>\nFrance?", [("France?", "Thoughts (unfinished)")]),
        ("<think>\nFrance?\n</think>\n", [("France?", "Thoughts")]),
        ("<think>\nFrance?\n</think>\n\nParis.", [("France?", "Thoughts"), ("Paris.", None)]),
        ("It is <think>.", [("It is <think>.", None)]),
    ],
)
def test_thoughts_are_folded(reply, shown):
    messages = shown_messages(reply, "assistant")
    assert [(text_of(turn), turn.get("metadata", {}).get("title")) for turn in messages] == shown


def test_folded_thoughts_are_not_sent_back():
    history = [
        user("one"),
        *shown_messages("<think>1?</think>1", "assistant"),
        user("stopped"),
        *shown_messages("<think>Hm", "assistant"),
    ]
    assert to_messages("two", history, "") == [system(""), user("one"), assistant("1"), user("two")]


def test_line_under_an_answer_says_what_it_cost():
    stats = ReplyStats(prompt_tokens=412)
    assert describe(stats) == "412 prompt tokens · 0 tokens"
    stats.reused_tokens, stats.time_to_first_token, stats.new_tokens = 390, 0.2149, 1
    assert describe(stats) == "412 prompt tokens (390 from the cache) · first token 0.21 s · 1 token"
    stats.tokens_per_second, stats.new_tokens, stats.finish_reason = 34.4, 120, "length"
    assert describe(stats) == (
        "412 prompt tokens (390 from the cache) · first token 0.21 s · 34 tokens/s · "
        "120 tokens, stopped at the limit"
    )
    stats.tokens_per_second, stats.finish_reason = 4.26, "stop"
    assert describe(stats).endswith(" · 4.3 tokens/s · 120 tokens")


@pytest.mark.parametrize(
    ("dropped", "notice"),
    [
        (1, "The oldest message no longer fits into the model's context and was left out."),
        (6, "The 6 oldest messages no longer fit into the model's context and were left out."),
    ],
)
def test_messages_that_were_left_out_are_told(dropped, notice):
    assert describe(ReplyStats(prompt_tokens=9, dropped_messages=dropped)).endswith(f"\n\n{notice}")


def test_line_of_a_stopped_answer_says_so():
    assert (
        stopped(describe(ReplyStats(prompt_tokens=9, new_tokens=3))) == "9 prompt tokens · 3 tokens, stopped"
    )
    cost, notice = stopped(describe(ReplyStats(prompt_tokens=9, dropped_messages=1))).split("\n\n")
    assert cost == "9 prompt tokens · 0 tokens, stopped" and notice.startswith("The oldest message")
    assert stopped("") == ""


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


@pytest.mark.parametrize("model_id", ["owner/name", "owner/name@v1.0", "owner/name@refs/pr/1"])
def test_revision_is_no_part_of_the_title(model_id):
    model = FakeChatModel()
    model.config = ModelConfig(model_id)
    assert build_ui(model).title == "Chat with name"


def test_folder_gives_the_title_its_name(tmp_path):
    folder = tmp_path / "me@work" / "model@home"
    folder.mkdir(parents=True)
    model = FakeChatModel()
    model.config = ModelConfig(str(folder))
    assert build_ui(model).title == "Chat with model@home"


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
def test_cancelling_a_job_frees_the_engine_within_a_chunk_of_the_prompt(smollm2_chat, monkeypatch):
    engine = smollm2_chat.engine
    infer, chunks = engine._model.infer, []

    def count(ids, past):
        chunks.append(ids)
        return infer(ids, past=past)

    monkeypatch.setattr(engine._model, "infer", count)
    ui = build_ui(smollm2_chat)
    try:
        client = connect(launch_ui(ui))
        job = client.submit("word " * 7000, api_name="/chat")
        wait_until(lambda: is_running(job) and chunks)
        job.cancel()
        begun = len(chunks)
        wait_until(lambda: not engine._line)
        assert len(chunks) == begun < 7000 / len(chunks[0])
    finally:
        ui.close()


@pytest.mark.slow
def test_cancelling_a_job_takes_it_out_of_the_engine_s_line(smollm2_chat):
    line = smollm2_chat.engine._line
    ui = build_ui(smollm2_chat)
    try:
        client = connect(launch_ui(ui))
        with closing(smollm2_chat.stream([user("one")])) as running:
            next(running)
            job = client.submit("two", api_name="/chat")
            wait_until(lambda: is_running(job) and len(line) == 2)
            job.cancel()
            wait_until(lambda: len(line) == 1, seconds=5)
    finally:
        ui.close()


@pytest.mark.slow
def test_cancelling_a_job_frees_the_engine_for_many_users_too(smollm2_genai_chat):
    running = smollm2_genai_chat.engine._desk._running
    ui = build_ui(smollm2_genai_chat)
    try:
        client = connect(launch_ui(ui))
        job = client.submit("word " * 7000, api_name="/chat")
        wait_until(lambda: is_running(job) and running)
        job.cancel()
        wait_until(lambda: not running, seconds=5)  # the whole prompt takes much longer
    finally:
        ui.close()


@pytest.mark.slow
@pytest.mark.parametrize("chat_model", ["smollm2_chat", "smollm2_genai_chat"])
def test_eight_conversations_at_once_go_as_they_would_alone(chat_model, request):
    ui = build_ui(request.getfixturevalue(chat_model))
    try:
        address = launch_ui(ui)

        def converse(country: str) -> list[str]:
            client = connect(address)
            options = {"temperature": 0, "max_new_tokens": 6}
            questions = (f"What is the capital of {country}?", "And what is it known for?")
            return [ask(client, question, **options) for question in questions]

        countries = ["France", "Italy", "Spain", "Japan", "Egypt", "Peru", "Norway", "India"]
        alone = [converse(country) for country in countries]
        with ThreadPoolExecutor(len(countries)) as pool:
            at_once = list(pool.map(converse, countries))
    finally:
        ui.close()
    assert at_once == alone
    assert len({first for first, _second in alone}) == len(countries)


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


@pytest.fixture(params=["optimum", "genai"])
def engine_name(request):
    return request.param


def test_command_names_the_devices_where_there_is_no_such_one(smollm2_folder, monkeypatch, engine_name):
    monkeypatch.setattr(conversion, "prepare_model", lambda *arguments: smollm2_folder)
    with pytest.raises(SystemExit, match=r"^Error: This machine has no OpenVINO device 'NPUX'; there is"):
        chat_ui.main(["--engine", engine_name, "--device", "NPUX"])


def test_command_names_the_file_that_is_damaged(smollm2_folder, monkeypatch, tmp_path, engine_name):
    for file in smollm2_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "openvino_model.bin").unlink()
    (tmp_path / "openvino_model.bin").write_bytes(b"cut off")
    monkeypatch.setattr(conversion, "prepare_model", lambda *arguments: tmp_path)
    with pytest.raises(SystemExit, match=r"^Error: .*openvino_model.bin has 7 bytes.* convert the model"):
        chat_ui.main(["--engine", engine_name])


def test_command_names_the_file_that_the_pipeline_alone_reads(smollm2_folder, monkeypatch, tmp_path):
    for file in smollm2_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "openvino_tokenizer.xml").unlink()
    size = (smollm2_folder / "openvino_tokenizer.xml").stat().st_size
    (tmp_path / "openvino_tokenizer.xml").write_bytes(b" " * size)
    monkeypatch.setattr(conversion, "prepare_model", lambda *arguments: tmp_path)
    with pytest.raises(SystemExit) as end:
        chat_ui.main(["--engine", "genai"])
    assert str(end.value).startswith("Error: OpenVINO cannot run smollm2-135m-instruct at INT8 on CPU: ")
    assert "openvino_tokenizer.xml" in str(end.value) and "delete the model's folder" in str(end.value)


def test_command_explains_a_model_that_does_not_compile(no_model_needed, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("Exception from src/core.cpp:1:\nNo such operation\n")

    monkeypatch.setattr(chat_ui, "ChatModel", fail)
    with pytest.raises(SystemExit, match=r"^Error: OpenVINO cannot run .*\n.*No such operation\nChoose"):
        chat_ui.main(["--model", "smollm2-135m-instruct"])


def test_command_runs_the_engine_that_was_chosen(no_model_needed, monkeypatch):
    chosen = []

    def remember(*arguments):
        chosen.append(arguments[:2])
        raise ValueError("that is enough")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "installed")
    monkeypatch.setattr(chat_ui, "load_genai", lambda folder, device: (f"GenAI on {device}", "its tokenizer"))
    monkeypatch.setattr(chat_ui, "ChatModel", remember)
    for arguments in ([], ["--engine", "genai", "--device", "AUTO"]):
        with pytest.raises(SystemExit, match="that is enough"):
            chat_ui.main(arguments)
    assert chosen == [("model", "tokenizer"), ("GenAI on AUTO", "its tokenizer")]


def test_command_says_how_to_install_the_engine_that_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        chat_ui.main(["--engine", "genai"])
    assert "-m pip install openvino-genai" in capsys.readouterr().err
