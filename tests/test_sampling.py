"""Logits in, next token out: the rules, one by one and together, against transformers'."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import sampling
from sampling import OPTIONS, Sampler, SamplingParams, candidates, log_probabilities, next_token_probabilities

SEEN = [105, 64, 109, 168, 93, 268, 211, 251, 14, 82, 38, 164]


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, 500).astype(np.float32)


def test_nothing_but_numpy_is_needed():
    code = "import sys, sampling; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "numpy" in loaded and not loaded & {"torch", "transformers", "openvino", "config", "engine"}


# One rule at a time


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1, 2])
def test_rules_that_are_off_leave_the_softmax_of_the_logits(logits, temperature):
    expected = torch.softmax(torch.from_numpy(logits) / temperature, dim=-1).numpy()
    found = next_token_probabilities(logits, SEEN, SamplingParams(temperature=temperature))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-5, 1e-44, 1e-300, 5e-324])
def test_a_tiny_temperature_is_greedy(logits, temperature):
    tokens, probabilities = candidates(logits, SamplingParams(temperature=temperature))
    assert tokens[probabilities.argmax()] == logits.argmax()
    assert probabilities.max() == 1


def test_top_k_keeps_the_most_probable(logits):
    found = next_token_probabilities(logits, SEEN, SamplingParams(top_k=5))
    assert set(found.nonzero()[0]) == set(np.argsort(logits)[-5:])


def test_top_k_beyond_the_vocabulary_keeps_all(logits):
    found = next_token_probabilities(logits, SEEN, SamplingParams(top_k=2**62))
    assert np.count_nonzero(found) == len(logits)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = np.log(np.float32([0.15, 0.5, 0.05, 0.3]))
    found = next_token_probabilities(logits, [0], SamplingParams(top_p=0.7))
    np.testing.assert_allclose(found, [0, 0.5 / 0.8, 0, 0.3 / 0.8], atol=1e-6)


@pytest.mark.parametrize("few", [1, 3, 10**6])
def test_top_p_is_the_same_however_many_tokens_are_looked_at_first(logits, monkeypatch, few):
    expected = next_token_probabilities(logits, [], SamplingParams(top_p=0.8))
    monkeypatch.setattr(sampling, "FEW", few)
    np.testing.assert_allclose(next_token_probabilities(logits, [], SamplingParams(top_p=0.8)), expected)


def test_min_p_keeps_what_is_probable_enough_beside_the_most_probable():
    logits = np.log(np.float32([0.15, 0.5, 0.05, 0.3]))
    found = next_token_probabilities(logits, [0], SamplingParams(min_p=0.31))
    np.testing.assert_allclose(found, [0, 0.5 / 0.8, 0, 0.3 / 0.8], atol=1e-6)
    assert (next_token_probabilities(logits, [0], SamplingParams(min_p=1)) == [0, 1, 0, 0]).all()


def test_the_penalty_makes_used_tokens_less_probable_and_others_not():
    logits = np.float32([2.0, 2.0, -2.0, -2.0])
    expected = torch.softmax(torch.tensor([1.0, 2.0, -4.0, -2.0]), dim=-1).numpy()
    found = next_token_probabilities(logits, [0, 2, 0], SamplingParams(repetition_penalty=2))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_penalty_leaves_spared_tokens_alone():
    logits = np.float32([2.0, 2.0, -2.0, -2.0])
    expected = torch.softmax(torch.tensor([2.0, 2.0, -4.0, -2.0]), dim=-1).numpy()
    found = next_token_probabilities(logits, [0, 2], SamplingParams(repetition_penalty=2), spared={0})
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_temperature_zero_is_the_most_probable_token_after_the_penalty():
    params = SamplingParams(temperature=0, repetition_penalty=1.1)
    assert next_token_probabilities(np.float32([2.0, 1.9, 0.0]), [0], params).tolist() == [0, 1, 0]


# All of them


def of_transformers(logits: np.ndarray, ids: list[int], params: SamplingParams) -> np.ndarray:
    """The probabilities after transformers' processors, in the order in which its `generate` has them."""
    rules = LogitsProcessorList()
    if params.repetition_penalty != 1:
        rules.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature != 1:
        rules.append(TemperatureLogitsWarper(float(params.temperature)))
    if params.top_k:
        rules.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        rules.append(TopPLogitsWarper(float(params.top_p)))
    if params.min_p:
        rules.append(MinPLogitsWarper(params.min_p))
    scores = rules(torch.tensor([ids]), torch.from_numpy(logits)[None].clone())[0]
    return torch.softmax(scores, dim=-1).numpy()


RULES = {
    "temperature": (0.3, 1.0, 1.7),
    "top_p": (0.0, 0.3, 0.9, 1.0),
    "top_k": (0, 1, 7, 50),
    "repetition_penalty": (1.0, 1.3, 2.0),
    "min_p": (0.0, 0.05, 0.5),
}


def test_a_penalty_without_tokens_that_it_applies_to_changes_nothing(logits):
    tokens, probabilities = candidates(logits, SamplingParams(repetition_penalty=1.5))
    expected_tokens, expected = candidates(logits, SamplingParams())
    np.testing.assert_array_equal(tokens, expected_tokens)
    np.testing.assert_array_equal(probabilities, expected)


def test_rules_that_were_checked_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().temperature = -1


def test_a_schema_is_text():
    with pytest.raises(ValueError, match="json_schema must be the text of a JSON schema"):
        SamplingParams(json_schema={"type": "object"})


def test_every_rule_is_held_against_transformers():
    assert set(RULES) == {name for name, option in OPTIONS.items() if option.slider} - {"max_new_tokens"}


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_every_combination_gives_the_probabilities_of_transformers(scale):
    rng = np.random.default_rng(1)
    for values in itertools.product(*RULES.values()):
        params = SamplingParams(**dict(zip(RULES, values, strict=True)))
        logits = rng.normal(0, scale, 2500).astype(np.float32)
        ids = rng.integers(0, 2500, 100).tolist()
        found = next_token_probabilities(logits, ids, params)
        np.testing.assert_allclose(
            found, of_transformers(logits, ids, params), atol=1e-6, err_msg=str(params)
        )


# Drawing


def test_draws_follow_the_distribution():
    logits = np.log(np.float32([1e-9, 0.7, 1e-9, 0.2, 0.1]))
    sampler = Sampler(SamplingParams(seed=0))
    found = np.bincount([sampler.draw(logits) for _ in range(4000)], minlength=5) / 4000
    np.testing.assert_allclose(found, [0, 0.7, 0, 0.2, 0.1], atol=0.03)


@pytest.mark.parametrize("left", [1, 2, 3])
def test_each_token_that_is_left_is_drawn_and_no_other(left):
    logits = np.float32([0.1, 0.3, 0.2, 0])
    sampler = Sampler(SamplingParams(seed=0, top_k=left))
    assert {sampler.draw(logits) for _ in range(100)} == set([1, 2, 0][:left])


def test_a_seed_repeats_and_another_does_not(logits):
    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(seed=seed))
        return [sampler.draw(logits) for _ in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


def test_a_draw_is_seen_by_the_next_one():
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=2), prompt=[0])
    assert [sampler.draw(np.float32([9, 5, 4, 3])) for _ in range(3)] == [1, 0, 0]  # 4.5, 5 -> 4.5, 2.5


def test_a_spared_token_is_drawn_again_and_again():
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=2), prompt=[0], spared={0, 1})
    assert [sampler.draw(np.float32([3, 5, 4])) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error(bad, temperature):
    with pytest.raises(FloatingPointError, match=r"not finite.*INFERENCE_PRECISION_HINT"):
        Sampler(SamplingParams(temperature=temperature)).draw(np.float32([1, bad, 2]))


def test_the_given_logits_stay_as_they_are(logits):
    before = logits.copy()
    Sampler(SamplingParams(repetition_penalty=2, top_k=3), prompt=SEEN).draw(logits)
    assert (logits == before).all()


def test_a_draw_does_the_same_work_however_many_tokens_there_have_been(logits, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        sampling, "candidates", lambda *given: sizes.append(len(given[2])) or candidates(*given)
    )
    for length in (1_000, 100_000):
        prompt = np.random.default_rng(0).integers(0, 50, length).tolist()
        Sampler(SamplingParams(temperature=0, repetition_penalty=1.5), prompt).draw(logits)
    assert sizes == [50, 50]  # the different tokens among them


def test_log_probabilities_are_those_of_the_softmax(logits):
    expected = torch.log_softmax(torch.from_numpy(logits), dim=-1).numpy()
    own, best = log_probabilities(logits, 7, 3)
    assert own == pytest.approx(expected[7], abs=1e-5)
    assert list(best) == np.argsort(expected)[::-1][:3].tolist()
    assert list(best.values()) == pytest.approx(sorted(expected)[::-1][:3], abs=1e-5)
    assert log_probabilities(logits, 7, 0)[1] == {}


# Settings


def test_as_created_no_rule_is_on():
    assert SamplingParams() == SamplingParams(
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        min_p=0.0,
        stop=(),
        max_new_tokens=256,
        seed=None,
        logprobs=None,
    )


def test_the_table_of_options_has_each_setting_with_what_switches_it_off():
    # A JSON schema is for programs, and nothing that a person would set.
    assert [*OPTIONS, "json_schema"] == list(SamplingParams.__dataclass_fields__)
    for name, option in OPTIONS.items():
        assert option.name == name and option.label and option.help
        assert getattr(SamplingParams(), name) == option.off
        if option.slider:
            assert option.low is not None and option.slider[0] > option.low


def bad_values() -> list[tuple[str, object]]:
    wrong_type = (True, "1", None, [1], float("nan"), float("inf"), -float("inf"), 10**5000)
    outside = {
        "temperature": (-0.01, 2.01),
        "top_p": (-0.01, 1.01),
        "top_k": (-1, 1.0, 2**63),
        "repetition_penalty": (0.99, 2.01, 0),
        "min_p": (-0.01, 1.01),
        "max_new_tokens": (0, -1, 1.0, 2**63),
        "seed": (-1, 1.0, 2**63),
        "logprobs": (-1, 1.0, 21),
    }
    bad = [(field, value) for field, values in outside.items() for value in (*values, *wrong_type)]
    return [case for case in bad if case not in (("seed", None), ("logprobs", None))]


@pytest.mark.parametrize(("field", "value"), bad_values(), ids=lambda case: f"{type(case).__name__}")
def test_a_bad_setting_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be "):
        SamplingParams(**{field: value})


@pytest.mark.parametrize("value", [("",), (1,), ["a", None], 5], ids=str)
def test_stop_texts_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match=r"^stop must be "):
        SamplingParams(stop=value)


@pytest.mark.parametrize(("given", "kept"), [("a", ("a",)), (["a", "b"], ("a", "b")), (None, ()), ([], ())])
def test_one_stop_text_may_be_given_as_it_is(given, kept):
    assert SamplingParams(stop=given).stop == kept


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0),
        ("temperature", 2.0),
        ("top_p", 0.0),
        ("top_p", 1),
        ("top_k", 0),
        ("top_k", 2**63 - 1),
        ("repetition_penalty", 1),
        ("repetition_penalty", 2),
        ("min_p", 0),
        ("min_p", 1),
        ("max_new_tokens", 1),
        ("seed", 0),
        ("seed", 2**63 - 1),
        ("logprobs", 0),
        ("logprobs", 20),
    ],
    ids=str,
)
def test_the_ends_of_a_range_belong_to_it_and_work(logits, field, value):
    assert Sampler(SamplingParams(**{field: value}), SEEN).draw(logits) >= 0
