"""Who may ask, how much and how slowly: host names, the API key, size and time of bodies.

Knows HTTP. Refuses to know what is asked.
"""

import asyncio
import ipaddress
import secrets
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

import h11
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.schema import ApiError
from serving.wire import to_json

BODY_LIMIT = 1_000_000  # bytes
BODY_SECONDS = 30
HEAD_SECONDS = 10


def error_response(error: ApiError) -> Response:
    """The HTTP answer that tells a client of an error."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(to_json(error.body()), error.status, headers, "application/json")


class Guard:
    """An ASGI middleware that lets in only those who call this server by its name and know its key.

    Args:
        api_key: what `Authorization: Bearer ...` must hold for everything but /health; None lets all in.
        hosts: names by which the server may be called beside localhost and numeric addresses. A page from
            elsewhere can make a name of its own lead to this machine ("DNS rebinding") and would then be
            allowed to read the answers; it is the Host header that gives it away. "*" lets all names in.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: Collection[str]):
        self._app = app
        self._key = api_key.encode() if api_key else None
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if "*" not in self._hosts and not is_own_name(host, self._hosts):
            raise ApiError(
                400,
                f"This server does not answer to the name {host!r}. Whoever runs it can allow the name: "
                "--allow-host NAME.",
                code="host_not_allowed",
            )
        if self._key is None or scope["path"].removeprefix(scope.get("root_path", "")) == "/health":
            return
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not secrets.compare_digest(key.strip(), self._key):
            raise ApiError(
                401,
                "This server needs its API key, as the header Authorization: Bearer KEY.",
                code="invalid_api_key",
            )


def is_own_name(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names this machine: an address, localhost, or one of the names."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in names:
        return True
    return is_address(name)


def is_address(host: str) -> bool:
    """Whether this is a numeric address, IPv4 or IPv6."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether what listens on this host can be reached from this machine only."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def own_names(host: str) -> set[str]:
    """The names of this machine in its network, and the one it was told to listen on."""
    name = socket.gethostname().lower()
    return {name, f"{name}.local", host.lower()}


async def read_body(http: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: 400, it does not say that it is JSON (a page from elsewhere may send other types without
            asking first); 413, it has more bytes than the limit; 408, it takes too long.
    """
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "The body must be JSON, with the header Content-Type: application/json.")
    too_large = ApiError(413, f"The body may have {limit} bytes.", code="body_too_large")
    length = http.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in http.stream():
                body += piece
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS} seconds.") from None
    return bytes(body)


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP, which waits for the head of a request not longer than one to two times HEAD_SECONDS.

    uvicorn itself limits only the silence between two requests. What is no HTTP is told so in our shape.
    """

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
            body = to_json(ApiError(400, f"{msg.rstrip('.')}.", code="invalid_http").body())
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            for part in (h11.Response(status_code=400, headers=headers), h11.Data(data=body)):
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look at the clock."""
        super().connection_made(transport)
        self._look(before=transport)

    def _look(self, before: object) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing():
            return
        if idle and before is self.cycle:  # as idle as one look ago, and no request in between
            self.transport.close()
        else:
            self.loop.call_later(HEAD_SECONDS, self._look, self.cycle if idle else self.transport)
