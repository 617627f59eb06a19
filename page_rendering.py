"""A conversation as data, and as what people see of it: the messages on the page, Markdown and JSON files.

Knows the messages of a conversation and the Markdown that `gr.Chatbot` shows. Refuses to know Gradio itself,
models and storage: dicts and texts in, dicts and texts out.

A conversation is {"id": text, "messages": [...]}; a message is {"role": "user" or "assistant",
"content": text} and, where a model wrote it, maybe "thought": text and "finish": why it ended, which is one
of `chat.ReplyStats.finish_reason`, or absent while it is being written.
"""

import html
import json
import re
import secrets
from typing import Any

from chat import Message, ReplyStats

Conversation = dict[str, Any]

# Formulas reach the page between these, which no text holds: `$$` in a piece of code is none.
DISPLAY, INLINE = ("\ue110", "\ue111"), ("\ue112", "\ue113")
LATEX_DELIMITERS = [
    {"left": DISPLAY[0], "right": DISPLAY[1], "display": True},
    {"left": INLINE[0], "right": INLINE[1], "display": False},
]
TYPED = '<pre class="typed" dir="auto">'
# Markdown shows these as they are: one line of words and common marks.
PLAIN = re.compile(r"""(?!www\.)[^\W\d_](?:[^\W_]|\ (?!\ )|[,.?!'"():;-])*""")
RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\U00010800-\U00010fff\U0001e800-\U0001efff]"
)

LIST_ITEM = r"(?:[-*+]|\d{1,9}[.)])[ \t]+"
FENCED = rf"""
    (?P<fenced> ^[ \t>]* (?:{LIST_ITEM})* (?P<fence> `{{3,}} (?=[^`\n]*$) | ~{{3,}}) (?P<language>[^\n]*)
        (?: \n [\s\S]*? (?: ^[ \t>]* (?P=fence) [`~]* [ \t]*$ | \Z ) | \Z ) )"""
INDENTED = r"(?P<indented> (?: (?<=\n\n) | \A ) (?: (?:[ ]{4}|\t) [^\n]* (?:\n|\Z) )+ )"
NO_GAP = r"(?: (?! \n[ \t]*\n ) [\s\S] )+?"  # what stays within a paragraph
IN_LINE = rf"""
    (?P<code> (?<![`\\]) (?P<ticks>`+) (?!`) {NO_GAP} (?<!`) (?P=ticks) (?!`) )
    | \$\$ (?P<dollars>{NO_GAP}) \$\$
    | \\\[ (?P<brackets>{NO_GAP}) \\\]
    | \\\( (?P<parentheses>{NO_GAP}) \\\)
    | (?P<tag> < ) | (?P<entity> & (?= \#?\w+; ) ) | (?P<image> !\[ )
    | (?P<star> (?<=[0-9A-Za-z]) \* (?=[0-9A-Za-z]) | (?<=\d) \*\* (?=\d) )
    | (?P<dunder> (?<!\w) __ (?= [a-z]\w*__ (?!\w) ) )"""
IN_LINE_MARKS = re.compile(IN_LINE, re.VERBOSE)
MARKS = re.compile(f"{FENCED} | {INDENTED} | {IN_LINE}", re.VERBOSE | re.MULTILINE)


def new_conversation() -> Conversation:
    """One that holds nothing yet."""
    return {"id": secrets.token_hex(8), "messages": []}


def checked(conversation: Any) -> Conversation:
    """A conversation that came from a browser or a file, with nothing in it but what belongs there.

    Raises:
        ValueError: it is none; the message says what is wrong.
    """
    if not isinstance(conversation, dict) or not isinstance(conversation.get("messages"), list):
        raise ValueError('This is no conversation: it needs a list "messages".')
    messages = []
    for number, message in enumerate(conversation["messages"], 1):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise ValueError(f'Message {number} has no "role" that is "user" or "assistant".')
        if not isinstance(message.get("content"), str):
            raise ValueError(f'Message {number} has no text as "content".')
        known = ("role", "content", "thought", "finish")
        messages.append(
            {key: whole_characters(message[key]) for key in known if isinstance(message.get(key), str)}
        )
    name = conversation.get("id")
    return {"id": name if isinstance(name, str) and name else secrets.token_hex(8), "messages": messages}


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each surrogate without its other half, which could not be encoded."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_prompt(messages: list[Message], system_prompt: str | None) -> list[Message]:
    """The conversation as a `chat.Chat` reads it; a last message of the assistant's is to be gone on with.

    A question that got no answer, because it was stopped or failed, is left out: most chat templates want
    questions and answers in turn. An empty system prompt is passed on as such, so that none is used.

    Raises:
        ValueError: the system prompt is no text.
    """
    if not isinstance(system_prompt, str | None):
        raise ValueError("system_prompt must be a text")
    prompt = [{"role": "system", "content": whole_characters(system_prompt or "")}]
    for message in messages:
        if message["role"] == prompt[-1]["role"]:
            prompt.pop()
        prompt.append({key: message[key] for key in ("role", "content", "thought") if key in message})
    return prompt


def shown(messages: list[Message]) -> list[dict[str, Any]]:
    """The messages as `gr.Chatbot` shows them; what a model thinks before it answers is folded."""
    rendered = []
    for message in messages:
        role, content, thought = message["role"], message["content"], message.get("thought", "")
        if thought.strip():
            thinking = not content and "finish" not in message
            title = "Thoughts" if content or message.get("finish") == "stop" else "Thoughts (unfinished)"
            rendered.append(
                {
                    "role": role,
                    "content": [{"type": "text", "text": written(thought.strip())}],
                    "metadata": {
                        "title": "Thinking" if thinking else title,
                        "status": "pending" if thinking else "done",
                    },
                }
            )
        if content:
            text = typed(content) if role == "user" else written(content)
            rendered.append({"role": role, "content": [{"type": "text", "text": text}]})
    return rendered


def position_of(messages: list[Message], index: int) -> int:
    """Which message `gr.Chatbot` shows in this place."""
    return next(place for place in range(len(messages)) if len(shown(messages[: place + 1])) > index)


def original(messages: list[Message], text: str) -> str:
    """A text taken from `shown`, for example to be copied, as it was typed or written."""
    for message in messages:
        for part, rendered in zip(
            [text for text in (message.get("thought", "").strip(), message["content"]) if text],
            shown([message]),
            strict=False,
        ):
            text = text.replace(rendered["content"][0]["text"], part)
    return text


def typed(text: str) -> str:
    """Markdown that shows a text exactly as it was typed."""
    if PLAIN.fullmatch(text) and not RIGHT_TO_LEFT.search(text):
        return text
    first = "\n" if text.startswith("\n") else ""  # the one that HTML leaves out
    return f"{TYPED}{first}{html.escape(text, quote=False)}</pre>"


def written(text: str) -> str:
    """Markdown as a model wrote it, in which HTML is text, formulas are marked and images are none."""
    marked = MARKS.sub(_mark, text)
    return f'<div dir="auto">\n\n{marked}' if RIGHT_TO_LEFT.search(text) else marked


def _mark(match: re.Match) -> str:
    kind, text = match.lastgroup, match[0]
    if match["tag"]:
        return "&lt;"
    if match["entity"]:
        return "&amp;"
    if match["image"]:
        return "!\\["
    if match["star"] or match["dunder"]:
        return "".join(f"\\{mark}" for mark in text)
    for name, (left, right) in (("dollars", DISPLAY), ("brackets", DISPLAY), ("parentheses", INLINE)):
        if kind == name:
            return left + html.escape(match[name], quote=False) + right
    groups = match.groupdict()
    if (groups.get("language") or "").strip() == "mermaid":  # shown as it is; nothing draws it
        return text.replace("mermaid", " mermaid", 1)
    if groups.get("indented"):
        before = match.string[: match.start()].rstrip("\n").rpartition("\n")[2]
        if re.match(rf"\s|{LIST_ITEM}", before):  # the item of a list goes on: that is no code
            return IN_LINE_MARKS.sub(_mark, text)
    return text


def to_markdown(conversation: Conversation) -> str:
    """The conversation as a Markdown file; thoughts are quoted."""
    parts = []
    for message in conversation["messages"]:
        parts.append("## Question" if message["role"] == "user" else "## Answer")
        if message.get("thought", "").strip():
            parts.append("\n".join(f"> {line}".rstrip() for line in message["thought"].strip().split("\n")))
        if message["content"]:
            parts.append(message["content"])
    return "\n\n".join(parts) + "\n"


def to_json(conversation: Conversation) -> str:
    """The conversation as a JSON file, which `from_json` reads."""
    return json.dumps({"messages": conversation["messages"]}, ensure_ascii=False, indent=2)


def from_json(text: str) -> Conversation:
    """A conversation that was saved with `to_json`, as a new one.

    Raises:
        ValueError: the text is no such file.
    """
    try:
        conversation = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"This is no JSON file: {error}") from error
    return checked(conversation) | {"id": secrets.token_hex(8)}


def describe(stats: ReplyStats) -> str:
    """What a reply cost, in one line; and in another, which messages the model did not see."""
    parts = []
    if stats.prompt_tokens:  # not every endpoint counts them
        parts.append(counted(stats.prompt_tokens, "prompt token"))
        if stats.reused_tokens is not None:
            parts[0] += f" ({stats.reused_tokens} from the cache)"
    if stats.time_to_first_token is not None:
        parts.append(f"first token {stats.time_to_first_token:.2f} s")
    if stats.tokens_per_second is not None:
        parts.append(f"{stats.tokens_per_second:.{0 if stats.tokens_per_second >= 10 else 1}f} tokens/s")
    parts.append(counted(stats.new_tokens, "token"))
    if stats.thought_tokens:
        parts[-1] += f" ({stats.thought_tokens} of them thoughts)"
    if stats.finish_reason == "length":
        parts[-1] += ", stopped at the limit"
    line = " · ".join(parts)
    if stats.dropped_messages:
        which = "message" if stats.dropped_messages == 1 else f"{stats.dropped_messages} messages"
        line += f"\n\nThe model's context is full: it no longer sees the oldest {which}."
    return line


def stopped(line: str) -> str:
    """The line that `describe` made of an answer, once that was stopped; empty where none had begun."""
    cost, *notices = line.split("\n\n")
    return "\n\n".join([f"{cost}, stopped", *notices]) if line else ""


def counted(number: int, noun: str) -> str:
    """As in "1 token" and "2 tokens"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
