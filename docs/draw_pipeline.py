"""Draws docs/pipeline.svg: from a message to an answer, prefill and decode apart.

Usage: python -m docs.draw_pipeline

Knows what the tutorial's first section tells in words. Refuses to know the code: nothing of it is imported.
"""

from pathlib import Path

from docs.svg import area, box, card, path, text

PICTURE = Path(__file__).resolve().parent / "pipeline.svg"
PROMPT_TOKENS, NEW_TOKENS, CELL = 14, 6, 22


def draw() -> str:
    """The picture."""
    return card(
        1000,
        624,
        "A message goes through chat template, tokenizer and prefill; then the decode loop makes one token "
        "after the other, which become text on the page",
        [*_per_message(), *_prefill(), *_decode(), *_cache(), *_stream()],
    )


def _per_message() -> list[str]:
    """From what was said to token ids."""
    top = 62
    parts = [text(24, 36, "Once per message", "blue", 15, bold=True)]
    steps = [
        ("messages", "who said what, until now"),
        ("chat template", "marks who is speaking"),
        ("tokenizer", "cuts text into tokens"),
        ("token ids", "the prompt, as numbers"),
    ]
    for number, lines in enumerate(steps):
        x = 24 + 246 * number
        parts += box(x, top, 206, 58, "blue", *lines)
        if number:
            parts.append(path(f"M{x - 40} {top + 29} h36", "blue"))
    return [*parts, path("M865 120 V150 H236 V174", "blue")]


def _prefill() -> list[str]:
    """The whole prompt in one pass."""
    return [
        area(24, 178, 424, 250, "orange", 12),
        text(44, 206, "Prefill", "orange", 15, bold=True),
        text(112, 206, "all tokens of the prompt in one pass", "grey", 12.5),
        *_cells(82, 228, PROMPT_TOKENS, "blue"),
        path("M236 251 V271", "orange"),
        *box(64, 276, 344, 58, "orange", "model on OpenVINO", "reads every weight once for the whole prompt"),
        text(44, 362, "Sets the time to the first token, which", "ink", 12.5),
        text(44, 380, "grows with the length of the prompt.", "ink", 12.5),
        path("M366 334 V454", "orange"),
        text(356, 446, "writes all keys and values", "orange", 12, "end"),
    ]


def _decode() -> list[str]:
    """One token after the other."""
    return [
        area(468, 178, 508, 250, "green", 12),
        text(488, 206, "Decode", "green", 15, bold=True),
        text(558, 206, "one token of the answer in each pass, round and round", "grey", 12.5),
        text(488, 230, "Sets the tokens per second: every pass reads all weights, and", "ink", 12.5),
        text(488, 248, "the keys and values of all tokens until now.", "ink", 12.5),
        *box(506, 266, 116, 78, "green", "logits", "a rating for", "each token"),
        *box(668, 266, 116, 78, "green", "sampling", "draws one of", "the likely"),
        *box(830, 266, 116, 78, "green", "next token", "until the end", "token comes"),
        path("M408 305 H502", "orange"),
        path("M622 305 H664", "green"),
        path("M784 305 H826", "green"),
        *box(588, 364, 276, 50, "green", "model on OpenVINO", "reads every weight for this one token"),
        path("M888 344 V389 H868", "green"),
        path("M588 389 H564 V348", "green"),
        path("M690 456 V418", "green"),
        path("M762 414 V452", "green"),
        text(680, 446, "reads all keys and values", "green", 12, "end"),
        text(772, 446, "adds those of one token", "green", 12),
    ]


def _cache() -> list[str]:
    """Keys and values of all tokens until now."""
    return [
        area(24, 458, 952, 50, "violet", 12),
        text(44, 480, "KV cache", "violet", 15, bold=True),
        text(44, 497, "one entry per token", "grey", 12),
        *_cells(190, 474, PROMPT_TOKENS, "orange"),
        *_cells(190 + CELL * PROMPT_TOKENS, 474, NEW_TOKENS, "green"),
        text(200 + CELL * (PROMPT_TOKENS + NEW_TOKENS), 488, "kept for the next message, too", "grey", 12),
    ]


def _stream() -> list[str]:
    """From token ids back to text."""
    return [
        path("M946 305 H988 V570 H940", "blue"),
        *box(696, 540, 240, 60, "blue", "token ids to text", "piece by piece, as they come"),
        path("M696 570 H654", "blue"),
        *box(410, 540, 240, 60, "blue", "text stream", "can be stopped at any piece"),
        path("M410 570 H368", "blue"),
        *box(124, 540, 240, 60, "blue", "page in the browser", "or a program, through the endpoint"),
    ]


def _cells(x: float, y: float, count: int, colour: str) -> list[str]:
    """A row of tokens."""
    return [area(x + CELL * number, y, CELL - 3, CELL - 3, colour, 4) for number in range(count)]


def main() -> None:
    """Draw the picture."""
    PICTURE.write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
