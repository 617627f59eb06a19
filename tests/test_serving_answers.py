"""How an answer is handed on: at once what comes first, together what comes in quick succession."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from chat import Delta
from fake_chat import DEADLINE, FakeChat
from sampling import SamplingParams
from serving import answers
from serving.answers import Answer, Piece, Places
from serving.schema import ApiError, ChatRequest

REQUEST = ChatRequest(
    [{"role": "user", "content": "Hello"}], SamplingParams(logprobs=0), {}, stream=True, usage=None
)


def listen(chat: FakeChat, listener: Callable[[Answer], Awaitable], pieces: float = 1e9) -> tuple:
    """What the listener makes of an answer, and how that ended."""
    outcomes = []

    async def run():
        answer = Answer(chat, REQUEST, Places(1), lambda *outcome: outcomes.append(outcome), pieces)
        try:
            return await asyncio.wait_for(listener(answer), DEADLINE)
        finally:
            answer.close()

    return asyncio.run(run()), outcomes


async def arrived(answer: Answer) -> list[Piece]:
    """All pieces, once everything has arrived."""
    pieces = [await answer.begin()]
    while pieces[-1].delta is not None:
        pieces.append(await answer.next())
    return pieces


@pytest.fixture
def one_an_hour(monkeypatch):
    """Pieces that follow the first wait for the end of the answer."""
    monkeypatch.setattr(answers, "LONGEST_WAIT", 3600.0)
    return 1 / 3600


def test_first_piece_does_not_wait_and_others_travel_together(one_an_hour):
    taken = threading.Event()

    async def listener(answer):
        first = await answer.begin()
        taken.set()
        return [first, await answer.next(), await answer.next()]

    pieces = ["Hello", taken.wait, ", ", "world"]
    (first, rest, end), _ = listen(
        FakeChat([p if callable(p) else Delta(p) for p in pieces]), listener, one_an_hour
    )
    assert (first.delta, first.stats.new_tokens) == ("Hello", 1)
    assert (rest.delta, rest.stats.new_tokens) == (", world", 3)
    assert [token.text for token in rest.logprobs] == [", ", "world"]
    assert (end.delta, end.logprobs, end.stats.finish_reason) == (None, [], "stop")


def test_thought_and_answer_are_never_joined(one_an_hour):
    deltas = [Delta(text, text.islower()) for text in ("a", "b", "C", "D", "e")]
    pieces, _ = listen(FakeChat(deltas), arrived, one_an_hour)
    said = [(piece.delta, piece.delta.is_thought) for piece in pieces[:-1]]
    assert "".join(text for text, _ in said) == "abCDe"
    assert all(text.islower() == is_thought for text, is_thought in said)


def test_what_comes_slowly_is_handed_on_piece_by_piece():
    taken = [threading.Event(), threading.Event()]

    async def listener(answer):
        pieces = [await answer.begin()]
        for event in taken:
            event.set()
            pieces.append(await answer.next())
        return [piece.delta for piece in pieces]

    chat = FakeChat([Delta("a"), taken[0].wait, Delta("b"), taken[1].wait, Delta("c")])
    assert listen(chat, listener)[0] == ["a", "b", "c"]


def test_failure_comes_after_what_was_said_before_it(one_an_hour):
    said = []

    async def listener(answer):
        piece = await answer.begin()
        while piece.delta is not None:
            said.append(piece.delta)
            piece = await answer.next()

    with pytest.raises(ApiError) as caught:
        listen(FakeChat([Delta("Hello"), Delta(", "), OSError("no more")]), listener, one_an_hour)
    assert caught.value.status == 500
    assert "".join(said) == "Hello, "


def test_end_is_told_once_with_what_it_cost():
    _, outcomes = listen(FakeChat(), arrived)
    ((outcome, stats),) = outcomes
    assert (outcome, stats.new_tokens, stats.prompt_tokens) == ("stop", 3, 7)
