"""The picture of the modules: which imports are found, and that it is of today."""

from pathlib import Path

import pytest

from docs import draw_design
from docs.draw_design import FOR_TYPES, LATER, WHEN_LOADED, Arrow, find_arrows, module_files


def test_the_picture_is_drawn_from_todays_imports():
    picture = draw_design.PICTURE.read_text(encoding="utf-8")
    assert picture == draw_design.draw(module_files()), "Draw it: python -m docs.draw_design"


def write_house(folder: Path, **modules: str) -> dict[str, Path]:
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return module_files(folder)


def test_imports_are_found_wherever_they_stand(tmp_path):
    files = write_house(
        tmp_path,
        ground="import json",
        a="import ground",
        b="def work():\n    from ground import thing",
        c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ground import Thing",
        d="class D:\n    def work(self):\n        import a\nimport a",
    )
    assert find_arrows(files) == [
        Arrow("a", "ground", WHEN_LOADED),
        Arrow("b", "ground", LATER),
        Arrow("c", "ground", FOR_TYPES),
        Arrow("d", "a", WHEN_LOADED),
    ]


@pytest.mark.parametrize("line", ["from serving import low", "import serving.low", "from .low import A"])
def test_modules_of_a_package_are_found(tmp_path, line):
    (tmp_path / "serving").mkdir()
    write_house(tmp_path / "serving", __init__="", low="", high=line)
    assert find_arrows(module_files(tmp_path)) == [Arrow("serving.high", "serving.low", WHEN_LOADED)]
