"""The same contract on OpenVINO GenAI's continuous batching; its tokens are those of OptimumEngine."""

import gc
import threading
from itertools import islice
from types import SimpleNamespace

import pytest
from transformers import MptConfig

import conversion
import genai_engine
from conftest import EXACT
from engine import OptimumEngine
from genai_engine import GenAIEngine, tokens_in_cache
from sampling import SamplingParams
from tiny_checkpoints import FAMILIES

NAMES = {"llama": "llama-2-chat-7b", "gpt_neox": "red-pajama-3b-chat", "mpt": "mpt-7b-chat"}
GREEDY = SamplingParams(temperature=0, top_k=0, repetition_penalty=1, max_new_tokens=40)
PROMPT = [105, 64, 109, 168, 93, 268, 211, 251, 14, 82, 38, 164] * 4


@pytest.fixture(scope="module")
def folders(tiny_checkpoints, tmp_path_factory):
    models_dir = tmp_path_factory.getbasetemp() / "models"
    return {
        family: conversion.prepare_model(NAMES[family], "FP16", models_dir, checkpoint)
        for family, checkpoint in tiny_checkpoints.items()
    }


@pytest.fixture(scope="module")
def engine(folders) -> GenAIEngine:
    return GenAIEngine(folders["llama"], ov_config=EXACT)


@pytest.fixture(scope="module")
def optimum(folders) -> OptimumEngine:
    return OptimumEngine(conversion.load_model(folders["llama"], ov_config=EXACT)[0])


def is_idle(engine: GenAIEngine) -> bool:
    """Wait until the thread that drives the pipeline has ended; False if it does not."""
    driver = engine._driver
    if driver:
        driver.join(20)
    return engine._driver is None and not engine._running


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_the_other_engine(folders, family, penalty):
    sampling = SamplingParams(temperature=0, top_k=0, repetition_penalty=penalty, max_new_tokens=40)
    model, _ = conversion.load_model(folders[family], ov_config=EXACT)
    expected = list(OptimumEngine(model).generate(PROMPT, sampling))
    genai = GenAIEngine(folders[family], ov_config=EXACT)
    assert list(genai.generate(PROMPT, sampling)) == expected
    assert list(genai.generate(PROMPT, sampling)) == expected  # now with its prefix in the cache
    assert len(set(expected)) > 5


def test_limits_are_those_of_the_other_engine(engine, optimum):
    assert (engine.max_context, engine.end_ids) == (optimum.max_context, optimum.end_ids) == (512, {2})
    assert engine.max_requests >= 8 > optimum.max_requests == 1


def test_the_context_is_no_longer_than_what_the_cache_can_hold(folders, monkeypatch):
    mistral_7b = SimpleNamespace(
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, hidden_size=4096
    )
    assert tokens_in_cache(mistral_7b) == 2 * 10**9 // (2 * 32 * 8 * 128 * 2)
    mpt_7b = MptConfig(n_layers=32, n_heads=32, d_model=4096)
    assert tokens_in_cache(mpt_7b) == 2 * 10**9 // (2 * 32 * 4096 * 2)
    monkeypatch.setattr(genai_engine, "tokens_in_cache", lambda config: 300)
    assert GenAIEngine(folders["llama"]).max_context == 300


def test_eight_requests_at_once_get_what_each_gets_alone(engine, optimum):
    prompts = [PROMPT[start:] for start in range(8)]
    expected = [list(optimum.generate(prompt, GREEDY)) for prompt in prompts]
    results: dict[int, list[int]] = {}

    def ask(number):
        results[number] = list(engine.generate(prompts[number], GREEDY))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [results[number] for number in range(8)] == expected


def test_requests_run_together_in_one_thread(engine):
    streams = [engine.generate(PROMPT[start:], GREEDY) for start in range(3)]
    together = [[next(stream) for stream in streams] for _ in range(40)]
    alone = [list(engine.generate(PROMPT[start:], GREEDY)) for start in range(3)]
    assert [list(tokens) for tokens in zip(*together, strict=True)] == alone


def test_end_tokens_do_not_end_the_engine(engine):
    tokens = list(engine.generate([2], SamplingParams(temperature=2, top_k=0, max_new_tokens=400, seed=0)))
    assert len(tokens) == 400
    assert 2 in tokens[:-1]


def test_a_seed_repeats_and_others_differ(engine):
    def tokens(seed):
        return list(engine.generate(PROMPT, SamplingParams(temperature=1, seed=seed, max_new_tokens=20)))

    assert tokens(1) == tokens(1)
    assert len({tuple(tokens(seed)) for seed in (1, 2, None, None)}) == 4


@pytest.mark.parametrize("rule", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 0}], ids=str)
def test_rules_that_leave_one_token_are_greedy(engine, rule):
    settings = {"temperature": 2.0, "top_k": 0, "repetition_penalty": 1, "max_new_tokens": 20} | rule
    assert list(engine.generate(PROMPT, SamplingParams(**settings))) == list(
        islice(engine.generate(PROMPT, GREEDY), 20)
    )


def test_nothing_is_computed_before_the_first_token_is_asked_for(engine):
    assert is_idle(engine)
    tokens = engine.generate(PROMPT, GREEDY)
    assert engine._driver is None
    tokens.close()
    assert list(tokens) == []
    assert engine._driver is None


def test_an_empty_prompt_is_refused_at_once(engine):
    with pytest.raises(ValueError, match="prompt has no tokens"):
        engine.generate([], GREEDY)


class Watched:
    """A pipeline that counts its steps, and fails when told to."""

    def __init__(self, pipeline):
        self.pipeline, self.fail, self.steps = pipeline, False, 0

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def step(self):
        self.steps += 1
        if self.fail:
            raise RuntimeError("out of memory")
        self.pipeline.step()


def test_close_stops_the_pipeline_within_two_tokens(engine, monkeypatch):
    monkeypatch.setattr(engine, "_pipeline", watched := Watched(engine._pipeline))
    endless = engine.generate(PROMPT, SamplingParams(max_new_tokens=100_000))
    list(islice(endless, 5))
    endless.close()
    steps = watched.steps
    assert is_idle(engine)
    assert watched.steps <= steps + 2


def test_after_close_the_pipeline_is_free_and_the_next_request_is_right(engine, optimum):
    endless = engine.generate(PROMPT, SamplingParams(max_new_tokens=100_000))
    list(islice(endless, 3))
    endless.close()
    assert list(endless) == []
    assert is_idle(engine)
    assert list(engine.generate(PROMPT[5:], GREEDY)) == list(optimum.generate(PROMPT[5:], GREEDY))


def test_close_from_another_thread_wakes_who_waits(engine):
    endless = engine.generate(PROMPT, SamplingParams(max_new_tokens=100_000))
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(endless))
    reader.start()
    while not seen:
        threading.Event().wait(0.005)
    endless.close()
    reader.join(10)
    assert not reader.is_alive()
    assert is_idle(engine)


def test_a_reply_that_nobody_reads_any_more_is_stopped(engine):
    endless = engine.generate(PROMPT, SamplingParams(max_new_tokens=100_000))
    next(endless)
    del endless
    gc.collect()
    assert is_idle(engine)


def test_an_error_inside_the_pipeline_reaches_all_who_wait_and_the_next_request_works(
    engine, optimum, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_pipeline", Watched(engine._pipeline))
        endless = SamplingParams(max_new_tokens=100_000)
        streams = [engine.generate(PROMPT[start:], endless) for start in range(2)]
        for stream in streams:
            next(stream)
        engine._pipeline.fail = True
        for stream in streams:
            with pytest.raises(RuntimeError, match="out of memory"):
                list(stream)
        assert is_idle(engine)  # it does not try for ever
        with pytest.raises(RuntimeError, match="out of memory"):
            list(engine.generate(PROMPT, GREEDY))
        assert is_idle(engine)
    assert list(engine.generate(PROMPT, GREEDY)) == list(optimum.generate(PROMPT, GREEDY))


def test_a_prefix_is_computed_ahead(engine, optimum):
    engine.prefill(PROMPT[:40])
    assert is_idle(engine)
    assert list(engine.generate(PROMPT, GREEDY)) == list(optimum.generate(PROMPT, GREEDY))
