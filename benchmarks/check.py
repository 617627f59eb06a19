"""Says what has become slower: the ratios of a new run beside those that were committed.

Usage: python -m benchmarks.check OLD.json NEW.json
"""

import json
import sys
from pathlib import Path

from machine import processor


def save(file: Path, ratios: dict[str, dict[str, float]]) -> None:
    """Write what `slower` compares: by name, a ratio and its spread."""
    result = {"processor": processor().name, "ratios": ratios}
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def slower(old: dict, new: dict) -> list[str]:
    """The ratios that grew by more than both runs' spread, in words.

    Args:
        old, new: what `--save` of `benchmarks.start` or `benchmarks.decoding` writes.
    """
    found = []
    for name, now in new["ratios"].items():
        before = old["ratios"].get(name)
        if before and now["ratio"] > before["ratio"] * (1 + before["spread"] + now["spread"]):
            found.append(f"{name}: {before['ratio']:.2f} -> {now['ratio']:.2f} of what it is compared with")
    return found


def main() -> None:
    """Compare two files; ends with 1 if something is slower."""
    old, new = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])
    if old["processor"] != new["processor"]:
        print(
            f"Not the same processor: {old['processor']} then, {new['processor']} now; ratios differ anyway."
        )
    for line in slower(old, new) or ["Nothing is slower by more than the spread."]:
        print(line)
    sys.exit(bool(slower(old, new)))


if __name__ == "__main__":
    main()
