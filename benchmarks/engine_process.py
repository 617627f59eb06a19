"""What it costs and what it brings that GenAIEngine's pipeline has a process of its own.

Side by side with the same pipeline in this process, on the default model at INT8:

- how long another thread of this process stands still at most, while a prompt is computed; the least of
  three, as whatever else the machine does can only add to it;
- milliseconds a token, for one user and for eight. Rounds of the two alternate; given are the medians, the
  median of the differences within a round with its range, and how long this process works for a token of
  all: a machine that is busy with something else cannot hide that;
- how long a cancelled request goes on, within its prompt and within its reply, in tokens of a reply;
- what it costs to compute a prompt in parts (`genai_worker.PREFILL_CHUNK`), and how long one part takes.

Usage: python -m benchmarks.engine_process [--rounds 10]
"""

import argparse
import itertools
import random
import statistics
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import telemetry

telemetry.turn_off()

import genai_worker
from config import DEFAULT_MODEL, models_dir
from conversion import prepare_model
from genai_engine import CACHE_GIGABYTES, GenAIEngine, generation_options
from genai_process import Request, Settings
from sampling import SamplingParams

PROMPTS = (500, 2000, 7000)
NEW_TOKENS = 100
CHUNKS = (32, 64, 128, 256)
CHANCE = random.Random(0)
NUMBERS = itertools.count(1)

Run = Callable[[list[list[int]], int], None]  # compute a reply of so many tokens to each prompt


def prompt(length: int) -> list[int]:
    """Token ids that no cache holds."""
    return [CHANCE.randrange(1000, 40_000) for _ in range(length)]


def in_this_process(batch: genai_worker.Batch) -> Run:
    """The pipeline as it is."""

    def run(prompts: list[list[int]], new: int) -> None:
        options = generation_options(SamplingParams(temperature=0, max_new_tokens=new))
        for ids in prompts:
            batch.add(Request(next(NUMBERS), array("q", ids), options))
        while batch.busy:
            batch.step()

    return run


def in_its_own(engine: GenAIEngine) -> Run:
    """The engine, each reply read by a thread."""

    def run(prompts: list[list[int]], new: int) -> None:
        sampling = SamplingParams(temperature=0, max_new_tokens=new)
        threads = [
            threading.Thread(target=lambda ids=ids: list(engine.generate(ids, sampling))) for ids in prompts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


@contextmanager
def heartbeat() -> Iterator[list[float]]:
    """The times at which another thread moved, every 2 ms if it can."""
    beats, over = [time.perf_counter()], threading.Event()

    def beat() -> None:
        while not over.wait(0.002):
            beats.append(time.perf_counter())

    thread = threading.Thread(target=beat)
    thread.start()
    yield beats
    over.set()
    thread.join()
    beats.append(time.perf_counter())


def longest_silence(run: Run, length: int) -> float:
    """Seconds between two beats, at most, while a prompt is computed."""
    with heartbeat() as beats:
        run([prompt(length)], 1)
    return max(later - earlier for earlier, later in itertools.pairwise(beats))


def per_token(run: Run, users: int) -> float:
    """Milliseconds from one token to the next; all users' next tokens are computed together."""
    prompts = [prompt(32) for _ in range(users)]
    run(prompts, 1)  # from here on in the cache
    started = time.perf_counter()
    run(prompts, 1)
    begun = time.perf_counter()
    run(prompts, 1 + NEW_TOKENS)
    return (time.perf_counter() - begun - (begun - started)) / NEW_TOKENS * 1000


def compare(runs: dict[str, Run], users: int, rounds: int) -> None:
    """Print what a token takes."""
    times, work = {name: [] for name in runs}, []
    for _ in range(rounds):
        for name, run in runs.items():
            busy = time.process_time()
            times[name].append(per_token(run, users))
        work.append((time.process_time() - busy) / NEW_TOKENS * 1000)  # of the last, the process of its own
    one, other = times.values()
    differences = sorted(b - a for a, b in zip(one, other, strict=True))
    print(
        f"| {users} | "
        + " | ".join(f"{statistics.median(values):.2f} ms" for values in times.values())
        + f" | {statistics.median(differences):+.2f} ms ({differences[0]:+.2f} to {differences[-1]:+.2f}) "
        f"| {statistics.median(work):.2f} ms |",
        flush=True,
    )


def time_to_stop(engine: GenAIEngine, ids: list[int], tokens: int) -> float:
    """Seconds from `close` to when another one is computed for; `tokens` 0: closed within the prompt."""
    stream = engine.generate(ids, SamplingParams(temperature=0, max_new_tokens=1000))
    reader = threading.Thread(target=lambda: [next(stream, None) for _ in range(tokens or 1)])
    reader.start()
    if tokens:
        reader.join()
    else:
        time.sleep(0.5)
    closed = time.perf_counter()
    stream.close()
    reader.join()
    engine.prefill([5])
    seconds = time.perf_counter() - closed
    started = time.perf_counter()
    engine.prefill([6])
    return seconds - (time.perf_counter() - started)


def prefill(settings: Settings, rounds: int) -> None:
    """Print what parts of several sizes cost."""
    batches = {}
    for chunk in CHUNKS:
        genai_worker.PREFILL_CHUNK = chunk
        batches[chunk] = genai_worker.load(settings)[0]
    rates, steps = {chunk: [] for chunk in CHUNKS}, {chunk: [] for chunk in CHUNKS}
    options = generation_options(SamplingParams(temperature=0, max_new_tokens=1))
    for round_number in range(1 + rounds):  # in the first, OpenVINO generates code for these sizes
        for chunk, batch in batches.items():
            batch.add(Request(next(NUMBERS), array("q", prompt(2048)), options))
            times = [time.perf_counter()]
            while batch.busy:
                batch.step()
                times.append(time.perf_counter())
            if round_number == 0:
                continue
            rates[chunk].append(2048 / (times[-1] - times[0]))
            steps[chunk].append(max(b - a for a, b in itertools.pairwise(times)))
    print("\n| tokens in a part | tokens/s of a prompt of 2048 | longest part |\n|---|---|---|")
    for chunk in CHUNKS:
        rate, step = statistics.median(rates[chunk]), statistics.median(steps[chunk])
        print(f"| {chunk} | {rate:.0f} | {step:.3f} s |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    folder = prepare_model(DEFAULT_MODEL, "INT8", models_dir())
    settings = Settings(str(folder), "CPU", {}, CACHE_GIGABYTES)
    engine = GenAIEngine(folder)
    runs = {
        "in this process": in_this_process(genai_worker.load(settings)[0]),
        "in its own": in_its_own(engine),
    }

    print(f"| prompt | {' | '.join(runs)} |\n|---|---|---|\n", end="")
    for length in PROMPTS:
        silences = [
            min(longest_silence(run, length) for _ in range(3 if length < 5000 else 1))
            for run in runs.values()
        ]
        print(f"| {length} tokens | {' | '.join(f'{s:.3f} s' for s in silences)} |", flush=True)

    print(f"\n| users | {' | '.join(runs)} | difference | work here |\n|---|---|---|---|---|")
    for users in (1, 8):
        compare(runs, users, rounds)

    token = per_token(runs["in its own"], 1) / 1000
    print("\n| cancelled within | goes on for | that is, in tokens |\n|---|---|---|")
    for name, ids, tokens in (("the prompt", 7000, 0), ("the reply", 30, 10)):
        seconds = statistics.median(time_to_stop(engine, prompt(ids), tokens) for _ in range(5))
        print(f"| {name} | {seconds:.3f} s | {seconds / token:.1f} |", flush=True)
    engine.close()
    prefill(settings, max(1, rounds // 3))


if __name__ == "__main__":
    main()
