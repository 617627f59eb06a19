"""What goes wrong between a client and a server, in words that a person can act upon.

Knows httpx's errors and the shapes in which servers tell theirs.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx


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
        raise ConnectionError(f"The connection to {url} broke off ({error}).") from error
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
    return RuntimeError(words or f"{url} failed (HTTP {status}).")


def error_words(body: Any) -> str:
    """The message in an error's JSON, whichever shape the server gives it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(message or error)
