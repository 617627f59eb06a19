"""Many visitors at once, and not all of them polite: does the chat page answer them all, and stay as it was?

Eight clients, in a process of their own, ask one question after another. Some answers are stopped, some
clients go away in the middle of one, some go back and ask otherwise. The page then has no more threads than
after the warm-up and hardly more memory, and no request has failed. Ends with 1 where that is not so.

With --restart the server is closed and opened again in the middle: what that cuts off is asked once more.
That leaves the closed page in FastAPI's caches (of the last 4096 routes), which is not counted as growth:
after a restart by hand it would have gone with its process.

Usage: python -m benchmarks.soak [--engine optimum|genai] [--requests 500] [--restart]
"""

import argparse
import gc
import random
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from urllib.parse import urlsplit

import telemetry

telemetry.turn_off()

import httpx
from gradio_client import Client

from benchmarks.resident import resident

CLIENTS = 8
# What fills caches, pools and the sessions that the server remembers: so many requests, and as many again as
# long as the memory grows by more than 1 % (GenAIEngine has a KV cache of 2 GB to fill).
WARM_UP, MOST_WARM_UPS = 300, 15
LARGEST_GROWTH = 2  # percent
CLOSED_PAGE = 12  # MB
PATIENCE = 60  # seconds until a server that was restarted answers again
MIDDLE = 15  # seconds after which it is restarted
IDLE = 11  # seconds; after 10 without work the server's threads may end
QUESTIONS = (
    "What is the capital of France?",
    "Tell me a fairy tale in one sentence.",
    "Count from one to ten. " * 20,
    "Why?",
)
KINDS = {"answer": 5, "stop": 2, "leave": 1, "edit": 2}  # how often one comes in ten requests


def visit(address: str, requests: int, seed: int, patience: float) -> tuple[Counter, list[str]]:
    """One client's requests: how many of each kind, and what failed.

    With patience (seconds), what failed is asked once more as soon as the server is there again.
    """
    chance = random.Random(seed)
    made, failures = Counter(), []
    client = Client(address, verbose=False)
    for _ in range(requests):
        (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
        question, tokens, moment = chance.choice(QUESTIONS), chance.randint(1, 24), chance.random()
        made[kind] += 1
        for attempt in (1, 2):
            try:
                if kind == "leave":
                    listen(address, question, tokens, moment)
                    break
                if kind == "edit" or attempt == 2:  # what was said before is gone
                    client.close()
                    client = Client(address, verbose=False)
                job = client.submit(question, max_new_tokens=tokens, api_name="/chat")
                if kind == "stop":
                    time.sleep(moment)
                    job.cancel()
                    while not job.done():  # gradio_client would cancel what is asked before that, too
                        time.sleep(0.01)
                elif not job.result(timeout=300).strip():
                    failures.append(f"{kind}: an empty answer to {question!r}")
                break
            except Exception as error:  # reported in the end, and the others go on
                if not patience or attempt == 2:
                    failures.append(f"{kind}: {type(error).__name__}: {error}")
                    break
                made["asked once more"] += 1
                wait_for_server(address, patience)
    client.close()
    return made, failures


def wait_for_server(address: str, seconds: float) -> None:
    """Wait until the page answers again, but not longer than so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            httpx.get(address)
            return
        except httpx.TransportError:
            time.sleep(0.2)


def listen(address: str, question: str, tokens: int, seconds: float) -> None:
    """Ask, and close the connection with the first part of the answer that comes after `seconds`."""
    url = f"{address}gradio_api/call/chat"
    with httpx.Client(timeout=300) as web:
        values = [question, "", 0.1, 1, 50, 1.1, 0, "", tokens, ""]
        event = web.post(url, json={"data": values}).raise_for_status().json()["event_id"]
        with web.stream("GET", f"{url}/{event}") as answer:
            until = time.monotonic() + seconds
            for _ in answer.iter_lines():
                if time.monotonic() > until:
                    return


def crowd(address: str, requests: int, seed: int, patience: float = 0) -> tuple[Counter, list[str]]:
    """All clients' requests."""
    shares = [len(range(client, requests, CLIENTS)) for client in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        seeds = range(seed * CLIENTS, (seed + 1) * CLIENTS)
        results = list(pool.map(visit, [address] * CLIENTS, shares, seeds, [patience] * CLIENTS))
    return sum((made for made, _ in results), Counter()), [line for _, lines in results for line in lines]


def at_rest(address: str) -> tuple[int, float]:
    """Threads and anonymous memory (MB) of this process and the engine's, when idle but for a few answers."""
    for _ in range(3):  # each ends the threads that were idle before it
        time.sleep(IDLE)
        listen(address, "Why?", 2, seconds=300)
    time.sleep(1)
    gc.collect()
    anonymous, _, threads = resident("self")
    return threads, anonymous / 1e6


def main() -> None:
    """Serve the default model, let the crowd in, and print what came of it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--engine", default="optimum", choices=["optimum", "genai"])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--restart", action="store_true", help="restart the server in the middle")
    options = parser.parse_args()

    # Not at the top: the clients' process imports this module and needs none of them.
    import conversion
    from chat_ui import build_ui, launch_ui
    from config import DEFAULT_MODEL, models_dir
    from open_chat import chat_on_folder

    folder = conversion.prepare_model(DEFAULT_MODEL, "INT8", models_dir())
    chat = chat_on_folder(folder, DEFAULT_MODEL, engine=options.engine)
    ui = build_ui(chat)
    address = launch_ui(ui)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as clients:
        failures, memory, before = [], 1, 0
        for round_number in range(MOST_WARM_UPS):
            if memory < before * 1.01:
                break
            before = memory
            failed = clients.submit(crowd, address, WARM_UP, round_number).result()[1]
            threads, memory = at_rest(address)
            print(f"{WARM_UP} requests to warm up: {memory:.0f} MB, {len(failed)} failures", flush=True)
            print("".join(f"{line}\n" for line in failed), end="")
            failures += failed
        started = time.monotonic()
        patience = PATIENCE if options.restart else 0
        crowding = clients.submit(crowd, address, options.requests, MOST_WARM_UPS, patience)
        if options.restart:
            time.sleep(MIDDLE)
            ui.close()
            ui = build_ui(chat)
            launch_ui(ui, port=urlsplit(address).port)
        made, more_failures = crowding.result()
        seconds = time.monotonic() - started
        threads_after, memory_after = at_rest(address)

        failures += more_failures
        closed = CLOSED_PAGE if options.restart else 0
        growth = ((memory_after - closed) / memory - 1) * 100
        kinds = ", ".join(f"{number} {kind}" for kind, number in made.items())
        print(
            f"{options.engine}: {options.requests} requests ({kinds}) in {seconds:.0f} s, "
            f"{len(failures)} failures"
        )
        print(f"Threads: {threads} before, {threads_after} after")
        print(
            f"Memory: {memory:.0f} MB before, {memory_after:.0f} MB after, "
            f"{closed} of them a closed page ({growth:+.1f} %)"
        )
        print(*more_failures, sep="\n", flush=True)
        ui.close()  # before the clients' process can end: its threads listen as long as there is a server
        chat.close()
    sys.exit(bool(failures) or threads_after > threads or growth >= LARGEST_GROWTH)


if __name__ == "__main__":
    main()
