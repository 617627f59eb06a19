"""The OpenAI-compatible endpoint over one chat, as a FastAPI application.

Knows HTTP and the order of things in an answer. Refuses to know models and tokens: all it asks of a chat is
`Chat.stream`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Collection
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from chat import Chat
from serving.answers import Answers, AnswersHere, OpenAnswer, Piece
from serving.metrics import Metrics
from serving.schema import ApiError, ChatRequest, read_json, read_request
from serving.security import BODY_LIMIT, Guard, error_response, read_body
from serving.wire import DONE, Envelope, event, model_entry, to_json

Result = TypeVar("Result")


def build_app(
    chat_model: "Chat | Future[Chat]",
    name: str | None = None,
    api_key: str | None = None,
    *,
    hosts: Collection[str] = (),
    cors: Collection[str] = (),
    answers: Answers | None = None,
    body_limit: int = BODY_LIMIT,
) -> FastAPI:
    """The endpoint, to be served by itself or mounted in another application.

    Args:
        chat_model: answers the questions, `chat_model.max_requests` at a time; or the future of one that is
            being loaded.
        name: what the model is called here; None takes the chat's own name.
        api_key: needed for everything but /health; None lets everybody in.
        hosts: the names by which clients may call the server, see `security.Guard`.
        cors: origins ("https://example.org") whose pages may ask; without any, browsers refuse all.
        answers: where the answers come from; None has `chat_model` give them, in this process.
        body_limit: the largest body of a request, in bytes.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    endpoint = Endpoint(chat_model, name, answers or AnswersHere(), body_limit)
    app.add_api_route("/health", endpoint.health, methods=["GET"])
    app.add_api_route("/metrics", endpoint.metrics, methods=["GET"])
    app.add_api_route("/v1/models", endpoint.models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", endpoint.model, methods=["GET"])
    app.add_api_route("/v1/chat/completions", endpoint.chat_completions, methods=["POST"])
    app.add_exception_handler(ApiError, lambda _, error: error_response(error))
    app.add_exception_handler(HTTPException, lambda _, error: error_response(from_http(error)))
    app.add_exception_handler(Exception, lambda *_: error_response(ApiError(500, "The server failed.")))
    app.add_exception_handler(ClientDisconnect, lambda *_: Response(status_code=499))  # nobody reads it
    app.add_middleware(Guard, api_key=api_key, hosts=hosts)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors), allow_headers=["*"])
    return app


def from_http(error: HTTPException) -> ApiError:
    """Starlette's own refusals, such as 404 and 405, in our shape."""
    return ApiError(
        error.status_code,
        f"{error.detail}. This server knows /v1/chat/completions (POST), "
        "/v1/models, /health and /metrics (GET).",
    )


class Endpoint:
    """The routes, and what they share."""

    def __init__(
        self, chat_model: "Chat | Future[Chat]", name: str | None, answers: Answers, body_limit: int
    ):
        if isinstance(chat_model, Future):
            self._chat = chat_model
        else:
            self._chat = Future()
            self._chat.set_result(chat_model)
        self._name = name
        self._body_limit = body_limit
        self._created = int(time.time())
        self._answers = answers
        self._metrics = Metrics(running=lambda: answers.running, waiting=lambda: answers.waiting)

    def chat(self) -> Chat:
        """The chat.

        Raises:
            ApiError: 503, it is being loaded.
        """
        if not self._chat.done():
            raise ApiError(503, "The model is being loaded.", code="loading", retry_after=5)
        return self._chat.result()

    async def health(self) -> Response:
        """Whether questions can be asked."""
        if self._chat.done():
            return json_response({"status": "ready"})
        return json_response({"status": "loading"}, 503)

    async def metrics(self) -> Response:
        """Figures for Prometheus."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(self) -> Response:
        """The one model there is."""
        return json_response({"object": "list", "data": [self._entry()]})

    async def model(self, name: str) -> Response:
        """The same by its name."""
        entry = self._entry()
        if name != entry["id"]:
            raise ApiError(
                404, f"There is no model {name!r} here, only {entry['id']}.", "model", "model_not_found"
            )
        return json_response(entry)

    def _entry(self) -> dict:
        chat = self.chat()
        return model_entry(self._name or chat.name, self._created, chat)

    async def chat_completions(self, http: Request) -> Response:
        """Answer the last message, at once or piece by piece."""
        try:
            chat = self.chat()
            name = self._name or chat.name
            request = read_request(
                read_json(await read_body(http, self._body_limit)), chat, {name, chat.name}
            )
        except ApiError:
            self._metrics.count("invalid")
            raise
        answer = self._answers.open(chat, request, http.headers, self._metrics.count)
        envelope = Envelope(name, request.usage)
        try:
            # The status is sent with the first piece: what goes wrong before has a status of its own.
            first = await unless_gone(http, answer.begin())
            if request.stream:
                return EventStream(events(answer, first, request, envelope), answer)
            return json_response(await unless_gone(http, whole(answer, first, request, envelope)))
        except BaseException:
            answer.close()
            raise


class EventStream(StreamingResponse):
    """An answer as server-sent events. It is closed when all is sent, and as soon as the client has gone."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], answer: OpenAnswer):
        super().__init__(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:  # here and not in the generator, which may not even have begun when the client goes
            self._answer.close()


async def unless_gone(http: Request, work: Awaitable[Result]) -> Result:
    """What the work gives.

    Raises:
        ClientDisconnect: the client has gone before; the work is cancelled.
    """
    work, gone = asyncio.ensure_future(work), asyncio.ensure_future(client_gone(http))
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        gone.cancel()


async def client_gone(http: Request) -> None:
    """Wait until the client closes the connection; to be called when its body has been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def whole(answer: OpenAnswer, piece: Piece, request: ChatRequest, envelope: Envelope) -> dict:
    """The answer at once, from its first piece on."""
    texts, logprobs = {False: [], True: []}, [*piece.logprobs]
    while piece.delta is not None:
        texts[piece.delta.is_thought].append(piece.delta)
        piece = await answer.next()
        logprobs += piece.logprobs
    text, thought = "".join(texts[False]), "".join(texts[True])
    wanted = request.sampling.logprobs is not None
    return envelope.completion(text, thought, piece.stats, logprobs if wanted else None)


async def events(
    answer: OpenAnswer, piece: Piece, request: ChatRequest, envelope: Envelope
) -> AsyncIterator[bytes]:
    """The answer as server-sent events, from its first piece on."""
    wanted = request.sampling.logprobs is not None
    try:
        nothing = replace(piece.stats, new_tokens=0, thought_tokens=0)
        yield event(envelope.chunk({"role": "assistant", "content": ""}, nothing))
        while piece.delta is not None:
            field = "reasoning_content" if piece.delta.is_thought else "content"
            logprobs = piece.logprobs if wanted else None
            yield event(envelope.chunk({field: piece.delta}, piece.stats, logprobs))
            piece = await answer.next()
        yield event(envelope.chunk({}, piece.stats, piece.logprobs or None, is_last=True))
        if request.usage is not None:
            yield event(envelope.usage_chunk(piece.stats))
        yield DONE
    except ApiError as error:
        yield event(error.body())


def json_response(value: object, status: int = 200) -> Response:
    """JSON as this endpoint writes it."""
    return Response(to_json(value), status, media_type="application/json")
