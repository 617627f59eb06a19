"""Time to first token in each turn of one long conversation, with and without the cache of the turns before.

Also: what a message of several lengths costs on a cache of 2000 tokens, beside the whole prompt anew; and
how far a prediction on a cache that grew turn by turn is from one on a prompt computed at once (mean KL
divergence), beside the distance of two plain ways to compute that prompt. They are not 0, as the cache holds
fewer bits and activations are quantized in groups; see the tests for the mode in which they are.

Usage: python -m benchmarks.conversation [--engine optimum] [--turns 20] [--rounds 3]
"""

import argparse
import statistics
import time
from pathlib import Path

import telemetry

telemetry.turn_off()

import torch
from transformers import AutoTokenizer

from chat import ChatModel, SamplingParams
from config import DEFAULT_MODEL, get_model_config, models_dir
from conversion import prepare_model
from engine import PREFILL_CHUNK, OptimumEngine
from genai_engine import GenAIEngine
from kv_cache import PagedModel

QUESTION = "And what did the old sailor tell the children about island number {} on that day?"
REPLY_TOKENS = 70  # with the question and the template about 100 tokens a turn


def time_turns(chat: ChatModel, turns: int, reuse: bool, run: int = 0) -> list[tuple[int, float]]:
    """For each turn, tokens of the prompt and seconds to the first token of the reply.

    Without reuse the system prompt is another one in each turn and run, so that nothing after it is cached.
    """
    sampling = SamplingParams(temperature=0, max_new_tokens=REPLY_TOKENS)
    history, results = [], []
    for turn in range(1, turns + 1):
        system = "You tell stories about the sea." if reuse else f"{run + 1}{turn:02} stories about the sea."
        question = {"role": "user", "content": QUESTION.format(turn)}
        stream = chat.stream([{"role": "system", "content": system}, *history, question], sampling)
        history += [question, {"role": "assistant", "content": "".join(stream)}]
        results.append((stream.stats.prompt_tokens, stream.stats.time_to_first_token))
    return results


def divergence(model: PagedModel, ids: list[int]) -> tuple[float, float]:
    """Mean KL divergence of a cache that grew turn by turn, and of a prompt computed in two pieces."""

    def log_probabilities(new_ids: list[int], past: int) -> torch.Tensor:
        return torch.from_numpy(model.infer(new_ids, past)).log_softmax(-1)

    totals = range(100, len(ids), 100)
    turns, cached = [], 0
    for total in totals:
        for past in range(cached, total - 25):  # the reply, token by token, and then the next question
            model.infer([ids[past]], past)
        turns.append(log_probabilities(ids[total - 25 : total], total - 25))
        cached = total
    grown, pieces = [], []
    for total, turn in zip(totals, turns, strict=True):
        plain = log_probabilities(ids[:total], 0)
        model.infer(ids[: total // 2], 0)
        halves = log_probabilities(ids[total // 2 : total], total // 2)
        for distances, other in ((grown, turn), (pieces, halves)):
            distances.append((plain.exp() * (plain - other)).sum().item())
    return statistics.mean(grown), statistics.mean(pieces)


def long_messages(model: PagedModel, ids: list[int], rounds: int) -> None:
    """Print the seconds to compute a message on a cache of 2000 tokens, and to compute all of it anew."""
    print("\n| new tokens on 2000 cached | with the cache | without | ratio |")
    print("|---|---|---|---|")
    for new in (16, 64, 256, 1000):
        times = {2000: [], 0: []}
        for _ in range(rounds):
            for past in (0, 2000):  # the second finds what the first has cached
                started = time.perf_counter()
                for begin in range(past, 2000 + new, PREFILL_CHUNK):
                    model.infer(ids[begin : min(begin + PREFILL_CHUNK, 2000 + new)], begin)
                times[past].append(time.perf_counter() - started)
        kept, anew = (statistics.median(times[past]) for past in (2000, 0))
        print(f"| {new} | {kept:.2f} s | {anew:.2f} s | {anew / kept:.1f} |")


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["optimum", "genai"], nargs="*", default=["optimum", "genai"])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = prepare_model(DEFAULT_MODEL, "INT8", models_dir())
    for name in options.engine:
        engine = GenAIEngine(folder) if name == "genai" else OptimumEngine.from_folder(folder)
        engine.settle()
        chat = ChatModel(engine, AutoTokenizer.from_pretrained(folder), get_model_config(DEFAULT_MODEL))
        chat.end_ids = frozenset()  # replies of the same length
        time_turns(chat, 2, reuse=True)  # warms up
        rounds = [
            [time_turns(chat, options.turns, reuse, run) for reuse in (True, False)]
            for run in range(options.rounds)
        ]
        print(f"\n{name}: seconds to the first token, best of {options.rounds}\n")
        print("| turn | prompt tokens | with the cache | without | ratio |")
        print("|---|---|---|---|---|")
        table = []
        for turn in range(options.turns):
            kept, anew = (min(timed[way][turn][1] for timed in rounds) for way in (0, 1))
            table.append(kept)
            print(f"| {turn + 1} | {rounds[0][0][turn][0]} | {kept:.3f} | {anew:.3f} | {anew / kept:.1f} |")
        if name == "optimum":
            text = Path(__file__).with_name("quality_text.txt").read_text(encoding="utf-8")
            ids = chat.tokenizer.encode(text)
            long_messages(engine._model, ids, options.rounds)
            grown, pieces = divergence(engine._model, ids[:2000])
            print(f"\nmean KL divergence: grown cache {grown:.4f}, prompt in two pieces {pieces:.4f}")
        print(f"\nturn {options.turns} against turn 2, with the cache: {table[-1] / table[1]:.2f}")


if __name__ == "__main__":
    main()
