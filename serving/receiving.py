"""An answer from an OpenAI-compatible server, taken apart: deltas, log-probabilities, stats, errors in words.

Knows server-sent events, the fields of answers, and httpx's errors. Refuses to know threads and who reads.
"""

import asyncio
import json
import queue
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import httpx

from chat import Delta, ReplyStats, TokenLogprob


class BrokenOff(ConnectionError):
    """A server failed with an answer, or in the middle of it; another one, or a second try, may succeed."""


class Receiver:
    """Asks a server for one answer, and once more where that breaks off.

    Args:
        url: of the chat completions.
        request: the JSON to send; it asks for a stream.
        goes_on: whether the server, given the beginning of an answer, goes on with it.

    Attributes:
        arrived: what the answer consists of: deltas, then None or what went wrong.
        stats: filled in as the answer goes; logprobs: too, where they were asked for.
    """

    def __init__(self, client: httpx.AsyncClient, url: str, request: dict[str, Any], goes_on: bool):
        self._client = client
        self._url = url
        self._request = request
        self._goes_on = goes_on
        self._text = ""
        self.arrived: queue.SimpleQueue[Delta | Exception | None] = queue.SimpleQueue()
        self.stats = ReplyStats(prompt_tokens=0)
        self.logprobs: list[TokenLogprob] = []

    async def run(self) -> None:
        """Receive the answer."""
        self._started = time.perf_counter()
        try:
            try:
                await self._ask(self._request)
            except BrokenOff:
                rest = self._rest()
                if rest is None:
                    raise
                self.stats.resumed = True
                await self._ask(rest)
        except asyncio.CancelledError:
            self.stats.finish("cancelled")
            self.arrived.put(None)
            raise
        except Exception as error:  # belongs to who reads the answer
            self.stats.finish("error")
            self.arrived.put(error)
        else:
            self.arrived.put(None)

    def _rest(self) -> dict[str, Any] | None:
        """What to ask for after the answer broke off; None where nobody could go on with what was shown."""
        if self.stats.new_tokens == 0:
            return self._request
        left = self._request["max_tokens"] - self.stats.new_tokens
        if not self._goes_on or self.stats.thought_tokens or left < 1:
            return None
        *before, last = self._request["messages"]
        if last["role"] != "assistant":
            before, last = [*before, last], {"role": "assistant", "content": ""}
        goes_on = last | {"content": last["content"] + self._text}
        return self._request | {"messages": [*before, goes_on], "max_tokens": left}

    async def _ask(self, request: dict[str, Any]) -> None:
        earlier, reason = self.stats.new_tokens, None
        with words_for_errors(self._url):
            async with self._client.stream("POST", self._url, json=request) as response:
                if response.status_code != 200:
                    raise refusal(self._url, response.status_code, await response.aread())
                async with aclosing(events(response)) as chunks:
                    async for chunk in chunks:
                        if "error" in chunk:
                            raise BrokenOff(error_words(chunk))
                        for choice in chunk.get("choices") or []:
                            self._take(choice)
                            reason = choice.get("finish_reason") or reason
                        if chunk.get("usage"):
                            read_usage(chunk["usage"], self.stats, earlier)
        if reason is None:
            raise BrokenOff("The server broke off the answer.")
        self.stats.finish("length" if reason == "length" else "stop")

    def _take(self, choice: Mapping[str, Any]) -> None:
        """Hand on one piece of the answer."""
        delta = choice.get("delta") or {}
        for token in (choice.get("logprobs") or {}).get("content") or []:
            others = ((other["token"], other["logprob"]) for other in token.get("top_logprobs") or [])
            self.logprobs.append(TokenLogprob(token["token"], token["logprob"], tuple(others)))
        thought, text = delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content")
        if thought or text:  # counted as one token; the usage at the end puts it right
            self.stats.count_token(time.perf_counter() - self._started)
        if thought:
            self.stats.thought_tokens += 1
            self.arrived.put(Delta(thought, is_thought=True))
        if text:
            self._text += text
            self.arrived.put(Delta(text))


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON of server-sent events, up to [DONE].

    Lines end at line feeds only: httpx would split at Unicode's separators too, which JSON may contain.
    """
    rest = b""
    async with aclosing(response.aiter_bytes()) as pieces:
        async for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                if data == b"[DONE]":
                    return
                if data:
                    yield json.loads(data)


def read_usage(usage: Mapping[str, Any], stats: ReplyStats, earlier: int = 0) -> None:
    """Take a server's word for what a reply cost.

    Args:
        earlier: tokens of the reply that came before those of this usage.
    """
    stats.prompt_tokens = usage.get("prompt_tokens", 0)
    counted = stats.new_tokens
    told = earlier + usage.get("completion_tokens", counted - earlier)
    if counted > 1 and told > 1 and stats.tokens_per_second is not None:
        stats.tokens_per_second *= (told - 1) / (counted - 1)  # a delta may be several tokens
    stats.new_tokens = told
    stats.reused_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    details = usage.get("completion_tokens_details") or {}
    stats.thought_tokens = details.get("reasoning_tokens") or stats.thought_tokens
    stats.dropped_messages = usage.get("dropped_messages", 0)
    stats.waited = usage.get("waited", 0.0)


@contextmanager
def words_for_errors(url: str) -> Iterator[None]:
    """Turn httpx's errors into such as a person can act upon."""
    try:
        yield
    except httpx.ReadTimeout as error:
        raise TimeoutError(f"{url} was silent for too long.") from error
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ConnectionError(f"No server answers at {url}. Is it running? ({error})") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ValueError(f"{url} is no address of a server ({error}).") from error
    except httpx.HTTPError as error:
        raise BrokenOff(f"The connection to {url} broke off ({error}).") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise ConnectionError(f"What answers at {url} is no OpenAI-compatible server.") from error


def refusal(url: str, status: int, body: bytes) -> Exception:
    """The error that an HTTP status stands for, in the server's own words if it has some."""
    try:
        words = error_words(json.loads(body))
    except ValueError:
        words = body[:200].decode("utf-8", "replace")
    if status in (401, 403):
        return PermissionError(f"{url} wants an API key: set LLM_CHATBOT_API_KEY. ({words})")
    if status in (400, 404, 413, 422):
        return ValueError(words or f"{url} refused the request (HTTP {status}).")
    kind = BrokenOff if status >= 500 else ConnectionError
    return kind(words or f"{url} failed (HTTP {status}).")


def error_words(body: Any) -> str:
    """The message in an error's JSON, whichever shape the server gives it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(message or error)
