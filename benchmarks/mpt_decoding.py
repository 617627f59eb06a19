"""Decoding speed of the hand-made MPT export against Optimum's own, on one checkpoint shaped like MPT-350M.

Usage: python -m benchmarks.mpt_decoding
"""

import gc
import statistics
import tempfile
import time
from pathlib import Path

import telemetry

telemetry.turn_off()

import torch
from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig, OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import MptConfig

from benchmarks.random_checkpoint import write_random_checkpoint
from engine import OptimumEngine
from mpt_converter import convert_mpt, load_mpt
from ov_mpt_model import OVMPTModel
from quiet import quiet_libraries
from sampling import SamplingParams

SHAPE = MptConfig(d_model=1024, n_heads=16, n_layers=24, vocab_size=50368, max_seq_len=2048)
PROMPT = list(range(100, 164))
NEW_TOKENS = 64
ROUNDS = 7


def milliseconds_per_token(engine: OptimumEngine) -> float:
    """Time of one decoded token, without the prompt."""
    sampling = SamplingParams(temperature=0, top_k=0, repetition_penalty=1, max_new_tokens=NEW_TOKENS + 1)
    tokens = engine.generate(PROMPT, sampling)
    next(tokens)
    started = time.perf_counter()
    for _ in tokens:
        pass
    return (time.perf_counter() - started) / NEW_TOKENS * 1000


def main() -> None:
    """Print a table in Markdown; the contestants take turns, so that a busy machine slows all alike."""
    with tempfile.TemporaryDirectory() as temporary, quiet_libraries():
        root = Path(temporary)
        checkpoint = write_random_checkpoint(root / "checkpoint", SHAPE, torch.float16)
        main_export(str(checkpoint), root / "optimum-FP16", task="text-generation-with-past",
                    ov_config=OVConfig(dtype="fp16"))  # fmt: skip
        OVModelForCausalLM.from_pretrained(
            root / "optimum-FP16",
            compile=False,
            quantization_config=OVWeightQuantizationConfig(bits=8, sym=False),
        ).save_pretrained(root / "optimum-INT8")
        pt_model = load_mpt(checkpoint)
        for precision in ("FP16", "INT8"):
            convert_mpt(pt_model, root / f"hand-{precision}", precision)
        del pt_model
        gc.collect()

        print("| precision | Optimum's export, ms per token | by hand, ms per token | speed ratio (spread) |")
        print("|---|---|---|---|")
        for precision in ("FP16", "INT8"):
            optimum = OptimumEngine(OVModelForCausalLM.from_pretrained(root / f"optimum-{precision}"))
            hand = OptimumEngine(OVMPTModel.from_pretrained(root / f"hand-{precision}"))
            for engine in (optimum, hand):
                engine.settle()
                milliseconds_per_token(engine)  # warm up
            pairs = [(milliseconds_per_token(optimum), milliseconds_per_token(hand)) for _ in range(ROUNDS)]
            ratios = [a / b for a, b in pairs]
            times = [statistics.median(column) for column in zip(*pairs, strict=True)]
            print(
                f"| {precision} | {times[0]:.1f} | {times[1]:.1f} | {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}) |"
            )


if __name__ == "__main__":
    main()
