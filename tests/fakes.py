"""An engine that plays a script, for tests of the code around it; and a port that is free."""

import os
import socket
import threading
from collections.abc import Sequence

from sampling import SamplingParams


def free_port() -> int:
    """A port of 127.0.0.1 that is still free when a program that is started with it listens there.

    Below those that systems hand out to whoever asks for any: Linux from 32768 on, the others from 49152; and
    above those of Ray's workers. Tests that run at the same time begin in different places.
    """
    for port in range(20000 + os.getpid() % 12000, 32768):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):  # nobody is there
                return port
    raise OSError("no free port")


class ScriptedEngine:
    """Plays token ids, then raises `error` if there is one; notes what it was asked and what became of it.

    While `may_compute` is not set, it stays in the token that it is computing.
    """

    max_requests = 1

    def __init__(self, script: Sequence[int] = (), error=None, max_context=None, end_ids=frozenset()):
        self.script, self.error = script, error
        self.max_context, self.end_ids = max_context, end_ids
        self.defaults = SamplingParams()
        self.prompt = self.sampling = self.spared = self.prefilled = None
        self.computed = 0
        self.closed = False
        self.computing, self.may_compute = threading.Event(), threading.Event()
        self.may_compute.set()

    def prefill(self, ids):
        self.prefilled = ids

    def generate(self, ids, sampling, spared=()):
        if not ids:
            raise ValueError("The prompt has no tokens.")
        self.prompt, self.sampling, self.spared = ids, sampling, spared
        return ScriptedTokens(self, iter(self.script[: sampling.max_new_tokens]))

    def settle(self): ...

    def close(self):
        self.closed = True


class ScriptedTokens:
    """One reply of a ScriptedEngine, which found all but one of the prompt's tokens in its cache."""

    waiting, waited = False, 0.0

    def __init__(self, engine: ScriptedEngine, tokens):
        self.engine, self.tokens = engine, tokens
        self.closed = False
        self.reused_tokens, self.logprobs = None, []

    def __iter__(self):
        return self

    def __next__(self):
        if self.closed:
            raise StopIteration
        token = next(self.tokens, None)
        if token is None:
            if self.engine.error:
                raise self.engine.error
            raise StopIteration
        self.engine.computing.set()
        assert self.engine.may_compute.wait(timeout=10)
        self.engine.computed += 1
        self.reused_tokens = len(self.engine.prompt) - 1
        if self.engine.sampling.logprobs is not None:
            self.logprobs.append((0.0, {token: 0.0} if self.engine.sampling.logprobs else {}))
        return token

    def close(self):
        self.closed = self.engine.closed = True
