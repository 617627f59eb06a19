"""Prompts of many families: where a turn ends, which switches a template has, and how a reply goes on."""

from functools import partial

import pytest

from chat import ChatModel, SamplingParams
from config import ModelConfig
from fakes import ScriptedEngine
from prompt import PromptWriter
from prompt_formats import PROMPT_FORMATS as FORMATS
from prompt_formats import make_tokenizer

ASK = [{"role": "user", "content": "Hi"}]
ANSWER = "I am an assistant. The user says hi."


@pytest.fixture(params=FORMATS)
def family(request):
    """A family's format, and a tokenizer for it."""
    return FORMATS[request.param], make_tokenizer(FORMATS[request.param])


def playing(family, script: str, end_ids=frozenset()) -> ChatModel:
    """A chat whose model writes the script, special tokens included; as far as it gets."""
    _, tokenizer = family
    ids = tokenizer.encode(script, add_special_tokens=False)
    return ChatModel(ScriptedEngine(ids, end_ids=end_ids), tokenizer, ModelConfig("test/model"))


def answer_of(chat: ChatModel, messages=ASK, **options) -> tuple[str, str, str]:
    """Thought, answer and finish reason."""
    stream = chat.stream(messages, SamplingParams(), options or None)
    deltas = list(stream)
    thought, answer = ("".join(d for d in deltas if d.is_thought == kind) for kind in (True, False))
    return thought, answer, stream.stats.finish_reason


def next_turn(prompt_format) -> str:
    """What a model would write after its answer if nobody stopped it: the question and answer that follow."""
    *_, answer, _ = prompt_format.conversation
    begin = prompt_format.expected.rindex(answer["content"]) + len(answer["content"])
    return prompt_format.expected[begin:]


def test_the_prompt_is_that_of_the_format(family):
    prompt_format, tokenizer = family
    switches = PromptWriter(tokenizer, "test/model").options
    options = {name: value for name, value in prompt_format.options.items() if name in switches}
    dates = {name: value for name, value in prompt_format.options.items() if name not in switches}
    tokenizer.apply_chat_template = partial(tokenizer.apply_chat_template, **dates)
    ids = PromptWriter(tokenizer, "test/model").write(prompt_format.conversation, options).ids
    assert tokenizer.decode(ids) == prompt_format.expected


def test_the_end_of_a_turn_ends_the_reply_whatever_eos_says(family):
    prompt_format, tokenizer = family
    writer = PromptWriter(tokenizer, "test/model")
    number = tokenizer.convert_tokens_to_ids(prompt_format.turn_end)
    if number is not None and prompt_format.turn_end in tokenizer.get_vocab():
        assert writer.end_ids == {number} and writer.stop_strings == ()
    else:
        assert writer.end_ids == set() and writer.stop_strings[0].strip() == prompt_format.turn_end.strip()


def test_no_reply_contains_another_turn_and_none_loses_its_end(family):
    prompt_format, _ = family
    chat = playing(family, ANSWER + next_turn(prompt_format) + ANSWER)
    chat.engine.script = [*chat.engine.script, *chat.engine.script]
    thought, answer, reason = answer_of(chat)
    if chat._prompts.write(ASK).in_thought:  # then all of it is one
        answer, thought = thought, answer
    assert (thought, answer.rstrip(), reason) == ("", ANSWER, "stop")


def test_a_reply_that_ends_with_the_end_of_the_sequence_is_whole(family):
    prompt_format, _ = family
    chat = playing(family, f"{ANSWER}{prompt_format.eos}{ANSWER}")
    thought, answer, reason = answer_of(chat)
    assert (thought + answer, reason) == (ANSWER, "stop")


def test_a_reply_goes_on_inside_its_turn(family):
    _, tokenizer = family
    chat = playing(family, " and more")
    ids = chat.encode([*ASK, {"role": "assistant", "content": "Hello!"}])
    text = tokenizer.decode(ids)
    assert text.endswith("Hello!")
    assert text.count("Hello!") == 1
    deltas = list(chat.stream([*ASK, {"role": "assistant", "content": "Hello!"}]))
    assert "".join(deltas) == " and more" and not any(delta.is_thought for delta in deltas)


def test_the_penalty_spares_what_ends_a_turn_in_every_family(family):
    _, tokenizer = family
    chat = playing(family, ANSWER)
    answer_of(chat)
    assert chat.end_ids <= chat.engine.spared
    special = {number for number in chat.encode(ASK) if number in tokenizer.all_special_ids}
    assert special <= chat.engine.spared


def test_a_forged_turn_in_a_message_is_text_in_every_family(family):
    prompt_format, tokenizer = family
    forged = next_turn(prompt_format)
    harmless, hostile = (
        PromptWriter(tokenizer, "test/model").write([{"role": "user", "content": text}]).ids
        for text in ("x", f"x{forged}x")
    )
    special = set(tokenizer.all_special_ids)
    assert [token for token in hostile if token in special] == [
        token for token in harmless if token in special
    ]


# Thoughts


def test_the_channels_of_harmony_are_told_apart():
    family = FORMATS["harmony"], make_tokenizer(FORMATS["harmony"])
    script = (
        "<|channel|>analysis<|message|>The user says hi.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello!<|return|>Who are you?"
    )
    chat = playing(family, script)
    assert answer_of(chat) == ("The user says hi.", "Hello!", "stop")
    without = playing(family, "<|channel|>final<|message|>Hello!<|return|>")
    assert answer_of(without) == ("", "Hello!", "stop")


def test_a_template_that_opens_a_thought_is_seen():
    family = FORMATS["deepseek-r1"], make_tokenizer(FORMATS["deepseek-r1"])
    chat = playing(family, "Hm.</think>\n\nHello!")
    assert answer_of(chat)[:2] == ("Hm.", "Hello!")


def test_a_switch_is_found_with_its_default_first_and_passed_on():
    family = FORMATS["qwen-3"], make_tokenizer(FORMATS["qwen-3"])
    chat = playing(family, "<think>\nHm.\n</think>\n\nHello!")
    assert chat.template_options == {"enable_thinking": (True, False)}
    on, off = (chat.encode(ASK, {"enable_thinking": value}) for value in (True, False))
    assert chat.encode(ASK) == on != off
    assert family[1].decode(off).rstrip().endswith("</think>")
    assert answer_of(chat, enable_thinking=True)[:2] == ("Hm.", "Hello!")
    chat.engine.script = family[1].encode("Hello!")
    assert answer_of(chat, enable_thinking=False)[:2] == ("", "Hello!")


@pytest.mark.parametrize("options", [{"enable_thinking": "yes"}, {"thinkin": True}])
def test_a_switch_that_a_template_has_not_is_refused(options):
    family = FORMATS["qwen-3"], make_tokenizer(FORMATS["qwen-3"])
    with pytest.raises(ValueError, match=r"no option .* it has enable_thinking"):
        playing(family, "").encode(ASK, options)


def test_a_thought_goes_back_only_to_a_template_that_asks_for_it():
    family = FORMATS["qwen-3"], make_tokenizer(FORMATS["qwen-3"])
    answered = {"role": "assistant", "content": "Hello!", "thought": "SECRET"}
    chat = playing(family, "")
    assert "SECRET" not in family[1].decode(chat.encode([*ASK, answered, *ASK]))
    plain = FORMATS["chatml"], make_tokenizer(FORMATS["chatml"])
    assert "SECRET" not in plain[1].decode(playing(plain, "").encode([*ASK, answered, *ASK]))


def test_reasoning_effort_is_a_switch_of_harmony():
    family = FORMATS["harmony"], make_tokenizer(FORMATS["harmony"])
    options = playing(family, "").template_options
    assert set(options) <= {"reasoning_effort"}
    if "reasoning_effort" in FORMATS["harmony"].template:
        assert options["reasoning_effort"][0] == "medium"
