"""Says what has become slower: the ratios of a new run beside those that were committed.

Ratios depend on what a processor can do, so a file holds those of several, by their instructions.

Usage: python -m benchmarks.check OLD.json NEW.json
"""

import json
import sys
from pathlib import Path

from machine import processor


def save(file: Path, ratios: dict[str, dict[str, float]]) -> None:
    """Write what `slower` compares, in place of what the file has of such a processor: by name, a ratio and
    its spread."""
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    here = processor()
    kind = ", ".join(here.instructions) or here.name
    results[kind] = {"processor": here.name, "ratios": ratios}
    file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def slower(old: dict, new: dict) -> list[str]:
    """The ratios that grew by more than both runs' spread, in words.

    Args:
        old, new: what `--save` of `benchmarks.start` or `benchmarks.decoding` writes of one processor.
    """
    found = []
    for name, now in new["ratios"].items():
        before = old["ratios"].get(name)
        if before and now["ratio"] > before["ratio"] * (1 + before["spread"] + now["spread"]):
            found.append(f"{name}: {before['ratio']:.2f} -> {now['ratio']:.2f} of what it is compared with")
    return found


def compare(old: dict, new: dict) -> list[str]:
    """What is slower in any of the new results, or cannot be compared, in words.

    Args:
        old, new: files' contents, as `save` writes them.
    """
    found = []
    for kind, result in new.items():
        if kind in old:
            found += slower(old[kind], result)
        else:
            found.append(f"Nothing to compare with: no run on a processor with {kind} was saved.")
    return found


def main() -> None:
    """Compare two files; ends with 1 if something is slower or cannot be compared."""
    found = compare(*(json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3]))
    for line in found or ["Nothing is slower by more than the spread."]:
        print(line)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
