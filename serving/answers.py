"""Answers of a chat for an event loop: how many at once, how many may wait; each read by its own thread.

Knows asyncio, threads and the chat's contract. Refuses to know HTTP: the endpoint on one machine and the
replicas of a cluster use the same.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Protocol

from chat import Chat, Delta, ReplyStats, ReplyStream, TokenLogprob
from serving.schema import ApiError, ChatRequest

log = logging.getLogger(__name__)

WAITING = 16  # requests that may wait for a place
RETRY_AFTER = 5  # seconds that a client is told to wait where no more may

# What a model says in quick succession travels together: each piece costs a step of JSON and of sockets.
# Beyond PIECES a second, of all answers together, each waits for its next one; LONGEST_WAIT at most.
PIECES = 320
LONGEST_WAIT = 0.1  # seconds

Ended = Callable[[str, ReplyStats | None], None]  # how an answer ended, and its stats if it has begun


class Places:
    """The places of a chat: `limit` answers are computed at once, `WAITING` requests may wait their turn."""

    def __init__(self, limit: int):
        self._free = asyncio.Semaphore(limit)
        self.running = 0
        self.waiting = 0

    async def enter(self) -> None:
        """Wait for a place; `leave` gives it back.

        Raises:
            ApiError: 429, there are too many who wait.
        """
        if self._free.locked() and self.waiting >= WAITING:
            message = f"All places are taken and {WAITING} requests wait. Ask again in {RETRY_AFTER} seconds."
            raise ApiError(429, message, code="queue_full", retry_after=RETRY_AFTER)
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    def leave(self) -> None:
        """Make room for the next one."""
        self.running -= 1
        self._free.release()


@dataclass(frozen=True)
class Piece:
    """What came of an answer since the piece before.

    delta: its text; None after the last one.
    logprobs: of its tokens, where they were asked for.
    stats: what the answer has cost up to here, the time in our queue included.
    """

    delta: Delta | None
    logprobs: list[TokenLogprob]
    stats: ReplyStats


class OpenAnswer(Protocol):
    """What an endpoint uses of an answer: `Answer`, or one that is computed elsewhere."""

    async def begin(self) -> Piece:
        """The first piece, once there is a place. Raises ApiError."""

    async def next(self) -> Piece:
        """The next piece. Raises ApiError."""

    def close(self) -> None:
        """Stop the model, if it is still at it."""


class Answers(Protocol):
    """Where an endpoint gets its answers: `AnswersHere`, or elsewhere.

    running: how many are computed; waiting: how many wait for a place.
    """

    running: int
    waiting: int

    def open(self, chat: Chat, request: ChatRequest, headers: Mapping[str, str], ended: Ended) -> OpenAnswer:
        """An answer, not begun yet; for `ended` see `Answer`. The headers are those of the request."""


class AnswersHere:
    """Answers of a chat in this process, `chat.max_requests` at a time."""

    def __init__(self):
        self._places: Places | None = None

    @property
    def running(self) -> int:
        """See `Answers`."""
        return self._places.running if self._places else 0

    @property
    def waiting(self) -> int:
        """See `Answers`."""
        return self._places.waiting if self._places else 0

    def open(self, chat: Chat, request: ChatRequest, headers: Mapping[str, str], ended: Ended) -> "Answer":
        """See `Answers`."""
        if self._places is None:
            self._places = Places(chat.max_requests)
        return Answer(chat, request, self._places, ended)


class Answer:
    """One answer, from the request to its last word. Whoever holds it calls `close`, whatever happens.

    Args:
        ended: called once, when the answer is over or did not come to be: with how it ended and, if it has
            begun, its stats.
        pieces: how many may be sent in a second, of all answers that are running.

    An engine may refuse a second reply that the same thread has half read, so each is read by one thread that
    does nothing else. It holds the place until the model has stopped, and not until the client has read all.
    """

    def __init__(
        self,
        chat: Chat,
        request: ChatRequest,
        places: Places,
        ended: Ended,
        pieces: float = PIECES,
    ):
        self._chat = chat
        self._request = request
        self._places = places
        self._ended = ended
        self._pace = 1 / pieces
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[Piece | ApiError] = deque()
        self._some = asyncio.Event()  # whether there is any
        self._all = asyncio.Event()  # whether nothing more will come
        self._due = 0.0  # when, by the loop's clock, the next piece is to be handed on
        self._stream: ReplyStream | None = None
        self._closed = False
        self._waited = 0.0

    async def begin(self) -> Piece:
        """The first piece, once there is a place.

        Raises:
            ApiError: 429, see `Places.enter`; otherwise see `next`.
        """
        came = time.perf_counter()
        try:
            await self._places.enter()
        except ApiError:
            self._ended("queue_full", None)
            raise
        except asyncio.CancelledError:
            self._ended("cancelled", None)
            raise
        self._waited = time.perf_counter() - came
        threading.Thread(target=self._read, name="answer", daemon=True).start()
        return await self.next()

    async def next(self) -> Piece:
        """The next piece, as soon as there is one and it may be sent.

        Raises:
            ApiError: 400, the chat refuses the messages; 500, the model failed.
        """
        if self._loop.time() < self._due:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._due):
                    await self._all.wait()
        await self._some.wait()
        piece = self._arrived.popleft()
        if not self._arrived:
            self._some.clear()
        self._due = self._loop.time() + min(LONGEST_WAIT, self._pace * self._places.running)
        if isinstance(piece, ApiError):
            raise piece
        if piece.delta is None and piece.stats.finish_reason not in ("stop", "length"):
            raise ApiError(500, "The answer was broken off.", code="cancelled")
        return piece

    def close(self) -> None:
        """Stop the model, if it is still at it."""
        self._closed = True
        if self._stream is not None:
            self._stream.close()

    def _read(self) -> None:
        """Hand on what the model says; in a thread."""
        request, last = self._request, None
        begun, told = False, 0
        try:
            self._stream = self._chat.stream(
                request.messages, request.sampling, request.template_options or None
            )
            with closing(self._stream) as deltas:
                if self._closed:  # while there was no stream to close
                    deltas.close()
                for delta in deltas:
                    begun = True
                    new = deltas.logprobs[told:]
                    told += len(new)
                    self._tell(self._arrive, Piece(delta, new, self._stats()))
        except ValueError as error:
            # Who sees a chat of another machine refuse something sees it with the first piece.
            last = failure(error) if begun else ApiError(400, str(error))
        except Exception as error:
            last = failure(error)
        self._tell(self._end, last or Piece(None, self._stream.logprobs[told:], self._stats()))

    def _stats(self) -> ReplyStats:
        """What the answer has cost by now, the time in our queue included."""
        stats = self._stream.stats
        first = stats.time_to_first_token
        return replace(
            stats,
            waited=stats.waited + self._waited,
            time_to_first_token=None if first is None else first + self._waited,
        )

    def _arrive(self, piece: Piece) -> None:
        before = self._arrived[-1] if self._arrived else None
        if before is not None and before.delta.is_thought == piece.delta.is_thought:
            self._arrived[-1] = Piece(
                Delta(before.delta + piece.delta, piece.delta.is_thought),
                before.logprobs + piece.logprobs,
                piece.stats,
            )
        else:
            self._arrived.append(piece)
            self._some.set()

    def _end(self, last: Piece | ApiError) -> None:
        self._places.leave()
        if isinstance(last, ApiError) and last.status == 400:
            self._ended("invalid", None)
        elif self._stream is None:
            self._ended("error", None)
        else:
            stats = self._stats()
            self._ended(stats.finish_reason or "error", stats)
        self._arrived.append(last)
        self._some.set()
        self._all.set()

    def _tell(self, function: Callable, *arguments) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it all who would listen
            self._loop.call_soon_threadsafe(function, *arguments)


def failure(error: Exception) -> ApiError:
    """What a client is told when the model failed; the log has the rest."""
    log.error("The model failed", exc_info=error)
    return ApiError(
        500,
        f"The model failed ({type(error).__name__}). The server's log has the details.",
        code="model_failed",
    )
