"""What zero points bring and cost: decoding with and without them, side by side, and the distance from FP16.

The distance is the mean KL divergence of the next-token distribution from FP16 computed in 32 bits; beside it
stands at how many places the most probable token is FP16's.

Usage: python -m benchmarks.zero_points [--model NAME] [--rounds 9]
"""

import argparse
import statistics
import time

import telemetry

telemetry.turn_off()

import numpy as np
import openvino
import torch

from benchmarks.decoding import this_machine
from benchmarks.quality import TEXT
from chat_tokenizer import open_tokenizer
from compression import SETTINGS, compress_as
from config import DEFAULT_MODEL, models_dir
from conversion import prepare_model
from kv_cache import PagedModel
from quiet import quiet_libraries
from tuning import EXACT, fastest_properties

PROMPT, NEW = 64, 64
SEEN = 512  # tokens of the text that the distance is taken over
OTHERS = {  # what differs from `compression.SETTINGS`
    "INT8": {"INT8 without zero points": {"mode": "INT8_SYM"}},
    "INT4": {
        "INT4 without zero points, groups of 64": {"group_size": 64},
        "INT4 with zero points, groups of 64": {"mode": "INT4_ASYM", "group_size": 64},
        "INT4 with zero points, groups of 32": {"mode": "INT4_ASYM"},
    },
}


def milliseconds_per_token(model: PagedModel, ids: list[int]) -> float:
    """After a prompt that is in the cache already."""
    started = time.perf_counter()
    for past in range(PROMPT, PROMPT + NEW):
        model.infer([ids[past]], past)
    return (time.perf_counter() - started) / NEW * 1000


def predicted(model: PagedModel, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token, [tokens, vocabulary], computed token by token."""
    logits = [model.infer([token], past) for past, token in enumerate(ids[:SEEN])]
    return torch.from_numpy(np.stack(logits)).log_softmax(-1)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    folders = {name: prepare_model(options.model, name, models_dir()) for name in ("FP16", *OTHERS)}
    ids = open_tokenizer(folders["FP16"]).encode(TEXT)

    def loaded(properties: dict[str, str], settings: dict[str, object] | None) -> PagedModel:
        with quiet_libraries():
            graph = openvino.Core().read_model(folders["FP16"] / "openvino_model.xml")
            if settings:
                graph = compress_as(graph, settings)
        model = PagedModel(graph, "CPU", properties)
        model.settle()
        return model

    exact = predicted(loaded(EXACT, None), ids)
    models = {}
    for precision, others in OTHERS.items():
        properties = fastest_properties(folders[precision], "CPU")
        for title, changes in {precision: {}, **others}.items():
            models[title] = loaded(properties, SETTINGS[precision] | changes)
    distances = {}
    for title, model in models.items():
        found = predicted(model, ids)
        distance = (exact.exp() * (exact - found)).sum(-1).mean().item()
        agreement = (exact.argmax(-1) == found.argmax(-1)).float().mean().item()
        distances[title] = f"{distance:.4f} | {agreement:.0%}"
    times = {title: [] for title in models}
    for _ in range(options.rounds):
        for title, model in models.items():
            times[title].append(milliseconds_per_token(model, ids))

    print(f"{options.model}, {options.rounds} rounds, on {this_machine()}\n")
    print("| | ms a token | of the time of the usual (range) | mean KL to FP16 | most probable is FP16's |")
    print("|---|---|---|---|---|")
    for title in models:
        usual = times[title.split()[0]]
        ratios = [one / base for one, base in zip(times[title], usual, strict=True)]
        print(
            f"| {title} | {statistics.median(times[title]):.2f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {distances[title]} |"
        )


if __name__ == "__main__":
    main()
