"""What each control does to the conversation, and what the screen then shows."""

from types import SimpleNamespace

import gradio as gr
import pytest

import page_steps as steps
from sampling import SamplingParams
from scripted_chat import FakeChat, assistant, user

ANSWERED = {"id": "a", "messages": [user("one"), assistant("1", finish="stop")]}
UNANSWERED = {"id": "a", "messages": [user("one"), assistant("1", finish="stop"), user("two")]}
UNFINISHED = {"id": "a", "messages": [user("one"), assistant("It is", finish="length")]}


def messages(screen: tuple) -> list[dict]:
    return screen[0]["messages"]


def offered(screen: tuple) -> tuple[bool, bool]:
    """Whether Retry and Continue are there."""
    return screen[4].visible, screen[5].visible


# The conversation


def test_a_question_comes_after_everything_and_locks_the_message_box():
    screen = steps.asked(ANSWERED, "two")
    assert messages(screen) == [*ANSWERED["messages"], user("two")]
    assert screen[0]["id"] == "a"
    assert (screen[3].value, screen[3].interactive, screen[3].stop_btn) == ("", False, "Stop")
    assert offered(screen) == (False, False)


def test_the_first_question_begins_a_conversation():
    first, second = steps.asked(None, "one"), steps.asked(None, "one")
    assert messages(first) == [user("one")]
    assert first[0]["id"] != second[0]["id"]


def test_an_example_begins_a_new_conversation():
    screen = steps.example_asked(SimpleNamespace(value={"text": "What is Python?"}))
    assert messages(screen) == [user("What is Python?")]


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_question_is_refused(blank):
    with pytest.raises(gr.Error, match="Type a question first"):
        steps.asked(ANSWERED, blank)


def test_after_an_edited_question_nothing_is_left():
    place_on_the_screen = 3  # the thought is shown as a message of its own
    given = {"id": "a", "messages": [user("one"), assistant("1", thought="Hm."), user("two"), assistant("2")]}
    screen = steps.edited(given, SimpleNamespace(index=place_on_the_screen, value="three"))
    assert messages(screen) == [*given["messages"][:2], user("three")]


@pytest.mark.parametrize("given", [ANSWERED, UNFINISHED], ids=["answered", "unfinished"])
def test_a_question_that_was_answered_is_asked_once_more(given):
    assert messages(steps.retried(given)) == [user("one")]


def test_a_question_without_an_answer_is_asked_once_more():
    assert messages(steps.retried(UNANSWERED)) == UNANSWERED["messages"]


def test_going_on_keeps_the_answer_and_locks_the_message_box():
    screen = steps.continued(UNFINISHED)
    assert messages(screen) == UNFINISHED["messages"]
    assert not screen[3].interactive
    assert offered(screen) == (False, False)


def test_undone_the_last_question_is_back_in_the_message_box():
    screen = steps.undone(UNANSWERED)
    assert messages(screen) == UNANSWERED["messages"][:2]
    assert (screen[3].value, screen[3].interactive) == ("two", True)


@pytest.mark.parametrize("step", [steps.retried, steps.undone])
def test_without_a_question_there_is_nothing_to_repeat(step):
    with pytest.raises(gr.Error, match="There is no question yet"):
        step({"id": "a", "messages": []})


def test_cleared_it_is_empty_under_its_old_name():
    assert steps.cleared(ANSWERED)[0] == {"id": "a", "messages": []}


# What the screen shows when nothing is being written


@pytest.mark.parametrize(
    ("conversation", "buttons"),
    [(ANSWERED, (False, False)), (UNANSWERED, (True, False)), (UNFINISHED, (False, True))],
    ids=["answered", "unanswered", "unfinished"],
)
def test_retry_and_continue_are_there_where_they_make_sense(conversation, buttons):
    assert offered(steps.rest(conversation)) == buttons


def test_an_answer_without_a_reason_to_end_was_stopped():
    screen = steps.rest({"id": "a", "messages": [user("one"), assistant("It")]}, "9 prompt tokens")
    assert messages(screen)[-1]["finish"] == "cancelled"
    assert screen[2] == "9 prompt tokens, stopped"
    assert offered(screen) == (False, True)


def test_the_line_about_waiting_does_not_stay():
    assert steps.rest(UNANSWERED, steps.WAITING)[2] == ""
    assert steps.rest(ANSWERED, "9 prompt tokens")[2] == "9 prompt tokens"


def test_a_new_tab_is_left_as_it_is_and_an_old_one_restored():
    assert steps.restored(None) == steps.UNCHANGED
    assert messages(steps.restored(UNANSWERED)) == UNANSWERED["messages"]


def test_what_the_browser_holds_and_is_no_conversation_is_refused_as_text():
    with pytest.raises(gr.Error, match="Message 1 has no"):
        steps.rest({"id": "a", "messages": [{"role": "<b>", "content": "x"}]})


# Files and lists


def test_a_file_that_was_saved_is_opened_again():
    saved = steps.exported_json(ANSWERED)
    assert saved["name"] == "conversation.json"
    assert messages(steps.opened(saved)) == ANSWERED["messages"]


def test_no_file_changes_nothing_and_another_one_is_refused():
    assert steps.opened(None) == steps.UNCHANGED
    with pytest.raises(gr.Error, match="no JSON file"):
        steps.opened({"text": "no"})


def test_the_other_file_is_markdown():
    saved = steps.exported_markdown(ANSWERED)
    assert (saved["name"], saved["text"]) == ("conversation.md", "## Question\n\none\n\n## Answer\n\n1\n")


def test_a_message_is_copied_as_it_was_typed():
    given = {"id": "a", "messages": [user("2*3 <b>")]}
    shown = '<pre class="typed" dir="auto">2*3 &lt;b&gt;</pre>'
    assert steps.copied(given, SimpleNamespace(value=shown)) == {"text": "2*3 <b>"}


def test_the_list_of_saved_conversations_is_there_once_there_is_one():
    entries = [{"id": "a", "title": "one", "changed": 1}, {"id": "b", "title": "two", "changed": 0}]
    listing, dataset = steps.listed(entries)
    assert (listing, dataset.raw_samples, dataset.visible) == (entries, [["one"], ["two"]], True)
    assert not steps.listed([])[1].visible


# Sampling options and switches


def held(**changes) -> dict:
    """What the controls of the page hold that nobody has touched."""
    controls = steps.sampling_controls(FakeChat())
    return {name: control.value for name, control in controls.items()} | changes


def test_controls_that_nobody_touched_ask_for_the_defaults():
    assert steps.sampling_of(held()) == FakeChat().defaults


def test_what_controls_hold_becomes_what_sampling_takes():
    sampling = steps.sampling_of(held(top_k=3.0, seed=" 7 ", stop="END\n\n###\n", temperature=0.25))
    assert sampling == SamplingParams(top_k=3, seed=7, stop=("END", "###"), temperature=0.25)


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 2.5), ("seed", "many"), ("seed", "9" * 20), ("temperature", 3), ("max_new_tokens", 0)],
)
def test_what_no_option_can_be_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        steps.sampling_of(held(**{name: value}))


@pytest.mark.parametrize(("context", "most"), [(100, 100), (131_072, 4096), (None, 4096)])
def test_no_answer_longer_than_the_context_can_be_asked_for(context, most):
    chat = FakeChat()
    chat.max_context = context
    slider = steps.sampling_controls(chat)["max_new_tokens"]
    assert (slider.maximum, slider.value) == (most, min(most, chat.defaults.max_new_tokens))


def test_a_default_beyond_its_slider_makes_that_longer():
    chat = FakeChat()
    chat.defaults = SamplingParams(top_k=1000)
    assert steps.sampling_controls(chat)["top_k"].maximum == 1000


def test_switches_begin_with_their_first_value():
    chat = FakeChat()
    chat.template_options = {"enable_thinking": (False, True), "reasoning_effort": ("low", "high")}
    made = steps.switches(chat)
    assert [(type(one), one.label, one.value) for one in made.values()] == [
        (gr.Checkbox, "Thinking", False),
        (gr.Radio, "Reasoning effort", "low"),
    ]


def test_a_switch_is_given_on_as_the_template_knows_it():
    chat = FakeChat()
    assert steps.switched({}, chat) is None
    chat.template_options = {"enable_thinking": (True, False)}
    assert steps.switched({"enable_thinking": 0}, chat)["enable_thinking"] is False
    with pytest.raises(ValueError, match="enable_thinking must be one of True, False"):
        steps.switched({"enable_thinking": "maybe"}, chat)
