"""Shapes for the pictures in docs/, as text of SVG: a card that brings its own background, light or dark.

Knows colours and coordinates, in pixels. Refuses to know what is drawn.
"""

from collections.abc import Iterable
from html import escape

# Colour of text and lines, and a pale one for areas; (light, dark).
COLOURS = {
    "ink": (("#1f2328", "#ffffff"), ("#e6edf3", "#0d1117")),
    "grey": (("#59636e", "#f1f3f5"), ("#9198a1", "#1b2027")),
    "blue": (("#0b5fc4", "#e3effc"), ("#6cb0ff", "#12263f")),
    "green": (("#1a7f37", "#e2f5e6"), ("#4ac26b", "#10301b")),
    "orange": (("#b35900", "#fdf0e0"), ("#f0a040", "#38240d")),
    "violet": (("#7a3fc9", "#f1e9fd"), ("#b98aff", "#28194a")),
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def card(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A whole picture; `title` is what a screen reader says."""

    def rules(dark: bool) -> list[str]:
        return [
            f".{name} {{ fill: {line} }} .{name}-line {{ stroke: {line}; fill: none }} "
            f".{name}-area {{ fill: {area}; stroke: {line} }}"
            for name, shades in COLOURS.items()
            for line, area in [shades[dark]]
        ]

    heads = [
        f'<marker id="{name}-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path class="{name}" d="M0 0.5 8 4 0 7.5z"/></marker>'
        for name in COLOURS
    ]
    page, frame = ".page { fill: %s; stroke: %s }", (("#ffffff", "#d1d9e0"), ("#0d1117", "#3d444d"))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{escape(title)}">',
            "<style>",
            f"text {{ font-family: {FONT} }}",
            *[page % frame[0], *rules(dark=False)],
            "@media (prefers-color-scheme: dark) {",
            *[page % frame[1], *rules(dark=True)],
            "}",
            "</style>",
            f"<defs>{''.join(heads)}</defs>",
            f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>',
            *parts,
            "</svg>\n",
        ]
    )


def text(
    x: float,
    y: float,
    words: str,
    colour: str = "ink",
    size: float = 13,
    anchor: str = "start",
    bold: bool = False,
) -> str:
    """One line of text; y is its baseline."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text class="{colour}" x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"{weight}>'
        f"{escape(words, quote=False)}</text>"
    )


def area(x: float, y: float, width: float, height: float, colour: str, radius: float = 8) -> str:
    """A rectangle with a pale ground."""
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
    return f'<rect class="{colour}-area" {place}/>'


def box(x: float, y: float, width: float, height: float, colour: str, *lines: str) -> list[str]:
    """A rectangle with centred lines of text, the first of them bold."""
    middle, first = x + width / 2, y + height / 2 + 4.5 - 8.5 * (len(lines) - 1)
    parts = [area(x, y, width, height, colour)]
    for number, line in enumerate(lines):
        size, shade = (12, "grey") if number else (13.5, "ink")
        parts.append(text(middle, first + 17 * number, line, shade, size, "middle", bold=number == 0))
    return parts


def path(route: str, colour: str, head: bool = True, dashes: str = "", width: float = 1.6) -> str:
    """A line; `route` is what SVG calls the data of a path."""
    end = f' marker-end="url(#{colour}-head)"' if head else ""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path class="{colour}-line" d="{route}" stroke-width="{width:g}"{dashed}{end}/>'
