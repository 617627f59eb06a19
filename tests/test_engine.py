"""Token ids in, token ids out: the decode loop against Optimum's, and many requests at a time.

Optimum's forward lends the caller's tensors to OpenVINO, and the CPU plugin writes the inputs of *other*
infer requests of the same compiled model into them. So every call below is given tensors of its own.
"""

import gc
import random
import threading
import time
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM

import conversion
import engine as engine_module
import kv_cache
from conftest import EXACT
from engine import PREFILL_CHUNK, OptimumEngine, shared_prefix
from sampling import SamplingParams
from tiny_checkpoints import FAMILIES

# The same as in test_conversion, so that what one file converted the other finds.
NAMES = {"llama": "llama-2-chat-7b", "gpt_neox": "red-pajama-3b-chat", "mpt": "mpt-7b-chat"}
MODELS = (*FAMILIES, "smollm2")
GREEDY = SamplingParams(temperature=0, max_new_tokens=40)
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
    tokens = list(llama.generate(PROMPT, GREEDY))
    llama.end_ids = frozenset(tokens)
    assert list(llama.generate(PROMPT, GREEDY)) == tokens


def test_a_prompt_of_one_token_is_enough(llama):
    assert len(list(llama.generate([5], GREEDY))) == GREEDY.max_new_tokens


def test_a_settled_engine_compiles_nothing_any_more(models, monkeypatch):
    compiled = []
    compile_one = kv_cache.OneTokenRequest
    monkeypatch.setattr(
        kv_cache, "OneTokenRequest", lambda *given: compiled.append(compile_one(*given)) or compiled[0]
    )
    engine = OptimumEngine(models["llama"])
    engine.settle()
    engine.close()
    engine.settle()
    assert len(compiled) == 1


def test_an_empty_prompt_is_refused_at_once(llama):
    with pytest.raises(ValueError, match="prompt has no tokens"):
        llama.generate([], GREEDY)


def test_a_json_schema_is_refused_at_once(llama):
    with pytest.raises(ValueError, match="json_schema; GenAIEngine can"):
        llama.generate([5], SamplingParams(json_schema="{}"))


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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "smollm2" else name for name in MODELS]
)
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


def test_a_second_reply_in_the_same_thread_is_refused_instead_of_waiting_for_ever(llama):
    first = llama.generate(PROMPT, GREEDY)
    begun = next(first)
    second = llama.generate(PROMPT, GREEDY)
    with pytest.raises(RuntimeError, match="half read"):
        next(second)
    assert [begun, *first] == list(llama.generate(PROMPT, GREEDY))


def test_a_thread_that_left_a_reply_half_read_is_refused_once_that_stands_still(llama, monkeypatch):
    monkeypatch.setattr(engine_module, "PATIENCE", 0.05)

    def leave_one_and_ask():
        first = llama.generate(PROMPT, GREEDY)
        next(first)
        try:
            return next(llama.generate(PROMPT, GREEDY))
        except RuntimeError as error:
            return str(error)
        finally:
            first.close()

    thread, result = run_in_thread(leave_one_and_ask)
    thread.join(10)
    assert "half read" in result[0]
    assert not llama._line


def test_a_reply_that_another_thread_goes_on_with_is_waited_for(llama, monkeypatch):
    """As in a pool of threads: who read the reply last is not who reads it next."""
    monkeypatch.setattr(engine_module, "PATIENCE", 0.2)
    first = llama.generate(PROMPT, GREEDY)
    started = threading.Event()

    def read_one_then_ask():
        next(first)
        started.set()
        return list(llama.generate(PROMPT, GREEDY))

    asking, result = run_in_thread(read_one_then_ask)
    started.wait(10)
    rest = list(first)
    asking.join(10)
    assert result[0][1:] == rest


def test_a_request_says_that_it_waits_and_how_long_it_did(llama):
    first = llama.generate(PROMPT, GREEDY)
    run_in_thread(lambda: next(first))[0].join(10)
    second = llama.generate(PROMPT, GREEDY)
    assert not second.waiting
    asked = time.perf_counter()
    thread, _ = run_in_thread(lambda: next(second))
    while not second.waiting:
        threading.Event().wait(0.005)
    first.close()
    thread.join(10)
    assert not second.waiting and 0 < second.waited < time.perf_counter() - asked
    second.close()
    alone = llama.generate(PROMPT, GREEDY)
    next(alone)
    assert alone.waited == 0


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


def test_end_ids_are_those_of_the_generation_config(models, engines):
    for name, engine in engines.items():
        eos = models[name].generation_config.eos_token_id
        assert engine.end_ids == frozenset(eos if isinstance(eos, list) else [eos])


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


def test_log_probabilities_are_told_where_they_are_asked_for(llama):
    stream = llama.generate(PROMPT, SamplingParams(temperature=0, max_new_tokens=3, logprobs=2))
    tokens = list(stream)
    assert len(stream.logprobs) == 3
    for token, (own, best) in zip(tokens, stream.logprobs, strict=True):
        assert next(iter(best)) == token and best[token] == own <= 0 and len(best) == 2
    silent = llama.generate(PROMPT, SamplingParams(temperature=0, max_new_tokens=3))
    list(silent)
    assert silent.logprobs == []


def test_the_penalty_spares_what_it_is_told_to(llama):
    strong = SamplingParams(temperature=0, repetition_penalty=2, max_new_tokens=20)
    vocabulary = range(1000)
    spared = list(llama.generate(PROMPT, strong, spared=vocabulary))
    assert spared == list(llama.generate(PROMPT, SamplingParams(temperature=0, max_new_tokens=20)))
    assert spared != list(llama.generate(PROMPT, strong))


# From a folder


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_made_from_the_folder_gives_the_same_tokens(
    tiny_checkpoints, tmp_path_factory, engines, family
):
    models_dir = tmp_path_factory.getbasetemp() / "models"
    folder = conversion.prepare_model(NAMES[family], "FP16", models_dir, tiny_checkpoints[family])
    engine = OptimumEngine.from_folder(folder, ov_config=EXACT)
    assert list(engine.generate(PROMPT, GREEDY)) == list(engines[family].generate(PROMPT, GREEDY))
    assert (engine.max_context, engine.end_ids) == (engines[family].max_context, engines[family].end_ids)
    assert engine.defaults == engines[family].defaults


def test_what_is_no_folder_and_what_is_no_device_is_said(tiny_checkpoints, tmp_path_factory, tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_model"):
        OptimumEngine.from_folder(tmp_path / "nowhere")
    models_dir = tmp_path_factory.getbasetemp() / "models"
    folder = conversion.prepare_model(NAMES["llama"], "FP16", models_dir, tiny_checkpoints["llama"])
    with pytest.raises(ValueError, match="no OpenVINO device 'TPU'"):
        OptimumEngine.from_folder(folder, "TPU")
    with pytest.raises(ValueError, match="OpenVINO cannot load"):
        OptimumEngine.from_folder(folder, ov_config={"NO_SUCH_PROPERTY": "1"})


# The cache's size


def test_the_cache_never_grows_past_the_context(models, monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 128)
    engine = OptimumEngine(models["llama"])
    assert engine.max_context == 512
    for length in (100, 300, 500):
        next(engine.generate([5] * length, GREEDY))
    assert engine._model.capacity == 512


def test_the_cache_shrinks_when_a_long_conversation_is_over(models, monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 32)
    engine = OptimumEngine(models["llama"])
    expected = list(engine.generate(PROMPT, GREEDY))
    next(engine.generate([*PROMPT, *[5] * 400], GREEDY))
    assert engine._model.capacity >= 400
    assert list(engine.generate(PROMPT, GREEDY)) == expected
    assert engine._model.capacity <= 64


def test_a_cache_for_which_there_is_no_memory_is_refused_and_the_next_request_works(models, monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 32)
    engine = OptimumEngine(models["llama"])
    expected = list(engine.generate(PROMPT, GREEDY))
    with monkeypatch.context() as scarce:
        scarce.setattr("workspace.available_memory", lambda: 1000)
        with pytest.raises(OSError, match=r"KV cache of \d+ tokens needs .* new conversation"):
            next(engine.generate([5] * 300, GREEDY))
    assert list(engine.generate(PROMPT, GREEDY)) == expected


def test_a_closed_engine_says_so(models):
    engine = OptimumEngine(models["llama"])
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(engine.generate(PROMPT, GREEDY))
