"""What each control of the page does to the conversation, and what the screen then shows.

Knows Gradio's components and events' data. Refuses to know how the controls are wired and who answers
(`chat_ui`). A step takes the conversation as the browser holds it and returns the screen: conversation, what
`gr.Chatbot` shows of it, the line below, the message box, and whether Retry and Continue are there.
"""

import html
from typing import Any

import gradio as gr

from chat import Chat
from page_rendering import (
    Conversation,
    checked,
    from_json,
    new_conversation,
    original,
    position_of,
    shown,
    stopped,
    to_json,
    to_markdown,
    whole_characters,
)
from sampling import OPTIONS, Option, SamplingParams

# The message box while an answer is being written, and else.
LOCKED = {"interactive": False, "submit_btn": False, "stop_btn": "Stop", "placeholder": ""}
UNLOCKED = {
    "interactive": True,
    "submit_btn": "Send",
    "stop_btn": False,
    "placeholder": "Type a message, Enter sends it",
}

WAITING = "Waiting for the model: it is being loaded, or answers somebody else."
SAMPLING = [option for option in OPTIONS.values() if option.name != "logprobs"]  # which nothing here shows


def view(
    conversation: Conversation, line: str = "", draft: str | None = None, locked: bool = False
) -> tuple[Any, ...]:
    """The screen; a draft replaces what stands in the message box."""
    last = conversation["messages"][-1] if conversation["messages"] else {}
    unanswered = not locked and last.get("role") == "user"
    unfinished = not locked and last.get("finish", "stop") != "stop"
    value = {} if draft is None else {"value": draft}
    return (
        conversation,
        shown(conversation["messages"]),
        line,
        gr.Textbox(**(LOCKED if locked else UNLOCKED), **value),
        gr.Button(visible=unanswered),
        gr.Button(visible=unfinished),
    )


UNCHANGED = (gr.skip(),) * len(view(new_conversation()))  # the screen


def question(conversation: Conversation, place: int | None, text: str) -> tuple[Any, ...]:
    """The screen with a new question in place of what stands from `place` on; None: after everything."""
    if not text.strip():
        raise refusal("Type a question first.", duration=4)
    messages = [*conversation["messages"][:place], {"role": "user", "content": whole_characters(text)}]
    return view(conversation | {"messages": messages}, draft="", locked=True)


def asked(data: Any, text: str) -> tuple[Any, ...]:
    """Send."""
    return question(conversation_of(data), None, text)


def example_asked(chosen: gr.SelectData) -> tuple[Any, ...]:
    """An example: the first question of a new conversation."""
    return question(new_conversation(), 0, chosen.value["text"])


def edited(data: Any, edit: gr.EditData) -> tuple[Any, ...]:
    """Edit: what came after the question is gone."""
    conversation = conversation_of(data)
    return question(conversation, position_of(conversation["messages"], edit.index), edit.value)


def retried(data: Any) -> tuple[Any, ...]:
    """Retry: the last question once more, whether or not it was answered."""
    conversation, place = last_question(data)
    return view(conversation | {"messages": conversation["messages"][: place + 1]}, locked=True)


def continued(data: Any) -> tuple[Any, ...]:
    """Continue: the last answer goes on."""
    return view(conversation_of(data), locked=True)


def undone(data: Any) -> tuple[Any, ...]:
    """Undo: the last question goes back into the message box."""
    conversation, place = last_question(data)
    text = conversation["messages"][place]["content"]
    return view(conversation | {"messages": conversation["messages"][:place]}, draft=text)


def cleared(data: Any) -> tuple[Any, ...]:
    """Clear: the conversation is gone, from the saved ones too."""
    return view(conversation_of(data) | {"messages": []})


def rest(data: Any, line: str = "") -> tuple[Any, ...]:
    """The screen when an answer is over; one without a reason to end was stopped."""
    conversation = conversation_of(data)
    for last in conversation["messages"][-1:]:
        if last["role"] == "assistant" and "finish" not in last:
            last["finish"], line = "cancelled", stopped(line)
    return view(conversation, "" if line == WAITING else line)


def restored(data: Any) -> tuple[Any, ...]:
    """What a browser's tab showed before; nothing changes in a new one, where somebody may type already."""
    return rest(data) if data else UNCHANGED


def opened(data: dict[str, str] | None) -> tuple[Any, ...]:
    """Open a JSON file; None where none was chosen."""
    try:
        return view(from_json(data["text"])) if data else UNCHANGED
    except ValueError as error:
        raise refusal(html.escape(str(error))) from error


def exported_markdown(data: Any) -> dict[str, str]:
    """The file that Download as Markdown saves."""
    return {"name": "conversation.md", "text": to_markdown(conversation_of(data))}


def exported_json(data: Any) -> dict[str, str]:
    """The file that Download as JSON saves."""
    return {"name": "conversation.json", "text": to_json(conversation_of(data))}


def copied(data: Any, copy: gr.CopyData) -> dict[str, str]:
    """A message that was copied, as it was typed or written."""
    return {"text": original(conversation_of(data)["messages"], copy.value)}


def listed(listing: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], gr.Dataset]:
    """The list of saved conversations, as data and as shown."""
    return listing, gr.Dataset(samples=[[entry["title"]] for entry in listing], visible=bool(listing))


def storage_is_full() -> None:
    """What is said where the browser refuses to keep a conversation."""
    raise refusal("This browser keeps no more conversations: open some of the saved ones, and press Clear.")


def conversation_of(data: Any) -> Conversation:
    """What the browser says is the conversation; a new one if it says nothing."""
    try:
        return checked(data) if data else new_conversation()
    except ValueError as error:
        raise refusal(html.escape(str(error))) from error


def last_question(data: Any) -> tuple[Conversation, int]:
    """The conversation, and the place of its last question."""
    conversation = conversation_of(data)
    places = [place for place, message in enumerate(conversation["messages"]) if message["role"] == "user"]
    if not places:
        raise refusal("There is no question yet.")
    return conversation, places[-1]


def refusal(message: str, duration: float = 10) -> gr.Error:
    """An error that the page shows; without the traceback that Gradio would write to the terminal."""
    return gr.Error(message, duration=duration, print_exception=False)


def sampling_controls(chat_model: Chat) -> dict[str, gr.components.Component]:
    """What sets the sampling options, with the values that the model's answers have by default."""
    return {option.name: _control(option, chat_model) for option in SAMPLING}


def _control(option: Option, chat_model: Chat) -> gr.components.Component:
    value = getattr(chat_model.defaults, option.name)
    about = {"label": option.label, "info": option.help}
    if option.slider:
        end, step = option.slider
        if option.name == "max_new_tokens":
            end = min(end, chat_model.max_context or end)
            value = min(value, end)
        return gr.Slider(option.low, max(end, value), value, step=step, **about)
    if option.kind is tuple:
        about["info"] += " One a line."
        return gr.Textbox("\n".join(value), lines=2, **about)
    return gr.Textbox("" if value is None else str(value), **about)


def sampling_of(options: dict[str, Any]) -> SamplingParams:
    """The sampling that the controls, or a program in their place, ask for.

    Raises:
        ValueError: an option is out of range; the message names it.
    """
    return SamplingParams(**{option.name: _value(option, options[option.name]) for option in SAMPLING})


def _value(option: Option, held: Any) -> Any:
    if option.kind is tuple:
        return tuple(line for line in held.split("\n") if line) if isinstance(held, str) else held
    if not option.slider and isinstance(held, str):
        held = held.strip() or option.off
        return int(held) if isinstance(held, str) and held.isdecimal() and len(held) < 20 else held
    # JSON does not tell 3.0 from 3
    return int(held) if option.kind is int and isinstance(held, float) and held.is_integer() else held


def switches(chat_model: Chat) -> dict[str, gr.components.Component]:
    """What sets the options of the model's chat template; the first value of each is the default."""
    made = {}
    for name, values in chat_model.template_options.items():
        label = name.removeprefix("enable_").replace("_", " ").capitalize()
        if isinstance(values[0], bool):
            made[name] = gr.Checkbox(values[0], label=label)
        else:
            made[name] = gr.Radio(list(values), value=values[0], label=label)
    return made


def switched(options: dict[str, Any], chat_model: Chat) -> dict[str, Any] | None:
    """The template options that the switches ask for; None where the template has none.

    Raises:
        ValueError: a switch has no such position; the message names it.
    """
    for name, values in chat_model.template_options.items():
        if options[name] not in values:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}")
    # one that is equal to the value asked for: a program may send 1 for True
    return {
        name: values[values.index(options[name])] for name, values in chat_model.template_options.items()
    } or None
