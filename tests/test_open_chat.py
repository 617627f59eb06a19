"""From the options of a command to a chat."""

import argparse

import pytest

from config import DEFAULT_MODEL
from open_chat import add_model_options


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_empty_is_one_that_is_not_set(monkeypatch, value):
    for name in ("LLM_CHATBOT_MODEL", "LLM_CHATBOT_CHECKPOINT"):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    parser = argparse.ArgumentParser()
    add_model_options(parser, engine="optimum")
    options = parser.parse_args([])
    assert (options.model, options.checkpoint) == (DEFAULT_MODEL, None)


def test_the_environment_names_model_and_checkpoint(monkeypatch):
    monkeypatch.setenv("LLM_CHATBOT_MODEL", "qwen3-4b")
    monkeypatch.setenv("LLM_CHATBOT_CHECKPOINT", "owner/my-qwen")
    parser = argparse.ArgumentParser()
    add_model_options(parser, engine="optimum")
    options = parser.parse_args([])
    assert (options.model, options.checkpoint) == ("qwen3-4b", "owner/my-qwen")
