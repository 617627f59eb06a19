"""What clients are answered: the JSON of whole answers, of streams and of log-probabilities."""

import json
from dataclasses import replace

import httpx
import pytest

from chat import ReplyStats
from endpoint_clients import HELLO, chunks, post
from fake_chat import FakeChat, served
from serving import wire


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


# The JSON itself


STATS = ReplyStats(
    prompt_tokens=412, reused_tokens=390, new_tokens=20, thought_tokens=5, dropped_messages=2, waited=0.12345
)
USAGE = {
    "prompt_tokens": 412,
    "completion_tokens": 20,
    "total_tokens": 432,
    "prompt_tokens_details": {"cached_tokens": 390},
    "completion_tokens_details": {"reasoning_tokens": 5},
    "dropped_messages": 2,
    "waited": 0.123,
}


def test_json_is_one_line_of_utf_8_whatever_it_holds():
    text = "ä\u2028\u2029\x85\n\ud800"
    written = wire.to_json({"text": text})
    assert written == b'{"text":"\xc3\xa4\\u2028\\u2029\\u0085\\n?"}'
    assert len(written.decode().splitlines()) == 1
    assert json.loads(written)["text"] == text.replace("\ud800", "?")


def test_an_event_is_a_line_and_an_empty_one():
    assert wire.event({"a": 1}) == b'data: {"a":1}\n\n'


@pytest.mark.parametrize(
    ("usage", "in_chunks"),
    [(None, "absent"), ("end", None), ("always", USAGE)],
    ids=["none", "end", "always"],
)
def test_usage_stands_where_it_was_asked_for(usage, in_chunks):
    envelope = wire.Envelope("a model", usage)
    assert envelope.chunk({"content": "x"}, STATS).get("usage", "absent") == in_chunks
    last = envelope.usage_chunk(STATS)
    assert (last["choices"], last["usage"]) == ([], USAGE)


def test_a_reason_to_end_stands_in_the_last_chunk_only():
    envelope, stats = wire.Envelope("a model"), replace(STATS, finish_reason="length")
    reasons = [
        envelope.chunk({}, stats, is_last=is_last)["choices"][0]["finish_reason"] for is_last in (False, True)
    ]
    assert reasons == [None, "length"]


def test_a_whole_answer_has_its_thought_beside_it():
    with_thought = wire.Envelope("a model").completion("Yes.", "Hm.", STATS, None)
    assert with_thought["choices"][0]["message"] == {
        "role": "assistant", "content": "Yes.", "refusal": None, "reasoning_content": "Hm.",
    }  # fmt: skip
    assert with_thought["usage"] == USAGE
    without = wire.Envelope("a model").completion("Yes.", "", STATS, None)
    assert "reasoning_content" not in without["choices"][0]["message"]


def test_a_model_s_entry_says_what_a_page_shows_of_it():
    entry = wire.model_entry("a model", 1_700_000_000, FakeChat(max_requests=3))
    assert (entry["id"], entry["object"], entry["created"]) == ("a model", "model", 1_700_000_000)
    assert entry["max_model_len"] == 1000
    assert entry["chat"]["max_requests"] == 3
    assert entry["chat"]["defaults"]["max_new_tokens"] == 99
    assert entry["chat"]["template_options"] == {"enable_thinking": (True, False)}
