"""From the options of a command to a chat."""

import argparse
from contextlib import closing

import pytest

import kv_cache
from config import DEFAULT_MODEL
from open_chat import add_model_options, chat_on_folder, settle
from sampling import SamplingParams


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


def test_a_chat_that_has_settled_compiles_nothing_during_its_first_answer(converted, monkeypatch):
    compiled, compile_one = [], kv_cache.OneTokenRequest
    monkeypatch.setattr(kv_cache, "OneTokenRequest", lambda *given: compiled.append(1) or compile_one(*given))
    folder = converted("llama", "INT8")
    with closing(chat_on_folder(folder, "llama-2-chat-7b", in_background=True)) as chat:
        settle(chat)
        assert compiled == [1]
        chat.generate([{"role": "user", "content": "Hi"}], SamplingParams(max_new_tokens=3))
        assert compiled == [1]


def test_settling_says_what_went_wrong_with_loading(converted):
    folder = converted("llama", "INT8")
    with pytest.raises(ValueError, match="NONE"):
        settle(chat_on_folder(folder, "llama-2-chat-7b", device="NONE", in_background=True))
