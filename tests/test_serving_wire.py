"""What clients are answered: the JSON of whole answers, of streams and of log-probabilities."""

import json

import httpx

from endpoint_clients import HELLO, chunks, post
from fake_chat import FakeChat, served


def test_usage_adds_up_and_tells_of_the_cache(client):
    usage = client.chat.completions.create(model="fake-chat", messages=HELLO).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 3, 10)
    assert usage.prompt_tokens_details.cached_tokens == 3


def test_one_id_and_model_throughout(address):
    parts = chunks(post(address, stream=True))
    assert len({(part["id"], part["model"], part["created"]) for part in parts}) == 1
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}


def test_two_answers_have_different_ids(address):
    assert post(address).json()["id"] != post(address).json()["id"]


def test_usage_chunk_when_asked_for(address):
    *parts, last = chunks(post(address, stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 10
    assert {part["usage"] for part in parts} == {None}


def test_no_usage_chunk_unasked(address):
    parts = chunks(post(address, stream=True))
    assert all(part["choices"] and "usage" not in part for part in parts)


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
