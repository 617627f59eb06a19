"""Draws docs/design.svg: the modules in their order from the ground up, and who imports whom.

Usage: python -m docs.draw_design

Knows the order, the only thing here that is written by hand, and reads the rest from the modules' text; none
of them is imported. That arrows go down only is the rule of the house; tests/test_architecture.py holds it.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from docs.svg import area, card, path, text

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "design.svg"
# Floors from the ground up, and modules from the ground up: each may import only what stands before it.
FLOORS = {
    "ground": ("config", "telemetry", "workspace", "quiet", "json_files"),
    "source": (
        "checkpoint_files",
        "checkpoint_fit",
        "dequantize",
        "weight_sizes",
        "weight_names",
        "checkpoint",
        "gguf_checkpoint",
        "hub_source",
        "wheel_source",
        "model_source",
        "plain_checkpoint",
    ),
    "conversion": (
        "graph_edits",
        "compression",
        "lifted_caps",
        "optimum_export",
        "text_models",
        "mpt_forward",
        "mpt_converter",
        "ov_mpt_model",
        "routes",
        "chat_templates",
        "chat_tokenizer",
        "tokenizer_check",
        "tokenizer_files",
        "tuning",
        "sampling",
        "model_folder",
        "recipe",
        "ready_made",
        "conversion",
    ),
    "token ids": (
        "kv_cache",
        "engine",
        "loading_engine",
        "genai_process",
        "genai_schema",
        "prefix_ledger",
        "genai_worker",
        "genai_engine",
    ),
    "text": ("thoughts", "turn_guard", "text_stream", "prompt", "reply", "chat", "open_chat"),
    "serving": (
        "serving.receiving",
        "serving.client",
        "serving.schema",
        "serving.wire",
        "serving.metrics",
        "serving.answers",
        "serving.security",
        "serving.endpoint",
        "serving.api",
        "serving.replicas",
        "serving.cluster",
    ),
    "page": ("page_assets", "page_guard", "page_rendering", "page_steps", "chat_command", "chat_ui"),
    "lesson": ("lesson_order", "lesson_plots"),
    "doctor": ("machine", "forecast", "doctor"),
}
ROOMS = tuple(module for floor in FLOORS.values() for module in floor)
NO_ROOMS = ("run_notebook",)  # a tool for the notebook, imported by nobody
COLOURS = ("grey", "blue", "violet", "orange", "green", "blue", "violet", "orange", "grey")  # of the floors

WHEN_LOADED, LATER, FOR_TYPES = "when loaded", "later, inside a function", "for type hints only"
DASHES = {WHEN_LOADED: "", LATER: "6 4", FOR_TYPES: "1.5 4"}


@dataclass(frozen=True, order=True)
class Arrow:
    """`importer` imports `imported`; `when` is the earliest of its imports."""

    importer: str
    imported: str
    when: str


def module_files(root: Path = ROOT) -> dict[str, Path]:
    """The modules of the house by name, those of packages with a dot: serving.api."""
    files = [*root.glob("*.py"), *root.glob("serving/*.py")]
    names = {".".join(file.relative_to(root).with_suffix("").parts): file for file in files}
    return {name: file for name, file in sorted(names.items()) if not name.endswith("__init__")}


def find_arrows(files: dict[str, Path]) -> list[Arrow]:
    """All imports of one of these modules by another."""
    arrows = []
    for importer, file in files.items():
        when: dict[str, str] = {}
        for imported, kind in _imports(ast.parse(file.read_text(encoding="utf-8")), importer, WHEN_LOADED):
            if imported in files and imported != importer:
                when[imported] = min(kind, when.get(imported, kind), key=list(DASHES).index)
        arrows += [Arrow(importer, imported, kind) for imported, kind in when.items()]
    return sorted(arrows)


def _imports(node: ast.AST, importer: str, when: str) -> Iterator[tuple[str, str]]:
    """Names that may be modules, and when they are imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, when) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parent = importer.split(".")[: -child.level] if child.level else []
            source = ".".join([*parent, *filter(None, [child.module])])
            yield source, when
            yield from ((f"{source}.{alias.name}".lstrip("."), when) for alias in child.names)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, importer, LATER if when == WHEN_LOADED else when)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _imports(ast.Module([statement], []), importer, FOR_TYPES)
            for statement in child.orelse:
                yield from _imports(ast.Module([statement], []), importer, when)
        else:
            yield from _imports(child, importer, when)


def draw(files: dict[str, Path]) -> str:
    """The picture: a line for each module, the ground at the bottom, and an arc for each import."""
    rooms = [module for module in ROOMS if module in files]
    row, top, left, right, bend = 22, 40, 46, 850, 12
    height = top + row * (len(rooms) + 1) + 48
    width = right + 350
    y = {module: top + row * (len(rooms) - number) for number, module in enumerate(rooms)}
    colour = {
        module: shade for shade, floor in zip(COLOURS, FLOORS.values(), strict=True) for module in floor
    }
    parts = [text(14, 30, "The modules from the ground up, and who imports whom", size=16, bold=True)]
    for floor, names in FLOORS.items():
        modules = [module for module in names if module in files]
        if not modules:
            continue
        upper, lower = y[modules[-1]] - row / 2, y[modules[0]] + row / 2
        shade, middle = colour[modules[0]], (upper + lower) / 2
        parts.append(area(12, upper + 1.5, right - 12, lower - upper - 3, shade, 6))
        turned = text(0, 0, floor, shade, 12, "middle")
        parts.append(f'<g transform="translate(31 {middle:g}) rotate(-90)">{turned}</g>')
    for module in rooms:
        parts.append(text(left, y[module] + 4.5, module, bold=True))
        parts.append(text(left + 140, y[module] + 4, _first_clause(files[module]), "grey", 11.5))
    arrows = find_arrows({module: files[module] for module in rooms})
    for arrow in sorted(arrows, key=lambda one: y[one.imported] - y[one.importer], reverse=True):
        start, end = y[arrow.importer] + 4, y[arrow.imported] - 3
        reach = right + bend + 400 * (abs(end - start) / (row * len(rooms))) ** 0.7
        route = f"M{right + 1} {start} C{reach:.0f} {start} {reach:.0f} {end} {right + 3} {end}"
        width_of_line = 0.8 if arrow.imported in FLOORS["ground"] else 1.4  # everybody stands on the ground
        parts.append(path(route, colour[arrow.imported], dashes=DASHES[arrow.when], width=width_of_line))
    for number, (when, dashes) in enumerate(DASHES.items()):
        x = 14 + 220 * number
        parts.append(path(f"M{x} {height - 24} h34", "ink", dashes=dashes))
        parts.append(text(x + 42, height - 20, when, "grey", 12))
    return card(width, height, "Modules and imports; every arrow goes down", parts)


def _first_clause(file: Path) -> str:
    """What a module says of itself, up to the first full stop, if there is room."""
    line = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))).partition("\n")[0]
    return shorten(line.partition(". ")[0].rstrip("."), 112, placeholder=" ...")


def main() -> None:
    """Draw the picture."""
    PICTURE.write_text(draw(module_files()), encoding="utf-8")


if __name__ == "__main__":
    main()
