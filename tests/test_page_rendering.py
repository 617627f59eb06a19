"""What the page makes of a conversation: prompt, screen, files. (That browsers show it so: test_browser.)"""

import json

import pytest

from chat import ReplyStats
from page_rendering import (
    DISPLAY,
    INLINE,
    checked,
    describe,
    from_json,
    original,
    position_of,
    shown,
    stopped,
    to_json,
    to_markdown,
    to_prompt,
    typed,
    written,
)
from scripted_chat import assistant, system, user


def texts(messages: list[dict]) -> list[tuple[str, str | None]]:
    """Text and title of each message as shown."""
    return [(part["content"][0]["text"], part.get("metadata", {}).get("title")) for part in shown(messages)]


def test_messages_hold_system_prompt_history_and_question():
    history = [user("one"), assistant("1"), user("two"), assistant("2"), user("three")]
    assert to_prompt(history, "Count.") == [system("Count."), *history]


def test_empty_system_prompt_is_passed_on():
    assert to_prompt([user("hello")], "") == [system(""), user("hello")]


@pytest.mark.parametrize(
    "history",
    [
        [user("stopped"), user("one"), assistant("1")],
        [user("one"), assistant("1"), user("stopped")],
        [user("stopped"), user("again"), user("one"), assistant("1"), user("failed"), user("failed")],
    ],
)
def test_unanswered_questions_are_left_out(history):
    assert to_prompt([*history, user("two")], "") == [system(""), user("one"), assistant("1"), user("two")]


def test_last_answer_goes_along_to_be_gone_on_with():
    unfinished = assistant("It is", thought="Hm.", finish="length")
    assert to_prompt([user("one"), unfinished], "")[-1] == assistant("It is", thought="Hm.")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (assistant("Paris.", finish="stop"), [("Paris.", None)]),
        (assistant("", thought="France?"), [("France?", "Thinking")]),
        (assistant("", thought="France?", finish="cancelled"), [("France?", "Thoughts (unfinished)")]),
        (assistant("Paris.", thought="\nFrance?\n"), [("France?", "Thoughts"), ("Paris.", None)]),
        (assistant("Paris.", thought=" \n"), [("Paris.", None)]),
        (assistant("It is <think>."), [("It is &lt;think>.", None)]),
    ],
)
def test_thoughts_are_folded(reply, expected):
    assert texts([reply]) == expected


def test_place_on_the_screen_leads_to_the_message():
    messages = [user("one"), assistant("1", thought="Hm."), user("two"), assistant("2", thought=" ")]
    assert [position_of(messages, index) for index in range(5)] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("text", ["What is Python?", "Hello! What can you do for me?", "Très bien (merci)."])
def test_plain_question_is_shown_as_it_is(text):
    assert typed(text) == text


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("2*3*4 and __init__", "2*3*4 and __init__"),
        ("<br> &amp;", "&lt;br&gt; &amp;amp;"),
        ("  a\tb\n\n    c", "  a\tb\n\n    c"),
        ("\nfirst", "\n\nfirst"),
        ("1. x", "1. x"),
        ("\u0633\u0644\u0627\u0645", "\u0633\u0644\u0627\u0645"),
    ],
)
def test_other_question_is_shown_letter_by_letter(text, markdown):
    assert typed(text) == f'<pre class="typed" dir="auto">{markdown}</pre>'


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("**bold** and *so*", "**bold** and *so*"),
        ("Use <br> or &lt; & so", "Use &lt;br> or &amp;lt; & so"),
        ("`<i>` and ``a ` <b>`` <c>", "`<i>` and ``a ` <b>`` &lt;c>"),
        ("```html\n<br>\n$$ <b> $$\n```\n<i>", "```html\n<br>\n$$ <b> $$\n```\n&lt;i>"),
        ("~~~\n<a>\n```\n~~~~\n<b>", "~~~\n<a>\n```\n~~~~\n&lt;b>"),
        ("- ```py\n  <a>\n  ```\n  <c>", "- ```py\n  <a>\n  ```\n  &lt;c>"),
        ("```\n<unfinished>", "```\n<unfinished>"),
        ("code:\n\n    <a>\n", "code:\n\n    <a>\n"),
        ("- item\n\n    <b>\n", "- item\n\n    &lt;b>\n"),
        ("![x](http://example.com/p.png)", "!\\[x](http://example.com/p.png)"),
        ("```mermaid\ngraph\n```", "``` mermaid\ngraph\n```"),
        ("2*3*4 in __init__ is 2**3", "2\\*3\\*4 in \\_\\_init__ is 2\\*\\*3"),
    ],
)
def test_answer_is_markdown_in_which_html_is_text(text, markdown):
    assert written(text) == markdown


@pytest.mark.parametrize("formula", ["$$a<b$$", "\\[a<b\\]"])
def test_display_formulas_are_marked(formula):
    assert written(f"so {formula}.") == f"so {DISPLAY[0]}a&lt;b{DISPLAY[1]}."


def test_formulas_in_a_line_are_marked():
    assert written("so \\(x_1 * x_2\\).") == f"so {INLINE[0]}x_1 * x_2{INLINE[1]}."


def test_right_to_left_answer_says_so():
    assert written("\u0633\u0644\u0627\u0645").startswith('<div dir="auto">\n\n')


@pytest.mark.parametrize("mark", ["<think>", "<think></think>", "`", "$$ ", "```\n", "    x\n", "- <b>\n"])
def test_thousands_of_marks_are_no_trouble(mark):
    text = mark * 5001
    shown = written(text).replace(DISPLAY[0], "$$").replace(DISPLAY[1], "$$").replace("&lt;", "<")
    assert shown == text


@pytest.mark.parametrize(
    "message", [user("2*3*4 <b>"), assistant("<i> \\(x\\)", thought=" <a> "), user("plain")]
)
def test_what_is_copied_is_what_was_written(message):
    copied = "\n".join(part["content"][0]["text"] for part in shown([message]))
    parts = [message.get("thought", "").strip(), message["content"]]
    assert original([user("?"), message], copied) == "\n".join(filter(None, parts))


def test_json_file_holds_what_can_be_opened_again():
    messages = [user("ä🙂 <b>"), assistant("1", thought="Hm.", finish="stop")]
    conversation = {"id": "abc", "messages": messages}
    again = from_json(to_json(conversation))
    assert again["messages"] == messages
    assert again["id"] != "abc"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no", "no JSON file"),
        ("[" * 100_000, "no JSON file"),
        ("[]", "no conversation"),
        ('{"messages": [{"role": "system", "content": "x"}]}', 'Message 1 has no "role"'),
        ('{"messages": [{"role": "user", "content": 3}]}', "Message 1 has no text"),
    ],
)
def test_other_file_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        from_json(text)


def test_conversation_is_reduced_to_what_belongs_there():
    given = {"id": 7, "messages": [user("half \ud83d") | {"metadata": {"title": "x"}}], "more": 1}
    conversation = checked(json.loads(json.dumps(given)))
    assert conversation["messages"] == [user("half \ufffd")]
    assert isinstance(conversation["id"], str)
    assert set(conversation) == {"id", "messages"}


def test_markdown_file_holds_questions_thoughts_and_answers():
    messages = [user("Where?"), assistant("**Paris**", thought="France?\n\nYes.")]
    assert to_markdown({"messages": messages}) == (
        "## Question\n\nWhere?\n\n## Answer\n\n> France?\n>\n> Yes.\n\n**Paris**\n"
    )


def test_line_under_an_answer_says_what_it_cost():
    stats = ReplyStats(prompt_tokens=412)
    assert describe(stats) == "412 prompt tokens · 0 tokens"
    assert describe(ReplyStats(prompt_tokens=0, new_tokens=2)) == "2 tokens"  # an endpoint without usage
    stats.reused_tokens, stats.time_to_first_token, stats.new_tokens = 390, 0.2149, 1
    assert describe(stats) == "412 prompt tokens (390 from the cache) · first token 0.21 s · 1 token"
    stats.tokens_per_second, stats.new_tokens, stats.finish_reason = 34.4, 120, "length"
    assert describe(stats) == (
        "412 prompt tokens (390 from the cache) · first token 0.21 s · 34 tokens/s · "
        "120 tokens, stopped at the limit"
    )
    stats.tokens_per_second, stats.finish_reason, stats.thought_tokens = 4.26, "stop", 80
    assert describe(stats).endswith(" · 4.3 tokens/s · 120 tokens (80 of them thoughts)")


@pytest.mark.parametrize(
    ("dropped", "notice"),
    [
        (1, "The model's context is full: it no longer sees the oldest message."),
        (6, "The model's context is full: it no longer sees the oldest 6 messages."),
    ],
)
def test_messages_that_were_left_out_are_told(dropped, notice):
    assert describe(ReplyStats(prompt_tokens=9, dropped_messages=dropped)).endswith(f"\n\n{notice}")


def test_line_of_a_stopped_answer_says_so():
    assert (
        stopped(describe(ReplyStats(prompt_tokens=9, new_tokens=3))) == "9 prompt tokens · 3 tokens, stopped"
    )
    cost, notice = stopped(describe(ReplyStats(prompt_tokens=9, dropped_messages=1))).split("\n\n")
    assert cost == "9 prompt tokens · 0 tokens, stopped" and notice.startswith("The model's context")
    assert stopped("") == ""
