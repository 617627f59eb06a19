"""The second start, side by side: how long until the page is served, and until the first token of an answer.

Beside it what no start can be faster than: importing Gradio, and loading the model in OpenVINO GenAI. Each is
a process of its own and they take turns, so that a busy machine slows all alike. Prints a table in Markdown,
and with --save writes the ratios as JSON for `benchmarks.check`.

Usage: python -m benchmarks.start [--rounds 5] [--save FILE]
"""

import argparse
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import telemetry

telemetry.turn_off()

import httpx

from benchmarks import check
from config import DEFAULT_MODEL, models_dir
from conversion import prepare_model
from machine import processor

PROJECT = Path(__file__).parent.parent
ASK = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temperature": 0, "stream": True}


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def seconds(command: list[str]) -> dict[str, float]:
    """How long a program takes from its start to its end."""
    started = time.perf_counter()
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    return {"whole": time.perf_counter() - started}


def page(*options: str) -> dict[str, float]:
    """Start the page; until it is served, and until the first token of a question asked at that moment."""
    from gradio_client import Client

    def ask(address: str) -> None:
        client = Client(address, verbose=False, analytics_enabled=False)
        client.predict(message="Hi", max_new_tokens=1, temperature=0, api_name="/chat")

    return served(["chat_ui.py", *options], "/", ask)


def endpoint(*options: str) -> dict[str, float]:
    """The same of the endpoint."""

    def ask(address: str) -> None:
        waiting = httpx.Client(timeout=120)
        while waiting.get(f"{address}/health").status_code != 200:
            time.sleep(0.02)
        with waiting.stream("POST", f"{address}/v1/chat/completions", json=ASK) as answer:
            next(answer.iter_lines())

    return served(["-m", "serving.api", *options], "/health", ask)


def served(command: list[str], path: str, ask: Callable[[str], None]) -> dict[str, float]:
    """Start a server, wait until it answers at all, ask one question, and end it."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    started = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, *command, "--port", str(port)],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                httpx.get(address + path)
                break
            except httpx.TransportError:
                if server.poll() is not None:
                    raise RuntimeError(f"{command} ended with {server.returncode}") from None
                time.sleep(0.02)
        there = time.perf_counter() - started
        ask(address)
        return {"served": there, "first token": time.perf_counter() - started}
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", type=Path, help="a JSON file for the ratios")
    options = parser.parse_args()
    folder = prepare_model(DEFAULT_MODEL, "INT8", models_dir())
    load = f"import openvino_genai; openvino_genai.LLMPipeline({str(folder)!r}, 'CPU')"
    contestants = {
        "import gradio": lambda: seconds([sys.executable, "-c", "import gradio"]),
        "GenAI's LLMPipeline, loaded": lambda: seconds([sys.executable, "-c", load]),
        "page": page,
        "page, --engine genai": lambda: page("--engine", "genai"),
        "endpoint (genai)": endpoint,
        "endpoint, --engine optimum": lambda: endpoint("--engine", "optimum"),
    }
    times: dict[str, dict[str, list[float]]] = {title: {} for title in contestants}
    for _ in range(options.rounds):
        for title, run in contestants.items():
            for moment, value in run().items():
                times[title].setdefault(moment, []).append(value)
    median = {
        title: {moment: statistics.median(values) for moment, values in moments.items()}
        for title, moments in times.items()
    }
    gradio, genai = (median[title]["whole"] for title in list(contestants)[:2])
    print(f"{processor().name}; {options.rounds} rounds in turns, medians in seconds\n")
    print("| | served | first token | goal: served | goal: first token |\n|---|---|---|---|---|")
    ratios = {}
    for title, moments in median.items():
        if "whole" in moments:
            print(f"| {title} | {moments['whole']:.2f} | | | |")
            continue
        base = max(gradio, genai) if title.startswith("page") else genai
        goals = 1.3 * (gradio if title.startswith("page") else genai) + 0.5, 1.3 * base + 1
        print(
            f"| {title} | {moments['served']:.2f} | {moments['first token']:.2f} "
            f"| {goals[0]:.2f} | {goals[1]:.2f} |"
        )
        spread = [
            (max(times[title][moment]) - min(times[title][moment])) / moments[moment] for moment in moments
        ]
        for moment, width in zip(moments, spread, strict=True):
            ratios[f"{title}: {moment}"] = {"ratio": moments[moment] / base, "spread": width}
    if options.save:
        check.save(options.save, ratios)


if __name__ == "__main__":
    main()
