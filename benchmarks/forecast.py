"""How well the forecast of `doctor.py` is met: expected and measured tokens per second, side by side.

What a token costs here is measured before each time that a model is asked. The forecast rests on the fastest
of some passes and an answer on all of its tokens: on a busy machine answers fall behind. Each model has a
process of its own. Prints one table in Markdown, with the best speeds of all rounds.

Usage: python -m benchmarks.forecast [--rounds 5] FOLDER_OF_A_CONVERTED_MODEL ...
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

import telemetry

telemetry.turn_off()

from benchmarks.decoding import SHORT, Contestant
from forecast import LAYERS
from machine import decoding_speed, memory_bandwidth

PRECISIONS = {"FP16": "FP16", "INT8_compressed_weights": "INT8", "INT4_compressed_weights": "INT4"}
NEW = 64


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    print(
        "| model | weights | memory can be read at | expected tokens/s | measured | expected / measured "
        "(range of the rounds) |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    for folder in options.folders:
        precision, expected, measured, readable = PRECISIONS[folder.name], [], [], 0.0
        with ExitStack() as stack:
            model = Contestant(str(folder), "chat", folder)
            model.start(stack)
            model.ask(SHORT, NEW, 1)  # warms up
            for _ in range(options.rounds):
                readable = max(readable, memory_bandwidth())
                expected.append(decoding_speed(precision).tokens_per_second(model.weights(), LAYERS))
                measured.append(model.ask(SHORT, NEW, 1)["rate"])
        ratios = [one / other for one, other in zip(expected, measured, strict=True)]
        name, size = f"{folder.parent.name}, {precision}", f"{model.weights() / 1e9:.2f} GB"
        print(
            f"| {name} | {size} | {readable / 1e9:.0f} GB/s | "
            f"{max(expected):.1f} | {max(measured):.1f} | {max(expected) / max(measured):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
