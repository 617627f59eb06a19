"""Draws docs/speed.svg: tokens per second of one conversation, beside other programs.

The figures, docs/speed.json, are what `benchmarks.decoding --panel docs/speed.json TITLE` has measured.

Usage: python -m docs.draw_speed

Knows these figures. Refuses to know how they came about.
"""

import json
from pathlib import Path

from docs.svg import area, card, path, text

FIGURES = Path(__file__).resolve().parent / "speed.json"
PICTURE = FIGURES.with_suffix(".svg")
WIDTH, LEFT, ROW, TOP = 1040, 276, 30, 74
OWN = "ChatModel"


def draw(panels: dict[str, dict]) -> str:
    """The picture; each panel is {"machine": words, "tokens_per_second": {name: [low, median, high]}}."""
    rows = max(len(panel["tokens_per_second"]) for panel in panels.values())
    width = WIDTH / len(panels)
    parts = []
    for number, (title, panel) in enumerate(panels.items()):
        x = number * width
        longest = max(high for *_, high in panel["tokens_per_second"].values())
        room = (width - LEFT - 70) / longest  # compared is what one machine has measured
        parts += [
            text(x + 24, 34, title, "ink", 15, bold=True),
            text(x + 24, 54, panel["machine"], "grey", 12),
        ]
        ranked = sorted(panel["tokens_per_second"].items(), key=lambda entry: -entry[1][1])
        for place, (name, (low, middle, high)) in enumerate(ranked):
            y = TOP + ROW * place
            parts += [
                text(x + LEFT - 10, y + 15, name, anchor="end", bold=name.startswith(OWN)),
                area(x + LEFT, y, middle * room, 20, "blue" if name.startswith(OWN) else "grey", 3),
                path(f"M{x + LEFT + low * room:g} {y + 10} H{x + LEFT + high * room:g}", "ink", head=False),
                text(x + LEFT + high * room + 8, y + 15, f"{middle:.0f}", "ink", 12.5),
            ]
    said = "; ".join(
        f"{title}: " + ", ".join(f"{name} {each[1]:.0f}" for name, each in panel["tokens_per_second"].items())
        for title, panel in panels.items()
    )
    return card(WIDTH, TOP + ROW * rows + 16, f"Tokens per second. {said}", parts)


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(draw(json.loads(FIGURES.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
