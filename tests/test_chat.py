"""Messages in, text out. Mostly with an engine that plays a script; the default model comes last."""

import gc
import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from transformers import AutoTokenizer

from chat import ChatModel, SamplingParams, TextDecoder, split_at_stop
from config import DEFAULT_MODEL, LLAMA_2_TEMPLATE, RED_PAJAMA_TEMPLATE, SUPPORTED_MODELS, ModelConfig

ASK = [{"role": "user", "content": "Who are you?"}]
REPLACEMENT = "\ufffd"


class ScriptedEngine:
    """Plays token ids, then raises `error` if there is one; notes what it was asked and what became of it."""

    def __init__(self, script: Sequence[int] = (), error=None, max_context=None, end_ids=frozenset()):
        self.script, self.error = script, error
        self.max_context, self.end_ids = max_context, end_ids
        self.prompt = self.sampling = None
        self.computed = 0
        self.closed = False

    def generate(self, ids, sampling):
        self.prompt, self.sampling = ids, sampling
        return self._play()

    def _play(self):
        try:
            for token in self.script[: self.sampling.max_new_tokens]:
                self.computed += 1
                yield token
            if self.error:
                raise self.error
        finally:
            self.closed = True


@pytest.fixture(scope="module")
def byte_level(smollm2_folder):
    """Byte-level BPE: any token may hold half a character."""
    return AutoTokenizer.from_pretrained(smollm2_folder)


@pytest.fixture(scope="module")
def byte_fallback(tiny_checkpoints):
    """SentencePiece style: rare characters are spelt in tokens of one byte, words bring their space along."""
    return AutoTokenizer.from_pretrained(tiny_checkpoints["llama"])


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def text_of(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.fixture
def playing(tokenizer) -> Callable[..., ChatModel]:
    """A ChatModel whose engine plays a script: ids, or a text in the tokenizer's own tokens."""

    def make(script: str | Sequence[int] = "", stop_strings=(), error=None, **settings) -> ChatModel:
        if isinstance(script, str):
            script = ids_of(tokenizer, script)
        settings |= {"chat_template": RED_PAJAMA_TEMPLATE, "stop_strings": stop_strings}
        return ChatModel(ScriptedEngine(script, error), tokenizer, ModelConfig("test/model", **settings))

    return make


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


STOP = "<human>:"
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
        assert "".join(stream) == "I am.\n", cuts
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


# Tokens to text

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"  # one picture, joined from three
TEXTS = [
    "Hello there, how are you?",
    "日本語のテキスト、한국어, العربية, עברית",
    f"{FAMILY} and {FAMILY}\U0001f44d\U0001f3fd",
    "e\u0301 a\u0308\u0323 n\u0303",
    "naïve café — “quoted” … €5",
    "\U0001d518\U0001d52b\U0001d526\ud7ff\U0010fffd",
    "def f(x):\n\n\treturn  x * 2 \n",
    "trailing spaces   ",
]


def byte_tokens(tokenizer, text: str) -> list[int]:
    """The text in tokens of one byte each, where the vocabulary has them, as no encoder would write it."""
    backend = tokenizer.backend_tokenizer
    ids = []
    for character in text:
        spelt = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in character.encode()]
        if None in spelt or tokenizer.unk_token_id in spelt:  # byte-level: one letter for each byte
            pieces = backend.pre_tokenizer.pre_tokenize_str(character)
            spelt = [tokenizer.convert_tokens_to_ids(letter) for piece, _ in pieces for letter in piece]
        ids += ids_of(tokenizer, character) if None in spelt or tokenizer.unk_token_id in spelt else spelt
    return ids


def deltas_of(tokenizer, ids: Sequence[int]) -> list[str]:
    decoder = TextDecoder(tokenizer)
    return [*[decoder.add(token) for token in ids], decoder.flush()]


@pytest.mark.parametrize("split", [ids_of, byte_tokens], ids=["usual tokens", "a token for each byte"])
@pytest.mark.parametrize("text", TEXTS)
def test_deltas_add_up_to_the_text_and_never_show_half_a_character(tokenizer, text, split):
    ids = split(tokenizer, text)
    deltas = deltas_of(tokenizer, ids)
    assert REPLACEMENT not in "".join(deltas)
    assert "".join(deltas) == text_of(tokenizer, ids)
    assert "".join(deltas).strip() == text.strip()


def random_text(rng: random.Random) -> str:
    blocks = [(0x20, 0x7E)] * 3 + [(0xA1, 0x24F), (0x300, 0x36F), (0x400, 0x52F), (0x4E00, 0x9FFF)]
    blocks += [(0xAC00, 0xD7A3), (0x1F300, 0x1F64F), (0x1F3FB, 0x1F3FF), (0x200D, 0x200D), (0x0A, 0x0A)]
    return "".join(chr(rng.randint(*rng.choice(blocks))) for _ in range(rng.randint(1, 30)))


def test_random_text_streams_as_it_decodes(tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        text = random_text(rng)
        ids = rng.choice([ids_of, byte_tokens])(tokenizer, text)
        deltas = deltas_of(tokenizer, ids)
        assert "".join(deltas) == text_of(tokenizer, ids)
        assert REPLACEMENT not in "".join(deltas)


def test_random_tokens_stream_as_they_decode(byte_level):
    # Not so byte fallback: there, one wrong byte makes the right ones before it unreadable as well.
    rng = random.Random(0)
    vocabulary = range(len(byte_level))
    for _ in range(200):
        ids = rng.choices(vocabulary, k=30)
        assert "".join(deltas_of(byte_level, ids)) == text_of(byte_level, ids)


def test_a_delta_comes_with_each_finished_character(byte_level):
    ids = byte_tokens(byte_level, "a€b")
    assert deltas_of(byte_level, ids) == ["a", "", "", "€", "b", ""]


def test_a_character_cut_off_by_the_end_is_shown_as_such(tokenizer):
    ids = byte_tokens(tokenizer, "a€")[:-1]
    assert deltas_of(tokenizer, ids)[:-1] == ["a", "", ""]
    assert set(deltas_of(tokenizer, ids)[-1]) == {REPLACEMENT}


def test_a_reply_cut_off_in_a_character_ends_with_the_mark_for_it(playing, tokenizer):
    reply = playing(byte_tokens(tokenizer, "a€")[:-1], stop_strings=(STOP,)).generate(ASK)
    assert reply.rstrip(REPLACEMENT) == "a" != reply


def test_a_special_token_inside_a_reply_does_not_swallow_the_space_after_it(byte_fallback):
    before, after = ids_of(byte_fallback, "the quick"), ids_of(byte_fallback, "brown fox")
    ids = [*before, byte_fallback.bos_token_id, *after]
    assert "".join(deltas_of(byte_fallback, ids)) == text_of(byte_fallback, ids) == "the quick brown fox"


@pytest.mark.parametrize("space", [" ", "\n", " \n\n  "])
def test_space_before_a_reply_is_dropped_and_inside_it_is_kept(playing, tokenizer, space):
    deltas = list(playing(byte_tokens(tokenizer, f"{space}one \n\n two\n")).stream(ASK))
    assert deltas[0] == "o"
    assert "".join(deltas) == "one \n\n two\n"


def test_a_reply_of_nothing_but_space_is_empty(playing):
    stream = playing(" \n \n", stop_strings=("\nhuman",)).stream(ASK)
    assert list(stream) == []
    assert stream.stats.finish_reason == "length"


# What a reply cost


@pytest.mark.parametrize("tokens", [0, 1, 2, 5])
def test_stats_count_the_tokens_of_prompt_and_reply(playing, byte_level, tokens, tokenizer):
    chat = playing(ids_of(tokenizer, "x") * tokens)
    stream = chat.stream(ASK)
    assert (stream.stats.prompt_tokens, stream.stats.new_tokens) == (len(chat.encode(ASK)), 0)
    assert stream.stats.finish_reason is None
    list(stream)
    assert stream.stats.new_tokens == tokens == chat.engine.computed
    assert (stream.stats.time_to_first_token is not None) == (tokens > 0)
    assert (stream.stats.tokens_per_second is not None) == (tokens > 1)


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


def test_an_error_before_the_engine_starts_is_an_error_too(playing):
    chat = playing("one")
    chat.engine.generate = lambda ids, sampling: 1 / 0
    stream = chat.stream(ASK)
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert stream.stats.finish_reason == "error"


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


# The prompt

SYSTEM_PROMPT = "Be brief."


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (ASK, "Be brief.\n<human>: Who are you?\n<bot>:"),
        (
            [{"role": "system", "content": "Be long."}, *ASK],
            "Be long.\n<human>: Who are you?\n<bot>:",
        ),
        ([{"role": "system", "content": ""}, *ASK], "<human>: Who are you?\n<bot>:"),
        ([{"role": "system", "content": " \n"}, *ASK], "<human>: Who are you?\n<bot>:"),
        (
            [*ASK, {"role": "assistant", "content": "A bot."}, {"role": "user", "content": "Why?"}],
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
    assert chat.encode(ASK) == ids_of(chat.tokenizer, "<human>: Who are you?\n<bot>:")


def test_the_entry_s_template_wins_over_the_tokenizer_s(byte_level):
    own = ChatModel(ScriptedEngine(), byte_level, ModelConfig("test/model"))
    assert byte_level.decode(own.encode(ASK)).endswith(
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    entry = ModelConfig("test/model", chat_template=RED_PAJAMA_TEMPLATE)
    assert byte_level.decode(ChatModel(ScriptedEngine(), byte_level, entry).encode(ASK)).endswith("<bot>:")


def test_a_prompt_begins_with_one_begin_token(byte_fallback):
    entry = ModelConfig("test/model", chat_template=LLAMA_2_TEMPLATE)
    ids = ChatModel(ScriptedEngine(), byte_fallback, entry).encode(ASK)
    assert ids.count(byte_fallback.bos_token_id) == 1 and ids[0] == byte_fallback.bos_token_id


def test_the_engine_gets_the_prompt_that_encode_shows(playing):
    chat = playing("one")
    chat.generate(ASK)
    assert chat.engine.prompt == chat.encode(ASK)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "last message must be the user's"),
        ([*ASK, {"role": "assistant", "content": "A bot."}], "last message must be the user's"),
        ([{"role": "system", "content": "Be brief."}], "last message must be the user's"),
        ([{"role": "human", "content": "Hi"}], "system, user, assistant"),
        ([{"role": None, "content": "Hi"}], "system, user, assistant"),
        ([{"content": "Hi"}], "system, user, assistant"),
        ([{"role": "user"}], "text as content"),
        ([{"role": "user", "content": None}], "text as content"),
        ([{"role": "user", "content": ["Hi"]}], "text as content"),
        ([{"role": "user", "content": b"Hi"}], "text as content"),
        ([{"role": "assistant", "content": 1}, *ASK], "text as content"),
    ],
)
def test_messages_that_make_no_prompt_are_refused(playing, messages, reason):
    with pytest.raises(ValueError, match=reason):
        playing().encode(messages)


def test_what_a_template_refuses_is_a_clear_error(byte_level):
    template = "{{ raise_exception('System role not supported') }}"
    chat = ChatModel(ScriptedEngine(), byte_level, ModelConfig("test/model", chat_template=template))
    with pytest.raises(ValueError, match=r"test/model refuses this: System role not supported"):
        chat.encode(ASK)


def test_the_caller_s_messages_are_left_as_they_are(playing):
    messages = [*ASK]
    playing(system_prompt=SYSTEM_PROMPT).encode(messages)
    assert messages == ASK


def test_a_tokenizer_without_a_template_is_refused(byte_fallback):
    assert byte_fallback.chat_template is None
    with pytest.raises(ValueError, match=r"test/model has no chat template.*ModelConfig\.chat_template"):
        ChatModel(ScriptedEngine(), byte_fallback, ModelConfig("test/model"))


# The context


@pytest.mark.parametrize("room", [0, -1, -50])
def test_a_conversation_that_leaves_no_room_is_refused_with_both_numbers(playing, room):
    length = len(playing().encode(ASK))
    chat = playing(max_context=length + room)
    numbers = rf"has {length} tokens, the model's context holds {length + room}\."
    with pytest.raises(ValueError, match=numbers):
        chat.stream(ASK)


@pytest.mark.parametrize(("room", "asked", "given"), [(1, 256, 1), (7, 256, 7), (7, 7, 7), (7, 3, 3)])
def test_the_reply_is_cut_to_the_room_that_is_left(playing, room, asked, given):
    length = len(playing().encode(ASK))
    chat = playing(ids_of(playing().tokenizer, "x") * 300, max_context=length + room)
    stream = chat.stream(ASK, SamplingParams(max_new_tokens=asked, temperature=0.5))
    list(stream)
    assert chat.engine.sampling == SamplingParams(max_new_tokens=given, temperature=0.5)
    assert stream.stats.new_tokens == given


@pytest.mark.parametrize(
    ("entry", "engine", "expected"),
    [(None, None, None), (10, None, 10), (None, 10, 10), (10, 20, 10), (20, 10, 10)],
)
def test_the_smaller_context_of_entry_and_engine_holds(byte_level, entry, engine, expected):
    config = ModelConfig("test/model", max_context=entry)
    assert ChatModel(ScriptedEngine(max_context=engine), byte_level, config).max_context == expected


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


def test_the_default_entry_needs_no_stop_string(smollm2_chat):
    assert SUPPORTED_MODELS[DEFAULT_MODEL].stop_strings == ()
    assert smollm2_chat.end_ids == {smollm2_chat.tokenizer.convert_tokens_to_ids("<|im_end|>")}
