"""The endpoint, as its clients see it: one behaviour each."""

import asyncio
import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import openai
import pytest
from fastapi import FastAPI

from chat import Delta
from endpoint_clients import HELLO, asking, chunks, error_of, openai_client, post, streaming, wait_for
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
from serving.endpoint import build_app


def test_answer_of_openai_client(client):
    answer = client.chat.completions.create(model="fake-chat", messages=HELLO)
    assert answer.choices[0].message.content == "Hello, world"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "fake-chat"


def test_streamed_text_equals_the_unstreamed(client):
    whole = client.chat.completions.create(model="fake-chat", messages=HELLO)
    parts = client.chat.completions.create(model="fake-chat", messages=HELLO, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content


def test_first_chunk_alone_has_the_role(address):
    first, *others = chunks(post(address, stream=True))
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert not any("role" in chunk["choices"][0]["delta"] for chunk in others)


def test_exactly_one_finish_reason(address):
    reasons = [part["choices"][0]["finish_reason"] for part in chunks(post(address, stream=True))]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_finish_reason_length(stream):
    with served(FakeChat(reason="length")) as address:
        response = post(address, stream=stream)
    last = chunks(response)[-1] if stream else response.json()
    assert last["choices"][0]["finish_reason"] == "length"


def test_thoughts_in_reasoning_content():
    with served(FakeChat([Delta("Hm.", is_thought=True), "Yes."])) as address:
        message = post(address).json()["choices"][0]["message"]
        deltas = [part["choices"][0]["delta"] for part in chunks(post(address, stream=True))]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
    assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == ["Hm."]
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."


@pytest.mark.parametrize("stream", [False, True])
def test_empty_answer(stream):
    with served(FakeChat([])) as address:
        response = post(address, stream=stream)
    if stream:
        first, last = chunks(response)
        assert (first["choices"][0]["delta"]["content"], last["choices"][0]["finish_reason"]) == ("", "stop")
    else:
        assert response.json()["choices"][0]["message"]["content"] == ""


def test_stream_tells_proxies_not_to_keep_it(address):
    headers = post(address, stream=True).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"


def test_words_arrive_while_the_model_still_speaks():
    go_on = threading.Event()
    chat = FakeChat(["first ", *after(go_on, "second")])
    with served(chat) as address, openai_client(address) as client:
        parts = client.chat.completions.create(model="fake-chat", messages=HELLO, stream=True)
        assert next(parts).choices[0].delta.role == "assistant"
        assert next(parts).choices[0].delta.content == "first "
        go_on.set()
        assert next(parts).choices[0].delta.content == "second"
        parts.close()


def test_async_openai_client(address):
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            parts = await client.chat.completions.create(model="fake-chat", messages=HELLO, stream=True)
            return "".join([part.choices[0].delta.content or "" async for part in parts])

    assert asyncio.run(ask()) == "Hello, world"


def test_answers_at_once_get_their_own_words():
    class Echo(FakeChat):
        def stream(self, messages, sampling=None, template_options=None):
            return FakeChat([messages[-1]["content"]]).stream(messages)

    with served(Echo()) as address, ThreadPoolExecutor(8) as pool:
        questions = [f"question {number}" for number in range(16)]
        asked = [[{"role": "user", "content": question}] for question in questions]
        answers = pool.map(lambda messages: post(address, messages=messages), asked)
        assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == questions


def test_what_the_chat_refuses_is_a_bad_request(address):
    error = error_of(post(address, messages=[{"role": "user", "content": "refuse"}], stream=True), 400)
    assert error["message"] == "The template refuses this."


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "fake-chat" in caught.value.message


def test_models(client):
    assert [model.id for model in client.models.list()] == ["fake-chat"]
    assert client.models.retrieve("fake-chat").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_given_name():
    with served(FakeChat(), name="owner/other") as address:
        assert httpx.get(f"{address}/v1/models").json()["data"][0]["id"] == "owner/other"
        assert httpx.get(f"{address}/v1/models/owner/other").status_code == 200
        assert post(address, model="owner/other").json()["model"] == "owner/other"


@pytest.mark.parametrize(
    "method, path, status",
    [("GET", "/nowhere", 404), ("PUT", "/v1/models", 405), ("POST", "/v1/chat/completions/", 404)],
)
def test_unknown_routes_have_the_same_error(address, method, path, status):
    error_of(httpx.request(method, f"{address}{path}"), status)


def test_no_pages_that_load_from_elsewhere(address):
    for path in ("/docs", "/redoc", "/openapi.json"):
        error_of(httpx.get(f"{address}{path}"), 404)


def test_health(address):
    assert httpx.get(f"{address}/health").json() == {"status": "ready"}


def test_while_the_model_is_loaded():
    loading = Future()
    with served(loading) as address:
        health = httpx.get(f"{address}/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        response = post(address)
        assert error_of(response, 503)["code"] == "loading"
        assert int(response.headers["retry-after"]) > 0
        loading.set_result(FakeChat())
        assert httpx.get(f"{address}/health").status_code == 200
        assert post(address).status_code == 200


def test_mounted_into_another_application():
    app = FastAPI()
    app.mount("/llm", build_app(FakeChat(), api_key="secret"))
    with served_app(app) as address:
        assert httpx.get(f"{address}/llm/health").status_code == 200
        with openai_client(f"{address}/llm", "secret") as client:
            answer = client.chat.completions.create(model="fake-chat", messages=HELLO)
    assert answer.choices[0].message.content == "Hello, world"


def test_model_that_fails_before_the_first_word():
    with served(FakeChat([RuntimeError("secret path")])) as address:
        for stream in (False, True):
            error = error_of(post(address, stream=stream), 500)
            assert error["type"] == "server_error"
            assert "secret path" not in error["message"]
        assert httpx.get(f"{address}/health").status_code == 200


def test_model_that_fails_in_a_stream():
    with served(FakeChat(["one ", RuntimeError("oops")])) as address:
        response = post(address, stream=True)
        assert response.status_code == 200
        last = response.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "model_failed"
        with openai_client(address) as client:
            parts = client.chat.completions.create(model="fake-chat", messages=HELLO, stream=True)
            with pytest.raises(openai.APIError, match="model failed"):
                list(parts)


def test_openai_client_asks_again_after_a_failure():
    troubles = [RuntimeError("once")]

    def pieces(_chat):
        return [troubles.pop()] if troubles else ["fine"]

    with served(FakeChat(pieces)) as address, openai_client(address, max_retries=1) as client:
        answer = client.chat.completions.create(model="fake-chat", messages=HELLO)
    assert answer.choices[0].message.content == "fine"


def test_timeout_of_openai_client_stops_the_model():
    chat = FakeChat(computing_the_prompt)
    with served(chat) as address:
        client = openai_client(address, timeout=0.2, max_retries=0)
        with client, pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="fake-chat", messages=HELLO)
        assert chat.closed.wait(DEADLINE)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_the_prefill_stops_the_model(stream):
    chat = FakeChat(computing_the_prompt)
    with served(chat) as address:
        with asking(address, stream=stream):
            assert chat.held.wait(DEADLINE)
        assert chat.closed.wait(DEADLINE)
    assert chat.computed == 0


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_the_middle_of_an_answer_stops_the_model(stream):
    chat = FakeChat(falling_silent)
    with served(chat) as address:
        with asking(address, stream=stream):
            assert chat.held.wait(DEADLINE)
        assert chat.closed.wait(DEADLINE)
    assert chat.computed == 2


def test_many_that_leave_leave_nothing_behind():
    class Talking(FakeChat):
        def stream(self, messages, sampling=None, template_options=None):
            return FakeChat(talking).stream(messages)

    with served(Talking(max_requests=8)) as address, ThreadPoolExecutor(16) as pool:

        def leave(number: int) -> None:
            if number % 2:
                with streaming(address):
                    return
            with pytest.raises(httpx.ReadTimeout):
                post(address, timeout=0.2)

        list(pool.map(leave, range(48)))
        wait_for(address, "llm_chatbot_running 0.0")
        wait_for(address, "llm_chatbot_waiting 0.0")
        assert "answer" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("text", ["\\ud800 half", "a\\u0000b"])
def test_odd_characters_of_a_question_do_no_harm(address, text):
    body = b'{"messages": [{"role": "user", "content": "%s"}]}' % text.encode()
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers)
    assert response.json()["choices"][0]["message"]["content"] == "Hello, world"
