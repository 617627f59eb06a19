"""What endpoint and cluster cost, and what it is worth that a conversation stays with its replica.

On the default model at INT8, side by side:

- endpoint: `serving.api` against `ChatModel.stream` in this process, one user and eight;
- cluster: one replica against the endpoint, the same;
- replicas: two of one thread against one of two, 16 users at once, with the memory of each;
- conversations: of ten turns, 32 at once, on two replicas: what share of the prompts was in the cache, and
  seconds to the first token in turn ten. Consistent hashing, Ray Serve's own router, and one replica alone,
  each beside what `benchmarks.fleet` foretells from the times of a replica of that cluster;
- times: of a replica, the only one of a cluster, written to where `benchmarks.fleet` reads them.

Of what stays the same rounds alternate, and the median of the quotients within a round is given.

Usage: python -m benchmarks.serving [endpoint] [cluster] [replicas] [conversations] [times]
           [--rounds 5] [--users 32]
"""

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path

import psutil

import telemetry

telemetry.turn_off()

from benchmarks import fleet, replica_times
from chat import Chat, ReplyStats
from config import DEFAULT_MODEL, models_dir
from conversion import prepare_model
from open_chat import chat_on_folder
from sampling import SamplingParams
from serving.client import RemoteChatModel
from serving.receiving import BrokenOff

ROOT = Path(__file__).parents[1]
NEW_TOKENS = 128
ENGINE = "ray::ServeReplica:chat:Engine"  # how Ray calls the process
NUMBERS = count(1)
SUBJECTS = "a walk in the rain", "an old lighthouse", "the first snow", "a lost letter", "a long train ride"
START = "from benchmarks.serving import with_rays_router; with_rays_router()"


@contextmanager
def started(*words: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """A command of `serving` on a free port, and its address; nothing of it stays."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, *words, "--port", port], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        if not process.stdout.readline().startswith("Ready"):
            sys.exit(f"{' '.join(words)} did not start.")
        yield address, process
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait()
            for child in family:
                with suppress(psutil.NoSuchProcess):
                    child.kill()


@contextmanager
def server(*words: str) -> Iterator[tuple[RemoteChatModel, subprocess.Popen]]:
    """The same, and a chat behind it."""
    with started(*words) as (address, process), closing(RemoteChatModel(address)) as chat:
        yield chat, process


def with_rays_router() -> None:
    """`serving.cluster`, but with the router that Ray Serve takes by itself."""
    from serving import cluster

    cluster.set_environment()

    from ray.serve.config import RequestRouterConfig

    from serving import replicas

    replicas.ROUTER = RequestRouterConfig().request_router_class
    cluster.main(sys.argv[1:])


def endpoint() -> tuple[str, ...]:
    """The words of the endpoint's command."""
    return ("-m", "serving.api")


def cluster(replicas: int, own_router: bool = False) -> tuple[str, ...]:
    """Those of the cluster's."""
    return (*(("-c", START) if own_router else ("-m", "serving.cluster")), "--replicas", str(replicas))


def ask(chat: Chat, messages: list[dict], new: int = NEW_TOKENS) -> tuple[str, ReplyStats]:
    """A greedy answer and what it cost; asked for again where the queue was full."""
    while True:
        stream = chat.stream(messages, SamplingParams(temperature=0, max_new_tokens=new))
        try:
            return "".join(stream), stream.stats
        except BrokenOff:
            raise
        except ConnectionError:
            time.sleep(0.1)


def together(chat: Chat, users: int) -> tuple[float, float]:
    """Median seconds to the first token, and tokens per second of all users together."""

    def one(number: int) -> ReplyStats:
        subject = SUBJECTS[number % len(SUBJECTS)]
        return ask(chat, [{"role": "user", "content": f"{number}. Write a long story about {subject}."}])[1]

    started = time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        stats = list(pool.map(one, [next(NUMBERS) for _ in range(users)]))
    seconds = time.perf_counter() - started
    firsts = [each.time_to_first_token for each in stats]
    return statistics.median(firsts), sum(each.new_tokens for each in stats) / seconds


def compare(old: Chat, new: Chat, names: tuple[str, str], rounds: int) -> None:
    """Print tokens per second and seconds to the first token of both, for one user and for eight."""
    print(f"\n| | {names[0]} | {names[1]} | quotient or difference |\n|---|---|---|---|")
    for users in (1, 8):
        runs = []
        for turn in range(rounds + 1):  # the first one warms up
            both = (old, new) if turn % 2 else (new, old)
            by_chat = {id(chat): together(chat, users) for chat in both}
            runs.append((by_chat[id(old)], by_chat[id(new)]))
        runs = runs[1:]
        a, b = (statistics.median(run[place][1] for run in runs) for place in (0, 1))
        share = statistics.median(run[1][1] / run[0][1] for run in runs)
        print(f"| {users} users, tokens/s | {a:.1f} | {b:.1f} | {share:.3f} |")
        a, b = (statistics.median(run[place][0] for run in runs) for place in (0, 1))
        later = statistics.median(run[1][0] - run[0][0] for run in runs)
        print(f"| {users} users, first token | {a:.3f} s | {b:.3f} s | {1000 * later:+.0f} ms |", flush=True)


def measure_endpoint(options: argparse.Namespace) -> None:
    """The endpoint against the chat in this process."""
    folder = prepare_model(DEFAULT_MODEL, models_dir=models_dir())
    with (
        closing(chat_on_folder(folder, DEFAULT_MODEL, engine="genai")) as here,
        server(*endpoint()) as (there, _),
    ):
        compare(here, there, ("in process", "endpoint"), options.rounds)


def measure_cluster(options: argparse.Namespace) -> None:
    """A cluster of one replica against the endpoint."""
    with server(*endpoint()) as (one, _), server(*cluster(1)) as (many, _):
        compare(one, many, ("endpoint", "cluster of one"), options.rounds)


def measure_replicas(options: argparse.Namespace) -> None:
    """Two replicas that share the cores against one that has them all."""
    print("\n| replicas | 16 users, tokens/s | first token | memory of each engine |\n|---|---|---|---|")
    for replicas in (1, 2):
        with server(*cluster(replicas)) as (chat, process):
            together(chat, 16)
            runs = [together(chat, 16) for _ in range(options.rounds)]
            rate, first = (statistics.median(run[place] for run in runs) for place in (1, 0))
            sizes = " and ".join(f"{size / 1e9:.2f} GB" for size in memory(process))
        print(f"| {replicas} | {rate:.1f} | {first:.2f} s | {sizes} |", flush=True)


def memory(process: subprocess.Popen) -> list[float]:
    """Bytes that each engine has for itself, with the process that computes for it."""
    family = psutil.Process(process.pid).children(recursive=True)
    engines = [child for child in family if ENGINE in " ".join(child.cmdline())]
    return [
        sum(one.memory_full_info().uss for one in [engine, *engine.children(recursive=True)])
        for engine in engines
    ]


def converse(chat: Chat, number: int, turns: int) -> list[ReplyStats]:
    """A conversation, of which no other has the beginning."""
    messages, all_stats = [], []
    for turn in range(turns):
        subject = SUBJECTS[(number + turn) % len(SUBJECTS)]
        messages.append({"role": "user", "content": f"{number}.{turn} Tell me a story about {subject}."})
        text, stats = ask(chat, messages, new=48)
        messages.append({"role": "assistant", "content": text})
        all_stats.append(stats)
    return all_stats


def measure_conversations(options: argparse.Namespace) -> None:
    """What of the prompts is found in the caches, by router; and what the simulation foretells."""
    contestants: list[tuple[str, tuple[str, ...], int, str]] = [
        ("one replica alone", cluster(1), 1, "consistent hashing"),
        ("two, Ray Serve's own router", cluster(2, own_router=True), 2, "random"),
        ("two, consistent hashing", cluster(2), 2, "consistent hashing"),
    ]
    times: dict[int, fleet.Times] = {}
    print(
        "\n| | cached | last turn: first token | tokens/s | foretold: cached | first token | tokens/s |"
        "\n|---|---|---|---|---|---|---|"
    )
    for title, words, replicas, router in contestants:
        with server(*words) as (chat, _):
            if replicas not in times:  # two get equal shares of what is measured from Ray's own router
                times[replicas] = replica_times.measure(chat, replicas)
                print(times[replicas], file=sys.stderr)
            started = time.perf_counter()
            with ThreadPoolExecutor(options.users) as pool:
                talks = list(
                    pool.map(lambda n, chat=chat: converse(chat, n, options.turns), range(options.users))
                )
            seconds = time.perf_counter() - started
        stats = [each for talk in talks for each in talk]
        prompts, news = sum(s.prompt_tokens for s in stats), sum(s.new_tokens for s in stats)
        share = sum(s.reused_tokens or 0 for s in stats) / prompts
        last = statistics.median(talk[-1].time_to_first_token for talk in talks)
        shared = min(s.reused_tokens or 0 for s in stats)  # the system prompt
        own = [talk[-1].prompt_tokens - sum(s.new_tokens for s in talk[:-1]) - shared for talk in talks]
        load = fleet.Workload(
            sessions=options.users // replicas,
            turns=options.turns,
            system=shared,
            question=round(statistics.mean(own) / options.turns),
            answer=round(news / len(stats)),
            think=0,
            life=0,
            varied=False,
            followed=False,
        )
        told = [fleet.simulate(times[replicas], load, replicas, router, seed=seed) for seed in range(9)]
        cached, first, rate = (
            statistics.median(values)
            for values in zip(
                *((one.cache_share, fleet.middle(one.last_turn), one.tokens / one.seconds) for one in told),
                strict=True,
            )
        )
        print(
            f"| {title} | {share:.1%} | {last:.2f} s | {news / seconds:.1f} "
            f"| {cached:.1%} | {first:.2f} s | {rate:.1f} |",
            flush=True,
        )


def measure_times(options: argparse.Namespace) -> None:
    """What a replica needs, for `benchmarks.fleet`."""
    with server(*cluster(1)) as (chat, _):
        times = replica_times.measure(chat)
    fleet.TIMES.write_text(json.dumps(asdict(times), indent=2) + "\n", encoding="utf-8")
    print(times)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "endpoint": measure_endpoint,
    "cluster": measure_cluster,
    "replicas": measure_replicas,
    "conversations": measure_conversations,
    "times": measure_times,
}


def main() -> None:
    """Measure the parts that are asked for, or all."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="(default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, default=32, help="conversations at once (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=10, help="of each (default: %(default)s)")
    options = parser.parse_args()
    for part in options.parts or PARTS:
        PARTS[part](options)


if __name__ == "__main__":
    main()
