"""The process in which OpenVINO GenAI computes; `genai_engine` starts it, and it ends with who started it.

`ContinuousBatchingPipeline.step()` keeps Python's global lock while it computes: any other thread of the same
process would stand still meanwhile. In this process there is none that anybody waits for.

Knows numbered requests, token ids, and how to hand both to openvino_genai. Refuses to know text, turns, what
the sampling options mean and who asks.

Messages (see `genai_process`) come in through stdin, and go out through what was stdout.
"""

import itertools
import os
import pickle
import queue
import signal
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_process import Failure, LogProbability, News, Ready, Request, Settings
from prefix_ledger import PrefixLedger

if TYPE_CHECKING:
    import openvino_genai

# Tokens of prompts that are computed in one step; between two steps requests come, go, and get their tokens.
# On two cores so many take about as long as three tokens of a reply; see `benchmarks.engine_process`. Those
# of running replies count as well.
PREFILL_CHUNK = 32
LARGEST_GAP = 1.0  # seconds between two looks for the parent, and two signs of life within a long prompt


@dataclass(eq=False)
class Running:
    """A request in the pipeline.

    ids: prompt and reply so far.
    waiting: tokens whose alternatives are still being computed, with their own log-probability.
    """

    request: Request
    handle: "openvino_genai.GenerationHandle"
    ids: array
    reused: int | None
    waiting: deque[tuple[int, float, "openvino_genai.GenerationHandle | None"]] = field(default_factory=deque)

    def cancel(self) -> None:
        """Take everything that belongs to the request out of the next step."""
        self.handle.cancel()
        for _, _, others in self.waiting:
            if others:
                others.cancel()


class Batch:
    """The requests in the pipeline, one step at a time.

    Args:
        pipeline: a ContinuousBatchingPipeline.
        ledger: of its cache.
        check_schema: raises ValueError for a JSON schema that the pipeline cannot follow.
    """

    def __init__(
        self,
        pipeline: "openvino_genai.ContinuousBatchingPipeline",
        ledger: PrefixLedger,
        check_schema: Callable[[str], None],
    ):
        self._pipeline = pipeline
        self._ledger = ledger
        self._check_schema = check_schema
        self._numbers = itertools.count()
        self._running: dict[int, Running] = {}

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return self._pipeline.has_non_finished_requests()

    def add(self, request: Request) -> News | None:
        """Take a request in; what comes back is its end: it was refused."""
        options = dict(request.options)
        try:
            if request.json_schema is not None:
                import openvino_genai

                self._check_schema(request.json_schema)
                options["structured_output_config"] = openvino_genai.StructuredOutputConfig(
                    json_schema=request.json_schema
                )
            handle = self._add(request.ids, options)
        except (RuntimeError, TypeError, ValueError) as error:  # concerns this request; the others go on
            return News(request.number, [], [], None, over=True, error=plain(error))
        reused = self._ledger.reused(request.ids)
        self._running[request.number] = Running(request, handle, array("q", request.ids), reused)
        return None

    def _add(self, ids: array, options: dict[str, Any]) -> "openvino_genai.GenerationHandle":
        import numpy as np
        import openvino
        import openvino_genai

        prompt = openvino.Tensor(np.array(ids, np.int64)[None])
        return self._pipeline.add_request(
            next(self._numbers), prompt, openvino_genai.GenerationConfig(**options)
        )

    def cancel(self, number: int) -> News | None:
        """Drop a request, if it is not over yet; what comes back confirms it."""
        running = self._running.pop(number, None)
        if running is None:
            return None
        running.cancel()
        self._note(running)
        return News(number, [], [], None, over=True)

    def step(self) -> list[News]:
        """Compute the next token of each request, or the next part of its prompt.

        Raises:
            RuntimeError: the pipeline failed. It is of no further use.
        """
        self._pipeline.step()
        news = [one for running in list(self._running.values()) if (one := self._look(running))]
        for one in news:
            if one.over:
                self._note(self._running.pop(one.number))
        return news

    def _look(self, running: Running) -> News | None:
        import openvino_genai

        status = openvino_genai.GenerationStatus
        while running.handle.can_read():
            for output in running.handle.read().values():
                for token, value in zip(output.generated_ids, output.generated_log_probs, strict=True):
                    running.waiting.append((token, value, self._ask_for_others(running)))
                    running.ids.append(token)
        tokens, log_probabilities = self._take(running)
        state = running.handle.get_status()
        over = state != status.RUNNING and not running.waiting
        if not tokens and not over:
            return None
        reused, running.reused = running.reused, None
        error = (
            MemoryError("The request does not fit into the KV cache.") if state == status.IGNORED else None
        )
        if reused is not None and tokens:
            self._ledger.store(running.request.ids)
        return News(running.request.number, tokens, log_probabilities, reused, over, error)

    def _ask_for_others(self, running: Running) -> "openvino_genai.GenerationHandle | None":
        """Have the most probable tokens computed of the place after `running.ids`.

        The pipeline tells the log-probability of the token it chose, no others. But the beams that a beam
        search of one token ends with are just these; and what comes before is in the cache.
        """
        if not running.request.others:
            return None
        beams = max(2, running.request.others)  # one beam would be no beam search
        return self._add(
            running.ids,
            {"ignore_eos": True, "max_new_tokens": 1, "num_beams": beams, "num_return_sequences": beams},
        )

    def _take(self, running: Running) -> tuple[list[int], list[LogProbability]]:
        """The tokens of which everything is known, in their order."""
        tokens, log_probabilities = [], []
        while running.waiting:
            token, value, handle = running.waiting[0]
            others = {}
            if handle:
                if not handle.can_read():
                    break
                beams = [(o.generated_log_probs[0], o.generated_ids[0]) for o in handle.read().values()]
                others = {t: v for v, t in sorted(beams, reverse=True)[: running.request.others]}
            running.waiting.popleft()
            tokens.append(token)
            if running.request.others is not None:
                log_probabilities.append((others.get(token, value), others))  # they were computed twice
        return tokens, log_probabilities

    def _note(self, running: Running) -> None:
        if running.reused is None:  # there has been a token, so all of the prompt is in the cache
            self._ledger.store(running.ids[:-1], grown_from=len(running.request.ids))


def plain(error: Exception) -> Exception:
    """The error as one that can be sent: those of libraries may not be."""
    return error if type(error).__module__ == "builtins" else RuntimeError(f"{type(error).__name__}: {error}")


def serve(batch: Batch, commands: queue.SimpleQueue, send: Callable[[list[News]], None], parent: int) -> None:
    """Take requests and compute them, until None comes or the parent is gone.

    Args:
        batch: of the pipeline.
        commands: `Request`s, numbers of requests to cancel, None.
        send: takes what is new after each step.
        parent: its process id. What a dead one wrote to may be open still, in a fork of it.
    """
    told = time.monotonic()
    while os.getppid() == parent:
        while not (batch.busy and commands.empty()):
            try:
                command = commands.get(timeout=LARGEST_GAP)
            except queue.Empty:
                break
            if command is None:
                return
            answer = batch.cancel(command) if isinstance(command, int) else batch.add(command)
            if answer:
                send([answer])
        if batch.busy:
            news, now = batch.step(), time.monotonic()
            if news or now - told > LARGEST_GAP:  # no news is a sign of life
                send(news)
                told = now


def load(settings: Settings) -> tuple[Batch, Ready]:
    """Load a converted model, and compute a token, which shows how large its cache is."""
    import telemetry

    telemetry.turn_off()

    import openvino_genai

    from genai_schema import SchemaCheck
    from json_files import read_json_if_there
    from model_folder import check_device, vocabulary_size
    from tuning import fastest_properties

    check_device(settings.device)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.cache_size = settings.cache_gigabytes
    scheduler.max_num_batched_tokens = PREFILL_CHUNK
    properties = fastest_properties(settings.folder, settings.device) | settings.properties
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        settings.folder, scheduler, settings.device, properties
    )
    vocabulary = vocabulary_size(read_json_if_there(Path(settings.folder) / "config.json"))
    check = SchemaCheck(pipeline.get_tokenizer(), vocabulary)
    block = 16 if "GPU" in settings.device else 32
    first = Batch(pipeline, PrefixLedger(block, 0), check)
    if refusal := first.add(Request(0, array("q", [0]), {"ignore_eos": True, "max_new_tokens": 1})):
        raise refusal.error
    while first.busy:
        first.step()
    blocks = round(100 / pipeline.get_metrics().cache_usage)  # percent; that token took one
    return Batch(pipeline, PrefixLedger(block, blocks), check), Ready(block * blocks)


def read_commands(stream: Any, commands: queue.SimpleQueue) -> None:
    """Hand on what the parent writes; when it writes no more, end this process, whatever it is doing."""
    try:
        while True:
            commands.put(pickle.load(stream))
    except EOFError:
        os._exit(0)


def main() -> None:
    """Run the process."""
    # Signals for a program (Ctrl+C, a notebook's Interrupt, a service that is stopped) reach all its
    # processes. This one's answers may still be wanted; it ends with its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = os.getppid()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print must not come between the messages

    def send(message: Any) -> None:
        pickle.dump(message, out)
        out.flush()

    commands: queue.SimpleQueue = queue.SimpleQueue()
    settings = pickle.load(sys.stdin.buffer)
    threading.Thread(target=read_commands, args=(sys.stdin.buffer, commands), daemon=True).start()
    try:
        batch, ready = load(settings)
        send(ready)
        serve(batch, commands, send, parent)
    except BrokenPipeError:  # nobody is there to read
        pass
    except Exception as error:  # whatever it is, the parent's callers are to see it
        send(Failure(plain(error)))
    os._exit(0)  # the thread that reads stdin cannot be stopped
