"""The chat page by its API: questions from gradio_client, answers from a fake model or the default one."""

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from gradio_client.client import Job
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError, Status

import chat_ui
import page_steps
from chat import Delta
from chat_ui import build_ui, launch_ui
from sampling import OPTIONS, SamplingParams
from scripted_chat import FakeChat, assistant, endless, system, user

OUT_OF_RANGE = {
    "temperature": 2.1,
    "top_p": -0.1,
    "top_k": 2.5,
    "repetition_penalty": 0.9,
    "min_p": 2,
    "max_new_tokens": 0,
    "seed": "-1",
}


def ask(client: Client, question: str, **options) -> str:
    return client.predict(question, api_name="/chat", **options)


def connect(address: str) -> Client:
    return Client(address, verbose=False)


@pytest.fixture(scope="module")
def served():
    """A fake model and the address where its page is served."""
    model = FakeChat()
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
        "min_p": 0.05,
        "stop": "END\n###",
        "max_new_tokens": 17,
        "seed": "42",
    }
    ask(client, "hello", **chosen)
    assert model.samplings == [SamplingParams(**chosen | {"stop": ("END", "###"), "seed": 42})]
    assert type(model.samplings[0].top_k) is int
    assert type(model.samplings[0].max_new_tokens) is int


@pytest.mark.parametrize("option", OUT_OF_RANGE)
def test_refusal_names_the_option_that_is_out_of_range(client, model, option):
    with pytest.raises(AppError, match=f"^{option} must be .* not {OUT_OF_RANGE[option]!r}$"):
        ask(client, "hello", **{option: OUT_OF_RANGE[option]})
    assert not model.asked


@pytest.mark.parametrize("option", ["system_prompt", "stop"])
def test_option_that_is_no_text_is_refused(client, model, option):
    with pytest.raises(AppError, match=f"^{option} must be a text"):
        ask(client, "hello", **{option: 5})
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
    first_token.set()  # a real model lets go of whom it has stopped
    model.answer = lambda question: ["fine"]
    assert ask(connect(address), "and now?") == "fine"


def test_stopped_answers_leave_no_thread_behind(client, model, first_token):
    model.answer = waiting_for(first_token)
    for number in range(5):
        job = client.submit("a long story", api_name="/chat")
        wait_until(lambda: is_running(job) and model.streams[number].waiting)  # noqa: B023
        job.cancel()
        wait_until(lambda: model.streams[number].closed)  # noqa: B023
    first_token.set()
    wait_until(lambda: not any(stream.waiting for stream in model.streams))
    model.answer = lambda question: ["fine"]
    threads = threading.active_count()
    for _ in range(5):
        assert ask(client, "and now?") == "fine"
    assert threading.active_count() < threads + 5  # a pool may grow by one or two, but not with each answer


def test_answers_are_written_as_many_at_a_time_as_the_engine_computes():
    model = FakeChat(endless)
    model.max_requests = 2
    ui = build_ui(model)
    try:
        address = launch_ui(ui)
        jobs = [connect(address).submit(question, api_name="/chat") for question in ("one", "two", "three")]
        wait_until(lambda: sum(len(job.outputs()) > 1 for job in jobs) == 2)
        assert [bool(job.outputs()) for job in jobs].count(False) == 1
        wait_until(lambda: [job.status().rank for job in jobs].count(0) == 1)
        for job in jobs:
            job.cancel()
    finally:
        ui.close()


def test_full_queue_refuses_a_question_and_takes_one_when_there_is_room(monkeypatch):
    monkeypatch.setattr(chat_ui, "QUEUE_LENGTH", 1)
    model = FakeChat(endless)
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
    model = FakeChat()
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
    post(address, '"a \\ud83d b", "c \\ude00 d", 0.1, 1, 50, 1.1, 0, "", 256, ""')
    assert model.asked[0] == [system("c \ufffd d"), user("a \ufffd b")]
    assert ask(client, "next") == "You said next."


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 4000, '"' + "9" * 10_000 + '"', "null"])
def test_number_that_is_none_is_refused(client, model, address, number):
    answer = post(address, f'"hello", "", 0.1, 1, {number}, 1.1, 0, "", 256, ""')
    assert "top_k must be a whole number, 0 or more, not" in answer
    assert len(answer) < 300
    assert ask(client, "next") == "You said next."


def test_number_too_long_to_read_is_refused(client, model, address):
    with pytest.raises(httpx.HTTPStatusError, match="400 Bad Request"):
        post(address, f'"hello", "", 0.1, 1, 1{"0" * 10_000}, 1.1, 0, "", 256, ""')
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


def test_page_is_served_to_this_machine_only():
    ui = build_ui(FakeChat())
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


def test_heading_says_what_answers_and_how_it_runs():
    ui = build_ui(FakeChat())
    assert ui.title == "Chat with fake-1b"
    assert "# Chat with fake-1b\nINT8 on CPU, FakeEngine" in values(ui, gr.Markdown)
    assert build_ui(FakeChat(), title="My chat").title == "My chat"


def values(ui: gr.Blocks, kind: type) -> list:
    return [block.value for block in ui.blocks.values() if isinstance(block, kind)]


def labelled(ui: gr.Blocks) -> dict:
    return {block.label: block for block in ui.blocks.values() if getattr(block, "label", None)}


def test_every_step_fills_the_whole_screen():
    outputs = [step["outputs"] for step in build_ui(FakeChat()).get_config_file()["dependencies"]]
    screens = [
        places for places in outputs if len(places) > 3
    ]  # an answer that streams fills the first three
    assert len(screens) > 10
    assert set(map(len, screens)) == {len(page_steps.UNCHANGED)}


def test_every_option_is_explained_and_has_its_range():
    controls = labelled(build_ui(FakeChat()))
    for option in OPTIONS.values():
        if option.name != "logprobs":
            assert controls[option.label].info.startswith(option.help)
    sliders = {
        label: (control.minimum, control.maximum)
        for label, control in controls.items()
        if isinstance(control, gr.Slider)
    }
    assert sliders == {
        "Temperature": (0, 2),
        "Top-p": (0, 1),
        "Top-k": (0, 200),
        "Repetition penalty": (1, 2),
        "Min-p": (0, 1),
        "Max new tokens": (1, 2048),
    }


def test_options_begin_with_what_the_model_does_by_default():
    model = FakeChat()
    model.system_prompt = "Be helpful."
    model.defaults = SamplingParams(temperature=0.3, stop=("###", "END"), seed=7)
    controls = labelled(build_ui(model))
    begin = {label: controls[label].value for label in ("System prompt", "Temperature", "Stop at", "Seed")}
    assert begin == {"System prompt": "Be helpful.", "Temperature": 0.3, "Stop at": "###\nEND", "Seed": "7"}


def test_switches_of_the_template_are_offered_and_checked():
    model = FakeChat()
    model.template_options = {"enable_thinking": (True, False), "reasoning_effort": ("low", "high")}
    ui = build_ui(model)
    try:
        client = connect(launch_ui(ui))
        ask(client, "one")
        ask(client, "two", enable_thinking=False, reasoning_effort="high")
        assert model.switches == [
            {"enable_thinking": True, "reasoning_effort": "low"},
            {"enable_thinking": False, "reasoning_effort": "high"},
        ]
        with pytest.raises(AppError, match=r"^reasoning_effort must be one of 'low', 'high'$"):
            ask(client, "three", reasoning_effort="most")
    finally:
        ui.close()


def test_thoughts_are_no_part_of_what_the_api_answers(client, model):
    model.answer = lambda question: [Delta("Hm.", is_thought=True), "Paris."]
    assert ask(client, "Where?") == "Paris."
    ask(client, "Really?")
    assert model.asked[1][2] == assistant("Paris.", thought="Hm.")


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
