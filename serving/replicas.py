"""What runs on a cluster, as two deployments of Ray Serve, and the way of an answer from one to the other.

Ingresses read requests and write answers, with the code of the endpoint; engines compute. Ray Serve places,
routes, scales and restarts both. Knows handles, and which conversation goes where. Refuses to know the
command line, how Ray is started, and HTTP.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

import telemetry
from chat import Chat, ReplyStats
from genai_engine import GenAIEngine
from open_chat import open_chat
from sampling import SamplingParams
from serving.answers import RETRY_AFTER, WAITING, Answer, Ended, Piece, Places
from serving.endpoint import build_app
from serving.schema import ApiError, ChatRequest
from serving.security import own_names

DRAIN = 30  # seconds that running answers get to finish when their replica is to go
HUNG_AFTER = 120.0  # seconds of silence; a step computes 32 tokens at most
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
GONE = (RayError, RayServeException, StopAsyncIteration)  # what comes of a replica that has died
ATTEMPTS = 3  # a router may not know yet
PIECES = 40  # sent in a second by a replica; each costs Ray 3 ms of processor time, on its way to the client
LONGEST_LOOK = 0.1  # seconds between two looks whether a full replica has a place again


@dataclass(frozen=True)
class About:
    """What an ingress knows of the engines' chat: a `Chat` without its methods."""

    name: str
    description: str
    system_prompt: str | None
    max_context: int | None
    defaults: SamplingParams
    max_requests: int
    template_options: dict[str, tuple]


class Engine:
    """A chat with a process of its own, on whatever machine Ray Serve puts it.

    Args:
        options: of `open_chat.add_model_options`. The folder is prepared where the replica runs; replicas on
            one machine wait for the first of them.
        replicas: how many there may be, for the description.
        hung_after: seconds of silence, with work to do, after which it is not healthy.
    """

    def __init__(self, options: argparse.Namespace, replicas: int, hung_after: float):
        telemetry.turn_off()
        # Ray sets OMP_NUM_THREADS only, and otherwise OpenVINO takes all cores for each replica.
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        threads = str(max(1, int(cores)))
        self._chat = open_chat(options, ov_config={"INFERENCE_NUM_THREADS": threads})
        self._places = Places(self._chat.max_requests)
        self._replicas = replicas
        self._hung_after = hung_after

    async def about(self) -> About:
        """What an ingress has to know of the chat."""
        chat = self._chat
        return About(
            name=chat.name,
            description=f"{chat.description}, up to {self._replicas} replicas",
            system_prompt=chat.system_prompt,
            max_context=chat.max_context,
            defaults=chat.defaults,
            max_requests=chat.max_requests * self._replicas,
            template_options=dict(chat.template_options),
        )

    async def answer(self, request: ChatRequest) -> AsyncIterator[Piece | tuple]:
        """An answer, piece by piece, or the arguments of an ApiError.

        Ray Serve ends it where nobody wants it any more.
        """
        answer = Answer(self._chat, request, self._places, lambda *_: None, PIECES)
        try:
            piece = await answer.begin()
            while piece.delta is not None:
                yield piece
                piece = await answer.next()
            yield piece
        except ApiError as error:
            yield error.arguments()
        finally:
            answer.close()

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises three times in a row.

        Raises:
            RuntimeError: the engine hangs.
        """
        silent = self._chat.engine.result().silent
        if silent > self._hung_after:
            raise RuntimeError(f"The engine has been silent for {silent:.0f} seconds, with work to do.")

    def __del__(self):
        self._chat.close()


@serve.ingress()
class Ingress:
    """The endpoint, whose answers come from the engines."""

    def __init__(self, engines: DeploymentHandle, name: str | None, options: argparse.Namespace):
        self._engines = engines
        self._name = name
        self._options = options
        self._about: Future[Chat] = Future()
        self._asking = asyncio.create_task(self._ask())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application; the name is Ray Serve's, see `serve.ingress`."""
        options = self._options
        return build_app(
            self._about,
            name=self._name,
            api_key=options.api_key,
            hosts={*own_names(options.host), *options.allow_host},
            cors=options.cors,
            answers=ClusterAnswers(self._engines),
        )

    async def _ask(self) -> None:
        """Learn of the chat, as soon as an engine is there."""
        while not self._about.done():
            try:
                self._about.set_result(await self._engines.about.remote())
            except (RayError, RayServeException):  # that one is gone; another will be there
                await asyncio.sleep(1)


class ClusterAnswers:
    """`Answers` of whichever engine Ray Serve's router chooses."""

    def __init__(self, engines: DeploymentHandle):
        self._engines = engines.options(method_name="answer", stream=True)
        self.running = 0
        self.waiting = 0

    def open(
        self, chat: Chat, request: ChatRequest, headers: Mapping[str, str], ended: Ended
    ) -> "ClusterAnswer":
        """See `serving.answers.Answers`."""
        engines = self._engines.options(session_id=conversation_key(request, headers))
        return ClusterAnswer(engines, request, self, ended)


class ClusterAnswer:
    """One answer of an engine elsewhere; an `OpenAnswer`."""

    def __init__(self, engines: DeploymentHandle, request: ChatRequest, tally: ClusterAnswers, ended: Ended):
        self._engines = engines
        self._request = request
        self._tally = tally
        self._ended = ended
        self._begun = self._over = False
        self._pieces: DeploymentResponseGenerator | None = None
        self._came = time.perf_counter()
        self._first: float | None = None
        tally.waiting += 1

    async def begin(self) -> Piece:
        """See `OpenAnswer`. Where a replica turns out to be gone, another one is asked.

        Raises:
            ApiError: 429, too many wait; otherwise see `next`.
        """
        for others in reversed(range(ATTEMPTS)):
            self._pieces = self._engines.remote(self._request)
            try:
                piece = await anext(self._pieces)
                break
            except BackPressureError:
                self._finish("queue_full")
                message = f"All replicas are busy and enough wait. Ask again in {RETRY_AFTER} seconds."
                raise ApiError(429, message, code="queue_full", retry_after=RETRY_AFTER) from None
            except GONE as error:
                if not others:
                    raise self._gone() from error
        self._first = time.perf_counter() - self._came
        self._begun = True
        self._tally.waiting -= 1
        self._tally.running += 1
        return self._take(piece)

    async def next(self) -> Piece:
        """See `OpenAnswer`.

        Raises:
            ApiError: what the engine says; or 503, its replica is gone.
        """
        try:
            return self._take(await anext(self._pieces))
        except GONE as error:
            raise self._gone() from error

    def close(self) -> None:
        """See `OpenAnswer`."""
        if not self._over:
            if self._pieces is not None:
                self._pieces.cancel()
            self._finish("cancelled")

    def _take(self, piece: Piece | tuple) -> Piece:
        if isinstance(piece, tuple):
            error = ApiError(*piece)
            self._finish("invalid" if error.status == 400 else "error")
            raise error
        piece = replace(piece, stats=self._with_our_time(piece.stats))
        if piece.delta is None:
            self._finish(piece.stats.finish_reason or "error", piece.stats)
        return piece

    def _gone(self) -> ApiError:
        self._finish("error")
        message = "The replica that computed this answer is gone. Ask again: others are there."
        return ApiError(503, message, code="replica_gone", retry_after=1)

    def _with_our_time(self, stats: ReplyStats) -> ReplyStats:
        """The engine's stats, with the time that the request waited for a place at one."""
        if stats.time_to_first_token is None or self._first is None:
            return stats
        before = max(0.0, self._first - stats.time_to_first_token)
        return replace(stats, waited=stats.waited + before, time_to_first_token=self._first)

    def _finish(self, outcome: str, stats: ReplyStats | None = None) -> None:
        if self._over:
            return
        self._over = True
        if self._begun:
            self._tally.running -= 1
        else:
            self._tally.waiting -= 1
        self._ended(outcome, stats)


def conversation_key(request: ChatRequest, headers: Mapping[str, str]) -> str:
    """What stays the same in a conversation, so that all of it goes to the replica that has it in its cache.

    It is the header x-session-id, or else the field "user", or else how the conversation begins.
    """
    return headers.get("x-session-id") or request.user or request.beginning()


def application(
    options: argparse.Namespace, name: str | None, cpus: float, ingresses: int = 1
) -> serve.Application:
    """All of it, for `serve.run`.

    Args:
        options: of `serving.cluster`.
        name: what clients call the model; None takes the chat's own name.
        cpus: for each engine.
        ingresses: how many of them.
    """
    most = options.max_replicas or options.replicas
    per_replica = GenAIEngine.max_requests
    number: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas:
        number = {
            "autoscaling_config": {
                "min_replicas": options.min_replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": per_replica / 2,
            }
        }
    engines = serve.deployment(
        Engine,
        name="Engine",
        ray_actor_options={"num_cpus": cpus},
        max_ongoing_requests=per_replica,
        max_queued_requests=WAITING * most,
        graceful_shutdown_timeout_s=DRAIN,
        max_constructor_retry_count=2,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER, max_backoff_s=LONGEST_LOOK),
        **number,
    )
    ingress = serve.deployment(
        Ingress,
        name="Ingress",
        num_replicas=ingresses,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10_000,  # engines are what is short
        graceful_shutdown_timeout_s=DRAIN,
    )
    return ingress.bind(engines.bind(options, most, HUNG_AFTER), name, options)
