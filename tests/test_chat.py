"""Messages in, text out. Mostly with an engine that plays a script; the default model comes last."""

import gc
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from chat import ChatModel, SamplingParams
from config import (
    CHATML_TEMPLATE,
    DEFAULT_MODEL,
    RED_PAJAMA_TEMPLATE,
    SUPPORTED_MODELS,
    ModelConfig,
)
from fakes import ScriptedEngine
from replies import ASK, STOP, byte_tokens, ids_of, prompt_of_the_template, say, text_of
from text_stream import split_at_stop

# Where a reply ends


@pytest.mark.parametrize("end", ["of the tokenizer", "of the engine", "in the catalogue"])
def test_an_end_token_ends_the_reply_and_is_not_shown(tokenizer, end):
    special = tokenizer.eos_token_id if end == "of the tokenizer" else tokenizer.convert_tokens_to_ids("o")
    engine = ScriptedEngine([*ids_of(tokenizer, "I am"), special, *ids_of(tokenizer, "more")])
    engine.end_ids = frozenset([special]) if end == "of the engine" else frozenset()
    stop_strings = ("o",) if end == "in the catalogue" else ()
    entry = ModelConfig("test/model", chat_template=RED_PAJAMA_TEMPLATE, stop_strings=stop_strings)
    stream = ChatModel(engine, tokenizer, entry).stream(ASK)
    assert "".join(stream) == "I am"
    assert stream.stats.finish_reason == "stop"
    assert engine.closed and engine.computed == len(engine.script) - len(ids_of(tokenizer, "more"))


CUTS = [
    [position for position, cut in enumerate(cuts, start=1) if cut]
    for cuts in itertools.product([False, True], repeat=len(STOP) - 1)
]


def cut_up(text: str, cuts: Sequence[int]) -> list[str]:
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]


def test_a_stop_string_is_found_however_tokens_cut_it(byte_level):
    entry = ModelConfig("test/model", chat_template=RED_PAJAMA_TEMPLATE, stop_strings=(STOP,))
    chat = ChatModel(ScriptedEngine(), byte_level, entry)
    for cuts in CUTS:
        pieces = ["I", " am.", "\n", *cut_up(STOP, cuts), " And you"]
        chat.engine.script = [token for piece in pieces for token in ids_of(byte_level, piece)]
        stream = chat.stream(ASK)
        assert "".join(stream) == "I am.", cuts
        assert stream.stats.finish_reason == "stop"


def test_a_stop_string_is_found_letter_by_letter(playing, tokenizer):
    chat = playing(byte_tokens(tokenizer, f"I am. {STOP} And"), stop_strings=(STOP,))
    assert chat.generate(ASK) == "I am. "
    assert chat.engine.closed and chat.engine.computed == len(f"I am. {STOP}")


def test_a_stop_string_that_is_a_token_is_found_inside_other_tokens_too(playing, tokenizer):
    assert "o" in tokenizer.get_vocab()
    assert playing("the quick fox", stop_strings=("o",)).generate(ASK) == "the quick f"


@pytest.mark.parametrize("before", ["", "I am.", "<", "<hum", "<<human", "a < b > c: "])
def test_however_a_text_is_cut_the_same_part_is_shown(before):
    for cuts in CUTS:
        shown, pending, stopped = "", "", False
        for piece in [*before, *cut_up(STOP, cuts), " And you"]:
            visible, pending, stopped = split_at_stop(pending + piece, [STOP])
            shown += visible
            if stopped:
                break
        assert (shown, stopped) == (before, True), cuts


@pytest.mark.parametrize(
    ("text", "stop_strings", "expected"),
    [
        ("abc", [], ("abc", "", False)),
        ("", [STOP], ("", "", False)),
        ("abc", [STOP], ("abc", "", False)),
        ("abc<", [STOP], ("abc", "<", False)),
        ("abc<human>", [STOP], ("abc", "<human>", False)),
        ("abc<human> ", [STOP], ("abc<human> ", "", False)),
        ("<<", [STOP], ("<", "<", False)),
        ("abc<human>: d", [STOP], ("abc", "", True)),
        ("a END b STOP", ["STOP", "END"], ("a ", "", True)),  # the first in the text, not in the list
        ("abab", ["abac"], ("ab", "ab", False)),
        ("aaa", ["aab"], ("a", "aa", False)),
        ("x", ["y", "xyz"], ("", "x", False)),
    ],
)
def test_a_text_is_split_into_shown_waiting_and_over(text, stop_strings, expected):
    assert split_at_stop(text, stop_strings) == expected


@pytest.mark.parametrize(
    "text", ["a < b", "if a<b: c>d", "x <hum", "<", "<human", "<human> is", "the end <human>", "<<<<"]
)
def test_what_only_looks_like_a_stop_string_is_shown(playing, text):
    stream = playing(text, stop_strings=(STOP,)).stream(ASK)
    assert "".join(stream) == text
    assert stream.stats.finish_reason == "length"


def test_text_that_might_become_a_stop_string_waits(playing, tokenizer):
    deltas = list(playing(byte_tokens(tokenizer, "ab<huab"), (STOP,)).stream(ASK))
    assert deltas == ["a", "b", "<hua", "b"]


@pytest.mark.parametrize("stop_strings", [(), (STOP,)], ids=["no stop string", "a stop string"])
def test_without_an_end_the_length_ends_the_reply(playing, stop_strings):
    chat = playing("one two three four five six", stop_strings)
    stream = chat.stream(ASK, SamplingParams(max_new_tokens=3))
    text = "".join(stream)
    assert text and "one two three four five six".startswith(text)
    assert stream.stats.finish_reason == "length"
    assert stream.stats.new_tokens == 3


# Stopping and failing


def test_closing_before_the_first_delta_computes_nothing(playing):
    chat = playing("one two three")
    stream = chat.stream(ASK)
    stream.close()
    assert list(stream) == []
    assert chat.engine.computed == 0
    assert stream.stats.finish_reason == "cancelled"


def test_closing_in_the_middle_stops_the_engine_at_once(playing):
    chat = playing("one two three")
    stream = chat.stream(ASK)
    next(stream)
    computed = chat.engine.computed
    stream.close()
    assert chat.engine.closed and chat.engine.computed == computed
    assert stream.stats.finish_reason == "cancelled"
    assert list(stream) == []


def test_closing_after_the_end_changes_nothing(playing):
    stream = playing("one").stream(ASK)
    list(stream)
    stream.close()
    stream.close()
    assert stream.stats.finish_reason == "length"


def test_closing_at_the_last_delta_is_no_cancellation(playing):
    stream = playing("<", stop_strings=(STOP,)).stream(ASK)
    assert next(stream) == "<"  # held back until the model had ended
    stream.close()
    assert stream.stats.finish_reason == "length"


def read_in_a_thread(stream) -> tuple[threading.Thread, list[str], list[BaseException]]:
    deltas, errors = [], []

    def read():
        try:
            deltas.extend(stream)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, deltas, errors


def test_another_thread_can_close_while_a_token_is_computed(playing):
    chat = playing("one two three")
    chat.engine.may_compute.clear()
    stream = chat.stream(ASK)
    thread, deltas, errors = read_in_a_thread(stream)
    assert chat.engine.computing.wait(timeout=10)
    stream.close()  # neither raises nor waits for the token
    stream.close()
    assert chat.engine.closed and stream.stats.finish_reason == "cancelled"
    chat.engine.may_compute.set()
    thread.join(timeout=10)
    assert not thread.is_alive() and errors == []
    assert chat.engine.computed == 1 and len(deltas) <= 1
    assert stream.stats.finish_reason == "cancelled"
    assert next(stream, None) is None


def test_closing_at_any_moment_from_another_thread_ends_the_reply(playing, tokenizer):
    words = ids_of(tokenizer, "x") * 100
    for moment in range(20):
        chat = playing(words)
        stream = chat.stream(ASK, SamplingParams(max_new_tokens=len(words)))
        thread, deltas, errors = read_in_a_thread(stream)
        while chat.engine.computed < moment and thread.is_alive():
            time.sleep(0)
        stream.close()
        thread.join(timeout=10)
        assert not thread.is_alive() and errors == [] and chat.engine.closed
        assert stream.stats.finish_reason in ("cancelled", "length")  # the reader may have been faster
        assert text_of(tokenizer, words[: len(deltas)]).strip() == "".join(deltas).strip()
        assert list(stream) == []


def test_closing_a_chat_closes_its_engine(playing, monkeypatch):
    chat, closed = playing("x"), []
    monkeypatch.setattr(chat.engine, "close", lambda: closed.append(True), raising=False)
    chat.close()
    assert closed == [True]


def test_closing_after_an_error_is_harmless(playing):
    stream = playing(error=RuntimeError("out of memory")).stream(ASK)
    with pytest.raises(RuntimeError):
        next(stream)
    stream.close()
    assert stream.stats.finish_reason == "error"


def test_half_a_character_is_not_shown_after_close(playing, tokenizer):
    chat = playing(byte_tokens(tokenizer, "€"))
    chat.engine.may_compute.clear()
    stream = chat.stream(ASK)
    thread, deltas, _ = read_in_a_thread(stream)
    assert chat.engine.computing.wait(timeout=10)
    stream.close()
    chat.engine.may_compute.set()
    thread.join(timeout=10)
    assert deltas == []


def test_leaving_the_loop_and_dropping_the_stream_stops_the_engine(playing):
    chat = playing("one two three")
    for _ in chat.stream(ASK):
        break
    gc.collect()
    assert chat.engine.closed and chat.engine.computed < len(chat.engine.script)


def test_a_token_is_computed_only_when_a_delta_is_asked_for(playing, tokenizer):
    chat = playing(ids_of(tokenizer, "xy") * 3)
    stream = chat.stream(ASK)
    assert chat.engine.computed == 0
    for count in (1, 2):
        next(stream)
        assert chat.engine.computed == count


@pytest.mark.parametrize("script", ["", "one two"], ids=["at the first token", "in the middle"])
def test_an_error_in_the_engine_reaches_the_caller(playing, script):
    chat = playing(script, error=RuntimeError("out of memory"))
    stream = chat.stream(ASK)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream)
    assert stream.stats.finish_reason == "error"
    assert list(stream) == []


def test_what_the_engine_refuses_is_refused_at_once(playing):
    chat = playing("one")
    chat.engine.generate = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        chat.stream(ASK)


def test_text_before_an_error_was_shown(playing):
    stream = playing("one two", error=RuntimeError("out of memory")).stream(ASK)
    shown = []
    with pytest.raises(RuntimeError):
        shown.extend(stream)
    assert "".join(shown) == "one two"


def test_two_replies_of_one_model_do_not_mix(playing):
    chat = playing("one two three")
    first, second = chat.stream(ASK), chat.stream(ASK)
    deltas = list(itertools.zip_longest(first, second))
    assert "".join(one for one, _ in deltas) == "".join(two for _, two in deltas) == "one two three"


# Thoughts


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "Yes."),
        ("<think></think>Yes.", "Yes."),
        ("\n<think>a < b</think> Yes.", "Yes."),
        ("<think>a</think>One.<think>b</think> Two.", "One. Two."),
        ("<think>a <think> b</think> Yes.", "Yes."),
        ("<think>\nHm. I was stop", ""),
        ("<think>a</think>\n<think>b", ""),
        ("<thi", "<thi"),
        ("if a < b: <b>think</b> > x", "if a < b: <b>think</b> > x"),
        ("The <think> tag opens a thought.", "The <think> tag opens a thought."),
        ("It ends with </think>, see?", "It ends with </think>, see?"),
        ("Yes.", "Yes."),
    ],
)
def test_the_model_reads_its_earlier_answers_without_the_thoughts(chat, answer, read):
    assert chat.encode(say("One?", answer, "Two?")) == prompt_of_the_template(chat, say("One?", read, "Two?"))


def test_what_the_user_writes_about_thoughts_stays(chat):
    text = "What does <think>x</think> mean, and <think>?"
    assert text in chat.tokenizer.decode(chat.encode(say(text)))


def test_many_thoughts_are_found_in_one_pass(chats):
    chat = chats["mpt-7b-chat"]
    thoughts = "<think>" * 30_000  # a search to the end of the text for each of them would take minutes
    assert chat.encode(say("One?", f"</think>{thoughts}", "Two?")) is not None


@pytest.fixture
def thinking(tiny_checkpoints) -> Callable[..., ChatModel]:
    """A ChatModel whose template opens a thought for the model, as DeepSeek-R1's does."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints["mpt"])
    template = CHATML_TEMPLATE.replace("assistant\\n'", "assistant\\n<think>\\n'")
    assert template != CHATML_TEMPLATE

    def make(script: str, stop_strings=(), error=None) -> ChatModel:
        entry = ModelConfig("test/model", chat_template=template, stop_strings=stop_strings)
        return ChatModel(ScriptedEngine(ids_of(tokenizer, script), error), tokenizer, entry)

    return make


def parts(stream) -> tuple[str, str]:
    """Thought and answer of a reply."""
    deltas = list(stream)
    return tuple("".join(d for d in deltas if d.is_thought == thought) for thought in (True, False))


def test_a_thought_that_the_prompt_opens_is_told_from_the_answer(thinking):
    chat = thinking("Hm.\n</think>\n\nYes.")
    assert chat.tokenizer.decode(chat.encode(ASK)).endswith("<think>\n")
    stream = chat.stream(ASK)
    assert parts(stream) == ("Hm.", "Yes.")
    assert 0 < stream.stats.thought_tokens < stream.stats.new_tokens
    assert chat.generate(ASK) == "Yes."


def test_a_thought_that_the_model_opens_is_told_from_the_answer(playing):
    stream = playing("<think>\nHm.\n</think>\n\nYes: <think> is a word here.").stream(ASK)
    assert parts(stream) == ("Hm.", "Yes: <think> is a word here.")


def test_an_end_inside_a_thought_ends_the_reply(thinking):
    stream = thinking("Hm. STOP Yes.", stop_strings=("STOP",)).stream(ASK)
    assert parts(stream) == ("Hm.", "")
    assert stream.stats.finish_reason == "stop"
    stream = thinking("Hm.<|endoftext|> Yes.").stream(ASK)
    assert parts(stream) == ("Hm.", "")
    assert stream.stats.finish_reason == "stop"


def test_nothing_comes_after_close_not_even_the_beginning_of_a_thought(thinking):
    stream = thinking("Hm.").stream(ASK)
    stream.close()
    assert list(stream) == []


def test_only_the_template_opens_a_thought(chat):
    chat.engine.script = ids_of(chat.tokenizer, "Yes")
    assert chat.generate(say("<think>\n")) == "Yes"
    assert chat.generate(say("<think>")) == "Yes"


# What the caller asks for


def test_a_stop_text_of_the_request_ends_the_reply_and_is_not_shown(playing):
    stream = playing("one two three").stream(ASK, SamplingParams(stop="two"))
    assert "".join(stream) == "one "
    assert stream.stats.finish_reason == "stop"


def test_without_sampling_it_is_the_entry_s_or_else_the_engine_s(byte_level):
    engine = ScriptedEngine()
    engine.defaults = SamplingParams(temperature=0.6)
    entry = ModelConfig("test/model", chat_template=RED_PAJAMA_TEMPLATE)
    chat = ChatModel(engine, byte_level, entry)
    list(chat.stream(ASK))
    assert chat.defaults == engine.sampling == SamplingParams(temperature=0.6)
    chat = ChatModel(engine, byte_level, replace(entry, sampling={"top_k": 5}))
    list(chat.stream(ASK))
    assert chat.defaults == engine.sampling == SamplingParams(top_k=5)


def test_the_penalty_spares_the_ends_of_turns_and_what_the_template_writes(chat):
    list(chat.stream(ASK))
    prompt = chat.encode(say("x"))
    assert chat.end_ids <= set(chat.engine.spared)
    written = {token for token in prompt if token in chat.tokenizer.all_special_ids}
    assert written <= set(chat.engine.spared)
    assert ids_of(chat.tokenizer, "Who are you?")[0] not in chat.engine.spared


def test_what_page_and_endpoint_use_of_a_chat_is_there(chat, name):
    assert chat.name == SUPPORTED_MODELS[name].model_id.partition("/")[2]
    assert chat.system_prompt == SUPPORTED_MODELS[name].system_prompt
    assert chat.max_requests == 1 and chat.template_options == {} and chat.description == ""
    assert chat.max_context == SUPPORTED_MODELS[name].max_context
    chat.close()
    assert chat.engine.closed


# A reply that goes on


def test_a_reply_goes_on_where_it_stopped(chat):
    chat.engine.script = ids_of(chat.tokenizer, " a time, there was")
    begun = [*ASK, {"role": "assistant", "content": "Once upon"}]
    prompt = chat.encode(begun)
    assert chat.tokenizer.decode(prompt).endswith("Once upon")
    asked = chat.encode(ASK)
    assert prompt[: len(asked) - 1] == asked[:-1]  # the last token may be one with what follows
    assert "".join(chat.stream(begun)).lstrip() == "a time, there was"


def test_the_space_where_a_reply_goes_on_is_kept(playing, byte_level):
    chat = playing(ids_of(byte_level, " a time"))
    if chat.tokenizer is byte_level:
        assert chat.generate([*ASK, {"role": "assistant", "content": "Once upon"}]) == " a time"


def test_log_probabilities_come_with_the_text_of_their_tokens(playing):
    stream = playing("Who are you?").stream(ASK, SamplingParams(logprobs=1))
    assert "".join(stream) == "Who are you?"
    assert "".join(note.text for note in stream.logprobs).lstrip().startswith("Who are you?")
    assert len(stream.logprobs) == stream.stats.new_tokens
    assert all(note.others == ((note.text, note.logprob),) for note in stream.logprobs)


def test_a_reply_that_nobody_holds_any_more_was_cancelled(byte_level):
    chat = ChatModel(ScriptedEngine([40, 41, 42]), byte_level, ModelConfig("test/model"))
    stream = chat.stream(ASK)
    next(stream)
    stats = stream.stats
    del stream
    assert stats.finish_reason == "cancelled" and stats.new_tokens == 1


@pytest.mark.parametrize(
    ("model_id", "name"),
    [("owner/my-model", "my-model"), ("owner/my-model@v1.0", "my-model"), ("my-model", "my-model")],
)
def test_a_chat_bears_the_name_of_its_model_without_owner_and_revision(byte_level, model_id, name):
    assert ChatModel(ScriptedEngine(), byte_level, ModelConfig(model_id)).name == name


def test_a_chat_on_a_folder_bears_the_folder_s_name(byte_level, tmp_path, monkeypatch):
    folder = tmp_path / "my@model"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for model_id in (str(folder), "."):
        assert ChatModel(ScriptedEngine(), byte_level, ModelConfig(model_id)).name == "my@model"


def test_a_thought_goes_on_where_it_stopped(thinking):
    chat = thinking(" yes.\n</think>\n\nYes.")
    begun = [*ASK, {"role": "assistant", "content": "", "thought": "I think"}]
    assert chat.tokenizer.decode(chat.encode(begun)).endswith("<think>\nI think")
    assert parts(chat.stream(begun)) == ("yes.", "Yes.")


# A reply that was stopped


def test_a_conversation_goes_on_after_a_stopped_reply(chat):
    chat.engine.script = ids_of(chat.tokenizer, "Once upon a time there was")
    stream = chat.stream(ASK)
    begun = next(stream) + next(stream)
    stream.close()
    messages = [*ASK, {"role": "assistant", "content": begun}, {"role": "user", "content": "Go on."}]
    assert chat.generate(messages) == "Once upon a time there was"
    assert begun.strip() in chat.tokenizer.decode(chat.engine.prompt)


# The default model


def test_a_whole_reply_is_its_deltas_joined(smollm2_chat):
    sampling = SamplingParams(temperature=0, max_new_tokens=20)
    assert smollm2_chat.generate(ASK, sampling) == "".join(smollm2_chat.stream(ASK, sampling))


def test_temperature_zero_twice_is_the_same(smollm2_chat):
    first, second = (
        smollm2_chat.generate(ASK, SamplingParams(temperature=0, max_new_tokens=20, seed=seed))
        for seed in (1, 2)
    )
    assert first == second != ""


def test_a_seed_repeats_a_reply_and_another_does_not(smollm2_chat):
    replies = [
        smollm2_chat.generate(ASK, SamplingParams(temperature=1, max_new_tokens=20, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert replies[0] == replies[1] != replies[2]


def test_the_default_model_knows_the_capital_of_france(smollm2_chat):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    stream = smollm2_chat.stream(question, SamplingParams(temperature=0, max_new_tokens=60))
    assert "Paris" in "".join(stream)
    assert stream.stats.finish_reason == "stop"


def test_the_default_model_reads_the_whole_conversation(smollm2_chat):
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"role": "user", "content": "And of Italy?"},
    ]
    sampling = SamplingParams(temperature=0, max_new_tokens=20)
    assert "Rome" in smollm2_chat.generate(messages, sampling)
    assert "Rome" not in smollm2_chat.generate(messages[-1:], sampling)


def test_the_next_question_finds_the_conversation_in_the_cache(smollm2_chat):
    first = smollm2_chat.stream(ASK, SamplingParams(temperature=0, max_new_tokens=10))
    messages = [*ASK, {"role": "assistant", "content": "".join(first)}, {"role": "user", "content": "Why?"}]
    second = smollm2_chat.stream(messages, SamplingParams(max_new_tokens=1))
    list(second)
    assert first.stats.prompt_tokens <= second.stats.reused_tokens < second.stats.prompt_tokens


def test_the_default_entry_needs_no_stop_string(smollm2_chat):
    assert SUPPORTED_MODELS[DEFAULT_MODEL].stop_strings == ()
    assert smollm2_chat.end_ids == {smollm2_chat.tokenizer.convert_tokens_to_ids("<|im_end|>")}
