"""One suite for every engine: what `engine.Engine` promises, kept by both of ours and by a scripted one."""

import threading

import pytest

import conversion
from conftest import EXACT
from engine import OptimumEngine
from fakes import ScriptedEngine
from genai_engine import GenAIEngine
from sampling import SamplingParams

PROMPT = [105, 64, 109, 168, 93, 268, 211, 251, 14, 82, 38, 164]
GREEDY = SamplingParams(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(tiny_checkpoints, tmp_path_factory):
    models_dir = tmp_path_factory.getbasetemp() / "models"
    return conversion.prepare_model("llama-2-chat-7b", "FP16", models_dir, tiny_checkpoints["llama"])


ENGINES = {
    "Optimum, from a model": lambda folder: OptimumEngine(conversion.load_model(folder, ov_config=EXACT)[0]),
    "Optimum, from a folder": lambda folder: OptimumEngine.from_folder(folder, ov_config=EXACT),
    "GenAI": lambda folder: GenAIEngine(folder, ov_config=EXACT),
    "scripted": lambda folder: ScriptedEngine(range(5, 60), max_context=512, end_ids=frozenset([2])),
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, folder):
    made = ENGINES[request.param](folder)
    yield made
    made.close()


def test_it_says_what_it_is(engine):
    assert engine.max_context == 512
    assert engine.end_ids == {2}
    assert engine.max_requests >= 1
    assert isinstance(engine.defaults, SamplingParams)


def test_a_settled_engine_serves(engine):
    engine.settle()
    assert len(list(engine.generate(PROMPT, GREEDY))) == 12


def test_as_many_tokens_come_as_were_asked_for_and_greedy_ones_come_again(engine):
    tokens = list(engine.generate(PROMPT, GREEDY))
    assert len(tokens) == 12 and all(isinstance(token, int) for token in tokens)
    assert list(engine.generate(PROMPT, GREEDY)) == tokens


@pytest.mark.parametrize(
    "rules",
    [
        {"min_p": 0.1},
        {"top_k": 3},
        {"top_p": 0.5},
        {"temperature": 0.5, "min_p": 1.0},
        {"repetition_penalty": 1.3},
        {"stop": ("text",)},  # none of an engine's business
    ],
    ids=str,
)
def test_every_rule_is_taken(engine, rules):
    sampling = SamplingParams(**{"seed": 1, "max_new_tokens": 4} | rules)
    tokens = list(engine.generate(PROMPT, sampling, spared={2}))
    assert len(tokens) == 4
    assert list(engine.generate(PROMPT, sampling, spared={2})) == tokens


def test_a_min_p_of_one_is_greedy(engine):
    sampling = SamplingParams(temperature=2, min_p=1, seed=3, max_new_tokens=12)
    assert list(engine.generate(PROMPT, sampling)) == list(engine.generate(PROMPT, GREEDY))


def test_the_prompt_is_left_as_it_is(engine):
    prompt = list(PROMPT)
    list(engine.generate(prompt, GREEDY))
    assert prompt == PROMPT


def test_an_empty_prompt_is_refused_at_once(engine):
    with pytest.raises(ValueError, match="prompt has no tokens"):
        engine.generate([], GREEDY)


def test_a_prefix_may_be_computed_ahead_and_changes_nothing(engine):
    expected = list(engine.generate(PROMPT, GREEDY))
    engine.prefill(PROMPT[:8])
    assert list(engine.generate(PROMPT, GREEDY)) == expected


def test_after_close_nothing_comes_and_the_next_request_is_right(engine):
    expected = list(engine.generate(PROMPT, GREEDY))
    stream = engine.generate(PROMPT, SamplingParams(temperature=0, max_new_tokens=400))
    assert next(stream) == expected[0]
    stream.close()
    stream.close()
    assert list(stream) == []
    assert list(engine.generate(PROMPT, GREEDY)) == expected


def test_closing_before_the_first_token_is_harmless(engine):
    stream = engine.generate(PROMPT, GREEDY)
    stream.close()
    assert list(stream) == []


def test_another_thread_may_close(engine):
    stream = engine.generate(PROMPT, SamplingParams(temperature=0, max_new_tokens=400))
    next(stream)
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert list(stream) == []


def test_it_says_whether_it_waits_and_for_how_long(engine):
    stream = engine.generate(PROMPT, GREEDY)
    assert not stream.waiting and stream.waited == 0
    list(stream)
    assert not stream.waiting and stream.waited >= 0


def test_log_probabilities_come_with_the_tokens(engine):
    stream = engine.generate(PROMPT, SamplingParams(temperature=0, max_new_tokens=3, logprobs=2))
    tokens = list(stream)
    assert len(stream.logprobs) == 3
    for token, (own, best) in zip(tokens, stream.logprobs, strict=True):
        assert own <= 0 and best[token] == pytest.approx(own, abs=1e-5)
    silent = engine.generate(PROMPT, GREEDY)
    list(silent)
    assert silent.logprobs == []


def test_several_threads_get_each_its_own_reply(engine):
    expected = list(engine.generate(PROMPT, GREEDY))
    results: list = []
    threads = [
        threading.Thread(target=lambda: results.append(list(engine.generate(PROMPT, GREEDY))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [expected] * 4
