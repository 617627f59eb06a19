"""How an answer is handed on: the first piece at once, those that come quickly together; and who waits."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from chat import Delta
from endpoint_clients import asking, error_of, post, wait_for
from fake_chat import DEADLINE, FakeChat, after, served
from sampling import SamplingParams
from serving import answers
from serving.answers import WAITING, Answer, Piece, Places
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


def test_leaving_the_queue_frees_a_place_in_it():
    go_on = threading.Event()
    chat = FakeChat(after(go_on, "done"), max_requests=1)
    with served(chat) as address, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, address)
        wait_for(address, "llm_chatbot_running 1.0")
        with asking(address):
            wait_for(address, "llm_chatbot_waiting 1.0")
        wait_for(address, "llm_chatbot_waiting 0.0")
        go_on.set()
        assert first.result().status_code == 200
        assert len(chat.asked) == 1


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
