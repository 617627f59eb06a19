"""The same contract on OpenVINO GenAI's continuous batching; its tokens are those of OptimumEngine."""

import gc
import json
import shutil
import threading
import time
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path

import psutil
import pytest

import conversion
import genai_engine
from engine import OptimumEngine
from genai_engine import GenAIEngine
from sampling import SamplingParams
from tiny_checkpoints import FAMILIES
from tuning import EXACT

NAMES = {"llama": "llama-2-chat-7b", "gpt_neox": "red-pajama-3b-chat", "mpt": "mpt-7b-chat"}
GREEDY = SamplingParams(temperature=0, top_k=0, repetition_penalty=1, max_new_tokens=40)
ENDLESS = SamplingParams(max_new_tokens=100_000)
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


def copy(folder: Path, to: Path, without: str) -> Path:
    """A converted folder without some files, and without the manifest that would miss them."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(without, "conversion.json"))
    return to


def is_idle(engine: GenAIEngine) -> bool:
    """Wait until the process has nothing to compute; False if that does not come."""
    desk, end = engine._desk, time.monotonic() + 20
    while (desk._running or desk._pending or not desk._events.empty()) and time.monotonic() < end:
        threading.Event().wait(0.005)
    return not desk._running and not desk._pending


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
    assert engine.defaults == optimum.defaults
    assert engine.max_requests >= 8 > optimum.max_requests == 1


def test_the_context_is_no_longer_than_what_the_cache_holds(folders, monkeypatch):
    monkeypatch.setattr(
        genai_engine._Desk, "cache_tokens", property(lambda desk: 300, lambda desk, real: None), raising=False
    )
    small = GenAIEngine(folders["llama"])
    assert small.max_context == 300
    with pytest.raises(ValueError, match="prompt has 300 tokens, and the KV cache of 2 GB holds 300"):
        small.generate([5] * 300, GREEDY)
    small.close()


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


def test_end_tokens_do_not_end_the_engine(engine, folders, tmp_path):
    tokens = list(engine.generate(PROMPT, GREEDY))
    other = copy(folders["llama"], tmp_path / "other", without="generation_config.json")
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": tokens[5]}))
    ending = GenAIEngine(other, ov_config=EXACT)
    assert ending.end_ids == {tokens[5]}
    assert list(ending.generate(PROMPT, GREEDY)) == tokens
    ending.close()


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
    assert engine._desk._events.empty() and not engine._desk._running
    tokens.close()
    assert list(tokens) == []
    assert is_idle(engine)


def test_an_empty_prompt_is_refused_at_once(engine):
    with pytest.raises(ValueError, match="prompt has no tokens"):
        engine.generate([], GREEDY)


def test_after_close_the_pipeline_is_free_and_the_next_request_is_right(engine, optimum):
    endless = engine.generate(PROMPT, ENDLESS)
    list(islice(endless, 3))
    endless.close()
    assert list(endless) == []
    assert is_idle(engine)
    assert list(engine.generate(PROMPT[5:], GREEDY)) == list(optimum.generate(PROMPT[5:], GREEDY))


def test_close_from_another_thread_wakes_who_waits(engine):
    endless = engine.generate(PROMPT, ENDLESS)
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
    endless = engine.generate(PROMPT, ENDLESS)
    next(endless)
    del endless
    gc.collect()
    assert is_idle(engine)


@pytest.mark.parametrize("ids", [[-1], [5, 100_000]], ids=str)
def test_ids_that_are_no_tokens_are_refused_at_once(engine, ids):
    with pytest.raises(ValueError, match="beyond the model's"):
        engine.generate(ids, GREEDY)


def test_a_process_that_dies_ends_its_requests_and_the_next_one_gets_another(engine, optimum):
    streams = [engine.generate(PROMPT[start:], ENDLESS) for start in range(2)]
    for stream in streams:
        next(stream)
    dead = engine._desk._process
    dead._popen.kill()
    for stream in streams:
        with pytest.raises(RuntimeError, match=r"has ended with code -?[0-9]+.*starts another"):
            list(stream)
        assert list(stream) == []
    assert list(engine.generate(PROMPT, GREEDY)) == list(optimum.generate(PROMPT, GREEDY))
    assert engine._desk._process is not dead


def is_silent(engine: GenAIEngine, wanted: bool) -> bool:
    """Wait until the process has, or has not, been silent for 0.3 seconds; False if that does not come."""
    end = time.monotonic() + 20
    while (engine.silent > 0.3) != wanted and time.monotonic() < end:
        threading.Event().wait(0.005)
    return (engine.silent > 0.3) == wanted


def test_silence_of_a_process_that_hangs_is_seen(engine):
    assert is_idle(engine)
    assert engine.silent == 0
    with closing(engine.generate(PROMPT, ENDLESS)) as stream:
        next(stream)
        process = psutil.Process(engine._desk._process._popen.pid)
        process.suspend()
        try:
            assert is_silent(engine, True)
        finally:
            process.resume()
        assert is_silent(engine, False)
    assert is_idle(engine)
    assert engine.silent == 0


def test_an_error_inside_the_pipeline_reaches_who_waits(folders):
    broken = GenAIEngine(folders["llama"])
    broken._vocabulary = 10**9  # so that the pipeline gets to see a token it has not
    with pytest.raises(RuntimeError, match="out of bounds"):
        list(broken.generate([10**8], SamplingParams(temperature=0, repetition_penalty=1.5)))
    assert len(list(broken.generate(PROMPT, GREEDY))) == 40
    broken.close()


def test_more_requests_than_can_run_wait_in_line(engine, monkeypatch):
    monkeypatch.setattr(engine._desk, "_max_requests", 1)
    first, second = engine.generate(PROMPT, ENDLESS), engine.generate(PROMPT, GREEDY)
    next(first)
    assert not second.waiting
    tokens = []
    reader = threading.Thread(target=lambda: tokens.extend(second))
    reader.start()
    while not second.waiting:
        threading.Event().wait(0.005)
    next(first)
    assert second.waiting and not tokens
    first.close()
    reader.join(20)
    assert len(tokens) == 40
    assert not first.waiting and not second.waiting


def test_who_waits_in_line_can_leave_it(engine, monkeypatch):
    monkeypatch.setattr(engine._desk, "_max_requests", 1)
    first, second = engine.generate(PROMPT, ENDLESS), engine.generate(PROMPT, GREEDY)
    next(first)
    reader = threading.Thread(target=lambda: list(second))
    reader.start()
    while not second.waiting:
        threading.Event().wait(0.005)
    second.close()
    reader.join(5)
    assert not reader.is_alive()
    first.close()
    assert is_idle(engine)


def test_a_closed_engine_ends_what_runs_and_takes_no_more(folders):
    closing = GenAIEngine(folders["llama"])
    stream = closing.generate(PROMPT, ENDLESS)
    next(stream)
    closing.close()
    closing.close()
    for tokens in (stream, closing.generate(PROMPT, GREEDY)):
        with pytest.raises(RuntimeError, match="engine has been closed"):
            list(tokens)
    assert closing._desk._process is None or closing._desk._process._popen.poll() is not None


def test_an_engine_that_nobody_holds_ends_its_process(folders):
    forgotten = GenAIEngine(folders["llama"])
    popen = forgotten._desk._process._popen
    del forgotten
    gc.collect()
    assert popen.wait(20) is not None


@pytest.mark.parametrize("others", [0, 1, 3])
def test_log_probabilities_are_those_of_the_other_engine(engine, optimum, others):
    sampling = SamplingParams(temperature=0, repetition_penalty=1.3, max_new_tokens=40, logprobs=others)
    streams = [one.generate(PROMPT, sampling) for one in (engine, optimum)]
    tokens, expected = map(list, streams)
    assert tokens == expected
    assert len(streams[0].logprobs) == 40
    for (value, best), (expected_value, expected_best) in zip(
        streams[0].logprobs, streams[1].logprobs, strict=True
    ):
        assert value == pytest.approx(expected_value, abs=1e-3)
        assert best == pytest.approx(expected_best, abs=1e-3)
        assert len(best) == others


def test_log_probabilities_come_with_their_tokens(engine):
    stream = engine.generate(PROMPT, SamplingParams(temperature=0, max_new_tokens=5, logprobs=2))
    for count, token in enumerate(stream, start=1):
        assert len(stream.logprobs) == count
        value, best = stream.logprobs[-1]
        assert best[token] == value == max(best.values())


def test_a_reply_satisfies_a_json_schema_and_ends(folders):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["gpt_neox"])
    neox = GenAIEngine(folders["gpt_neox"])
    schema = json.dumps({"enum": ["yes", "no"]})
    tokens = list(neox.generate(PROMPT, SamplingParams(json_schema=schema, seed=0)))
    assert tokens.pop() in neox.end_ids
    assert json.loads(tokenizer.decode(tokens)) in ("yes", "no")
    neox.close()


def test_a_folder_without_openvinos_tokenizer_serves_all_but_schemas(folders, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(
        folders["llama"], bare, ignore=shutil.ignore_patterns("openvino_*tokenizer.*", "conversion.json")
    )
    engine = GenAIEngine(bare)
    assert len(list(engine.generate(PROMPT, GREEDY))) == 40
    with pytest.raises(ValueError, match="has no tokenizer for OpenVINO GenAI"):
        list(engine.generate(PROMPT, SamplingParams(json_schema="{}")))
    engine.close()


@pytest.mark.parametrize(
    "schema", ["no json", '{"type": "nonsense"}', '{"$ref": "#/nowhere"}', '{"type": "object"}']
)
def test_a_schema_that_cannot_be_followed_harms_nobody_else(engine, schema):
    """The last one cannot, as no token of this model is a brace."""
    other = engine.generate(PROMPT, GREEDY)
    tokens = [next(other)]
    process = engine._desk._process
    with pytest.raises(ValueError, match="JSON schema cannot be followed"):
        list(engine.generate(PROMPT, SamplingParams(json_schema=schema)))
    tokens += other
    assert tokens == list(engine.generate(PROMPT, GREEDY))
    assert engine._desk._process is process


def test_tokens_reused_from_the_turn_before_are_counted(engine):
    prompt = [7 * place % 300 + 20 for place in range(100)]
    first = engine.generate(prompt, GREEDY)
    reply = list(first)
    assert first.reused_tokens == 0
    again = engine.generate(prompt, GREEDY)
    next(again)
    assert again.reused_tokens == 96  # three blocks
    following = engine.generate([*prompt, *reply, 9, 8, 7], GREEDY)
    next(following)
    assert following.reused_tokens == 139  # all but the last, which was never read


def test_no_other_thread_waits_for_the_model(engine):
    """As the machine may be busy with something else, one prompt of ten has to show it."""
    prompt = [7 * place % 300 + 20 for place in range(2500)]

    def longest_silence(start):
        over, beats = threading.Event(), [time.perf_counter()]

        def beat():
            while not over.wait(0.002):
                beats.append(time.perf_counter())

        heart = threading.Thread(target=beat)
        heart.start()
        list(islice(engine.generate(prompt[start:], GREEDY), 5))
        over.set()
        heart.join()
        assert len(beats) > 10
        return max(later - beat for beat, later in pairwise(beats))

    assert any(longest_silence(start) < 0.05 for start in range(10))


def test_a_prefix_is_computed_ahead(engine, optimum):
    engine.prefill(PROMPT[:40])
    assert is_idle(engine)
    assert list(engine.generate(PROMPT, GREEDY)) == list(optimum.generate(PROMPT, GREEDY))
