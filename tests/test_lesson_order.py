"""That a cell which is run too early says so."""

import pytest

import __main__
from lesson_order import needs


def test_a_name_that_is_there_is_enough(monkeypatch):
    monkeypatch.setattr(__main__, "folders", {}, raising=False)
    needs("folders")


def test_a_missing_name_is_told_with_its_section():
    with pytest.raises(RuntimeError, match=r"`tokenizer`, which section 8 makes\. Run that one first"):
        needs("tokenizer")
