"""What runs on a cluster: engines, and answers on their way from one to an ingress. Without a cluster."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest

from chat import Delta, ReplyStats
from sampling import SamplingParams
from serving.answers import WAITING, Piece
from serving.cluster import parsed
from serving.schema import ApiError, ChatRequest

ASK = ChatRequest([{"role": "user", "content": "Hello"}], SamplingParams(), {}, stream=False, usage=None)


@pytest.fixture(scope="module")
def replicas():
    pytest.importorskip(
        "ray", reason="needs Ray Serve (requirements-cluster.txt), which `make test-all` installs"
    )
    from serving import replicas

    return replicas


# Which engine


@pytest.mark.parametrize(
    ("headers", "user", "key"),
    [
        ({"x-session-id": "mine"}, "me", "mine"),
        ({}, "me", "me"),
        ({"x-session-id": ""}, None, ASK.beginning()),
        ({}, None, ASK.beginning()),
    ],
)
def test_a_conversation_has_a_key_that_stays(replicas, headers, user, key):
    request = ChatRequest(ASK.messages, SamplingParams(), {}, stream=False, usage=None, user=user)
    assert replicas.conversation_key(request, headers) == key


# An answer from elsewhere


class Pieces:
    """What a replica gives: pieces, or an error in the place of one."""

    def __init__(self, pieces: list):
        self._pieces = list(pieces)
        self.cancelled = False

    async def __anext__(self):
        piece = self._pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return piece

    def cancel(self) -> None:
        self.cancelled = True


class Engines:
    """A handle of engines, which answer one request after the other with these pieces."""

    def __init__(self, *answers: list):
        self.answers = [Pieces(pieces) for pieces in answers]
        self.asked = 0

    def options(self, **_) -> "Engines":
        return self

    def remote(self, request: ChatRequest) -> Pieces:
        assert request is ASK
        self.asked += 1
        return self.answers[self.asked - 1]


def piece(text: str | None, **stats) -> Piece:
    return Piece(None if text is None else Delta(text), [], ReplyStats(prompt_tokens=7, **stats))


END = piece(None, new_tokens=2, finish_reason="stop")


class Asked:
    """Requests to such engines, and how the answers ended."""

    def __init__(self, replicas, *answers: list):
        self.engines = Engines(*answers)
        self.tally = replicas.ClusterAnswers(self.engines)
        self.ended: list[str] = []
        self.answer = self.tally.open(None, ASK, {}, lambda outcome, stats: self.ended.append(outcome))

    @property
    def counted(self) -> tuple[int, int]:
        """How many are computed, how many wait."""
        return self.tally.running, self.tally.waiting


async def arrived(answer) -> AsyncIterator[str]:
    """The texts of an answer."""
    one = await answer.begin()
    while one.delta is not None:
        yield str(one.delta)
        one = await answer.next()


def test_an_answer_is_counted_while_it_waits_and_while_it_is_computed(replicas):
    asked = Asked(replicas, [piece("Hello, "), piece("world"), END])

    async def listen() -> list:
        seen = [asked.counted]
        async for text in arrived(asked.answer):
            seen.append((text, asked.counted))
        return seen

    assert asyncio.run(listen()) == [(0, 1), ("Hello, ", (1, 0)), ("world", (1, 0))]
    assert (asked.ended, asked.counted) == (["stop"], (0, 0))


def gone() -> Exception:
    from ray.exceptions import RayError

    return RayError("the replica has died")


@pytest.mark.parametrize("error", [gone, StopAsyncIteration])
def test_where_a_replica_is_gone_another_is_asked(replicas, error: Callable[[], Exception]):
    asked = Asked(replicas, [error()], [error()], [piece("Hello"), END])

    async def listen() -> list[str]:
        return [text async for text in arrived(asked.answer)]

    assert asyncio.run(listen()) == ["Hello"]
    assert (asked.engines.asked, asked.ended) == (3, ["stop"])


def refusal(asked: Asked) -> ApiError:
    async def listen() -> None:
        async for _ in arrived(asked.answer):
            pass

    with pytest.raises(ApiError) as caught:
        asyncio.run(listen())
    return caught.value


def test_where_all_are_gone_the_client_is_told(replicas):
    asked = Asked(replicas, *([gone()] for _ in range(replicas.ATTEMPTS)))
    error = refusal(asked)
    assert (error.status, error.code, error.retry_after) == (503, "replica_gone", 1)
    assert (asked.engines.asked, asked.ended, asked.counted) == (replicas.ATTEMPTS, ["error"], (0, 0))


def test_an_answer_that_has_begun_is_not_asked_for_again(replicas):
    asked = Asked(replicas, [piece("Hello"), gone()], [piece("never"), END])
    assert refusal(asked).code == "replica_gone"
    assert (asked.engines.asked, asked.ended, asked.counted) == (1, ["error"], (0, 0))


def test_where_too_many_wait_the_client_is_told_to_come_back(replicas):
    asked = Asked(replicas, [replicas.BackPressureError(num_queued_requests=9, max_queued_requests=8)])
    error = refusal(asked)
    assert (error.status, error.code) == (429, "queue_full")
    assert error.retry_after > 0
    assert (asked.ended, asked.counted) == (["queue_full"], (0, 0))


@pytest.mark.parametrize(("status", "outcome"), [(400, "invalid"), (500, "error")])
@pytest.mark.parametrize("before", [[], [piece("Hello")]], ids=["at once", "later"])
def test_what_an_engine_says_is_told_as_it_is(replicas, before, status, outcome):
    said = ApiError(status, "So it is.", "messages", "a_code", 4)
    asked = Asked(replicas, [*before, said.arguments()])
    assert refusal(asked).arguments() == said.arguments()
    assert (asked.ended, asked.counted) == ([outcome], (0, 0))


@pytest.mark.parametrize("begun", [True, False])
def test_a_closed_answer_is_cancelled_where_it_is_computed(replicas, begun):
    asked = Asked(replicas, [piece("Hello"), END])
    if begun:
        asyncio.run(asked.answer.begin())
    for _ in range(2):
        asked.answer.close()
    assert asked.engines.answers[0].cancelled == begun
    assert (asked.ended, asked.counted) == (["cancelled"], (0, 0))


def test_an_answer_that_is_over_is_not_cancelled(replicas):
    asked = Asked(replicas, [END])
    asyncio.run(asked.answer.begin())
    asked.answer.close()
    assert not asked.engines.answers[0].cancelled
    assert asked.ended == ["stop"]


def test_the_time_on_the_way_counts_as_waiting(replicas, monkeypatch):
    clock = iter([100.0, 103.0])
    monkeypatch.setattr(replicas.time, "perf_counter", lambda: next(clock))
    told = piece("Hello", waited=0.5, time_to_first_token=2.0)
    stats = asyncio.run(Asked(replicas, [told]).answer.begin()).stats
    assert (stats.waited, stats.time_to_first_token) == (1.5, 3.0)


# Engines


@pytest.mark.parametrize(("silent", "hangs"), [(0.0, False), (10_000.0, True)])
def test_a_hung_engine_is_not_healthy(replicas, silent, hangs):
    replica = replicas.Engine.__new__(replicas.Engine)
    replica._hung_after = replicas.HUNG_AFTER
    made = SimpleNamespace(silent=silent)
    replica._chat = SimpleNamespace(engine=SimpleNamespace(result=lambda: made), close=lambda: None)
    if hangs:
        with pytest.raises(RuntimeError, match="silent"):
            asyncio.run(replica.check_health())
    else:
        asyncio.run(replica.check_health())


# What Ray Serve is told


def told(replicas, monkeypatch, *words: str) -> dict[str, dict]:
    """The options of each deployment, of the application that these words of the command describe."""
    made = {}

    def deployment(_, name: str, **options) -> SimpleNamespace:
        made[name] = options
        return SimpleNamespace(bind=lambda *_: None)

    monkeypatch.setattr(replicas.serve, "deployment", deployment)
    replicas.application(parsed(list(words)), None, cpus=2, ingresses=3)
    return made


def test_a_fixed_number_of_engines_has_its_processors_and_a_queue_for_each(replicas, monkeypatch):
    made = told(replicas, monkeypatch, "--replicas", "4")
    engine, ingress = made["Engine"], made["Ingress"]
    assert (engine["num_replicas"], engine["ray_actor_options"]) == (4, {"num_cpus": 2})
    assert "autoscaling_config" not in engine
    assert engine["max_queued_requests"] == 4 * WAITING
    assert (ingress["num_replicas"], ingress["ray_actor_options"]) == (3, {"num_cpus": 0})


def test_a_number_that_follows_the_requests_stays_within_its_bounds(replicas, monkeypatch):
    engine = told(replicas, monkeypatch, "--min-replicas", "2", "--max-replicas", "5")["Engine"]
    scaling = engine["autoscaling_config"]
    assert "num_replicas" not in engine
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 5)
    # another engine is started while those that are there still have places
    assert 0 < scaling["target_ongoing_requests"] < engine["max_ongoing_requests"]
    assert engine["max_queued_requests"] == 5 * WAITING
