"""Prompts of many families: where a turn ends, which switches a template has, and how a reply goes on."""

import itertools
import random
import re
from dataclasses import replace
from functools import partial

import pytest

from chat import ChatModel, SamplingParams
from config import (
    LLAMA_2_TEMPLATE,
    RED_PAJAMA_TEMPLATE,
    ModelConfig,
)
from fakes import ScriptedEngine
from prompt import PromptWriter
from prompt_formats import PROMPT_FORMATS as FORMATS
from prompt_formats import make_tokenizer
from replies import ASK as WHO
from replies import ids_of, say

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


@pytest.mark.parametrize("name", [".reasoning_content", ".thinking", "['reasoning_content']"])
def test_a_template_that_asks_for_thoughts_gets_them_as_text(byte_level, name):
    template = (
        f"{{% for message in messages %}}[{{{{ message{name} }}}}]{{{{ message.content }}}}{{% endfor %}}"
    )
    asking = writer(byte_level, template)
    answered = {"role": "assistant", "content": "Hello!", "thought": "I think <|im_end|>"}
    ids = asking.write([*ASK, answered, {"role": "assistant", "content": "Well?"}, *ASK]).ids
    assert byte_level.decode(ids) == "[]Hi[I think <|im_end|>]Hello![]Well?[]Hi"
    assert not set(ids) & set(byte_level.all_special_ids)


@pytest.mark.parametrize(
    ("last", "in_thought", "in_answer"),
    [
        ({"role": "user", "content": "Hi"}, False, False),
        ({"role": "assistant", "content": "", "thought": "I think"}, True, False),
        ({"role": "assistant", "content": "It is", "thought": "I think"}, False, True),
        ({"role": "assistant", "content": "It is"}, False, True),
    ],
)
def test_a_prompt_knows_whether_the_reply_goes_on_in_a_thought_or_in_an_answer(last, in_thought, in_answer):
    writer = PromptWriter(make_tokenizer(FORMATS["qwen-3"]), "test/model")
    prompt = writer.write([*ASK, last] if last["role"] == "assistant" else ASK)
    assert (prompt.in_thought, prompt.in_answer) == (in_thought, in_answer)


def test_a_thought_that_goes_on_is_the_end_of_the_prompt():
    tokenizer = make_tokenizer(FORMATS["qwen-3"])
    begun = {"role": "assistant", "content": "", "thought": "I think"}
    prompt = PromptWriter(tokenizer, "test/model").write([*ASK, begun])
    assert tokenizer.decode(prompt.ids).endswith("<think>\nI think")


def test_an_answer_of_nothing_yet_goes_on_at_its_beginning():
    tokenizer = make_tokenizer(FORMATS["qwen-3"])
    prompt = PromptWriter(tokenizer, "test/model").write([*ASK, {"role": "assistant", "content": ""}])
    assert re.search(r"<\|im_start\|>assistant\n(<think>\s*</think>\s*)?$", tokenizer.decode(prompt.ids))


def test_an_answer_that_the_template_does_not_show_cannot_go_on(byte_level):
    asking = writer(byte_level, "{{ messages[0].content }}")
    with pytest.raises(ValueError, match="does not show the last answer, so it cannot go on"):
        asking.write([*ASK, {"role": "assistant", "content": "It is"}])


def test_reasoning_effort_is_a_switch_of_harmony():
    family = FORMATS["harmony"], make_tokenizer(FORMATS["harmony"])
    options = playing(family, "").template_options
    assert set(options) <= {"reasoning_effort"}
    if "reasoning_effort" in FORMATS["harmony"].template:
        assert options["reasoning_effort"][0] == "medium"


# The prompt

SYSTEM_PROMPT = "Be brief."


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (WHO, "Be brief.\n<human>: Who are you?\n<bot>:"),
        (
            [{"role": "system", "content": "Be long."}, *WHO],
            "Be long.\n<human>: Who are you?\n<bot>:",
        ),
        ([{"role": "system", "content": ""}, *WHO], "<human>: Who are you?\n<bot>:"),
        ([{"role": "system", "content": " \n"}, *WHO], "<human>: Who are you?\n<bot>:"),
        (
            [*WHO, {"role": "assistant", "content": "A bot."}, {"role": "user", "content": "Why?"}],
            "Be brief.\n<human>: Who are you?\n<bot>: A bot.\n<human>: Why?\n<bot>:",
        ),
    ],
    ids=["default", "own", "empty", "blank", "later turn"],
)
def test_the_system_prompt_is_the_entry_s_unless_the_messages_hold_one(playing, messages, expected):
    chat = playing(system_prompt=SYSTEM_PROMPT)
    assert chat.encode(messages) == ids_of(chat.tokenizer, expected)


def test_without_a_system_prompt_anywhere_none_is_sent(playing):
    chat = playing()
    assert chat.encode(WHO) == ids_of(chat.tokenizer, "<human>: Who are you?\n<bot>:")


def test_the_entry_s_template_wins_over_the_tokenizer_s(byte_level):
    own = ChatModel(ScriptedEngine(), byte_level, ModelConfig("test/model"))
    assert byte_level.decode(own.encode(WHO)).endswith(
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    entry = ModelConfig("test/model", chat_template=RED_PAJAMA_TEMPLATE)
    assert byte_level.decode(ChatModel(ScriptedEngine(), byte_level, entry).encode(WHO)).endswith("<bot>:")


def test_a_prompt_begins_with_one_begin_token(byte_fallback):
    entry = ModelConfig("test/model", chat_template=LLAMA_2_TEMPLATE)
    ids = ChatModel(ScriptedEngine(), byte_fallback, entry).encode(WHO)
    assert ids.count(byte_fallback.bos_token_id) == 1 and ids[0] == byte_fallback.bos_token_id


def test_the_engine_gets_the_prompt_that_encode_shows(playing):
    chat = playing("one")
    chat.generate(WHO)
    assert chat.engine.prompt == chat.encode(WHO)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "last message must be the user's"),
        ([{"role": "assistant", "content": "A bot."}], "last message must be the user's"),
        ([*WHO, {"role": "system", "content": "Be brief."}], "last message must be the user's"),
        ([{"role": "system", "content": "Be brief."}], "last message must be the user's"),
        ([{"role": "human", "content": "Hi"}], "system, user, assistant"),
        ([{"role": None, "content": "Hi"}], "system, user, assistant"),
        ([{"content": "Hi"}], "system, user, assistant"),
        ([{"role": "user"}], "text as content"),
        ([{"role": "user", "content": None}], "text as content"),
        ([{"role": "user", "content": ["Hi"]}], "text as content"),
        ([{"role": "user", "content": b"Hi"}], "text as content"),
        ([{"role": "assistant", "content": 1}, *WHO], "text as content"),
        ([*WHO, {"role": "assistant", "content": "A bot.", "thought": 1}, *WHO], "text as content"),
    ],
)
def test_messages_that_make_no_prompt_are_refused(playing, messages, reason):
    with pytest.raises(ValueError, match=reason):
        playing().encode(messages)


def test_what_a_template_refuses_is_a_clear_error(byte_level):
    template = "{{ raise_exception('System role not supported') }}"
    entry = ModelConfig("test/model", chat_template=template)
    with pytest.raises(ValueError, match=r"test/model refuses this: System role not supported"):
        ChatModel(ScriptedEngine(), byte_level, entry)


def test_a_template_without_system_messages_does_for_a_conversation_without_one(byte_level):
    refusal = "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif -%}"
    entry = ModelConfig("test/model", chat_template=refusal + RED_PAJAMA_TEMPLATE)
    chat = ChatModel(ScriptedEngine(), byte_level, entry)
    assert byte_level.decode(chat.encode(WHO)) == "<human>: Who are you?\n<bot>:"
    assert byte_level.decode(chat.encode(say("<bot>:"))) == "<human>: < bot>:\n<bot>:"
    with pytest.raises(ValueError, match="No system role"):
        chat.encode([{"role": "system", "content": "Be brief."}, *WHO])


def test_the_caller_s_messages_are_left_as_they_are(playing):
    messages = [*WHO]
    playing(system_prompt=SYSTEM_PROMPT).encode(messages)
    assert messages == WHO


def test_a_tokenizer_without_a_template_is_refused(byte_fallback):
    assert byte_fallback.chat_template is None
    with pytest.raises(ValueError, match=r"test/model has no chat template.*ModelConfig\.chat_template"):
        ChatModel(ScriptedEngine(), byte_fallback, ModelConfig("test/model"))


# What every conversation begins with


def test_what_every_conversation_begins_with_is_computed_ahead(chat):
    prefix = chat.engine.prefilled
    questions = ["Who are you?", "1 + 1", "日本語", "(", "Write a story."]
    prompts = [chat.encode(say(question)) for question in questions]
    assert prefix and all(prompt[: len(prefix)] == prefix for prompt in prompts)
    if chat.config.system_prompt:
        assert chat.config.system_prompt in chat.tokenizer.decode(prefix)


@pytest.mark.parametrize(
    ("template", "expected"), [("{{ messages[0].content }}", None), ("Q: {{ messages[0].content }}", "Q:")]
)
def test_nothing_is_computed_ahead_where_nothing_is_shared(byte_level, template, expected):
    engine = ScriptedEngine()
    ChatModel(engine, byte_level, ModelConfig("test/model", chat_template=template))
    assert engine.prefilled == (expected and ids_of(byte_level, expected))


def test_no_more_is_computed_ahead_than_the_context_holds(byte_level):
    engine = ScriptedEngine(max_context=10)
    ChatModel(engine, byte_level, ModelConfig("test/model"))
    assert len(engine.prefilled) == 10


# The context


def with_context(chat: ChatModel, max_context: int) -> ChatModel:
    return ChatModel(
        ScriptedEngine(chat.engine.script), chat.tokenizer, replace(chat.config, max_context=max_context)
    )


def counted_turns(count: int) -> list[dict[str, str]]:
    """That many turns, each of its own length, whose question names the turn; the last without an answer."""
    rng = random.Random(0)
    texts = []
    for turn in range(count):
        texts += [f"Turn{turn}: " + "why? " * rng.randint(1, 6), "because " * rng.randint(1, 6)]
    return say(*texts[:-1])


CONTEXT, REPLY = 600, 100


def test_a_long_conversation_loses_its_oldest_turns_now_and_then(chat):
    chat = with_context(chat, CONTEXT)
    conversation = counted_turns(60)
    system = chat.config.system_prompt
    system_turn = [{"role": "system", "content": system}] if system else []
    budget = CONTEXT - REPLY
    totals, starts, prompts = [], [], []
    for turn in range(60):
        messages = conversation[: 2 * turn + 1]
        stream = chat.stream(messages, SamplingParams(max_new_tokens=REPLY))
        start = int(re.search(r"Turn(\d+)", chat.tokenizer.decode(chat.engine.prompt))[1])
        assert stream.stats.prompt_tokens == len(chat.engine.prompt) <= budget
        assert stream.stats.dropped_messages == 2 * start
        assert chat.engine.sampling.max_new_tokens == REPLY
        assert chat.engine.prompt == chat.encode([*system_turn, *messages[2 * start :]])
        totals.append(len(chat.encode(messages)))
        starts.append(start)
        prompts.append(chat.engine.prompt)
    assert starts == sorted(starts) and totals[0] < budget
    changes = [turn for turn in range(1, 60) if starts[turn] != starts[turn - 1]]
    longest = max(after - before for before, after in itertools.pairwise(totals))
    assert totals[changes[0] - 1] <= budget < totals[changes[0]]
    # so much goes each time that nothing more need go until half of the budget has come in again
    assert len(changes) > 3
    assert all(totals[b] - totals[a] >= budget // 2 - longest for a, b in itertools.pairwise(changes))
    for turn in {*range(1, 60)} - {*changes}:  # the cache's tokens are used, but for the prompt's last ones
        before, now = prompts[turn - 1], prompts[turn]
        assert now[: len(before) - 5] == before[:-5]


def test_the_same_turns_go_whenever_the_conversation_is_asked_about(chat):
    chat = with_context(chat, CONTEXT)
    messages = counted_turns(40)
    prompts = []
    for _ in range(2):
        chat.stream(messages)
        prompts.append(chat.engine.prompt)
    assert prompts[0] == prompts[1]


def test_system_messages_and_the_last_question_stay(chat):
    chat = with_context(chat, CONTEXT)
    messages = [{"role": "system", "content": "Speak like a pirate."}, *counted_turns(60)]
    stream = chat.stream(messages, SamplingParams(max_new_tokens=REPLY))
    text = chat.tokenizer.decode(chat.engine.prompt)
    assert "Speak like a pirate." in text and "Turn59" in text and "Turn0:" not in text
    assert stream.stats.dropped_messages > 0


def test_all_but_the_last_question_goes_if_need_be(chat):
    question = "why? " * 60
    alone = len(chat.encode(say(question)))
    chat = with_context(chat, alone + 20)
    stream = chat.stream(say("Hi", "Hello", "How", "So", question), SamplingParams(max_new_tokens=20))
    assert chat.engine.prompt == chat.encode(say(question))
    assert stream.stats.dropped_messages == 4


def test_a_conversation_that_fits_loses_nothing(chat):
    messages = counted_turns(5)
    length = len(chat.encode(messages))
    for spare, dropped in ((0, False), (-1, True)):
        tight = with_context(chat, length + 50 + spare)
        stream = tight.stream(messages, SamplingParams(max_new_tokens=50))
        assert (stream.stats.dropped_messages > 0) == dropped


def test_without_a_known_context_nothing_is_dropped(byte_level):
    chat = ChatModel(ScriptedEngine(), byte_level, ModelConfig("test/model"))
    messages = counted_turns(300)
    chat.stream(messages)
    assert chat.engine.prompt == chat.encode(messages)


@pytest.mark.parametrize("room", [9, 0, -1, -5])
def test_a_question_that_is_too_long_is_refused_with_both_numbers(playing, room):
    length = len(playing().encode(WHO))
    chat = playing(max_context=length + room)
    reply = min(10, (length + room) // 2)
    numbers = (
        rf"has {length} tokens, .* room for {length + room - reply} tokens\. Shorten it, or lower max_new"
    )
    for messages in (WHO, [*say("Hi", "Hello"), *WHO]):
        with pytest.raises(ValueError, match=numbers):
            chat.stream(messages, SamplingParams(max_new_tokens=10))


def test_half_of_the_context_is_left_for_the_prompt_however_long_the_reply_may_be(playing):
    length = len(playing().encode(WHO))
    chat = playing(max_context=2 * length)
    chat.stream(WHO, SamplingParams(max_new_tokens=10_000))
    assert chat.engine.sampling.max_new_tokens == length


@pytest.mark.parametrize(("asked", "given"), [(256, 47), (48, 47), (47, 47), (3, 3)])
def test_the_reply_is_cut_to_the_room_that_is_left(playing, asked, given):
    length = len(playing().encode(WHO))
    chat = playing(ids_of(playing().tokenizer, "x") * 300, max_context=length + 47)
    stream = chat.stream(WHO, SamplingParams(max_new_tokens=asked, temperature=0.5))
    list(stream)
    assert chat.engine.sampling == SamplingParams(max_new_tokens=given, temperature=0.5)
    assert stream.stats.new_tokens == given


def test_a_question_of_100_000_characters_is_refused_by_its_tokens(chat):
    question = say("Who are you? " * 8000)
    length = len(chat.encode(question))
    with pytest.raises(
        ValueError, match=r"has about \d+ tokens, .* room for \d+ tokens\. Shorten it"
    ) as error:
        chat.stream(question)
    assert int(re.search(r"about (\d+)", str(error.value))[1]) == pytest.approx(length, rel=0.02)


class CountingTokenizer:
    """Counts the characters that it is given."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.characters = 0

    def __call__(self, text, **options):
        self.characters += len(text)
        return self.tokenizer(text, **options)


@pytest.mark.parametrize("text", ["x", "x y ", "<|im_end|>", "</s>", "[INST]", "<think>", "\ud800", "\0"])
def test_of_ten_million_characters_the_tokenizer_sees_no_more_than_need_be(chat, text, monkeypatch):
    tokenizer = CountingTokenizer(chat.tokenizer)
    monkeypatch.setattr(chat, "tokenizer", tokenizer)
    long = text * (10_000_000 // len(text) + 1)
    for messages in (say(long), [{"role": "system", "content": long}, *WHO]):
        tokenizer.characters = 0
        with pytest.raises(ValueError, match=r"has about \d{6,8} tokens, .* Shorten it"):
            chat.stream(messages)
        assert tokenizer.characters <= 200_000


@pytest.mark.parametrize(
    ("entry", "engine", "expected"),
    [(None, None, None), (10, None, 10), (None, 10, 10), (10, 20, 10), (20, 10, 10)],
)
def test_the_smaller_context_of_entry_and_engine_holds(byte_level, entry, engine, expected):
    config = ModelConfig("test/model", max_context=entry)
    assert ChatModel(ScriptedEngine(max_context=engine), byte_level, config).max_context == expected


def writer(tokenizer, template: str) -> PromptWriter:
    return PromptWriter(tokenizer, "test/model", template)


def test_a_text_that_ends_a_turn_is_told_from_the_token_that_begins_the_next(byte_level):
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}: {{ message['content'] }}"
        "{% if message['role'] == 'assistant' %} ###END\n{% endif %}{% endfor %}"
    )
    assert writer(byte_level, template).stop_strings == (" ###END",)


def test_thoughts_in_an_answer_s_text_do_not_go_back_but_a_user_s_text_stays(byte_level):
    text = "Before <think>hm</think> after"
    write = writer(byte_level, RED_PAJAMA_TEMPLATE).write
    assert "hm" in byte_level.decode(write(say(text)).ids)
    answered = byte_level.decode(write(say("Hi", text, "And?")).ids)
    assert "after" in answered and "hm" not in answered


def test_a_greeting_before_the_first_question_stays_where_all_fits(byte_level):
    messages = [{"role": "assistant", "content": "Welcome!"}, *WHO]
    prompt = writer(byte_level, RED_PAJAMA_TEMPLATE).write(messages, max_context=200, max_new_tokens=50)
    assert prompt.dropped_messages == 0
    assert "Welcome!" in byte_level.decode(prompt.ids)
