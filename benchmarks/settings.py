"""Which properties make a chat fastest: decoding, a long prompt, and what they change in the predictions.

All settings are loaded side by side and take turns, so that a busy machine slows all alike. The distance is
the mean KL divergence of the next-token distribution from that of the exact mode (32-bit floats everywhere).

Usage: python -m benchmarks.settings [--model NAME] [--precision INT8] [--rounds 5]
"""

import argparse
import statistics
import time

import telemetry

telemetry.turn_off()

import numpy as np
import openvino
import torch
from transformers import AutoTokenizer

import kv_cache
from benchmarks.quality import TEXT
from config import DEFAULT_MODEL, models_dir
from conversion import prepare_model
from kv_cache import PagedModel
from tuning import EXACT, fastest_properties

LONG, NEW = 2000, 32
ONCE = "f32, compiled once"  # and not another time for one token


def settings(capabilities: list[str]) -> dict[str, dict[str, str]]:
    """The settings to compare on a processor with these capabilities, by what they change."""
    plain = {"INFERENCE_PRECISION_HINT": "f32"}
    found = {"f32": plain}
    if "BF16" in capabilities:  # the plugin's own choice there, which `load_model` does not always take
        found["bf16"] = {"INFERENCE_PRECISION_HINT": "bf16"}
    for group in (0, 32, 64, 128):
        found[f"f32, activations in groups of {group}"] = plain | {
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group)
        }
    for cache in ("u8", "f16", "f32"):
        found[f"f32, cache {cache}"] = plain | {"KV_CACHE_PRECISION": cache}
    found["f32, one thread"] = plain | {"INFERENCE_NUM_THREADS": "1"}
    found[ONCE] = plain
    return found


def run(model: PagedModel, ids: list[int]) -> tuple[float, float, float, torch.Tensor]:
    """Milliseconds per token after a short and after the long prompt, seconds for that prompt, logits."""
    started = time.perf_counter()
    logits = [model.infer(ids[:LONG], 0)]
    prompt = time.perf_counter() - started
    rates = []
    for begin in (64, LONG):
        model.infer([ids[begin]], begin)
        started = time.perf_counter()
        for past in range(begin + 1, begin + NEW):
            logits.append(model.infer([ids[past]], past))
        rates.append((time.perf_counter() - started) / (NEW - 1) * 1000)
    return *rates, prompt, torch.from_numpy(np.stack(logits)).log_softmax(-1)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--precision", default="INT8")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    folder = prepare_model(options.model, options.precision, models_dir())
    ids = AutoTokenizer.from_pretrained(folder).encode(TEXT)
    graph = openvino.Core().read_model(folder / "openvino_model.xml")
    usual = fastest_properties(folder, "CPU")
    exact = run(PagedModel(graph, "CPU", usual | EXACT), ids)[-1]
    models = {}
    for title, properties in settings(capabilities).items():
        if title == ONCE:
            kv_cache.SMALL_MODEL = 0
        models[title] = PagedModel(graph, "CPU", usual | properties)
        models[title].settle()
        run(models[title], ids)  # warms up
    results = {title: [] for title in models}
    for _ in range(options.rounds):
        for title, model in models.items():
            results[title].append(run(model, ids))

    print(
        f"{options.model}, {options.precision}, median of {options.rounds}; the CPU offers {capabilities}\n"
    )
    print(f"| | ms a token after 64 | after {LONG} | prompt of {LONG} | KL to the exact mode |")
    print("|---|---|---|---|---|")
    for title, rounds in results.items():
        short, long, prompt = (statistics.median(one[place] for one in rounds) for place in range(3))
        distance = (exact.exp() * (exact - rounds[0][-1])).sum(-1).mean().item()
        print(f"| {title} | {short:.1f} | {long:.1f} | {prompt:.2f} s | {distance:.4f} |")


if __name__ == "__main__":
    main()
