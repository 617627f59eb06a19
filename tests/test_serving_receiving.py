"""An answer taken apart: what it cost, where it breaks off, and errors in words."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing

import httpx
import pytest
from starlette.responses import Response

from chat import Delta, ReplyStats
from endpoint_clients import HELLO
from fake_chat import FakeChat
from remote_chats import chunk, events, remote, stranger
from sampling import SamplingParams
from serving import receiving
from serving.client import RemoteChatModel


def failing_once(*pieces: str) -> Callable[[FakeChat], list]:
    """Pieces of a reply that breaks off, and of a second one that does not."""
    first, second = [*pieces, RuntimeError("x")], ["second"]
    return lambda chat: first if len(chat.asked) == 1 else second


def test_answer_that_breaks_off_is_asked_for_once_more_from_there_on():
    chat = FakeChat(failing_once("first ", "and "))
    with remote(chat) as model:
        stream = model.stream(HELLO, SamplingParams(max_new_tokens=10))
        assert "".join(stream) == "first and second"
    messages, sampling, _ = chat.asked[1]
    assert messages == [*HELLO, {"role": "assistant", "content": "first and "}]
    assert sampling.max_new_tokens == 8
    assert stream.stats.resumed
    assert (stream.stats.new_tokens, stream.stats.finish_reason) == (3, "stop")


def test_answer_that_goes_on_with_a_beginning_is_resumed_after_both():
    chat = FakeChat(failing_once("first "))
    with remote(chat) as model:
        model.generate([*HELLO, {"role": "assistant", "content": "Zeroth, "}])
    assert chat.asked[1][0][-1] == {"role": "assistant", "content": "Zeroth, first "}


def test_answer_that_has_not_begun_is_asked_for_once_more():
    chat = FakeChat(failing_once())
    with remote(chat) as model:
        stream = model.stream(HELLO)
        assert list(stream) == ["second"]
    assert chat.asked[0] == chat.asked[1]
    assert stream.stats.resumed


def test_thought_that_breaks_off_is_not_resumed():
    chat = FakeChat(failing_once(Delta("Hm", is_thought=True)))
    with remote(chat) as model, pytest.raises(ConnectionError, match="The model failed"):
        model.generate(HELLO)
    assert len(chat.asked) == 1


def test_answer_is_asked_for_no_third_time():
    chat = FakeChat(["one ", RuntimeError("x")])
    with remote(chat) as model:
        stream = model.stream(HELLO)
        assert [next(stream), next(stream)] == ["one ", "one "]
        with pytest.raises(ConnectionError, match="The model failed"):
            next(stream)
    assert len(chat.asked) == 2


def test_full_queue():
    full = Response('{"error": {"message": "All places are taken."}}', 429)
    told = pytest.raises(ConnectionError, match="places are taken")
    with stranger(lambda _: full) as url, closing(RemoteChatModel(url)) as model, told:
        model.generate(HELLO)


def test_server_that_breaks_off():
    with stranger(lambda _: events(chunk("one"))) as url, closing(RemoteChatModel(url)) as model:
        stream = model.stream(HELLO)
        assert next(stream) == "one"
        with pytest.raises(ConnectionError, match="broke off"):
            next(stream)
        assert stream.stats.finish_reason == "error"


def test_server_without_usage():
    lines = (chunk("one "), chunk("two"), chunk("", "length"), "[DONE]")
    with stranger(lambda _: events(*lines)) as url, closing(RemoteChatModel(url)) as model:
        stream = model.stream(HELLO)
        assert list(stream) == ["one ", "two"]
    assert (stream.stats.new_tokens, stream.stats.finish_reason) == (2, "length")


def test_errors_of_another_shape():
    refused = Response('{"detail": "Too long"}', 422)
    told = pytest.raises(ValueError, match="Too long")
    with stranger(lambda _: refused) as url, closing(RemoteChatModel(url)) as model, told:
        model.generate(HELLO)


# Events


def parsed(*pieces: bytes) -> list[dict]:
    """The events of a response that comes in these pieces."""

    async def collect() -> list[dict]:
        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return [event async for event in receiving.events(httpx.Response(200, content=body()))]

    return asyncio.run(collect())


def test_events_may_be_torn_anywhere():
    whole = b': a comment\n\ndata: {"a": "\xe2\x82\xac"}\r\n\r\nevent: x\ndata:{"b": 2}\n\ndata: [DONE]\n\n'
    expected = [{"a": "€"}, {"b": 2}]
    assert parsed(whole) == expected
    assert parsed(*(whole[place : place + 1] for place in range(len(whole)))) == expected


def test_only_line_feeds_end_a_line():
    text = "a\u2028b\x85c"
    assert parsed(f'data: {{"a": "{text}"}}\n\n'.encode()) == [{"a": text}]


def test_what_comes_after_the_end_is_not_read():
    assert parsed(b"data: [DONE]\n\n", b"data: no json\n\n") == []


# What it cost


def counted(tokens: int) -> ReplyStats:
    """Of a reply whose deltas came one a second, the first after a second."""
    stats = ReplyStats(prompt_tokens=0)
    for second in range(1, tokens + 1):
        stats.count_token(float(second))
    return stats


def test_usage_puts_the_count_of_tokens_and_their_speed_right():
    stats = counted(5)
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
        "dropped_messages": 3,
        "waited": 0.5,
    }
    receiving.read_usage(usage, stats)
    assert (stats.prompt_tokens, stats.new_tokens, stats.reused_tokens, stats.thought_tokens) == (9, 9, 4, 2)
    assert (stats.dropped_messages, stats.waited) == (3, 0.5)
    assert stats.tokens_per_second == 2.0  # eight tokens after the first, in four seconds


def test_usage_of_the_second_half_counts_the_first_half_too():
    stats = counted(5)
    receiving.read_usage({"prompt_tokens": 9, "completion_tokens": 4}, stats, earlier=3)
    assert stats.new_tokens == 7


def test_where_usage_says_little_the_counted_stays():
    stats = counted(3)
    stats.thought_tokens = 1
    receiving.read_usage({}, stats)
    assert (stats.new_tokens, stats.thought_tokens, stats.tokens_per_second) == (3, 1, 1.0)
    assert (stats.prompt_tokens, stats.reused_tokens) == (0, None)


def test_one_token_has_no_speed():
    stats = counted(1)
    receiving.read_usage({"completion_tokens": 5}, stats)
    assert (stats.new_tokens, stats.tokens_per_second) == (5, None)


# Errors in words


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ValueError),
        (404, ValueError),
        (413, ValueError),
        (422, ValueError),
        (401, PermissionError),
        (403, PermissionError),
        (429, ConnectionError),
        (500, receiving.BrokenOff),
        (503, receiving.BrokenOff),
    ],
)
def test_a_status_is_an_error_in_the_server_s_words(status, kind):
    error = receiving.refusal("http://x/v1", status, b'{"error": {"message": "So it is."}}')
    assert type(error) is kind
    assert "So it is." in str(error)


@pytest.mark.parametrize(("body", "words"), [(b"", "HTTP 418"), (b"<html>teapot", "<html>teapot")])
def test_a_server_without_words_of_its_own_is_told_of_too(body, words):
    assert words in str(receiving.refusal("http://x/v1", 418, body))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "one"}}, "one"),
        ({"error": "two"}, "two"),
        ({"detail": "three"}, "three"),
        ({"message": "four"}, "four"),
        ("five", "five"),
        ({"error": {"code": 6}}, "{'code': 6}"),
    ],
    ids=str,
)
def test_the_message_is_found_in_whatever_shape(body, words):
    assert receiving.error_words(body) == words


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (httpx.ReadTimeout("x"), TimeoutError, "silent for too long"),
        (httpx.ConnectError("x"), ConnectionError, "No server answers at"),
        (httpx.ConnectTimeout("x"), ConnectionError, "No server answers at"),
        (httpx.UnsupportedProtocol("x"), ValueError, "no address of a server"),
        (httpx.RemoteProtocolError("x"), receiving.BrokenOff, "broke off"),
        (KeyError("x"), ConnectionError, "no OpenAI-compatible server"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_errors_of_the_connection_are_told_in_words(raised, kind, words):
    with pytest.raises(kind, match=words) as caught, receiving.words_for_errors("http://x/v1"):
        raise raised
    assert "http://x/v1" in str(caught.value)
    assert type(caught.value) is kind


def test_what_comes_after_the_last_event_is_not_left_half_read():
    class Response:
        closed = False

        async def aiter_bytes(self) -> AsyncIterator[bytes]:
            try:
                yield b'data: {"number": 1}\n\ndata: [DONE]\n\n'
                yield b"and more"
            finally:
                self.closed = True

    async def read(response: Response) -> list:
        found = [event async for event in receiving.events(response)]
        return [*found, response.closed]

    assert asyncio.run(read(Response())) == [{"number": 1}, True]
