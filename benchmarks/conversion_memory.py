"""Memory and time of converting checkpoints shaped like Llama-2-7B and MPT-7B (13.5 and 13.3 GB, bfloat16).

Each conversion is one `prepare_model` in a process of its own. Anonymous memory (RssAnon) is what a process
must have; memory-mapped files can be dropped by the kernel. Needs 45 GB of disk.
Usage: python -m benchmarks.conversion_memory [FOLDER]
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

from benchmarks.random_checkpoint import write_shape


def anonymous_memory() -> float:
    """RssAnon of this process, GB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024 / 1e9


def convert(checkpoint: Path, models_dir: Path, precision: str, result: multiprocessing.Queue) -> None:
    """Convert, and report the folder, the seconds and the peak of the anonymous memory."""
    from conversion import prepare_model

    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        folder = prepare_model(str(checkpoint), precision, models_dir)
    finally:  # else a failed conversion would go on for ever
        done.set()
        watcher.join()
    result.put((folder, time.perf_counter() - started, peak[0]))


def main() -> None:
    """Print a table in Markdown."""
    root = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    context = multiprocessing.get_context("spawn")
    print("| checkpoint | precision | size | time | peak anonymous memory | share of the checkpoint |")
    print("|---|---|---|---|---|---|", flush=True)
    for family in ("llama", "mpt"):
        checkpoint = write_shape(family, root / family)
        size = sum(file.stat().st_size for file in checkpoint.iterdir()) / 1e9
        for precision in ("FP16", "INT8", "INT4"):
            queue = context.Queue()
            arguments = (checkpoint, root / "models", precision, queue)
            worker = context.Process(target=convert, args=arguments)
            worker.start()
            worker.join()
            if worker.exitcode:
                raise SystemExit(f"{family} {precision} failed with exit code {worker.exitcode}")
            folder, seconds, peak = queue.get()
            written = (folder / "openvino_model.bin").stat().st_size / 1e9
            print(
                f"| {family}, {size:.1f} GB | {precision} | {written:.1f} GB | {seconds:.0f} s | "
                f"{peak:.1f} GB | {peak / size:.2f} |",
                flush=True,
            )
            shutil.rmtree(folder)
        shutil.rmtree(checkpoint)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
