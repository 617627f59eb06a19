"""What compression costs: each precision's distance from FP16, and its perplexity, on a text of our own.

The distance is the KL divergence between the two next-token distributions, averaged over the text; 0 means
the same. Perplexity is the exponential of the mean negative log-likelihood (Jelinek et al., 1977). `--int4`
compresses the FP16 model with several INT4 settings instead and prints what each costs and how large it is.

Usage: python -m benchmarks.quality [--model NAME] [--int4]
"""

import argparse
import gc
import tempfile
from pathlib import Path

import telemetry

telemetry.turn_off()

import numpy as np
import openvino
import torch
from transformers import AutoTokenizer

from config import DEFAULT_MODEL
from conversion import prepare_model

TEXT = Path(__file__).with_name("quality_text.txt").read_text()
WINDOW = 512  # tokens that are computed together, from an empty cache

INT4_SETTINGS = {
    f"{'symmetric' if sym else 'asymmetric'}, groups of {group}{', scale estimation' if data else ''}": {
        "sym": sym,
        "group_size": group,
        "data": data,
    }
    for sym, group, data in [(False, 128, 0), (False, 64, 0), (False, 32, 0), (True, 64, 0), (False, 64, 1)]
}


def log_probabilities(model: openvino.Model | Path, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token, [tokens, vocabulary], float32."""
    request = openvino.Core().compile_model(model, "CPU").create_infer_request()
    names = {port.get_any_name() for port in request.model_inputs}
    windows = []
    for start in range(0, len(ids), WINDOW):
        window = np.array([ids[start : start + WINDOW]])
        request.reset_state()
        inputs = {
            "input_ids": window,
            "attention_mask": np.ones_like(window),
            "position_ids": np.arange(window.shape[1])[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
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


def int4_variants(fp16_folder: Path, ids: list[int]):
    """Compress the FP16 model with each of `INT4_SETTINGS`; yields title and the folder it lies in."""
    import nncf

    for title, setting in INT4_SETTINGS.items():
        model = openvino.Core().read_model(fp16_folder / "openvino_model.xml")
        extra = {}
        if setting["data"]:
            samples = [
                {
                    "input_ids": np.array([ids[start : start + 128]]),
                    "attention_mask": np.ones((1, 128), dtype=np.int64),
                    "position_ids": np.arange(128)[None],
                    "beam_idx": np.zeros(1, dtype=np.int32),
                }
                for start in range(0, len(ids) // 2 - 128, 128)
            ]
            extra = {"dataset": nncf.Dataset(samples), "scale_estimation": True}
        compressed = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM if setting["sym"] else nncf.CompressWeightsMode.INT4_ASYM,
            group_size=setting["group_size"],
            ratio=1.0,
            advanced_parameters=nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
            ),
            **extra,
        )
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
    fp16 = prepare_model(options.model, "FP16")
    ids = AutoTokenizer.from_pretrained(fp16).encode(TEXT)
    reference = log_probabilities(fp16 / "openvino_model.xml", ids)
    if options.int4:
        variants = int4_variants(fp16, ids)
    else:
        variants = (
            (precision, prepare_model(options.model, precision)) for precision in ("FP16", "INT8", "INT4")
        )
    print(f"{options.model}, {len(ids)} tokens\n")
    print("| | weights | mean KL to FP16 | perplexity |")
    print("|---|---|---|---|")
    for title, folder in variants:
        size = (folder / "openvino_model.bin").stat().st_size / 1e6
        distance, perplexity = compare(reference, log_probabilities(folder / "openvino_model.xml", ids), ids)
        print(f"| {title} | {size:.0f} MB | {distance:.4f} | {perplexity:.2f} |", flush=True)


if __name__ == "__main__":
    main()
