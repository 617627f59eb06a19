"""Telling what a model thinks from its answer, however the text comes."""

import random

import pytest

from thoughts import FORMATS, USUAL, Delta, ThoughtSplitter, format_of, unfinished, without_thoughts

HARMONY = FORMATS[0]
GRANITE = next(row for row in FORMATS if row.known_by == "<response>")


def split(text: str, reasoning=USUAL, size: int = 1, **state) -> tuple[str, str]:
    """Thought and answer of a text that comes in pieces of so many characters."""
    splitter = ThoughtSplitter(reasoning, **state)
    deltas = [d for i in range(0, len(text), size) for d in splitter.add(text[i : i + size])]
    deltas += splitter.flush()
    assert all(isinstance(delta, Delta) and delta for delta in deltas)
    return tuple("".join(d for d in deltas if d.is_thought == thought) for thought in (True, False))


CASES = [
    (USUAL, "Yes.", "", "Yes."),
    (USUAL, "<think>\nHm, a < b.\n</think>\n\nYes.", "Hm, a < b.", "Yes."),
    (USUAL, "\n <think>Hm.</think> Yes.", "Hm.", "Yes."),
    (USUAL, "<think>\n\n</think>\n\nHello", "", "Hello"),
    (USUAL, "<think>never ended", "never ended", ""),
    (USUAL, "<think>\n", "", ""),
    (USUAL, "<thi", "", "<thi"),
    (USUAL, "<b>bold</b>", "", "<b>bold</b>"),
    (USUAL, "Write <think> and </think> around it.", "", "Write <think> and </think> around it."),
    (USUAL, "<think>a <think> b</think>c</think>d", "a <think> b", "c</think>d"),
    (USUAL, " \n\n", "", ""),
    (
        HARMONY,
        "<|channel|>analysis<|message|>The user says hi.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello!",
        "The user says hi.",
        "Hello!",
    ),
    (HARMONY, "<|channel|>final<|message|>Hello!", "", "Hello!"),
    (
        HARMONY,
        "<|channel|>analysis<|message|>One.<|end|><|channel|>analysis<|message|>Two.<|end|>"
        "<|channel|>final<|message|>Hello!",
        "One.Two.",
        "Hello!",
    ),
    (GRANITE, "<think>Hm.</think>\n<response>Yes.", "Hm.", "Yes."),
]


@pytest.mark.parametrize(("reasoning", "text", "thought", "answer"), CASES)
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_thought_and_answer_are_told_apart_however_the_text_is_cut(reasoning, text, thought, answer, size):
    assert split(text, reasoning, size) == (thought, answer)


def test_a_thought_may_have_begun_in_the_prompt():
    assert split("\nHm.\n</think>\nYes.", inside=True) == ("Hm.", "Yes.")


def test_an_answer_may_have_begun_in_the_prompt():
    assert split(" and <think>x</think>", answering=True) == ("", " and <think>x</think>")


def test_random_texts_are_split_alike_however_they_are_cut():
    rng = random.Random(0)
    pieces = ["<think>", "</think>", "<", "a", " ", "\n", "</", "think>", "é"]
    for _ in range(500):
        text = "".join(rng.choices(pieces, k=12))
        expected = split(text, size=len(text))
        assert [split(text, size=size) for size in (1, 2, 5)] == [expected] * 3, text
        assert expected[0] == expected[0].strip()


def test_thousands_of_marks_take_no_longer_than_as_much_text():
    text = "<think>" * 20_000
    assert split(text, size=7)[0] == text.removeprefix("<think>")


@pytest.mark.parametrize(
    ("template", "vocabulary", "expected"),
    [
        ("plain", [], USUAL),
        ("... '<think>\\n' ...", [], USUAL),
        ("... <response> ...", ["<think>"], GRANITE),
        ("", ["<|channel|>", "<|message|>", "<|end|>", "<|start|>"], HARMONY),
        ("", ["<|message|>"], USUAL),
        ("[THINK]", [], next(row for row in FORMATS if row.opens == "[THINK]")),
    ],
)
def test_a_format_is_known_by_template_or_vocabulary(template, vocabulary, expected):
    assert format_of(template, vocabulary) == expected


@pytest.mark.parametrize(
    ("text", "length"), [("a<", 1), ("a<thin", 5), ("<think>", 0), ("", 0), ("<<t", 2), ("x", 0)]
)
def test_the_unfinished_end_is_the_longest_that_could_grow(text, length):
    assert unfinished(text, ["<think>"]) == length


def test_thoughts_of_another_format_are_left_out_too():
    answer = "<|channel|>analysis<|message|>Hm.<|end|>Yes."
    assert without_thoughts(answer, HARMONY) == "Yes."
