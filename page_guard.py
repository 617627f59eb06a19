"""What stands before the page: who may ask, how much may be sent, and what a browser may load.

Knows HTTP requests (it is ASGI middleware). Refuses to know what is served behind it.

- DNS rebinding: a page elsewhere whose name is made to point at this machine sends its own name as Host.
  Names are refused, but for this machine's; addresses cannot be made to point elsewhere.
- Cross-site requests: browsers say which site a request comes from. Only visits (links, bookmarks, frames)
  may come from another one.
- Whatever an answer holds, the browser loads nothing from elsewhere: the Content-Security-Policy forbids it.
- Files cannot be sent at all, and nothing else that is larger than `LARGEST_BODY`.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 16_000_000  # bytes; a conversation travels with each question
CLOSED_PATHS = (  # of Gradio's, which would write to this machine's disk
    "/gradio_api/upload",
    "/gradio_api/deep_link",
    "/gradio_api/component_server",
    "/gradio_api/process_recording",
)
POLICY = "; ".join(
    [
        "default-src 'self' data:",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio makes functions out of texts
        "style-src 'self' 'unsafe-inline'",
        "connect-src 'self'",
        "frame-src 'none'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        # a notebook shows the page in a frame
        "frame-ancestors 'self' http://localhost:* http://127.0.0.1:* https://localhost:* vscode-webview:",
    ]
)


class PageGuard:
    """ASGI middleware; `names` are names of this machine besides those it knows itself by."""

    def __init__(self, app: ASGIApp, names: tuple[str, ...] = ()):
        own = socket.gethostname().lower()
        self.app = app
        self.names = {"localhost", own, f"{own}.local", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 or 413, or pass the request on and the answer back with the policy."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        status, words = self.refusal(scope)
        answer = PlainTextResponse(words, status) if status else self.app
        return await answer(scope, receive, send_with_policy)

    def refusal(self, scope: Scope) -> tuple[int, str]:
        """HTTP status and words for who may not ask this; 0 for who may."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self.is_own(host):
            return 403, f"This page does not answer to the name {host[:100]!r}: open it by its address."
        if any(closed in scope["path"] for closed in CLOSED_PATHS):  # also where the page is mounted
            return 403, "This page takes no files."
        length = headers.get("content-length", "")
        if int(length if length.isdecimal() else 0) > LARGEST_BODY or "transfer-encoding" in headers:
            return 413, f"This page takes no more than {LARGEST_BODY} bytes at a time."
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        visit = scope["method"] in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        foreign = site not in ("none", "same-origin") or (origin and urlsplit(origin).netloc != host)
        if foreign and not visit:
            return 403, "This page answers to no other page."
        return 0, ""

    def is_own(self, host: str) -> bool:
        """Whether a Host header means this machine: an address, or a name it is known by."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True
