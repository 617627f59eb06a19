"""Chats behind an endpoint: ours, and one that answers as told."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fake_chat import FakeChat, served, served_app
from serving.client import RemoteChatModel


@contextmanager
def remote(chat: FakeChat, **options) -> Iterator[RemoteChatModel]:
    """A chat behind our endpoint."""
    with served(chat, **options) as address, closing(RemoteChatModel(f"{address}/v1")) as model:
        yield model


@contextmanager
def stranger(answer: Callable[[dict], Response], models=({"id": "other"},)) -> Iterator[str]:
    """Another's endpoint, which answers as told and offers these models (None: does not tell)."""
    app = FastAPI()

    async def completions(http: Request) -> Response:
        return answer(await http.json())

    app.add_api_route("/v1/chat/completions", completions, methods=["POST"])
    if models is not None:
        app.add_api_route("/v1/models", lambda: {"data": list(models)})
    with served_app(app) as address:
        yield f"{address}/v1"


def events(*lines: str) -> StreamingResponse:
    return StreamingResponse(iter(f"data: {line}\n\n" for line in lines), media_type="text/event-stream")


def chunk(text: str, reason: str | None = None) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]})
