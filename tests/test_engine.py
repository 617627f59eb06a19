"""Token ids in, token ids out: the decode loop against Optimum's, the sampling against transformers'.

Optimum's forward lends the caller's tensors to OpenVINO, and the CPU plugin writes the inputs of *other*
infer requests of the same compiled model into them. So every call below is given tensors of its own.
"""

import gc
import random
import threading
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Phi3Config

import conversion
from conftest import EXACT
from engine import (
    PREFILL_CHUNK,
    OptimumEngine,
    SamplingParams,
    candidates,
    draw,
    model_limits,
    next_token_probabilities,
    shared_prefix,
)
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
def llama(models) -> OptimumEngine:
    """An engine of its own for each test: with nothing in its cache."""
    return OptimumEngine(models["llama"])


@pytest.fixture
def inferences(llama, monkeypatch) -> list[int]:
    """How many tokens each inference of the llama engine was given, as they happen."""
    counted = []
    infer = llama._model.infer

    def counting(new_ids, past):
        counted.append(len(new_ids))
        return infer(new_ids, past)

    monkeypatch.setattr(llama._model, "infer", counting)
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


def test_a_long_prompt_is_computed_in_pieces(models):
    prompt = (PROMPT * 100)[: PREFILL_CHUNK + 40]
    engine, other = OptimumEngine(models["mpt"]), OptimumEngine(models["mpt"])
    for start in range(0, len(prompt), 100):  # a cache that grows in other pieces
        other.prefill(prompt[: start + 100])
    assert list(engine.generate(prompt, GREEDY)) == list(other.generate(prompt, GREEDY))


# The cache between requests


def test_a_new_turn_computes_only_what_is_new(llama, inferences):
    stream = llama.generate(PROMPT, GREEDY)
    reply = list(islice(stream, 5))
    stream.close()
    assert stream.reused_tokens == 0
    del inferences[:]
    stream = llama.generate([*PROMPT, *reply, 7, 8, 9], GREEDY)
    assert stream.reused_tokens is None
    next(stream)
    # The reply's last token was chosen, but never read by the model.
    assert stream.reused_tokens == len(PROMPT) + 4
    assert inferences == [4]


def test_a_repeated_prompt_computes_its_last_token_only(llama, inferences):
    expected = list(llama.generate(PROMPT, GREEDY))
    del inferences[:]
    stream = llama.generate(PROMPT, GREEDY)
    assert list(stream) == expected
    assert stream.reused_tokens == len(PROMPT) - 1
    assert inferences == [1] * GREEDY.max_new_tokens


def test_the_cache_is_cut_back_to_where_two_prompts_part(llama, inferences):
    list(llama.generate(PROMPT, GREEDY))
    del inferences[:]
    next(llama.generate([*PROMPT[:5], 9, 9, 9], GREEDY))
    assert inferences == [3]


def test_a_prefix_computed_ahead_is_not_computed_again(llama, inferences):
    llama.prefill(PROMPT[:8])
    assert inferences == [8]
    stream = llama.generate(PROMPT, GREEDY)
    next(stream)
    assert stream.reused_tokens == 8
    assert inferences == [8, len(PROMPT) - 8]


@pytest.mark.parametrize("name", MODELS)
def test_whatever_is_cached_the_reply_is_that_of_a_fresh_engine(models, name):
    """New turns, retries, edits, stops and switches between conversations, in random order."""
    choice = random.Random(0)
    engine, fresh = OptimumEngine(models[name]), OptimumEngine(models[name])
    conversations: list[list[int]] = [[], []]
    reused = 0
    for _ in range(40 if name != "smollm2" else 15):
        conversation = choice.choice(conversations)
        step = choice.choice(["turn", "turn", "turn", "retry", "edit"])
        if step == "edit":
            del conversation[choice.randrange(len(conversation) + 1) :]
        if step != "retry" or not conversation:
            conversation += choice.choices(PROMPT, k=choice.choice([1, 5, 25]))
        del conversation[:-300]
        sampling = SamplingParams(
            temperature=0, top_k=0, repetition_penalty=1, max_new_tokens=choice.choice([1, 6, 20])
        )
        stream = engine.generate(conversation, sampling)
        reply = list(islice(stream, choice.choice([1, 3, 20])))
        stream.close()
        reused += stream.reused_tokens
        fresh._cached_ids = []
        expected = fresh.generate(conversation, sampling)
        assert reply == list(islice(expected, len(reply)))
        assert expected.reused_tokens == 0
        expected.close()
        conversation += reply
    assert reused > 100


def test_a_failed_inference_leaves_nothing_in_the_cache(llama, inferences, monkeypatch):
    expected = list(llama.generate(PROMPT, GREEDY))
    with monkeypatch.context() as patch:
        patch.setattr(llama._model, "infer", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            next(llama.generate([*PROMPT, 5], GREEDY))
    stream = llama.generate(PROMPT, GREEDY)
    assert list(stream) == expected
    assert stream.reused_tokens == 0


@pytest.mark.parametrize(
    ("cached", "ids", "expected"),
    [
        ([], [1], 0),
        ([1], [1], 0),
        ([1], [1, 2], 1),
        ([1, 2, 3], [1, 2], 1),
        ([1, 2, 3], [1, 2, 4, 5], 2),
        ([2, 2], [1, 2, 3], 0),
        ([1, 2, 3], [1, 2, 3], 2),
    ],
)
def test_the_last_token_of_a_prompt_is_always_computed(cached, ids, expected):
    assert shared_prefix(cached, ids) == expected


# Several requests


def failing(new_ids, past):
    raise RuntimeError("out of memory")


def run_in_thread(work) -> tuple[threading.Thread, list]:
    result: list = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()
    return thread, result


def test_requests_of_several_threads_do_not_mix(llama):
    prompts = [PROMPT, PROMPT[::-1], PROMPT[:3], [*PROMPT[:6], 9, 8, 7]] * 2
    alone = [list(llama.generate(prompt, GREEDY)) for prompt in prompts]
    running = [
        run_in_thread(lambda prompt=prompt: list(llama.generate(prompt, GREEDY))) for prompt in prompts
    ]
    for thread, _ in running:
        thread.join(30)
    assert [result for _, (result,) in running] == alone


def test_who_comes_first_is_served_first(llama):
    first = llama.generate(PROMPT, GREEDY)
    ready, order = threading.Event(), []
    holder = run_in_thread(lambda: (next(first), ready.set(), ready.wait()))[0]
    holder.join(10)
    waiting = []
    for number in range(4):
        begun = threading.Event()

        def ask(number=number, begun=begun):
            tokens = llama.generate([*PROMPT, number], GREEDY)
            begun.set()
            next(tokens)
            order.append(number)
            tokens.close()

        waiting.append(run_in_thread(ask)[0])
        begun.wait(10)
        while len(llama._line) < number + 2:  # until it stands in line
            threading.Event().wait(0.005)
    assert order == []
    first.close()
    for thread in waiting:
        thread.join(30)
    assert order == [0, 1, 2, 3]


def test_two_replies_read_in_turns_by_the_main_thread_are_right(llama):
    jobs = [(PROMPT, GREEDY), (PROMPT[::-1], SAMPLED), (PROMPT[:3], GREEDY)]
    alone = [list(llama.generate(*job)) for job in jobs]
    running = [llama.generate(*job) for job in jobs]
    together = [[next(request) for request in running] for _ in range(20)]
    assert [list(tokens) for tokens in zip(*together, strict=True)] == [tokens[:20] for tokens in alone]


def test_a_reply_that_nobody_reads_any_more_frees_the_engine(llama):
    tokens = llama.generate(PROMPT, GREEDY)
    run_in_thread(tokens.__next__)[0].join(10)
    assert len(llama._line) == 1
    del tokens
    gc.collect()
    assert not llama._line


def test_a_waiting_request_can_be_closed(llama):
    first = llama.generate(PROMPT, GREEDY)
    run_in_thread(lambda: next(first))[0].join(10)
    second = llama.generate(PROMPT, GREEDY)
    thread, result = run_in_thread(lambda: list(second))
    while len(llama._line) < 2:
        threading.Event().wait(0.005)
    second.close()
    thread.join(10)
    assert result == [[]]
    assert len(llama._line) == 1
    assert len(list(first)) == GREEDY.max_new_tokens - 1


def test_the_context_length_is_what_the_checkpoint_says(engines):
    assert {name: engine.max_context for name, engine in engines.items()} == {
        "llama": 512,
        "gpt_neox": 512,
        "mpt": 512,
        "smollm2": 8192,
    }


def test_the_context_of_longrope_ends_where_its_frequencies_change():
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    config = Phi3Config(
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_scaling={"type": "longrope", **factors},
    )
    assert model_limits(config, GenerationConfig())[0] == 4096
    assert model_limits(Phi3Config(max_position_embeddings=8192), GenerationConfig())[0] == 8192


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


def test_close_from_another_thread_ends_the_request_with_the_token_being_computed(
    llama, inferences, monkeypatch
):
    infer, computing, go_on = llama._model.infer, threading.Event(), threading.Event()

    def slow(new_ids, past):
        computing.set()
        assert go_on.wait(10)
        return infer(new_ids, past)

    monkeypatch.setattr(llama._model, "infer", slow)
    tokens = llama.generate(PROMPT, GREEDY)
    thread, result = run_in_thread(lambda: list(tokens))
    assert computing.wait(10)
    tokens.close()
    assert result == []
    go_on.set()
    thread.join(10)
    assert result == [[]]
    assert inferences == [len(PROMPT)]
    assert not llama._line


def test_close_just_before_a_token_is_handed_over_frees_the_engine(llama):
    tokens = llama.generate(PROMPT, GREEDY)
    computed = tokens._tokens

    class ClosedMeanwhile:
        def __next__(self):
            token = next(computed)
            threading_close = threading.Thread(target=tokens.close)
            threading_close.start()
            threading_close.join(10)
            return token

        def close(self):
            computed.close()

    tokens._tokens = ClosedMeanwhile()
    assert list(tokens) == []
    assert not llama._line


def test_a_long_prompt_can_be_stopped_half_way(models, monkeypatch):
    engine = OptimumEngine(models["mpt"])
    infer, counted = engine._model.infer, []

    def closing(new_ids, past):
        counted.append(len(new_ids))
        threading.Thread(target=tokens.close).start()
        while not engine._line[0].cancelled:
            threading.Event().wait(0.005)
        return infer(new_ids, past)

    monkeypatch.setattr(engine._model, "infer", closing)
    tokens = engine.generate(PROMPT * 200, GREEDY)
    assert list(tokens) == []
    assert counted == [PREFILL_CHUNK]
    monkeypatch.setattr(engine._model, "infer", infer)
    stream = engine.generate(PROMPT * 200, GREEDY)
    next(stream)
    assert stream.reused_tokens == PREFILL_CHUNK


def test_a_closed_request_leaves_no_trace_in_the_next(llama):
    expected = list(llama.generate(PROMPT, GREEDY))
    closed = llama.generate(PROMPT[::-1], GREEDY)
    list(islice(closed, 5))
    closed.close()
    assert list(llama.generate(PROMPT, GREEDY)) == expected


def test_an_error_inside_the_model_reaches_the_caller(llama, monkeypatch):
    tokens = llama.generate(PROMPT, GREEDY)
    next(tokens)
    monkeypatch.setattr(llama._model, "infer", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(tokens)
    assert list(tokens) == []
    assert not llama._line


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


def test_a_tiny_temperature_is_greedy(logits):
    tokens, probabilities = candidates(logits, [0], SamplingParams(temperature=1e-44, repetition_penalty=1))
    assert tokens[probabilities.argmax()] == logits.argmax()
    assert probabilities.max() == 1


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
    draws = torch.tensor([draw(torch.arange(5), probabilities, generator) for _ in range(4000)])
    found = torch.bincount(draws, minlength=5) / len(draws)
    assert found[0] == found[2] == 0
    torch.testing.assert_close(found, probabilities, atol=0.03, rtol=0)


# Settings


def test_default_settings_are_those_of_the_design():
    assert SamplingParams() == SamplingParams(
        temperature=0.1, top_p=1.0, top_k=50, repetition_penalty=1.1, max_new_tokens=256, seed=None
    )


def bad_values() -> list[tuple[str, object]]:
    wrong_type = (True, "1", None, [1], float("nan"), float("inf"), -float("inf"), 10**5000)
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


@pytest.mark.parametrize(("field", "value"), bad_values(), ids=lambda case: f"{type(case).__name__}")
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
