"""A crowd at the endpoint or at the cluster, in which many leave and, in the cluster, engines are killed.

32 clients send 2,000 requests, streamed and not. Some leave while their prompt is computed, some in the
middle of their answer. Of a cluster (two replicas), five engines are killed, at moments that are counted in
requests. Who asks, who leaves, where and when somebody is killed comes from `--seed`.

Each question has a marker and a JSON schema that makes the answer repeat it, whatever the model would say.
What must hold, else the program ends with 1:

- Every request ends: in its own answer, in an honest error (a status with the one shape of errors, or such an
  event in the stream), or because its client left. None takes longer than `DEADLINE`.
- Whatever came of an answer repeats the marker of its own question and nothing else.
- Afterwards all processes together have no more than 5 % more memory, threads and open files than before, and
  as many processes as before do each job.
- The command ends with 0, and none of its processes stays.

"Before" is when the caches are full: prompts that nobody wants an answer to fill them until memory grows by
less than 1 % from one round to the next. That takes long with a real model, and a tiny one asks no less of
what stands before it: `python -m benchmarks.random_checkpoint tiny FOLDER` writes one. Linux only.

Usage: python -m benchmarks.load endpoint|cluster [--model FOLDER] [--requests 2000] [--seed 1]
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import psutil

from benchmarks.serving import ENGINE, cluster, endpoint, started
from config import DEFAULT_MODEL

CLIENTS = 32
KILLS = 5
DEADLINE = 180  # seconds after which a request counts as hanging
LARGEST_GROWTH = 1.05
FILLING, MOST_FILLINGS = 16, 20  # prompts in a round, and rounds
REST = 15  # seconds in which what is left of a crowd goes: connections, threads, idle workers of Ray
# How often a kind of request comes in twenty.
KINDS = {"whole": 7, "stream": 7, "leaves in the prefill": 2, "leaves the stream": 2, "leaves a whole": 2}
# Who does what in the family of a command, by what its command line holds.
JOBS = {
    "genai_worker": "engine (computes)",
    ENGINE: "engine (replica)",
    "ServeReplica:chat:Ingress": "ingress",
    "ProxyActor": "proxy",
    "ServeController": "controller",
    "gcs_server": "Ray",
    "raylet": "Ray",
    "ray/": "Ray",
    "ray::": "Ray's idle workers",
}


@dataclass(frozen=True)
class Plan:
    """One request: what is asked, and how its client behaves."""

    kind: str
    marker: str
    tokens: int
    moment: float  # 0 to 1; when who leaves does
    long: bool

    def body(self) -> dict:
        """What is sent."""
        story = "the rain came down on the old road and " * (40 if self.long else 1)
        schema = {"type": "string", "pattern": f"^({self.marker} )+$"}
        return {
            "messages": [{"role": "user", "content": f"{self.marker}: {story}"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "marker", "schema": schema}},
            "max_tokens": self.tokens,
            "stream": "stream" in self.kind or ("prefill" in self.kind and self.moment < 0.5),
        }


def plans(requests: int, seed: int) -> Iterator[Plan]:
    """All requests of a run; the same for the same seed."""
    chance = random.Random(seed)
    for _ in range(requests):
        (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
        yield Plan(
            kind,
            marker=f"{chance.getrandbits(32):08x}",
            tokens=chance.randint(12, 40) if kind in ("whole", "stream") else 200,
            moment=chance.random(),
            long="prefill" in kind or chance.random() < 0.02,
        )


@dataclass
class Result:
    """What became of a run."""

    ends: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)  # marker, text

    @property
    def finished(self) -> int:
        """How many requests have ended."""
        return self.ends.total()


async def crowd(address: str, requests: int, seed: int, kill: "Killer | None") -> Result:
    """All requests, of as many clients at a time."""
    coming, result = plans(requests, seed), Result()

    async def client() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=None) as web:
            for plan in coming:
                try:
                    async with asyncio.timeout(DEADLINE):
                        end = await ask(web, plan, result)
                except TimeoutError:
                    end = "hung"
                    result.failures.append(f"No end after {DEADLINE} s: {plan}")
                except Exception as error:  # counted, and the others go on
                    end = "broken"
                    result.failures.append(f"{type(error).__name__}: {error}: {plan}")
                result.ends[end] += 1
                if kill:
                    kill.look(result.finished)
                if result.finished % 100 == 0:
                    print(f"{result.finished} requests, {len(result.failures)} failures", flush=True)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return result


async def ask(web: httpx.AsyncClient, plan: Plan, result: Result) -> str:
    """One request; how it ended."""
    if plan.kind in ("leaves in the prefill", "leaves a whole"):
        with suppress(TimeoutError):
            async with asyncio.timeout(plan.moment * (0.5 if "prefill" in plan.kind else 3)):
                return await hear(web, plan, result)
        return "left"
    return await hear(web, plan, result)


async def hear(web: httpx.AsyncClient, plan: Plan, result: Result) -> str:
    """Listen to the answer."""
    async with web.stream("POST", "/chat/completions", json=plan.body()) as response:
        if response.status_code != 200:
            return await refused(response, result)
        if not plan.body()["stream"]:
            choice = json.loads(await response.aread())["choices"][0]
            return answered(plan, choice["message"]["content"], choice["finish_reason"], result)
        text, reason, last, pieces = "", None, "", 0
        async for line in response.aiter_lines():
            last = line or last
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                return honest(event, "event", result)
            (choice,) = event["choices"]
            text += choice["delta"].get("content") or ""
            reason = choice["finish_reason"] or reason
            pieces += 1
            if plan.kind == "leaves the stream" and pieces > 1 + 10 * plan.moment:
                result.answers.append((plan.marker, text))
                return "left"
    if last != "data: [DONE]":
        raise ConnectionError(f"The stream ended without an end: {last!r}")
    return answered(plan, text, reason, result)


def answered(plan: Plan, text: str, reason: str | None, result: Result) -> str:
    """Take an answer that says that it is whole."""
    if reason not in ("stop", "length") or not text.strip():
        raise ValueError(f"An answer of {text!r}, finished by {reason}")
    result.answers.append((plan.marker, text))
    return "answer"


async def refused(response: httpx.Response, result: Result) -> str:
    """Take a refusal, and wait as long as it says."""
    try:
        body = json.loads(await response.aread())
    except ValueError:
        raise ValueError(f"HTTP {response.status_code}, and no JSON: {response.text[:200]!r}") from None
    end = honest(body, str(response.status_code), result)
    await asyncio.sleep(float(response.headers.get("retry-after", 0)))
    return end


def honest(body: dict, where: str, result: Result) -> str:
    """The name of an error, which must have the one shape."""
    if set(body) != {"error"} or set(body["error"]) != {"message", "type", "param", "code"}:
        raise ValueError(f"An error of another shape: {body}")
    return f"error {where} {body['error']['code']}"


def mistaken(result: Result) -> list[str]:
    """The answers that hold anything but repetitions of their own marker."""
    return [
        f"{own}: {text!r}"
        for own, text in result.answers
        if not ('"' + f"{own} " * 99).startswith(text.strip().removesuffix('"'))
    ]


class Killer:
    """Kills engines of a cluster once so many requests have ended."""

    def __init__(self, process: subprocess.Popen, requests: int, seed: int):
        self._process = process
        self._chance = random.Random(seed)
        self._moments = sorted(self._chance.sample(range(requests // 10, requests * 9 // 10), KILLS))
        self.killed = 0

    def look(self, finished: int) -> None:
        """Kill one, if it is time, and one is there."""
        if not self._moments or finished < self._moments[0]:
            return
        engines = [one for job, one in family(self._process) if job == "engine (replica)"]
        if engines:
            self._moments.pop(0)
            self._chance.choice(engines).kill()
            self.killed += 1
            print(f"An engine is killed after {finished} requests.", flush=True)


def family(process: subprocess.Popen) -> Iterator[tuple[str, psutil.Process]]:
    """The processes of a command, each with its job."""
    yield "command", psutil.Process(process.pid)
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            line = " ".join(child.cmdline())
            yield next((job for word, job in JOBS.items() if word in line), line[:40]), child


Sizes = dict[str, Counter]  # by job; and of all together


def sizes(process: subprocess.Popen) -> Sizes:
    """Processes, threads, open files and memory (bytes that nobody shares)."""
    by_job: Sizes = defaultdict(Counter)
    for job, one in family(process):
        with suppress(psutil.NoSuchProcess):
            own = {"processes": 1, "threads": one.num_threads(), "files": one.num_fds()}
            own["memory"] = one.memory_full_info().uss
            by_job[job].update(own)
            by_job["all"].update(own)
    return by_job


async def fill(address: str, number: int) -> None:
    """Prompts that have nothing in common, so many that a cache fills sooner or later."""

    async def one(web: httpx.AsyncClient, chance: random.Random) -> None:
        words = " ".join(f"{chance.getrandbits(16)}" for _ in range(300))
        body = {"messages": [{"role": "user", "content": words}], "max_tokens": 1}
        (await web.post("/chat/completions", json=body)).raise_for_status()

    async with httpx.AsyncClient(base_url=address, timeout=600) as web:
        await asyncio.gather(*(one(web, random.Random(f"{number} {n}")) for n in range(FILLING)))


def warmed_up(process: subprocess.Popen, address: str, seed: int) -> Sizes:
    """What the command takes when its caches are full and a crowd has been there."""
    asyncio.run(crowd(address, 4 * CLIENTS, -seed, None))
    before = 0
    for number in range(MOST_FILLINGS):
        now = sizes(process)["all"]["memory"]
        print(f"Filling the caches: {now / 1e6:.0f} MB", flush=True)
        if now < before * 1.01:
            break
        before = now
        asyncio.run(fill(address, number))
    time.sleep(REST)
    return sizes(process)


def report(before: Sizes, after: Sizes) -> bool:
    """Print the table; whether anything grew too much."""
    print("\n| | processes | threads | open files | memory, MB |\n|---|---|---|---|---|")
    for job in sorted(before | after):
        cells = [f"{before[job][what]} -> {after[job][what]}" for what in ("processes", "threads", "files")]
        memory = f"{before[job]['memory'] / 1e6:.0f} -> {after[job]['memory'] / 1e6:.0f}"
        print(f"| {job} | {' | '.join(cells)} | {memory} |")
    grown = [w for w in ("threads", "files", "memory") if after["all"][w] > before["all"][w] * LARGEST_GROWTH]
    jobs = [job for job in before | after if job != "Ray's idle workers" and job != "all"]
    other = [job for job in jobs if before[job]["processes"] != after[job]["processes"]]
    for what in (*grown, *other):
        print(f"Not as before: {what}")
    return bool(grown or other)


def main() -> None:
    """Let the crowd in, and print what came of it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", choices=["endpoint", "cluster"])
    parser.add_argument("--model", default=DEFAULT_MODEL, help="as of `python -m serving.api`")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    many = options.what == "cluster"
    words = (*(cluster(2) if many else endpoint()), "--model", options.model)
    with started(*words) as (address, process):
        before = warmed_up(process, address, options.seed)
        killer = Killer(process, options.requests, options.seed) if many else None
        begun = time.monotonic()
        result = asyncio.run(crowd(address, options.requests, options.seed, killer))
        seconds = time.monotonic() - begun
        time.sleep(REST)
        bad = report(before, sizes(process))
        everyone = [one for _, one in family(process)]
        process.send_signal(signal.SIGTERM)
        code = process.wait(DEADLINE)
        _, left = psutil.wait_procs(everyone, timeout=REST)
    others = mistaken(result)
    print(f"\n{options.what}: {result.finished} requests in {seconds:.0f} s, seed {options.seed}")
    print(*(f"- {end}: {number}" for end, number in result.ends.most_common()), sep="\n")
    print(f"- answers looked at: {len(result.answers)}; with words that are not their own: {len(others)}")
    print(f"- engines killed: {killer.killed if killer else 0}; exit code {code}; left: {len(left)}")
    print(*result.failures, *others, sep="\n")
    sys.exit(bool(bad or result.failures or others or code or left))


if __name__ == "__main__":
    main()
