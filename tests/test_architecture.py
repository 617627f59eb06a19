"""The house stands: imports go down, modules stay small, private names of libraries are few and known.

After a change to what imports what, or to the first line of a module: python -m docs.draw_design
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import draw_design
from docs.draw_design import ROOMS, find_arrows, module_files

ROOT = Path(__file__).resolve().parents[1]
FILES = module_files()
MOST_LINES = 320
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

# Private names of libraries that are used all the same, each with the reason and the public way that is
# missing. The list may only shrink. "module: name", where ._name is an attribute.
ALLOWED_PRIVATE = {
    "engine: ._device": (
        "The OpenVINO device of an OVModelForCausalLM, so that an engine computes on the same one; "
        "its public `device` is PyTorch's and always the CPU."
    ),
    "kv_cache: openvino._offline_transformations.paged_attention_transformation": (
        "Turns the graph's attention into paged attention, whose cache can be cut at no cost. OpenVINO "
        "GenAI calls it from C++; Python has no other way to it."
    ),
    "mpt_converter: .__make_16bit_traceable": (
        "Traces 16-bit weights without copies of 32 bits, which would double the memory a conversion takes. "
        "openvino.convert_model has no option for it; Optimum calls it too."
    ),
    "ov_mpt_model: ._deduplicate_inputs": (
        "Overridden: Optimum takes padded prompts with the same ids for beams of one sequence. There is no "
        "public place to correct it."
    ),
}


def test_every_module_has_its_place():
    assert FILES.keys() - {*ROOMS, *draw_design.NO_ROOMS} == set(), "Put it into docs/draw_design.py"


def test_every_place_has_its_module():
    assert {*ROOMS, *draw_design.NO_ROOMS} - FILES.keys() == set(), "Take it out of docs/draw_design.py"


def test_arrows_go_down():
    up = [
        f"{arrow.importer} imports {arrow.imported} ({arrow.when})"
        for arrow in find_arrows({module: FILES[module] for module in ROOMS if module in FILES})
        if ROOMS.index(arrow.imported) >= ROOMS.index(arrow.importer)
    ]
    assert not up


def test_every_module_has_a_test_file_of_its_name_that_uses_it():
    """serving.api: test_serving_api.py; docs.svg: test_svg.py. For benchmarks there is test_benchmarks.py."""
    lacking = []
    for module in [*FILES, *(f"docs.{file.stem}" for file in ROOT.glob("docs/*.py"))]:
        test = ROOT / "tests" / f"test_{module.removeprefix('docs.').replace('.', '_')}.py"
        if not test.is_file() or module not in imported_modules(test):
            lacking.append(f"{module}: {test.name}")
    assert lacking == []


def imported_modules(file: Path) -> set[str]:
    """What a file imports, with dots, wherever in it: modules, and what may be names in them."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("module", FILES)
def test_a_module_is_small(module):
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, "Two jobs? Make two modules of it"


def test_private_names_of_libraries_are_the_known_ones():
    used = {
        f"{module}: {name}"
        for module, file in FILES.items()
        for name in private_names(file.read_text(encoding="utf-8"))
    }
    assert sorted(used - ALLOWED_PRIVATE.keys()) == [], "Find a public way"
    assert sorted(ALLOWED_PRIVATE.keys() - used) == [], "No longer used: take it off the list"


# How private names are found


def private_names(text: str) -> Iterator[str]:
    """Underscored names that a module takes from elsewhere: imports, and attributes that it never makes."""
    tree = ast.parse(text)
    own = {node.name for node in ast.walk(tree) if isinstance(node, DEFINITIONS)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
            own.add(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            own |= {target.id for target in targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_private(alias.name))
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            yield from (name for name in names if _is_private(name))
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and ast.unparse(node) != "os._exit":
            foreign_parent = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
            if foreign_parent or node.attr not in own:
                yield f".{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and _is_private(name.value) and name.value not in own:
                yield f".{name.value}"


def _is_own(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import library._inside", ["library._inside"]),
        ("from library._inside import thing", ["library._inside.thing"]),
        ("from library import _thing", ["library._thing"]),
        ("from sibling import public", []),
        ("thing._hidden", ["._hidden"]),
        ("getattr(thing, '_hidden', None)", ["._hidden"]),
        ("thing.__class__", []),
        ("import os\nos._exit(1)", []),  # documented
        ("class A:\n    def f(self):\n        self._mine = self._mine + 1", []),
        ("class A:\n    def _mine(self): ...\ndef f(a):\n    a._mine()", []),
        ("class A(Library):\n    def f(self):\n        self._of_the_library()", ["._of_the_library"]),
        ("class A(Library):\n    def _f(self):\n        super()._f()", ["._f"]),
    ],
)
def test_private_names_are_found(text, names):
    assert list(private_names(text)) == names


# What a room must not know, whatever lies below it: top-level names of modules.
REFUSED = {
    "config": set(ROOMS),
    "workspace": {"config", "transformers", "openvino", "torch"},
    "sampling": {"torch", "transformers", "openvino", *ROOMS},
    "engine": {"tokenizers", "jinja2", "gradio", "torch", "transformers", "prompt", "chat"},
    "prompt": {"gradio", "openvino", "torch", "engine"},
    "chat": {"gradio", "openvino", "torch"},
    "chat_ui": {"openvino", "torch", "transformers", "engine", "genai_engine", "conversion", "model_folder"},
    "serving.endpoint": {"gradio", "openvino", "torch", "engine", "genai_engine", "conversion"},
    "serving.client": {"gradio", "openvino", "torch", "engine", "genai_engine", "conversion"},
}


def imported(module: str) -> set[str]:
    """The top-level names of what a module imports when it runs, wherever in it."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # what is for type checkers only is no import
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("module", REFUSED)
def test_a_room_does_not_know_what_is_none_of_its_business(module):
    assert not imported(module) & REFUSED[module] - {module}


@pytest.mark.parametrize("module", ROOMS)
def test_no_module_imports_benchmarks_or_tests(module):
    assert not imported(module) & {"benchmarks", "tests"}
