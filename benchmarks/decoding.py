"""Decoding speed side by side: this project's engines, Optimum's `generate`, and peers.

Each contestant has a process of its own (`benchmarks.contestant`) and they take turns, so that a busy machine
slows all alike. Prints one table in Markdown.

Usage: python -m benchmarks.decoding [--rounds 5] [--peers LLAMA_CPP_PYTHON] [--gguf Q8_0=FILE ...]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import telemetry

telemetry.turn_off()

from benchmarks import check
from benchmarks.resident import resident
from config import DEFAULT_MODEL, models_dir
from conversion import prepare_model
from machine import memory_bandwidth, processor
from model_source import fetch_checkpoint

PROJECT = Path(__file__).parent.parent
SHORT, LONG, NEW = 64, 2500, 128
BARE = "infer request alone, INT8"


@dataclass
class Contestant:
    """A process, what it runs and what was measured: tokens per second and first tokens, round by round."""

    title: str
    kind: str
    source: Path  # a folder or a file
    users: int = 1
    python: str = sys.executable
    rates: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    long_firsts: list[float] = field(default_factory=list)
    load: float = 0.0
    memory: tuple[float, float] = (0.0, 0.0)  # resident after the last round, GB: anonymous, mapped files

    def start(self, stack: ExitStack) -> None:
        """Load the model."""
        self.process = stack.enter_context(
            subprocess.Popen(
                [self.python, "-m", "benchmarks.contestant", self.kind, str(self.source)],
                cwd=PROJECT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        stack.callback(self.process.kill)
        self.load = self._answer()["load"]

    def ask(self, prompt: int, new: int, users: int) -> dict:
        """Let it run once."""
        self.process.stdin.write(json.dumps({"prompt": prompt, "new": new, "users": users}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.title} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def weights(self) -> int:
        """Bytes that each token has to read."""
        if self.source.is_file():
            return self.source.stat().st_size
        files = [*self.source.glob("openvino_model.bin")] or [*self.source.glob("*.safetensors")]
        return sum(file.stat().st_size for file in files)

    def run(self, long_prompt: bool) -> None:
        """One round."""
        result = self.ask(SHORT, NEW, self.users)
        self.rates.append(result["rate"])
        self.firsts.append(result["first"])
        if long_prompt:
            self.long_firsts.append(self.ask(LONG, 1, 1)["first"])
        anonymous, mapped, _ = resident(self.process.pid)
        self.memory = anonymous / 1e9, mapped / 1e9


def this_machine() -> str:
    """The processor, its cores and the system, in one line."""
    found = processor()
    return f"{found.name}, {found.cores} cores ({', '.join(found.instructions)}), {platform.system()}"


def chosen(options: argparse.Namespace) -> list[Contestant]:
    """Those that the options ask for; only what they need is converted."""
    candidates = [
        *((f"ChatModel, {precision}", "chat", precision, 1) for precision in ("FP16", "INT8", "INT4")),
        (BARE, "bare", "INT8", 1),
        ("Optimum generate, INT8", "optimum", "INT8", 1),
        ("Optimum generate, INT4", "optimum", "INT4", 1),
        ("ChatModel on GenAIEngine, INT8", "chat_genai", "INT8", 1),
        ("ChatModel on GenAIEngine, INT8, 8 users", "chat_genai", "INT8", 8),
    ]
    if options.peers:
        candidates += [
            ("GenAI LLMPipeline, INT8", "genai_llm", "INT8", 1),
            ("GenAI ContinuousBatching, INT8", "genai_batching", "INT8", 1),
            ("GenAI ContinuousBatching, INT8, 8 users", "genai_batching", "INT8", 8),
            ("PyTorch bfloat16", "pytorch", None, 1),
        ]
    contestants = []
    for title, kind, precision, users in candidates:
        if options.only and not any(part in title for part in options.only):
            continue
        if precision:
            source = prepare_model(options.model, precision, models_dir())
        else:
            source = fetch_checkpoint(options.model)
        contestants.append(Contestant(title, kind, source, users))
    if options.peers:
        for entry in options.gguf:
            title, file = entry.split("=", 1)
            contestants.append(
                Contestant(f"llama.cpp {title}", "llama_cpp", Path(file), python=options.peers)
            )
    return contestants


def save(file: Path, contestants: list[Contestant]) -> None:
    """Write how long a token and the first one take, of what the request alone takes in the same round."""
    bare = next(one for one in contestants if one.title == BARE)
    ratios = {}
    for one in contestants:
        if not one.title.startswith("ChatModel"):
            continue
        seconds = [base / rate for base, rate in zip(bare.rates, one.rates, strict=True)]
        firsts = [first / base for base, first in zip(bare.firsts, one.firsts, strict=True)]
        for what, values in (("each token", seconds), ("first token", firsts)):
            middle = statistics.median(values)
            low, _, high = statistics.quantiles(values, n=4)  # one round of many may be far off
            spread = (high - low) / middle
            ratios[f"{one.title}: {what}"] = {"ratio": middle, "spread": spread}
    check.save(file, ratios)


def add_panel(file: Path, title: str, contestants: list[Contestant]) -> None:
    """Write tokens per second, median and quartiles, as a panel of `docs.draw_speed`."""
    panels = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    rates = {
        one.title: statistics.quantiles(one.rates, n=4)
        for one in contestants
        if one.users == 1 and one.title != BARE  # what nobody uses by itself
    }
    panels[title] = {
        "machine": f"{processor().name}, {processor().cores} cores, {time.strftime('%d %B %Y')}",
        "tokens_per_second": {name: [round(value, 1) for value in each] for name, each in rates.items()},
    }
    file.write_text(json.dumps(panels, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--peers", help="the Python interpreter of an environment with llama-cpp-python")
    parser.add_argument("--gguf", nargs="*", default=[], help="files for llama.cpp, as TITLE=FILE")
    parser.add_argument("--no-long-prompt", action="store_true")
    parser.add_argument("--save", type=Path, help="write the ratios as JSON, for `benchmarks.check`")
    parser.add_argument("--panel", nargs=2, metavar=("FILE", "TITLE"), help="write the rates for a picture")
    parser.add_argument("--only", nargs="*", help="run contestants whose titles contain one of these")
    options = parser.parse_args()
    contestants = chosen(options)
    with ExitStack() as stack:
        for contestant in contestants:
            contestant.start(stack)
            contestant.run(long_prompt=False)  # warms up
            contestant.rates.clear()
            contestant.firsts.clear()
        readable = 0.0
        for number in range(options.rounds):
            readable = max(readable, memory_bandwidth())  # each time, as it depends on the neighbours
            for contestant in contestants:
                contestant.run(long_prompt=not options.no_long_prompt and number < 3)
    reference = next((one for one in contestants if one.title == "ChatModel, INT8"), contestants[0])
    print(f"{options.model}, {SHORT} prompt and {NEW} new tokens, median of {options.rounds} rounds")
    print(this_machine())
    print(f"load average {os.getloadavg()[0]:.1f}; memory can be read at {readable / 1e9:.1f} GB/s\n")
    print(
        f"| | tokens/s | relative to {reference.title} (range) | weights read, share of the memory's speed | "
        f"first token | first token of {LONG} | loading | memory, anonymous + mapped files |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for one in contestants:
        ratios = [rate / base for rate, base in zip(one.rates, reference.rates, strict=True)]
        long_first = f"{statistics.median(one.long_firsts):.2f} s" if one.long_firsts else ""
        rate = statistics.median(one.rates)
        share = f"{rate * one.weights() / readable:.0%}" if one.users == 1 else ""
        print(
            f"| {one.title} | {rate:.1f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {share} | {statistics.median(one.firsts):.2f} s | "
            f"{long_first} | {one.load:.1f} s | {one.memory[0]:.2f} + {one.memory[1]:.2f} GB |"
        )
    if options.panel:
        add_panel(Path(options.panel[0]), options.panel[1], contestants)
    if options.save:
        save(options.save, contestants)


if __name__ == "__main__":
    main()
