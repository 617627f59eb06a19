"""Token ids in, token ids out: the decode loop against Optimum's, the sampling against transformers'.

Optimum's forward lends the caller's tensors to OpenVINO, and the CPU plugin writes the inputs of *other*
infer requests of the same compiled model into them. So every call below is given tensors of its own.
"""

from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM

import conversion
from conftest import EXACT
from engine import OptimumEngine, SamplingParams, draw, next_token_probabilities
from tiny_checkpoints import FAMILIES

# The same as in test_conversion, so that what one file converted the other finds.
NAMES = {"llama": "llama-2-chat-7b", "gpt_neox": "red-pajama-3b-chat", "mpt": "mpt-7b-chat"}
MODELS = (*FAMILIES, "smollm2")
GREEDY = SamplingParams(temperature=0, top_k=0, repetition_penalty=1, max_new_tokens=40)
SAMPLED = SamplingParams(temperature=1, top_k=0, repetition_penalty=1, max_new_tokens=20, seed=1)
NEVER = 10**6  # an end token that no model has
PROMPT = [105, 64, 109, 168, 93, 268, 211, 251, 14, 82, 38, 164]


@pytest.fixture(scope="module")
def models(tiny_checkpoints, tmp_path_factory, smollm2):
    """An OVModelForCausalLM for each tiny family, in exact mode; and the default model."""
    models_dir = tmp_path_factory.getbasetemp() / "models"
    loaded = {"smollm2": smollm2[0]}
    for family, checkpoint in tiny_checkpoints.items():
        folder = conversion.prepare_model(NAMES[family], "FP16", models_dir, checkpoint)
        loaded[family], _ = conversion.load_model(folder, ov_config=EXACT)
    return loaded


@pytest.fixture(scope="module")
def engines(models) -> dict[str, OptimumEngine]:
    return {name: OptimumEngine(model) for name, model in models.items()}


@pytest.fixture
def llama(engines) -> OptimumEngine:
    return engines["llama"]


@pytest.fixture
def inferences(llama, monkeypatch) -> list[int]:
    """How many tokens each inference of the llama engine was given, as they happen."""
    counted = []
    infer = llama._infer

    def counting(request, new_ids, past):
        counted.append(len(new_ids))
        return infer(request, new_ids, past)

    monkeypatch.setattr(llama, "_infer", counting)
    return counted


# Decoding


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_equal_those_of_optimum(models, engines, smollm2, name, penalty):
    ids = smollm2[1].encode("Once upon a time, there was a") if name == "smollm2" else PROMPT
    prompt = torch.tensor([ids])
    expected = models[name].generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        repetition_penalty=penalty,
        max_new_tokens=40,
        eos_token_id=NEVER,
        pad_token_id=0,
    )
    sampling = SamplingParams(temperature=0, top_k=0, repetition_penalty=penalty, max_new_tokens=40)
    tokens = list(engines[name].generate(ids, sampling))
    assert tokens == expected[0, len(ids) :].tolist()
    assert len(set(tokens)) > 5  # something that could differ


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_equals_pytorch_without_a_cache(tiny_checkpoints, engines, family):
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoints[family], dtype=torch.float32)
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(10):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert list(islice(engines[family].generate(PROMPT, GREEDY), 10)) == ids[len(PROMPT) :]


def test_the_prompt_is_computed_once_and_then_one_token_at_a_time(llama, inferences):
    list(llama.generate(PROMPT, SamplingParams(max_new_tokens=4)))
    assert inferences == [len(PROMPT), 1, 1, 1]


@pytest.mark.parametrize("count", [1, 2, 17])
def test_as_many_tokens_come_as_were_asked_for(llama, count):
    assert len(list(llama.generate(PROMPT, SamplingParams(max_new_tokens=count)))) == count


def test_end_tokens_do_not_end_the_engine(llama):
    (end,) = llama.end_ids
    tokens = list(llama.generate([end], SamplingParams(temperature=2, top_k=0, max_new_tokens=400, seed=0)))
    assert end in tokens[:-1]


def test_a_prompt_of_one_token_is_enough(llama):
    assert len(list(llama.generate([5], GREEDY))) == GREEDY.max_new_tokens


def test_an_empty_prompt_is_refused_at_once(llama):
    with pytest.raises(ValueError, match="prompt has no tokens"):
        llama.generate([], GREEDY)


def test_the_prompt_is_left_as_it_is(llama):
    prompt = list(PROMPT)
    list(llama.generate(prompt, GREEDY))
    assert prompt == PROMPT


def test_interleaved_requests_do_not_mix(llama):
    jobs = [(PROMPT, GREEDY), (PROMPT[::-1], SAMPLED), (PROMPT[:3], GREEDY)]
    alone = [list(llama.generate(*job)) for job in jobs]
    running = [llama.generate(*job) for job in jobs]
    together = [[next(request) for request in running] for _ in range(20)]
    assert [list(tokens) for tokens in zip(*together, strict=True)] == [tokens[:20] for tokens in alone]


def test_the_context_length_is_what_the_checkpoint_says(engines):
    assert {name: engine.max_context for name, engine in engines.items()} == {
        "llama": 512,
        "gpt_neox": 512,
        "mpt": 512,
        "smollm2": 8192,
    }


def test_end_ids_are_those_of_the_generation_config(models, engines):
    assert {name: set(engine.end_ids) for name, engine in engines.items()} == {
        "llama": {2},
        "gpt_neox": {0},
        "mpt": {0, models["mpt"].config.vocab_size - 1},  # <|im_end|> came from the catalogue
        "smollm2": {2},
    }


@pytest.mark.parametrize(("eos", "expected"), [(None, set()), (0, {0}), ([3, 5], {3, 5})], ids=str)
def test_end_ids_may_be_none_one_or_several(models, monkeypatch, eos, expected):
    monkeypatch.setattr(models["llama"].generation_config, "eos_token_id", eos)
    assert OptimumEngine(models["llama"]).end_ids == expected


# Stopping and failing


def test_nothing_is_computed_before_the_first_token_is_asked_for(llama, inferences):
    tokens = llama.generate(PROMPT, GREEDY)
    assert inferences == []
    tokens.close()
    assert inferences == []


@pytest.mark.parametrize("taken", [1, 3])
def test_after_close_nothing_is_computed(llama, inferences, taken):
    tokens = llama.generate(PROMPT, GREEDY)
    list(islice(tokens, taken))
    tokens.close()
    assert list(tokens) == []
    assert len(inferences) == taken


def test_a_closed_request_leaves_no_trace_in_the_next(llama):
    expected = list(llama.generate(PROMPT, GREEDY))
    closed = llama.generate(PROMPT[::-1], GREEDY)
    list(islice(closed, 5))
    closed.close()
    assert list(llama.generate(PROMPT, GREEDY)) == expected


def test_an_error_inside_the_model_reaches_the_caller(llama, monkeypatch):
    def failing(request, new_ids, past):
        if past:
            raise RuntimeError("out of memory")
        return torch.zeros(500)

    monkeypatch.setattr(llama, "_infer", failing)
    tokens = llama.generate(PROMPT, GREEDY)
    next(tokens)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(tokens)
    assert list(tokens) == []


# Sampling


def tokens_of(engine: OptimumEngine, **settings) -> list[int]:
    sampling = SamplingParams(**{"temperature": 1, "top_k": 0, "max_new_tokens": 12} | settings)
    return list(engine.generate(PROMPT, sampling))


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_repeats(engines, name):
    assert tokens_of(engines[name], seed=7) == tokens_of(engines[name], seed=7)


def test_two_seeds_differ(llama):
    assert tokens_of(llama, seed=1) != tokens_of(llama, seed=2)


def test_without_a_seed_two_replies_differ(llama):
    assert tokens_of(llama, temperature=2) != tokens_of(llama, temperature=2)


def test_a_seed_neither_uses_nor_moves_the_global_generator(llama):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = torch.rand(1)
    tokens_of(llama, seed=1)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


def test_top_k_of_one_is_greedy(llama):
    expected = tokens_of(llama, temperature=0)
    assert [tokens_of(llama, top_k=1, temperature=2, seed=seed) for seed in range(3)] == [expected] * 3


def test_top_p_of_zero_is_greedy(llama):
    assert tokens_of(llama, top_p=0, temperature=2) == tokens_of(llama, temperature=0)


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return torch.randn(500, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1, 2])
def test_rules_that_are_off_leave_the_softmax_of_the_logits(logits, temperature):
    off = SamplingParams(temperature=temperature, top_k=0, top_p=1, repetition_penalty=1)
    expected = torch.softmax(logits / temperature, dim=-1)
    torch.testing.assert_close(next_token_probabilities(logits, PROMPT, off), expected)


def test_top_k_keeps_the_most_probable(logits):
    sampling = SamplingParams(temperature=1, top_k=5, repetition_penalty=1)
    kept = next_token_probabilities(logits, PROMPT, sampling).nonzero()[:, 0]
    assert set(kept.tolist()) == set(logits.topk(5).indices.tolist())


def test_top_k_beyond_the_vocabulary_keeps_all(logits):
    sampling = SamplingParams(temperature=1, top_k=2**62, repetition_penalty=1)
    assert next_token_probabilities(logits, PROMPT, sampling).count_nonzero() == len(logits)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    sampling = SamplingParams(temperature=1, top_k=0, top_p=0.7, repetition_penalty=1)
    expected = torch.tensor([0, 0.5 / 0.8, 0, 0.3 / 0.8])
    torch.testing.assert_close(next_token_probabilities(logits, [0], sampling), expected)


def test_the_penalty_makes_used_tokens_less_probable_and_others_not():
    logits = torch.tensor([2.0, 2.0, -2.0, -2.0])
    sampling = SamplingParams(temperature=1, top_k=0, repetition_penalty=2)
    expected = torch.softmax(torch.tensor([1.0, 2.0, -4.0, -2.0]), dim=-1)
    torch.testing.assert_close(next_token_probabilities(logits, [0, 2, 0], sampling), expected)


def test_temperature_zero_is_the_most_probable_token_after_the_penalty():
    logits = torch.tensor([2.0, 1.9, 0.0])
    sampling = SamplingParams(temperature=0, repetition_penalty=1.1)
    assert next_token_probabilities(logits, [0], sampling).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"top_k": 20},
        {"top_p": 0.8},
        {"repetition_penalty": 1.5},
        {"temperature": 0.3, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2},
        {"temperature": 1.7, "top_k": 100, "top_p": 0.5, "repetition_penalty": 2.0},
    ],
    ids=str,
)
def test_the_distribution_is_the_one_that_transformers_samples_from(tiny_checkpoints, settings):
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoints["llama"], dtype=torch.float32)
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0} | settings
    torch.manual_seed(0)
    output = model.generate(
        torch.tensor([PROMPT]),
        do_sample=True,
        max_new_tokens=8,
        eos_token_id=NEVER,
        pad_token_id=0,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    ids = output.sequences[0].tolist()
    for step, (logits, scores) in enumerate(zip(output.logits, output.scores, strict=True)):
        ours = next_token_probabilities(logits[0], ids[: len(PROMPT) + step], SamplingParams(**settings))
        torch.testing.assert_close(ours, torch.softmax(scores[0], dim=-1))


def test_draws_follow_the_distribution():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.tensor([0.0, 0.7, 0.0, 0.2, 0.1])
    draws = torch.tensor([draw(probabilities, generator) for _ in range(4000)])
    found = torch.bincount(draws, minlength=5) / len(draws)
    assert found[0] == found[2] == 0
    torch.testing.assert_close(found, probabilities, atol=0.03, rtol=0)


# Settings


def test_default_settings_are_those_of_the_design():
    assert SamplingParams() == SamplingParams(
        temperature=0.1, top_p=1.0, top_k=50, repetition_penalty=1.1, max_new_tokens=256, seed=None
    )


def bad_values() -> list[tuple[str, object]]:
    wrong_type = (True, "1", None, [1], float("nan"), float("inf"), -float("inf"))
    outside = {
        "temperature": (-0.01, 2.01),
        "top_p": (-0.01, 1.01),
        "top_k": (-1, 1.0, 2**63),
        "repetition_penalty": (0.99, 2.01, 0),
        "max_new_tokens": (0, -1, 1.0, 2**63),
        "seed": (-1, 1.0, 2**63),
    }
    bad = [(field, value) for field, values in outside.items() for value in (*values, *wrong_type)]
    return [case for case in bad if case != ("seed", None)]


@pytest.mark.parametrize(("field", "value"), bad_values(), ids=str)
def test_a_bad_setting_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be "):
        SamplingParams(**{field: value})


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
        ("max_new_tokens", 1),
        ("seed", 0),
        ("seed", 2**63 - 1),
    ],
    ids=str,
)
def test_the_ends_of_a_range_belong_to_it_and_work(llama, field, value):
    sampling = SamplingParams(**{"temperature": 1, field: value})
    assert next(llama.generate(PROMPT, sampling)) >= 0
