"""A chat behind an endpoint: ours, and others that know less."""

import gc
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.responses import Response

from chat import Delta
from endpoint_clients import HELLO
from fake_chat import (
    DEADLINE,
    FakeChat,
    after,
    computing_the_prompt,
    falling_silent,
    served,
    served_app,
    talking,
)
from fakes import free_port
from remote_chats import chunk, events, remote, stranger
from sampling import SamplingParams
from serving.client import RemoteChatModel

# Behind our endpoint


def test_text_and_stats():
    with remote(FakeChat(dropped=4)) as model:
        stream = model.stream(HELLO)
        assert "".join(stream) == "Hello, world"
    stats = stream.stats
    assert (stats.prompt_tokens, stats.new_tokens, stats.reused_tokens) == (7, 3, 3)
    assert (stats.dropped_messages, stats.finish_reason) == (4, "stop")
    assert stats.time_to_first_token > 0


def test_tokens_are_counted_though_several_come_together():
    taken, all_there = threading.Event(), threading.Event()
    pieces = [Delta("a"), taken.wait, Delta("b"), Delta("c"), Delta("d"), all_there.wait, Delta("e")]
    with remote(FakeChat(pieces)) as model:
        stream = model.stream(HELLO)
        assert (next(stream), stream.stats.new_tokens) == ("a", 1)
        taken.set()
        assert next(stream)[-1] in "bcd"
        all_there.set()
        assert "".join(stream)[-1] == "e"
    assert stream.stats.new_tokens == 5
    assert stream.stats.tokens_per_second > 0


def test_what_the_page_shows_of_the_chat():
    with remote(FakeChat(max_requests=3)) as model:
        assert (model.name, model.system_prompt, model.max_context) == ("fake-chat", "Be brief.", 1000)
        assert model.description.startswith("no model at all, at http://127.0.0.1:")
        assert model.defaults == FakeChat.defaults
        assert model.template_options == FakeChat.template_options
        assert model.max_requests == 3


def test_question_arrives_as_it_was_asked():
    chat = FakeChat()
    sampling = SamplingParams(
        temperature=0.25,
        top_p=0.5,
        top_k=0,
        repetition_penalty=1.5,
        min_p=0.1,
        stop=("END",),
        max_new_tokens=5,
        seed=7,
        logprobs=2,
        json_schema='{"type": "object"}',
    )
    messages = [
        {"role": "system", "content": ""},
        *HELLO,
        {"role": "assistant", "content": "Hi", "thought": "Hm"},
        *HELLO,
    ]
    with remote(chat) as model:
        model.generate(messages, sampling, {"enable_thinking": False})
    assert chat.asked == [(messages, sampling, {"enable_thinking": False})]


def test_without_sampling_the_servers_defaults():
    chat = FakeChat()
    with remote(chat) as model:
        model.generate(HELLO)
    assert chat.asked[0][1] == FakeChat.defaults


def test_thoughts():
    with remote(FakeChat([Delta("Hm.", is_thought=True), "Yes."])) as model:
        stream = model.stream(HELLO)
        assert [(str(delta), delta.is_thought) for delta in stream] == [("Hm.", True), ("Yes.", False)]
        assert stream.stats.thought_tokens == 1
        assert model.generate(HELLO) == "Yes."


def test_log_probabilities():
    with remote(FakeChat(["one"])) as model:
        stream = model.stream(HELLO, SamplingParams(logprobs=1))
        assert list(stream) == ["one"]
    (token,) = stream.logprobs
    assert (token.text, token.logprob, token.others) == ("one", -0.5, (("€", -1.0),))


@pytest.mark.parametrize("text", ["a\u2028b\x85c\r\nd", "schöne Grüße 🙂"])
def test_any_text(text):
    with remote(FakeChat([text])) as model:
        assert model.generate([{"role": "user", "content": text}]) == text


def test_empty_answer():
    with remote(FakeChat([])) as model:
        assert list(model.stream(HELLO)) == []


def test_words_arrive_while_the_model_still_speaks():
    go_on = threading.Event()
    with remote(FakeChat(["first ", *after(go_on, "second")])) as model:
        stream = model.stream(HELLO)
        assert next(stream) == "first "
        go_on.set()
        assert next(stream) == "second"


def test_close_from_another_thread_in_the_prefill():
    chat = FakeChat(computing_the_prompt)
    with remote(chat) as model:
        stream = model.stream(HELLO)
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        assert chat.held.wait(DEADLINE)
        stream.close()
        reader.join(DEADLINE)
        assert not reader.is_alive()
        assert chat.closed.wait(DEADLINE)
    assert stream.stats.finish_reason == "cancelled"


def test_close_in_the_middle_of_an_answer_stops_the_model():
    chat = FakeChat(falling_silent)
    with remote(chat) as model:
        stream = model.stream(HELLO)
        next(stream)
        assert chat.held.wait(DEADLINE)
        stream.close()
        assert chat.closed.wait(DEADLINE)
        assert list(stream) == []
    assert chat.computed == 2


def test_stream_that_nobody_holds_stops_the_model():
    chat = FakeChat(talking)
    with remote(chat) as model:
        next(model.stream(HELLO))
        gc.collect()
        assert chat.closed.wait(DEADLINE)


def test_stream_that_is_not_read_asks_nothing():
    chat = FakeChat()
    with remote(chat) as model:
        model.stream(HELLO).close()
        model.generate(HELLO)
    assert len(chat.asked) == 1


def test_closing_the_chat_ends_its_replies():
    chat = FakeChat(computing_the_prompt)
    with remote(chat) as model:
        stream = model.stream(HELLO)
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        assert chat.held.wait(DEADLINE)
        model.close()
        reader.join(DEADLINE)
        assert not reader.is_alive()
        assert chat.closed.wait(DEADLINE)


# Errors


def test_refused_messages_are_a_value_error_in_the_servers_words():
    with remote(FakeChat()) as model, pytest.raises(ValueError, match="The template refuses this"):
        model.generate([{"role": "user", "content": "refuse"}])


def test_model_that_fails():
    with remote(FakeChat([RuntimeError("x")])) as model:
        stream = model.stream(HELLO)
        with pytest.raises(ConnectionError, match="The model failed"):
            list(stream)
        assert stream.stats.finish_reason == "error"


def test_no_server():
    with served(FakeChat()) as address:
        pass
    with pytest.raises(ConnectionError, match=rf"No server answers at {address}/v1.*running"):
        RemoteChatModel(f"{address}/v1")


def test_server_that_has_gone():
    with served(FakeChat()) as address:
        model = RemoteChatModel(f"{address}/v1")
    with closing(model), pytest.raises(ConnectionError, match="No server answers"):
        model.generate(HELLO)


def test_key():
    with served(FakeChat(), api_key="secret") as address:
        with pytest.raises(PermissionError, match="LLM_CHATBOT_API_KEY"):
            RemoteChatModel(f"{address}/v1")
        with closing(RemoteChatModel(f"{address}/v1", api_key="secret")) as model:
            assert model.generate(HELLO) == "Hello, world"


def test_unknown_model():
    with served(FakeChat()) as address, pytest.raises(ValueError, match="no model 'gpt-5', but fake-chat"):
        RemoteChatModel(f"{address}/v1", "gpt-5")


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "ftp://localhost/v1", "http://"])
def test_no_address(url):
    with pytest.raises(ValueError, match="no address of a server"):
        RemoteChatModel(url)


def test_address_of_something_else():
    app = FastAPI()
    app.add_api_route("/v1/models", lambda: Response("<html>"))
    with served_app(app) as address, pytest.raises(ConnectionError, match="no OpenAI-compatible server"):
        RemoteChatModel(f"{address}/v1")


# Behind others' endpoints


def test_other_servers_are_asked_for_what_all_know():
    asked = []

    def answer(request: dict) -> Response:
        asked.append(request)
        return events(chunk("one"), chunk("", "stop"), "[DONE]")

    with stranger(answer) as url, closing(RemoteChatModel(url)) as model:
        messages = [{"role": "system", "content": " "}, {"role": "user", "content": "Hi", "thought": "x"}]
        assert model.generate(messages, SamplingParams(temperature=0.5, top_k=3)) == "one"
    assert asked == [
        {
            "model": "other",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "top_p": 1.0,
            "top_k": 3,
            "max_tokens": 256,
        }
    ]


def test_what_is_not_known_of_other_servers():
    with stranger(lambda _: events()) as url, closing(RemoteChatModel(url)) as model:
        assert (model.name, model.system_prompt, model.max_context) == ("other", None, None)
        assert (model.defaults, model.template_options) == (SamplingParams(), {})


def test_server_that_does_not_tell_its_models():
    with stranger(lambda _: events(chunk("one", "stop")), models=None) as url:
        with pytest.raises(ValueError, match="name the one you want"):
            RemoteChatModel(url)
        with closing(RemoteChatModel(url, "mine")) as model:
            assert model.name == "mine"
            assert model.generate(HELLO) == "one"


PEERS = Path(__file__).parent.parent / ".venv-peers"  # see `make bench-peers`


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[str]:
    """The address of llama-cpp-python's server, which runs in an environment of its own."""
    python, model = PEERS / "bin" / "python", PEERS / "gguf" / "Q4_1.gguf"
    found = python.exists() and model.exists()
    if not found or subprocess.run([python, "-c", "import llama_cpp.server"], check=False).returncode:
        pytest.skip("llama-cpp-python is not installed: make bench-peers")
    port = str(free_port())
    command = [python, "-m", "llama_cpp.server", "--model", model, "--port", port, "--n_ctx", "1024"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


@pytest.mark.slow
def test_llama_cpp_python(llama_cpp):
    for _ in range(120):  # until it has loaded the model
        with suppress(ConnectionError):
            model = RemoteChatModel(llama_cpp)
            break
        time.sleep(0.5)
    with closing(model):
        sampling = SamplingParams(temperature=0, max_new_tokens=40, logprobs=1)
        stream = model.stream(HELLO, sampling)
        text = "".join(stream)
        assert text.startswith("Hello")
        assert "".join(token.text for token in stream.logprobs) == text
        assert stream.stats.new_tokens > 1
        stopped = SamplingParams(temperature=0, stop=(text[5:9],))
        assert model.generate(HELLO, stopped) == text[:5]
        stream = model.stream(HELLO, SamplingParams(max_new_tokens=500, top_k=20, seed=1))
        next(stream)
        stream.close()
        assert list(stream) == []
        with pytest.raises(ConnectionError, match="broke off"):  # its way to refuse too long a question
            model.generate([{"role": "user", "content": "Hello " * 2000}])
        assert model.generate(HELLO, SamplingParams(temperature=0, max_new_tokens=40)) == text
