"""The endpoint, as its clients see it: one behaviour each."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import openai
import pytest
from fastapi import FastAPI

import serving.api
import serving.security
from chat import Delta
from endpoint_clients import HELLO, chunks, connected, error_of, openai_client, post, streaming, wait_for
from fake_chat import DEADLINE, FakeChat, after, computing_the_prompt, served, served_app, talking
from sampling import OPTIONS
from serving.answers import WAITING
from serving.api import build_app, main

# The answer


def test_answer_of_openai_client(client):
    answer = client.chat.completions.create(model="fake-chat", messages=HELLO)
    assert answer.choices[0].message.content == "Hello, world"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "fake-chat"


def test_usage_adds_up_and_tells_of_the_cache(client):
    usage = client.chat.completions.create(model="fake-chat", messages=HELLO).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 3, 10)
    assert usage.prompt_tokens_details.cached_tokens == 3


def test_streamed_text_equals_the_unstreamed(client):
    whole = client.chat.completions.create(model="fake-chat", messages=HELLO)
    parts = client.chat.completions.create(model="fake-chat", messages=HELLO, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content


def test_first_chunk_alone_has_the_role(address):
    first, *others = chunks(post(address, stream=True))
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert not any("role" in chunk["choices"][0]["delta"] for chunk in others)


def test_one_id_and_model_throughout(address):
    parts = chunks(post(address, stream=True))
    assert len({(part["id"], part["model"], part["created"]) for part in parts}) == 1
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}


def test_two_answers_have_different_ids(address):
    assert post(address).json()["id"] != post(address).json()["id"]


def test_exactly_one_finish_reason(address):
    reasons = [part["choices"][0]["finish_reason"] for part in chunks(post(address, stream=True))]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_finish_reason_length(stream):
    with served(FakeChat(reason="length")) as address:
        response = post(address, stream=stream)
    last = chunks(response)[-1] if stream else response.json()
    assert last["choices"][0]["finish_reason"] == "length"


def test_usage_chunk_when_asked_for(address):
    *parts, last = chunks(post(address, stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 10
    assert {part["usage"] for part in parts} == {None}


def test_no_usage_chunk_unasked(address):
    parts = chunks(post(address, stream=True))
    assert all(part["choices"] and "usage" not in part for part in parts)


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


def test_line_breaks_of_unicode_do_not_tear_events():
    text = "a\u2028b\u2029c\x85d\ne"
    with (
        served(FakeChat([text])) as address,
        httpx.stream(
            "POST", f"{address}/v1/chat/completions", json={"messages": HELLO, "stream": True}
        ) as response,
    ):
        lines = [line for line in response.iter_lines() if line]
    assert json.loads(lines[1].removeprefix("data: "))["choices"][0]["delta"]["content"] == text


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


def test_log_probabilities(client):
    answer = client.chat.completions.create(model="fake-chat", messages=HELLO, logprobs=True, top_logprobs=2)
    tokens = answer.choices[0].logprobs.content
    assert [token.token for token in tokens] == ["Hello", ", ", "world"]
    assert tokens[0].logprob == -0.5
    assert bytes(tokens[0].bytes) == b"Hello"
    euro, half_a_character = tokens[0].top_logprobs
    assert (bytes(euro.bytes).decode(), half_a_character.bytes) == ("€", None)


def test_log_probabilities_of_a_stream_come_with_their_text(address):
    for part in chunks(post(address, stream=True, logprobs=True))[1:-1]:
        (choice,) = part["choices"]
        tokens = [token["token"] for token in choice["logprobs"]["content"]]
        assert "".join(tokens) == choice["delta"]["content"]
        assert choice["logprobs"]["content"][0]["top_logprobs"] == []


def test_no_log_probabilities_unasked(address):
    assert post(address, logprobs=False).json()["choices"][0]["logprobs"] is None


# The request


def test_null_means_default(fake_chat, address):
    nulls = dict.fromkeys(
        ["model", "stream", "top_logprobs", "stop", "n", "stream_options", "response_format", "tools"]
    )
    nulls |= dict.fromkeys([*OPTIONS, "max_tokens", "max_completion_tokens", "chat_template_kwargs"])
    assert post(address, **nulls).status_code == 200
    assert fake_chat.asked[-1][1] == FakeChat.defaults


def test_unknown_fields_are_ignored(fake_chat, address):
    assert post(address, user="me", logit_bias={}, frequency_penalty=0.5, novelty=[1]).status_code == 200
    assert fake_chat.asked[-1][1] == FakeChat.defaults


def test_options_reach_the_model(fake_chat, address):
    wanted = {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 5}
    post(address, **wanted)
    sampling = fake_chat.asked[-1][1]
    assert {name: getattr(sampling, name) for name in wanted} == wanted


@pytest.mark.parametrize("stop", ["END", ["END"], ["END", "STOP"]])
def test_stop_is_text_or_a_list(fake_chat, address, stop):
    post(address, stop=stop)
    assert fake_chat.asked[-1][1].stop == (("END",) if stop == "END" else tuple(stop))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_length(fake_chat, address, name):
    post(address, **{name: 5})
    assert fake_chat.asked[-1][1].max_new_tokens == 5


def test_whole_numbers_may_be_written_with_a_point(fake_chat, address):
    assert post(address, top_k=3.0).status_code == 200
    assert fake_chat.asked[-1][1].top_k == 3


def test_one_answer_may_be_written_with_a_point(address):
    assert post(address, n=1.0).status_code == 200


def test_developer_means_system(fake_chat, address):
    post(address, messages=[{"role": "developer", "content": "Be kind."}, *HELLO])
    assert fake_chat.asked[-1][0][0] == {"role": "system", "content": "Be kind."}


def test_text_parts(fake_chat, address):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    post(address, messages=[{"role": "user", "content": parts}])
    assert fake_chat.asked[-1][0] == [{"role": "user", "content": "one\ntwo"}]


def test_thoughts_of_an_earlier_answer_come_back(fake_chat, address):
    earlier = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    post(address, messages=[*HELLO, earlier, *HELLO])
    assert fake_chat.asked[-1][0][1] == {"role": "assistant", "content": "Yes.", "thought": "Hm."}


def test_template_options(fake_chat, address):
    post(address, chat_template_kwargs={"enable_thinking": False, "unknown": 1})
    assert fake_chat.asked[-1][2] == {"enable_thinking": False}


@pytest.mark.parametrize(
    "response_format, schema",
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}},
            {"type": "array"},
        ),
    ],
)
def test_response_format(fake_chat, address, response_format, schema):
    assert post(address, response_format=response_format).status_code == 200
    wanted = fake_chat.asked[-1][1].json_schema
    assert (None if wanted is None else json.loads(wanted)) == schema


def test_unknown_value_of_a_template_option(address):
    error = error_of(post(address, chat_template_kwargs={"enable_thinking": "maybe"}), 400)
    assert error["param"] == "chat_template_kwargs.enable_thinking"


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": 2.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": 5}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"model": 5}, "model"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 10**9}, "n"),
        ({"temperature": True}, "temperature"),
        ({"top_k": True}, "top_k"),
        ({"seed": [1]}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": [None]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
)
def test_bad_field_is_named(address, fields, param):
    error = error_of(post(address, **fields), 400)
    assert error["param"] == param
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "Hello",
        [],
        [{}],
        ["Hello"],
        [None],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": []}],
        [{"role": "robot", "content": "Hello"}],
        [{"role": ["user"], "content": "Hello"}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
    ],
)
def test_bad_messages_are_refused_and_the_server_lives(address, messages):
    assert error_of(post(address, messages=messages), 400)["param"].startswith("messages")
    assert post(address).status_code == 200


def test_what_the_chat_refuses_is_a_bad_request(address):
    error = error_of(post(address, messages=[{"role": "user", "content": "refuse"}], stream=True), 400)
    assert error["message"] == "The template refuses this."


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": [{"name": "f"}]},
        {"messages": [*HELLO, {"role": "tool", "content": "5", "tool_call_id": "1"}]},
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
    ],
)
def test_tools_are_refused_in_words(address, fields):
    error = error_of(post(address, **fields), 400)
    assert error["code"] == "tools_not_supported"
    assert "Tools are not supported" in error["message"]


def test_no_tools_is_no_tools(address):
    assert post(address, tools=[], tool_choice="none").status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"seed": NaN}', b"1" * 9999]
)
def test_body_that_is_no_json_object(address, body):
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers)
    assert error_of(response, 400)["code"] == "invalid_json"


def test_half_a_character_in_an_error_does_no_harm(address):
    body = b'{"model": "\\ud800", "messages": []}'
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers)
    assert error_of(response, 404)["param"] == "model"


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "fake-chat" in caught.value.message


# Other routes


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


def test_metrics():
    with served(FakeChat()) as address:
        post(address)
        post(address, temperature=9)
        figures = httpx.get(f"{address}/metrics")
    assert figures.headers["content-type"].startswith("text/plain")
    lines = figures.text.splitlines()
    for line in (
        'llm_chatbot_requests_total{outcome="stop"} 1.0',
        'llm_chatbot_requests_total{outcome="invalid"} 1.0',
        "llm_chatbot_prompt_tokens_total 7.0",
        "llm_chatbot_cached_tokens_total 3.0",
        "llm_chatbot_new_tokens_total 3.0",
        "llm_chatbot_running 0.0",
        "llm_chatbot_waiting 0.0",
    ):
        assert line in lines


def test_two_endpoints_count_for_themselves(address):
    post(address)
    with served(FakeChat()) as other:
        assert "llm_chatbot_new_tokens_total 0.0" in httpx.get(f"{other}/metrics").text


def test_mounted_into_another_application():
    app = FastAPI()
    app.mount("/llm", build_app(FakeChat(), api_key="secret"))
    with served_app(app) as address:
        assert httpx.get(f"{address}/llm/health").status_code == 200
        with openai_client(f"{address}/llm", "secret") as client:
            answer = client.chat.completions.create(model="fake-chat", messages=HELLO)
    assert answer.choices[0].message.content == "Hello, world"


# Errors of the model


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


# Clients that leave


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_the_prefill_stops_the_model(stream):
    chat = FakeChat(computing_the_prompt)
    with served(chat) as address:
        with pytest.raises(httpx.ReadTimeout):
            post(address, stream=stream, timeout=0.2)
        assert chat.closed.wait(DEADLINE)
    assert chat.computed == 0


def test_leaving_a_stream_stops_the_model_within_two_tokens():
    chat = FakeChat(talking)
    with served(chat) as address:
        with httpx.stream(
            "POST", f"{address}/v1/chat/completions", json={"messages": HELLO, "stream": True}
        ) as response:
            events = response.iter_text()
            for _ in range(4):
                next(events)
            computed = chat.computed
        assert chat.closed.wait(DEADLINE)
    assert chat.computed <= computed + 2


def test_leaving_without_a_stream_stops_the_model():
    chat = FakeChat(talking)
    with served(chat) as address:
        with pytest.raises(httpx.ReadTimeout):
            post(address, timeout=0.3)
        computed = chat.computed
        assert chat.closed.wait(DEADLINE)
    assert chat.computed <= computed + 2


def test_leaving_the_queue_frees_a_place_in_it():
    go_on = threading.Event()
    chat = FakeChat(after(go_on, "done"), max_requests=1)
    with served(chat) as address, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, address)
        wait_for(address, "llm_chatbot_running 1.0")
        with pytest.raises(httpx.ReadTimeout):
            post(address, timeout=0.2)
        wait_for(address, "llm_chatbot_waiting 0.0")
        go_on.set()
        assert first.result().status_code == 200
        assert len(chat.asked) == 1


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


def test_full_queue_is_told_with_a_time_to_ask_again():
    go_on = threading.Event()
    chat = FakeChat(after(go_on, "done"), max_requests=1)
    with served(chat) as address, ThreadPoolExecutor(1 + WAITING) as pool:
        answers = [pool.submit(post, address) for _ in range(1 + WAITING)]
        wait_for(address, f"llm_chatbot_waiting {float(WAITING)}")
        response = post(address, stream=True)
        error = error_of(response, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert int(response.headers["retry-after"]) > 0
        go_on.set()
        assert {answer.result().status_code for answer in answers} == {200}


def test_no_more_answers_at_once_than_the_engine_takes():
    go_on = threading.Event()
    chat = FakeChat(after(go_on, "done"), max_requests=2)
    with served(chat) as address, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(post, address) for _ in range(3)]
        wait_for(address, "llm_chatbot_waiting 1.0")
        assert len(chat.asked) == 2
        go_on.set()
        waited = [answer.result().json()["usage"]["waited"] for answer in answers]
    assert len(chat.asked) == 3
    assert max(waited) > 0


# Who may ask


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


@pytest.mark.parametrize("text", ["\\ud800 half", "a\\u0000b"])
def test_odd_characters_of_a_question_do_no_harm(address, text):
    body = b'{"messages": [{"role": "user", "content": "%s"}]}' % text.encode()
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers)
    assert response.json()["choices"][0]["message"]["content"] == "Hello, world"


def test_a_thousand_stop_texts(fake_chat, address):
    assert post(address, stop=[f"stop {number}" for number in range(1000)]).status_code == 200
    assert len(fake_chat.asked[-1][1].stop) == 1000


def test_many_messages_that_are_none_are_refused_at_the_first(address):
    assert error_of(post(address, messages=[{}] * 100_000), 400)["param"] == "messages[0].role"


def test_long_answer_is_no_slow_head(monkeypatch):
    monkeypatch.setattr(serving.security, "HEAD_SECONDS", 0.05)
    go_on = threading.Event()
    with served(FakeChat(after(go_on, "done"))) as address, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, address)
        go_on.wait(0.3)
        go_on.set()
        assert answer.result().status_code == 200


# The process


@contextmanager
def process(*words: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The server as a process of its own, and its address."""
    root = Path(__file__).parent.parent
    command = [sys.executable, Path(__file__).with_name("fake_chat.py"), *words]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        yield started, re.search(r"http://\S+(?=/v1)", started.stdout.readline())[0]
    finally:
        started.kill()
        started.communicate()


def test_sigterm_lets_answers_finish_and_refuses_new_ones():
    with process() as (server, address):
        assert server.stdout.readline() == f"Ready at {address}/v1\n"
        with streaming(address) as texts:
            server.terminate()
            text = "".join(texts)
        assert "ended" in text
        assert text.endswith("data: [DONE]\n\n")
        assert server.wait(DEADLINE) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")


def test_sigterm_does_not_wait_for_ever():
    with process("endless") as (server, address):
        server.stdout.readline()
        with streaming(address) as texts:
            server.terminate()
            with pytest.raises(httpx.RemoteProtocolError):
                list(texts)
        assert server.wait(DEADLINE) == 0


def test_sigterm_while_the_model_is_loaded():
    with process("slow") as (server, address):
        assert httpx.get(f"{address}/health").json() == {"status": "loading"}
        server.terminate()
        assert server.wait(DEADLINE) == 0


def test_model_that_cannot_be_loaded_ends_the_process():
    with process("fail") as (server, _):
        assert server.wait(DEADLINE) == 1
        assert server.stderr.read() == "Error: No such model.\n"


def test_command_says_that_a_port_is_taken(address):
    port = address.rpartition(":")[2]
    with pytest.raises(SystemExit, match=f"127.0.0.1 port {port} is taken"):
        main(["--port", port])


@pytest.mark.parametrize(
    "arguments, warns",
    [
        (["--host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--api-key", "secret"], False),
        (["--host", "localhost"], False),
        (["--host", "::1"], False),
        ([], False),
    ],
)
def test_command_warns_of_an_open_door(monkeypatch, capsys, arguments, warns):
    monkeypatch.delenv("LLM_CHATBOT_API_KEY", raising=False)
    real = socket.create_server
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: real(("127.0.0.1", 0)))
    monkeypatch.setattr(serving.api, "serve", lambda app, listener, *_: listener.close())
    main(arguments)
    assert ("Warning: whoever reaches this machine" in capsys.readouterr().err) == warns
