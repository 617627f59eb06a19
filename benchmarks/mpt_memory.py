"""Memory and time of converting a checkpoint shaped like MPT-7B (13.3 GB of bfloat16) by hand.

Anonymous memory (RssAnon) is what a process must have; memory-mapped files can be dropped by the kernel.
Needs 35 GB of disk. Usage: python -m benchmarks.mpt_memory [FOLDER]
"""

import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import telemetry

telemetry.turn_off()

import torch
from transformers import MptConfig

from benchmarks.random_checkpoint import write_random_checkpoint

SHAPE = MptConfig(d_model=4096, n_heads=32, n_layers=32, vocab_size=50432, max_seq_len=2048)


def anonymous_memory() -> float:
    """RssAnon of this process, GB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1e6


def convert(checkpoint: Path, output: Path, precision: str, result: multiprocessing.Queue) -> None:
    """Convert in a process of its own and report seconds and the peak of the anonymous memory."""
    from conversion import _quiet_libraries
    from mpt_converter import convert_mpt, load_mpt

    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    with _quiet_libraries():
        convert_mpt(load_mpt(checkpoint), output, precision)
    done.set()
    watcher.join()
    result.put((time.perf_counter() - started, peak[0]))


def main() -> None:
    """Print a table in Markdown."""
    root = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    checkpoint = write_random_checkpoint(root / "checkpoint", SHAPE, torch.bfloat16)
    size = sum(file.stat().st_size for file in checkpoint.iterdir()) / 1e9
    print(f"checkpoint: {size:.1f} GB")
    print("| precision | size | time | peak anonymous memory | share of the checkpoint |")
    print("|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for precision in ("FP16", "INT8"):
        queue = context.Queue()
        worker = context.Process(target=convert, args=(checkpoint, root / precision, precision, queue))
        worker.start()
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"{precision} failed with exit code {worker.exitcode}")
        seconds, peak = queue.get()
        written = (root / precision / "openvino_model.bin").stat().st_size / 1e9
        print(
            f"| {precision} | {written:.1f} GB | {seconds:.0f} s | {peak:.1f} GB | {peak / size:.2f} |",
            flush=True,
        )
        shutil.rmtree(root / precision)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
