"""How many replicas serve many people: a simulation of a cluster, fed with one replica's measured times.

Sessions come, ask, think and ask again; replicas compute in batches, remember conversations, die and come
back. Compared are three ways to choose the replica of a question: by its conversation (consistent hashing, as
`serving.cluster` does), the one that has least to do, and by chance.

A replica is the scheduler of `genai_worker` in between two events: running answers all get a token a step,
prompts are computed one after the other with what room a step has left, and further requests wait. Between
two events speeds are constant, so that an event costs the same whatever the number of tokens; for that, an
answer has the context of its middle from its beginning on. A request whose replica dies is asked again
elsewhere, with all it has said so far. Left out: networks, conversations that outgrow the context. What HTTP
and Ray cost is in the times, which were measured by a client (`benchmarks.serving times`).

Usage: python -m benchmarks.fleet [--replicas 1 2 10 100 1000]    (some minutes)
"""

import argparse
import bisect
import heapq
import json
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
TIMES = HERE / "replica_times.json"
PICTURE = HERE.parent / "docs" / "fleet.svg"
# And the looks of their lines, which meet in places.
ROUTERS = {"consistent hashing": "o-", "least loaded": "s--", "random": "^:"}
POINTS = 100  # of each replica on the ring
FALLBACKS = 2  # replicas that are tried after a full one


@dataclass(frozen=True)
class Times:
    """What one replica needs: seconds of a step by the number of answers in it, and of a token of a prompt.

    cache_tokens: how many its KV cache holds.
    decode_seconds_per_context_token: of a step, for each token in the contexts of its answers.
    prefill_seconds_per_context_token: of a token of a prompt, for each token before it.
    overhead_seconds: of a request, before it is at the engine.
    step_tokens: the most tokens of answers and prompts together that a step computes.
    """

    machine: str
    decode_seconds: dict[int, float]
    prefill_seconds_per_token: float
    cache_tokens: int
    decode_seconds_per_context_token: float = 0.0
    prefill_seconds_per_context_token: float = 0.0
    overhead_seconds: float = 0.0
    max_requests: int = 16
    step_tokens: int = 32

    @classmethod
    def read(cls, file: Path = TIMES) -> "Times":
        """The times in a file of JSON."""
        values = json.loads(file.read_text(encoding="utf-8"))
        return cls(**values | {"decode_seconds": {int(n): s for n, s in values["decode_seconds"].items()}})

    def decode(self, answers: int, context: float = 0.0) -> float:
        """Seconds of a step with so many answers, between the measured ones on a straight line.

        Args:
            context: tokens of all these answers' contexts together.
        """
        return self._without_context(answers) + context * self.decode_seconds_per_context_token

    def prefill(self, context: float) -> float:
        """Seconds of a token of a prompt that so many come before."""
        return self.prefill_seconds_per_token + context * self.prefill_seconds_per_context_token

    def _without_context(self, answers: int) -> float:
        known = sorted(self.decode_seconds)
        if answers == 0:
            return 0.0
        if answers <= known[0]:
            return self.decode_seconds[known[0]]
        place = min(bisect.bisect_left(known, answers), len(known) - 1)
        low, high = known[place - 1], known[place]
        share = (answers - low) / (high - low)
        return self.decode_seconds[low] + share * (self.decode_seconds[high] - self.decode_seconds[low])


@dataclass(frozen=True)
class Workload:
    """Who asks: so many sessions for each replica at any time.

    system: tokens that all prompts begin with.
    question, answer: tokens; with `varied`, of exponential distributions around these.
    think: mean seconds between an answer and the next question; life: mean seconds of a replica.
    restart: seconds until another takes its place.
    followed: whether sessions that have ended are followed by others. If not, all begin at once, and the
        figures are those of all answers until the last.
    """

    sessions: int = 40
    turns: int = 10
    system: int = 30
    question: int = 40
    answer: int = 120
    think: float = 60.0
    life: float = 24 * 3600.0
    restart: float = 30.0
    varied: bool = True
    followed: bool = True


@dataclass(eq=False)
class Request:
    """A question of a session, which holds one at a time."""

    session: int
    prompt: int
    answer: int
    asked: float
    turn: int
    said: int = 0
    left: float = 0.0  # tokens of the prompt that are still to be computed
    before: float = 0.0  # tokens that come before one of these, in the middle
    begun: float | None = None
    done_at: float = 0.0  # on the replica's counter of steps

    @property
    def context(self) -> float:
        """Tokens in the cache while it is being answered, in the middle."""
        return self.prompt + self.answer / 2


@dataclass
class Figures:
    """What came of a run; seconds, and replica hours for a thousand answers."""

    replicas: int
    router: str
    answers: int = 0
    asked_again: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    first: list[float] = field(default_factory=list)
    last_turn: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def cache_share(self) -> float:
        """Of the tokens of all prompts."""
        return self.cached_tokens / max(1, self.prompt_tokens)

    @property
    def hours_per_thousand(self) -> float:
        """What a thousand answers cost, whether the replicas were busy or not."""
        return self.replicas * self.seconds / 3600 / max(1, self.answers) * 1000


class Replica:
    """One replica between events. Its owner asks when the next is, and lets time pass until then."""

    def __init__(self, name: int, times: Times, shared: int):
        self.name = name
        self._shared = shared  # tokens that all prompts begin with
        self._times = times
        self._now = 0.0
        self._steps = 0.0
        self._decoding: list[tuple[float, int, Request]] = []
        self._prefill: deque[Request] = deque()
        self._waiting: deque[Request] = deque()
        self._cache: OrderedDict[int, int] = OrderedDict()  # tokens of sessions, the latest last
        self._cached = 0
        self._count = 0
        self._context = 0.0  # tokens in the contexts of all running answers
        self.version = 0  # an event that was planned before something changed is void
        self.load = 0  # requests in all

    def requests(self) -> list[Request]:
        """All requests, for when it dies."""
        return [*(entry[2] for entry in self._decoding), *self._prefill, *self._waiting]

    def add(self, request: Request, now: float, figures: Figures) -> None:
        """Take a request."""
        self._pass(now)
        self.load += 1
        self._waiting.append(request)
        self._admit(figures)

    def next_event(self) -> float | None:
        """When a prompt or an answer will be ready."""
        step, room = self._step()
        ends = []
        if self._decoding:
            ends.append((self._decoding[0][0] - self._steps) * step)
        if self._prefill:
            ends.append(self._prefill[0].left / room * step)
        return self._now + max(0.0, min(ends)) if ends else None

    def advance(self, now: float, figures: Figures) -> list[Request]:
        """Let time pass up to an event; gives the answers that are done."""
        self._pass(now)
        done = []
        if self._prefill and self._prefill[0].left < 1e-6:
            request = self._prefill.popleft()
            if request.begun is None:
                request.begun = now
            request.done_at = self._steps + max(1, request.answer - request.said)
            self._count += 1
            self._context += request.context
            heapq.heappush(self._decoding, (request.done_at, self._count, request))
        while self._decoding and self._decoding[0][0] - self._steps < 1e-6:
            request = heapq.heappop(self._decoding)[2]
            self._remember(request.session, request.prompt + request.answer)
            self._context -= request.context
            self.load -= 1
            done.append(request)
        self._admit(figures)
        return done

    def said(self, request: Request, now: float) -> int:
        """Tokens of an answer by now."""
        self._pass(now)
        if request.done_at == 0.0:  # not even begun
            return request.said
        return max(request.said, int(request.answer - (request.done_at - self._steps)))

    def _step(self) -> tuple[float, int]:
        """Seconds of a step, and tokens of a prompt in it."""
        seconds = self._times.decode(len(self._decoding), self._context)
        if not self._prefill:
            return seconds, 0
        first = self._prefill[0]
        room = self._times.step_tokens - len(self._decoding)
        room = max(1, min(room, round(first.left) or 1))
        return seconds + room * self._times.prefill(first.before), room

    def _pass(self, now: float) -> None:
        step, room = self._step()
        if step:
            steps = (now - self._now) / step
            self._steps += steps
            if self._prefill:
                self._prefill[0].left -= steps * room
        self._now = now

    def _admit(self, figures: Figures) -> None:
        while self._waiting and self.load - len(self._waiting) < self._times.max_requests:
            request = self._waiting.popleft()
            prompt = request.prompt + request.said
            cached = min(max(self._cache.get(request.session, 0), self._shared), prompt - 1)
            figures.prompt_tokens += prompt
            figures.cached_tokens += cached
            request.left = float(prompt - cached)
            request.before = cached + request.left / 2
            self._remember(request.session, prompt)
            self._prefill.append(request)

    def _remember(self, session: int, tokens: int) -> None:
        self._cached += tokens - self._cache.get(session, 0)
        self._cache[session] = tokens
        self._cache.move_to_end(session)
        while self._cached > self._times.cache_tokens and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1]


class Router:
    """Chooses replicas."""

    def __init__(self, kind: str, chance: random.Random):
        self._kind = kind
        self._chance = chance
        self._ring: list[tuple[float, int]] = []
        self.replicas: dict[int, Replica] = {}

    def join(self, replica: Replica) -> None:
        """A replica is there."""
        self.replicas[replica.name] = replica
        if self._kind == "consistent hashing":
            for _ in range(POINTS):
                bisect.insort(self._ring, (self._chance.random(), replica.name))

    def leave(self, replica: Replica) -> None:
        """A replica is gone."""
        del self.replicas[replica.name]
        self._ring = [point for point in self._ring if point[1] != replica.name]

    def choose(self, session: int, full: int) -> Replica:
        """The replica for a session's next question; one with `full` requests has no place."""
        if self._kind == "random":
            return self._chance.choice(list(self.replicas.values()))
        if self._kind == "least loaded":
            loads = [replica.load for replica in self.replicas.values()]
            least = min(loads)
            places = [place for place, load in enumerate(loads) if load == least]
            return list(self.replicas.values())[self._chance.choice(places)]
        place = bisect.bisect(self._ring, (random.Random(session).random(), -1))
        names: dict[int, None] = {}
        for offset in range(len(self._ring)):
            names[self._ring[(place + offset) % len(self._ring)][1]] = None
            if len(names) == min(1 + FALLBACKS, len(self.replicas)):
                break
        ranked = [self.replicas[name] for name in names]
        return next((r for r in ranked if r.load < full), min(ranked, key=lambda replica: replica.load))


def simulate(
    times: Times, load: Workload, replicas: int, router: str, answers: int | None = None, seed: int = 0
) -> Figures:
    """Run a cluster until so many answers are done; the first third of them is not counted.

    Args:
        answers: in all; None takes three for each two turns of the sessions.
    """
    return Simulation(times, load, replicas, router, seed).run(answers)


class Simulation:
    """The events of a cluster: questions, replicas that have something ready, die and come back."""

    def __init__(self, times: Times, load: Workload, replicas: int, router: str, seed: int = 0):
        self._times, self._load = times, load
        self._chance = random.Random(seed)
        self._router = Router(router, random.Random(seed + 1))
        self._figures = Figures(replicas, router)
        self._counted = 0  # answers, the warm-up's included
        self._warm_up = 0
        self._events: list[tuple[float, int, Callable, tuple]] = []
        self._numbers = iter(range(10**12))
        self._names = iter(range(10**12))
        self._sessions = iter(range(10**12))
        self._stranded: list[Request] = []
        self._since = 0.0
        for _ in range(replicas):
            self._come(0.0)
        for _ in range(replicas * load.sessions):
            self._begin_session(0.0, self._chance.uniform(0, load.think + 1) if load.followed else 0.0)

    def run(self, answers: int | None) -> Figures:
        """See `simulate`."""
        load = self._load
        all_turns = load.turns * load.sessions * self._figures.replicas
        answers = answers or (3 * all_turns // 2 if load.followed else all_turns)
        self._warm_up = answers // 3 if load.followed else 0
        now = 0.0
        while self._counted < answers:
            now, _, action, arguments = heapq.heappop(self._events)
            action(now, *arguments)
        self._figures.seconds = now - self._since
        return self._figures

    def _plan(self, when: float, action: Callable, *arguments: object) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), action, arguments))

    def _amount(self, mean: float) -> int:
        return max(1, round(self._chance.expovariate(1 / mean) if self._load.varied else mean))

    def _pause(self, mean: float) -> float:
        return self._chance.expovariate(1 / mean) if mean and self._load.varied else mean

    def _begin_session(self, now: float, after: float) -> None:
        self._plan(now + after, self._ask, next(self._sessions), self._load.system, 1)

    def _ask(self, now: float, session: int, history: int, turn: int) -> None:
        prompt = history + self._amount(self._load.question)
        request = Request(session, prompt, self._amount(self._load.answer), now, turn)
        self._plan(now + self._times.overhead_seconds, self._send, request)

    def _send(self, now: float, request: Request) -> None:
        if not self._router.replicas:
            self._stranded.append(request)
            return
        replica = self._router.choose(request.session, self._times.max_requests)
        replica.add(request, now, self._figures)
        self._look_at(replica)

    def _look_at(self, replica: Replica) -> None:
        replica.version += 1
        when = replica.next_event()
        if when is not None:
            self._plan(when, self._happen, replica, replica.version)

    def _happen(self, now: float, replica: Replica, version: int) -> None:
        if version != replica.version:
            return
        for request in replica.advance(now, self._figures):
            self._note(now, request)
            if request.turn < self._load.turns:
                after = now + self._pause(self._load.think)
                history = request.prompt + request.answer
                self._plan(after, self._ask, request.session, history, request.turn + 1)
            elif self._load.followed:
                self._begin_session(now, self._pause(self._load.think))
        self._look_at(replica)

    def _note(self, now: float, request: Request) -> None:
        self._counted += 1
        if self._counted == self._warm_up:
            self._figures = Figures(self._figures.replicas, self._figures.router)
            self._since = now
        elif self._counted > self._warm_up:
            figures, first = self._figures, request.begun - request.asked
            figures.answers += 1
            figures.tokens += request.answer
            figures.first.append(first)
            if request.turn == self._load.turns:
                figures.last_turn.append(first)

    def _come(self, now: float) -> None:
        replica = Replica(next(self._names), self._times, self._load.system)
        self._router.join(replica)
        if self._load.life:
            self._plan(now + self._chance.expovariate(1 / self._load.life), self._die, replica)
        stranded, self._stranded = self._stranded, []
        for request in stranded:
            self._send(now, request)

    def _die(self, now: float, replica: Replica) -> None:
        self._router.leave(replica)
        replica.version += 1
        for request in replica.requests():
            request.said, request.done_at = replica.said(request, now), 0.0
            self._figures.asked_again += 1
            self._send(now, request)
        self._plan(now + self._load.restart, self._come)


def middle(values: list[float], share: float = 0.5) -> float:
    """A quantile; not a number where there is nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def table(rows: list[Figures]) -> str:
    """The figures as Markdown."""
    lines = [
        "| replicas | router | first token: median | 95 % | in the last turn | cached "
        "| replica hours per 1000 answers |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.replicas} | {row.router} | {middle(row.first):.2f} s | {middle(row.first, 0.95):.2f} s "
            f"| {middle(row.last_turn):.2f} s | {row.cache_share:.0%} | {row.hours_per_thousand:.2f} |"
        )
    return "\n".join(lines)


def draw(rows: list[Figures], file: Path) -> None:
    """The same as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fleet"  # the same picture from the same figures
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
    panels = (
        ("seconds in which 95 % have the first token", lambda row: middle(row.first, 0.95)),
        ("share of prompts from the cache", lambda row: row.cache_share),
        ("replica hours per 1000 answers", lambda row: row.hours_per_thousand),
    )
    for axis, (title, value) in zip(axes, panels, strict=True):
        for router in dict.fromkeys(row.router for row in rows):
            points = [(row.replicas, value(row)) for row in rows if row.router == router]
            axis.plot(*zip(*points, strict=True), ROUTERS[router], label=router, fillstyle="none")
        axis.set(title=title, xlabel="replicas", xscale="log")
        axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ROUTERS))
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 10, 100, 1000])
    options = parser.parse_args()
    times, load = Times.read(), Workload()
    rows = [simulate(times, load, replicas, router) for replicas in options.replicas for router in ROUTERS]
    print(f"Fed with the times of {times.machine}; {load}\n\n{table(rows)}")
    draw(rows, PICTURE)


if __name__ == "__main__":
    main()
