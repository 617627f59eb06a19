"""The drawings of the notebook: what is on an axis, and in which colour.

Knows matplotlib, numbers and titles. Refuses to know models, and to measure anything: whatever a drawing
shows was computed in the cell that calls it. No drawing is wider than `WIDTH`, so that its letters can be
read on a phone; whatever a colour says, a place, a mark or a word says too.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

BLUE, GREEN, RED, ORANGE, VIOLET = "#4c72b0", "#55a868", "#c44e52", "#dd8452", "#8172b3"
GREY = "#d9d9d9"
COLOURS = (BLUE, GREEN, RED, ORANGE, VIOLET)
MARKS = ("o-", "s--", "^:", "d-.", "v-")
WIDTH = 7.5  # inches
# Of tokens, by what they are. Pale, since text is written on them.
TOKEN_COLOURS = {
    "template": "#e4e4e4",
    "system": "#f6d9b8",
    "user": "#c5dcf5",
    "assistant": "#cdebd0",
    "special": "#f2b8b5",
    "text": "#eef1f5",
}
LINE_WIDTH = 90  # characters of 9.5 points, fixed width, on WIDTH


def plot_lines(
    measured: Mapping[str, Mapping[int, float | Sequence[float]]], xlabel: str, ylabel: str, title: str
) -> None:
    """Lines through the medians of repeated measurements, in a band from the least to the largest.

    Args:
        measured: for each line its measurements, by what is on the horizontal axis.
    """
    _, axes = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
    for (name, points), colour, mark in zip(measured.items(), COLOURS, MARKS, strict=False):
        values = [np.atleast_1d(value) for value in points.values()]
        axes.plot(list(points), [np.median(value) for value in values], mark, color=colour, label=name)
        lowest, highest = ([function(value) for value in values] for function in (np.min, np.max))
        axes.fill_between(list(points), lowest, highest, color=colour, alpha=0.2)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    plt.show()


def plot_differences(differences: Mapping[int, float], accepted: float, limit: int) -> None:
    """Largest differences in logits by length, with the limit of the original and what is accepted."""
    _, axes = plt.subplots(figsize=(WIDTH, 3), layout="constrained")
    axes.semilogy(list(differences), list(differences.values()), "o-", color=BLUE)
    axes.axvline(limit, color=RED, linestyle="--", label="limit of the transformers class")
    axes.axhline(accepted, color="grey", linestyle=":", label="what we accept")
    axes.set(xlabel="tokens", ylabel="largest difference in logits", ylim=(1e-7, 1e-3))
    axes.legend()
    plt.show()


def plot_bars(panels: Mapping[str, Mapping[str, float]], form: str = ".3g") -> None:
    """One panel of bars for each measure, each bar with its value."""
    size = min(WIDTH, 3.2 * len(panels) + 1), 2.6
    _, grid = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axes, (title, values) in zip(grid.flat, panels.items(), strict=True):
        bars = axes.bar(list(values), list(values.values()), color=COLOURS[: len(values)])
        axes.bar_label(bars, [f"{value:{form}}" for value in values.values()])
        axes.set(ylabel=title, ylim=(0, max(max(values.values()), 1e-6) * 1.2))
    plt.show()


def plot_cache(tokens: Sequence[str], prompt: int) -> None:
    """Which keys and values each pass computes and which it finds in the cache.

    Args:
        tokens: prompt and answer, as texts.
        prompt: how many of them are the prompt; they are computed in one pass, the others one by one.
    """
    passes = len(tokens) - prompt + 1
    _, axes = plt.subplots(figsize=(min(WIDTH, 1 + 0.85 * len(tokens)), 0.7 + 0.42 * passes))
    for row in range(passes):
        computed = range(prompt) if row == 0 else range(prompt + row - 1, prompt + row)
        for column in range(prompt + row):
            colour, weight = (ORANGE, "bold") if column in computed else (GREY, "normal")
            axes.add_patch(plt.Rectangle((column + 0.04, row + 0.08), 0.92, 0.84, color=colour))
            text = tokens[column].strip()
            text = text if len(text) < 9 else text[:7] + "…"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=8.5, weight=weight)
    axes.set(xlim=(-0.1, len(tokens)), ylim=(passes, -0.1), xticks=[])
    axes.set_yticks(np.arange(passes) + 0.5, ["prefill", *(f"decode {n}" for n in range(1, passes))])
    axes.set_title("keys and values:  orange and bold computed in this pass,  grey kept from before", size=10)
    axes.spines[:].set_visible(False)
    plt.show()


def plot_levels(row: np.ndarray, restored: Mapping[str, np.ndarray], bits: int, around: int = 160) -> None:
    """The weights of a row beside its largest one, and how far what is stored differs from them.

    Args:
        row: the weights.
        restored: for each way of storing them what the model sees, in the shape [groups, weights of a group].
        bits: of a stored weight; where its levels lie is drawn behind the weights.
        around: how many weights are shown on either side of the largest.
    """
    middle = int(np.abs(row).argmax())
    shown = np.arange(max(0, middle - around), min(len(row), middle + around))
    _, grid = plt.subplots(
        2, len(restored), figsize=(WIDTH, 4.6), layout="constrained", sharex=True, sharey="row"
    )
    for (weights, errors), (title, values) in zip(grid.T, restored.items(), strict=True):
        size = values.shape[-1]
        for number, part in enumerate(row.reshape(-1, size)):
            levels = np.linspace(part.min(), part.max(), 2**bits)
            weights.hlines(levels, number * size, (number + 1) * size, color=ORANGE, linewidth=0.7)
        weights.plot(shown, row[shown], ".", color=BLUE, markersize=4)
        weights.set(title=title, xlim=(shown[0], shown[-1]))
        errors.plot(shown, np.abs(values.ravel() - row)[shown], ".", color=RED, markersize=4)
        errors.set(xlabel="place in the row", ylim=(0, None))
    grid[0, 0].set_ylabel("weights (dots), levels (lines)")
    grid[1, 0].set_ylabel("error after rounding")
    plt.show()


def plot_candidates(panels: Mapping[str, tuple[Sequence[str], Sequence[float]]], title: str) -> None:
    """Bars for the probabilities of some tokens, and one for all the others; two panels in a row."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(WIDTH / 2 * columns, 2.6 * rows), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, (name, (tokens, values)) in zip(grid.flat, panels.items(), strict=False):
        # Two tokens may look alike, so the places are numbers.
        rest = 1 - np.sum(values)
        bars = np.append(values, rest if rest > 1e-6 else 0)  # less is rounding
        drawn = axes.barh(range(len(bars)), bars, color=[BLUE] * len(values) + [GREY])
        axes.bar_label(drawn, [f"{bar:.2f}" if bar else "dropped" for bar in bars], padding=2, size=8)
        axes.set_yticks(range(len(bars)), [*tokens, "all others"])
        axes.set(title=name, xlim=(0, 1.15), xlabel="probability")
        axes.set_xticks([0, 0.5, 1])
        axes.invert_yaxis()
    figure.suptitle(title)
    plt.show()


def show_tokens(pieces: Sequence[str], kinds: Sequence[str], title: str = "") -> None:
    """Tokens as they follow each other, each in the colour of its kind; special ones bold in a frame."""
    places, line, column = [], 0, 0
    for piece in pieces:
        text = piece.replace("\n", "⏎").replace(" ", "·")
        if column + len(text) > LINE_WIDTH:
            line, column = line + 1, 0
        places.append((line, column, text))
        column += len(text) + 0.6
        if piece.endswith("\n"):
            line, column = line + 1, 0
    lines = places[-1][0] + 1
    _, axes = plt.subplots(figsize=(WIDTH, 0.3 * lines + 0.7), layout="constrained")
    for (line, column, text), kind in zip(places, kinds, strict=True):
        special = kind == "special"
        look = {"facecolor": TOKEN_COLOURS[kind], "edgecolor": RED if special else "none"}
        axes.add_patch(plt.Rectangle((column, line + 0.08), len(text) + 0.3, 0.84, **look))
        look = {"family": "monospace", "size": 9.5, "weight": "bold" if special else "normal"}
        axes.text(column + 0.15, line + 0.52, text, va="center", parse_math=False, **look)
    for number, kind in enumerate(kind for kind in TOKEN_COLOURS if kind in kinds):
        axes.add_patch(plt.Rectangle((14 * number, lines + 0.5), 1.6, 0.7, color=TOKEN_COLOURS[kind]))
        axes.text(14 * number + 2.2, lines + 0.87, kind, size=9, va="center")
    axes.set(xlim=(0, LINE_WIDTH + 2), ylim=(lines + 1.3, 0))
    axes.set_title(title, size=10, loc="left")
    axes.axis("off")
    plt.show()


def plot_reuse(requests: Mapping[str, tuple[int, int, int]]) -> None:
    """For each request how many tokens of the prompt were reused, computed, and cut from the cache."""
    _, axes = plt.subplots(figsize=(WIDTH, 1.0 + 0.5 * len(requests)), layout="constrained")
    reused, computed, cut = np.array(list(requests.values())).T
    places = np.arange(len(requests))
    for values, left, colour, name in (
        (reused, 0, GREY, "reused from the cache"),
        (computed, reused, ORANGE, "computed"),
    ):
        bars = axes.barh(places, values, left=left, height=0.42, color=colour, label=name)
        axes.bar_label(bars, [value or "" for value in values], label_type="center")
    bars = axes.barh(
        places + 0.33, cut, left=reused, height=0.18, color=RED, alpha=0.5, hatch="///", label="cut off"
    )
    axes.bar_label(bars, [value or "" for value in cut], padding=2)
    axes.set_yticks(places, list(requests))
    axes.set(xlabel="tokens", xlim=(0, 1.08 * (reused + np.maximum(computed, cut)).max()))
    axes.invert_yaxis()
    axes.legend(loc="upper right", bbox_to_anchor=(1, 1.28), ncols=3, frameon=False)
    plt.show()
