"""That a cell which is run too early says so."""

import pytest

import __main__
from lesson_order import ALWAYS, needs


@pytest.fixture
def first_sections(monkeypatch):
    """As after a run of the first path and of section 2."""
    for name in ALWAYS:
        monkeypatch.setattr(__main__, name, "made", raising=False)


@pytest.mark.usefixtures("first_sections")
def test_a_name_that_is_there_is_enough(monkeypatch):
    monkeypatch.setattr(__main__, "folders", {}, raising=False)
    needs("folders")


@pytest.mark.usefixtures("first_sections")
def test_a_missing_name_is_told_with_its_section():
    with pytest.raises(RuntimeError, match=r"`tokenizer`, which section 8 makes\. Run that one first"):
        needs("tokenizer")


def test_the_first_path_and_section_2_are_needed_always():
    with pytest.raises(RuntimeError, match="`MODELS_DIR`, which the first cell of the first path makes"):
        needs()
