"""A chat without a model, for tests of what talks to one; and a server around it."""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import serving.api
from chat import Delta, ReplyStats, TokenLogprob
from sampling import SamplingParams
from serving.api import build_app, make_server, serve

DEADLINE = 10  # seconds after which a test gives up


class FakeReply:
    """Pieces of text as a `chat.ReplyStream`. An exception among them is raised; a function waits."""

    waiting = False

    def __init__(self, chat: "FakeChat", pieces: list, reason: str, others: int | None):
        self._chat = chat
        self._pieces = iter(pieces)
        self._reason = reason
        self._others = others
        self._readers: set[int] = set()
        self.logprobs: list[TokenLogprob] = []
        self.stats = ReplyStats(prompt_tokens=7, reused_tokens=3, dropped_messages=chat.dropped)

    def __iter__(self):
        return self

    def __next__(self) -> Delta:
        self._readers.add(threading.get_ident())
        assert len(self._readers) == 1, "one thread must read a reply"
        for piece in self._pieces:
            if self._chat.closed.is_set():
                break
            if callable(piece):
                piece()
                continue
            if isinstance(piece, Exception):
                self.stats.finish_reason = "error"
                raise piece
            self.stats.new_tokens += 1
            self.stats.thought_tokens += piece.is_thought
            self._chat.computed += 1
            if self._others is not None:
                others = (("€", -1.0), ("\ufffd", -2.0))
                self.logprobs.append(TokenLogprob(piece, -0.5, others[: self._others]))
            return piece
        if self.stats.finish_reason is None:
            self.stats.finish_reason = self._reason
        raise StopIteration

    def close(self) -> None:
        if self.stats.finish_reason is None:
            self.stats.finish_reason = "cancelled"
            self._chat.closed.set()


class FakeChat:
    """A `chat.Chat` that says what it was told to say, and remembers what it was asked."""

    name = "fake-chat"
    description = "no model at all"
    system_prompt = "Be brief."
    max_context = 1000
    defaults = SamplingParams(temperature=0.5, top_k=40, max_new_tokens=99)
    template_options = {"enable_thinking": (True, False)}  # noqa: RUF012

    def __init__(self, pieces=("Hello", ", ", "world"), reason="stop", max_requests=4, dropped=0):
        self.max_requests = max_requests
        self.dropped = dropped
        self.asked: list[tuple] = []
        self.computed = 0
        self.held = threading.Event()  # a reply has come to where it waits to be stopped
        self.closed = threading.Event()  # a reply was stopped before its end
        self._pieces, self._reason = pieces, reason

    def stream(self, messages, sampling=None, template_options=None):
        self.asked.append((messages, sampling, template_options))
        if messages[-1]["content"] == "refuse":
            raise ValueError("The template refuses this.")
        pieces = self._pieces(self) if callable(self._pieces) else self._pieces
        pieces = (Delta(piece) if type(piece) is str else piece for piece in pieces)
        return FakeReply(self, pieces, self._reason, (sampling or self.defaults).logprobs)

    def generate(self, messages, sampling=None, template_options=None):
        return "".join(d for d in self.stream(messages, sampling, template_options) if not d.is_thought)

    def close(self):
        pass


def talking(chat: FakeChat) -> Iterator[str]:
    """Pieces without end, twenty a second."""
    while not chat.closed.wait(0.05):
        yield "word "


def computing_the_prompt(chat: FakeChat) -> Iterator[str]:
    """A reply whose first word never comes."""
    chat.held.set()
    chat.closed.wait(DEADLINE)
    yield "late"


def falling_silent(chat: FakeChat) -> Iterator[str]:
    """A reply of two words, whose third never comes."""
    yield from ("one ", "two ")
    yield from computing_the_prompt(chat)


def after(event: threading.Event, *pieces: str) -> list:
    """Pieces that wait for an event, to be put among those of a FakeChat."""
    return [lambda: event.wait(DEADLINE) and None, *pieces]


@contextmanager
def served(chat, **options) -> Iterator[str]:
    """The endpoint over a chat, on a free port; gives its address, without /v1."""
    with served_app(build_app(chat, **options)) as address:
        yield address


@contextmanager
def served_app(app) -> Iterator[str]:
    """Any ASGI application, served as `python -m serving.api` does it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(app)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def main(word: str = "") -> None:
    """Serve a fake chat as the command does, for tests that end the process.

    Args:
        word: what is special about it: "endless" answers, "slow" to load, or "fail" to.
    """
    pause = threading.Event()

    def pieces(chat: FakeChat) -> Iterator[Callable | str]:
        yield "begun "
        if word == "endless":
            yield from talking(chat)
        yield lambda: pause.wait(2) and None
        yield "ended"

    def load() -> FakeChat:
        if word == "fail":
            raise ValueError("No such model.")
        pause.wait(DEADLINE if word == "slow" else 0)
        return FakeChat(pieces)

    if word == "endless":
        serving.api.DRAIN = 0.5
    listener = socket.create_server(("127.0.0.1", 0))
    loading: Future[FakeChat] = Future()
    serve(build_app(loading), listener, load, loading, f"http://127.0.0.1:{listener.getsockname()[1]}/v1")


if __name__ == "__main__":
    main(*sys.argv[1:])
