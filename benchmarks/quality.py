"""What compression costs: each precision's distance from FP16, and its perplexity, on a text of our own.

Each is computed as `load_model` has it on this machine, so that what is not due to the weights counts too,
and compared with FP16 weights and 32-bit floats everywhere. The distance is the KL divergence between the two
next-token distributions, averaged over the text; 0 means the same. Perplexity is the exponential of the mean
negative log-likelihood (Jelinek et al., 1977). `--int4` compresses the FP16 model with several INT4 settings
instead and prints what each costs and how large it is; those that look at data see the first half of the
text, and all are measured on the second.

Usage: python -m benchmarks.quality [--model NAME] [--int4]
"""

import argparse
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import telemetry

telemetry.turn_off()

import numpy as np
import openvino
import torch
from transformers import AutoTokenizer

from compression import SETTINGS, compress_as
from config import DEFAULT_MODEL, models_dir
from conversion import prepare_model
from quiet import quiet_libraries
from tuning import EXACT, fastest_properties

TEXT = Path(__file__).with_name("quality_text.txt").read_text(encoding="utf-8")
WINDOW = 512  # tokens that are computed together, from an empty cache

INT4_SETTINGS = {  # what differs from `compression.SETTINGS`
    "groups of 32": {},
    "groups of 64": {"group_size": 64},
    "groups of 32, zero points": {"mode": "INT4_ASYM"},
    "groups of 64, zero points": {"mode": "INT4_ASYM", "group_size": 64},
    "groups of 32, a fifth of the weights at INT8": {"ratio": 0.8},
    "groups of 32, AWQ without data": {"awq": True},
    "groups of 32, scale estimation with data": {"scale_estimation": True},
}


def model_inputs(ids: list[int]) -> dict[str, np.ndarray]:
    """What the exported graph wants for a prompt, on an empty cache."""
    window = np.array([ids])
    return {
        "input_ids": window,
        "attention_mask": np.ones_like(window),
        "position_ids": np.arange(len(ids))[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }


def log_probabilities(folder: Path, ids: list[int], properties: dict[str, str]) -> torch.Tensor:
    """Log-probabilities of the next token, [tokens, vocabulary], float32."""
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", properties)
    request = compiled.create_infer_request()
    names = {port.get_any_name() for port in request.model_inputs}
    windows = []
    for start in range(0, len(ids), WINDOW):
        inputs = model_inputs(ids[start : start + WINDOW])
        request.reset_state()
        request.infer({name: value for name, value in inputs.items() if name in names})
        logits = torch.from_numpy(request.get_tensor("logits").data[0])
        windows.append(logits.log_softmax(-1))
    return torch.cat(windows)


def compare(reference: torch.Tensor, other: torch.Tensor, ids: list[int]) -> tuple[float, float]:
    """Mean KL divergence of `other` from `reference`, and the perplexity of `other`."""
    divergence = torch.stack(
        [(one.exp() * (one - two)).sum() for one, two in zip(reference, other, strict=True)]
    )
    places = [place for place in range(len(ids) - 1) if (place + 1) % WINDOW]  # the next is in the window
    likelihood = torch.stack([other[place, ids[place + 1]] for place in places])
    return divergence.mean().item(), (-likelihood.mean()).exp().item()


def int4_variants(fp16_folder: Path, ids: list[int]) -> Iterator[tuple[str, Path]]:
    """Compress the FP16 model with each of `INT4_SETTINGS`; yields title and the folder it lies in.

    Args:
        ids: the tokens that settings with data see.
    """
    import nncf

    for title, changes in INT4_SETTINGS.items():
        setting = SETTINGS["INT4"] | changes
        if "scale_estimation" in changes:
            setting["dataset"] = nncf.Dataset(
                [model_inputs(ids[start : start + 128]) for start in range(0, len(ids) - 128, 128)]
            )
        model = openvino.Core().read_model(fp16_folder / "openvino_model.xml")
        with quiet_libraries():
            compressed = compress_as(model, setting)
        with tempfile.TemporaryDirectory() as folder:
            openvino.save_model(compressed, Path(folder) / "openvino_model.xml")
            del model, compressed
            gc.collect()
            yield title, Path(folder)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--int4", action="store_true")
    options = parser.parse_args()
    fp16 = prepare_model(options.model, "FP16", models_dir())
    ids = AutoTokenizer.from_pretrained(fp16).encode(TEXT)
    if options.int4:
        seen, ids = ids[: len(ids) // 2], ids[len(ids) // 2 :]
        variants = int4_variants(fp16, seen)
    else:
        precisions = ("FP16", "INT8", "INT4")
        variants = ((name, prepare_model(options.model, name, models_dir())) for name in precisions)
    reference = log_probabilities(fp16, ids, EXACT)
    print(f"{options.model}, {len(ids)} tokens\n")
    print("| | weights | mean KL to FP16 | perplexity |")
    print("|---|---|---|---|")
    for title, folder in variants:
        size = (folder / "openvino_model.bin").stat().st_size / 1e6
        predicted = log_probabilities(folder, ids, fastest_properties(folder, "CPU"))
        distance, perplexity = compare(reference, predicted, ids)
        print(f"| {title} | {size:.0f} MB | {distance:.4f} | {perplexity:.2f} |", flush=True)


if __name__ == "__main__":
    main()
