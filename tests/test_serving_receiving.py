"""An answer taken apart: what it cost, where it breaks off, and errors in words."""

from collections.abc import Callable
from contextlib import closing

import pytest
from starlette.responses import Response

from chat import Delta
from endpoint_clients import HELLO
from fake_chat import FakeChat
from remote_chats import chunk, events, remote, stranger
from sampling import SamplingParams
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
