"""The chat page, and `python chat_ui.py` for people without Jupyter.

Knows Gradio and what people do on the page. Refuses to know models, tokens and templates: all it asks of a
`chat.Chat` is a stream of text and what it cost, so a model on this machine and one elsewhere are alike.

The conversation is data that lives in the browser and comes along with each question; the server keeps
nothing of it. A step (`page_steps`) puts a question on the screen and locks it, `answer` streams, `rest`
unlocks. Stop cancels `answer`; `leave` closes the streams of who has left the page.
"""

import signal
import sys

if __name__ == "__main__":  # before the imports below, which take seconds: the model is loaded meanwhile
    signal.signal(signal.SIGINT, lambda *_: sys.exit("Stopped."))
    from chat_command import begin

    begun = begin(None)

import asyncio
import html
import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, closing
from typing import Any

import gradio as gr
from anyio.to_thread import run_sync
from starlette.middleware import Middleware

import page_steps as steps
from chat import Chat, Message, ReplyStats, ReplyStream
from page_assets import CSS, EXAMPLES, JS, THEME
from page_guard import PageGuard
from page_rendering import LATEX_DELIMITERS, describe, shown, to_prompt, whole_characters, written

log = logging.getLogger(__name__)

QUEUE_LENGTH = 16  # questions that may wait while others are being answered
SESSIONS = 100  # open pages that the server remembers, 0.3 MB each; the one longest unused is forgotten first
SOON = 0.5  # seconds after which an answer that waits for the model says so


def build_ui(chat_model: Chat, title: str | None = None) -> gr.Blocks:
    """The chat page as Gradio Blocks.

    Show it with `launch_ui`, or mount it in an application of your own: `gr.mount_gradio_app(app, page, path,
    css=CSS, theme=THEME)`, with `app.add_middleware(PageGuard)` for what `launch_ui` refuses.

    Args:
        chat_model: answers the questions, `max_requests` of them at a time; up to `QUEUE_LENGTH` more wait.
        title: the heading; None makes one of the model's name.
    """
    heading = title or f"Chat with {chat_model.name}"
    running: dict[ReplyStream, str | None] = {}  # the answers being written, and in which session

    with gr.Blocks(title=heading, analytics_enabled=False) as page:
        conversation = gr.JSON(visible=False)
        listing = gr.JSON(visible=False)  # of the saved conversations
        carried = gr.JSON(visible=False)  # what Python hands to a piece of JavaScript, or gets from it
        with gr.Row():
            with gr.Column(scale=1, min_width=160, elem_classes=["side-panel"]):
                new_chat = gr.Button("New chat", variant="primary", size="md")
                saved = gr.Dataset(
                    components=[gr.Textbox(visible=False)],
                    show_label=False,
                    layout="table",
                    type="index",
                    samples_per_page=1000,
                    visible=False,
                )
            with gr.Column(scale=6):
                gr.Markdown(f"# {heading}\n{chat_model.description}", elem_classes=["heading"])
                chatbot = gr.Chatbot(
                    show_label=False,
                    height="60vh",
                    buttons=["copy"],
                    editable="user",
                    layout="bubble",
                    latex_delimiters=LATEX_DELIMITERS,
                    examples=[{"text": text} for text in EXAMPLES],
                    elem_classes=["conversation"],
                )
                stats = gr.Markdown(elem_classes=["stats"])
                with gr.Row():
                    retry = gr.Button("Retry", visible=False, size="sm", scale=0, min_width=120)
                    go_on = gr.Button("Continue", visible=False, size="sm", scale=0, min_width=120)
                box = gr.Textbox(
                    label="Message", autofocus=True, elem_classes=["question-box"], **steps.UNLOCKED
                )
                switches = steps.switches(chat_model)
                with gr.Accordion("Advanced options", open=False):
                    system_prompt = gr.Textbox(
                        chat_model.system_prompt or "",
                        label="System prompt",
                        info="What the model is told of its role. Empty: the default of its chat template.",
                        lines=2,
                    )
                    sliders = steps.sampling_controls(chat_model)
                with gr.Accordion("Files", open=False), gr.Row():
                    as_markdown = gr.Button("Download as Markdown", size="sm")
                    as_json = gr.Button("Download as JSON", size="sm")
                    from_json = gr.Button("Open a JSON file", size="sm")

        async def answer(request: gr.Request, data: Any, **options: Any) -> AsyncIterator[tuple]:
            now = steps.conversation_of(data)
            messages = now["messages"]
            before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
            try:
                parts = reply(chat_model, messages, options, running, request.session_hash)
                async with aclosing(parts):
                    async for turn, cost in parts:
                        messages = [*before, turn] if cost else now["messages"]
                        line = describe(cost) if cost else steps.WAITING
                        yield now | {"messages": messages}, shown(messages), line
            except gr.Error as error:  # raised, it would cover the conversation
                gr.Warning(html.escape(error.message))
                if messages is not now["messages"]:
                    messages[-1]["finish"] = "error"
                yield now | {"messages": messages}, shown(messages), written(error.message)

        screen = [conversation, chatbot, stats, box, retry, go_on]
        # where nobody sees it: on the screen, an error would be a cover
        quiet = {"api_visibility": "private", "show_progress": "hidden", "show_progress_on": conversation}
        ask = quiet | {"concurrency_limit": None}  # in the queue, which may be full
        quick = quiet | {"queue": False}
        answering = {
            "inputs_kwargs": {"system_prompt": system_prompt, **sliders, **switches},
            "preprocess": False,  # which would refuse values without saying of what
            "concurrency_id": "answers",
            "concurrency_limit": chat_model.max_requests,
        }
        asked = [
            box.submit(steps.asked, [conversation, box], screen, **ask),
            chatbot.example_select(steps.example_asked, None, screen, **ask),
            chatbot.edit(steps.edited, conversation, screen, **ask),
            gr.on([chatbot.retry, retry.click], steps.retried, conversation, screen, **ask),
            go_on.click(steps.continued, conversation, screen, **ask),
        ]
        answers = [
            step.success(
                answer,
                conversation,
                [conversation, chatbot, stats],
                show_progress_on=chatbot,
                api_visibility="private",
                **answering,
            )
            for step in asked
        ]
        box.stop(None, cancels=answers)
        changed = [
            page.load(steps.restored, conversation, screen, js=JS["restore"], **quick),
            chatbot.undo(steps.undone, conversation, screen, **quick),
            chatbot.clear(steps.cleared, conversation, screen, **quick),
            new_chat.click(lambda: steps.rest(None), None, screen, **quick),
            saved.click(lambda _, data: steps.rest(data), [saved, listing], screen, js=JS["open"], **quick),
            from_json.click(steps.opened, carried, screen, js=JS["pick"], **ask),
            *(
                ended(steps.rest, [conversation, stats], screen, **quick)
                for each in answers
                for ended in (each.success, each.failure)
            ),
        ]
        for change in changed:
            listed = change.then(steps.listed, listing, [listing, saved], js=JS["list"], **quick)
            listed.then(None, js=JS["focus"], **quick)
        saving = conversation.change(None, conversation, None, js=JS["save"], **quick)
        saving.failure(steps.storage_is_full, **ask)
        page.load(None, box, box, js=JS["draft"], **quick)
        box.change(None, box, None, js=JS["keep draft"], **quick)
        page.load(None, js=JS["edit"], **quick)
        for event, step, then in [
            (chatbot.copy, steps.copied, JS["copy"]),
            (as_markdown.click, steps.exported_markdown, JS["download"]),
            (as_json.click, steps.exported_json, JS["download"]),
        ]:
            event(step, conversation, carried, **quick).then(None, carried, None, js=then, **quick)

        async def respond(
            request: gr.Request, message: str, history: list[Message] | None, **options: Any
        ) -> AsyncIterator[tuple]:
            """Answer a message; yields the answer so far."""
            if not isinstance(message, str) or not message.strip():
                raise steps.refusal("The message is empty. Type a question first.")
            turns = [*(history or []), {"role": "user", "content": whole_characters(message)}]
            parts = reply(chat_model, turns, options, running, request.session_hash)
            async with aclosing(parts):
                async for turn, cost in parts:
                    if cost:
                        yield turn["content"], [*turns, turn]

        history, text = gr.State(), gr.Textbox(label="Answer", visible=False)
        gr.on([], respond, [box, history], [text, history], api_name="chat", **answering)

        def leave(request: gr.Request) -> None:
            for deltas in [deltas for deltas, session in running.items() if session == request.session_hash]:
                deltas.close()

        page.unload(leave)
    return page.queue(max_size=QUEUE_LENGTH)


async def reply(
    chat_model: Chat,
    messages: list[Message],
    options: dict[str, Any],
    running: dict[ReplyStream, str | None],
    session: str | None,
) -> AsyncIterator[tuple[Message, ReplyStats | None]]:
    """The message that answers the last one, or goes on with it, as it grows; and what it cost.

    There is no cost as long as it waits for a model that is being loaded, or for answers to others.

    The model works in another thread. Who stops the answer cancels the task that waits for it here, and the
    stream is closed at once. Were this no coroutine, that would wait for the next delta.

    Args:
        options: what the controls of the page hold, by name.
        running: where the stream stands, with its session, as long as it is open.

    Raises:
        gr.Error: an option is out of range, the model refuses or fails; in words for the page.
    """
    turn = {"role": "assistant", "content": ""}
    if messages[-1]["role"] == "assistant":  # which is gone on with
        turn = {key: value for key, value in messages[-1].items() if key != "finish"}
    try:
        prompt = to_prompt(messages, options["system_prompt"])
        chosen = steps.sampling_of(options), steps.switched(options, chat_model)
        with closing(await run_sync(chat_model.stream, prompt, *chosen)) as deltas:
            running[deltas] = session
            try:
                first = asyncio.ensure_future(run_sync(next, deltas, None))
                while not (await asyncio.wait({first}, timeout=SOON))[0]:
                    if deltas.waiting:
                        yield turn, None
                delta = await first
                while delta is not None:
                    part = "thought" if delta.is_thought else "content"
                    turn = turn | {part: turn.get(part, "") + delta}
                    yield turn, deltas.stats
                    delta = await run_sync(next, deltas, None)
            finally:
                del running[deltas]
    except (ValueError, OSError) as error:  # the latter from an endpoint; both in words
        raise steps.refusal(str(error)) from error
    except Exception as error:
        log.exception("The model failed")
        raise steps.refusal(f"The model failed ({type(error).__name__}). The log has the details.") from error
    if not turn["content"] and "thought" not in turn:
        raise steps.refusal(
            "The model ended its answer before the first word. Edit the question, or ask another."
        )
    yield turn | {"finish": deltas.stats.finish_reason or "stop"}, deltas.stats


def launch_ui(
    ui: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, auth: tuple[str, str] | None = None
) -> str:
    """Serve the page in the background and return its address; `ui.close()` ends it.

    Args:
        host: 127.0.0.1 can be reached from this machine only.
        port: None takes the first free one from 7860 on.
        auth: a name and a password that the page asks for.

    Raises:
        OSError: the port is taken, or `host` is no address of this machine.
    """
    # Gradio asks its own server whether it is there, which is nothing that a proxy could know.
    for name in ("no_proxy", "NO_PROXY"):
        own = [os.environ.get(name), "127.0.0.1", "localhost", host]
        os.environ[name] = ",".join(dict.fromkeys(part for part in own if part))
    _, address, _ = ui.launch(
        server_name=f"[{host}]" if ":" in host and "[" not in host else host,
        server_port=port,
        auth=auth,
        share=False,
        footer_links=[],
        prevent_thread_lock=True,
        quiet=True,
        inline=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        state_session_capacity=SESSIONS,
        app_kwargs={"middleware": [Middleware(PageGuard, names=(host,))]},
        css=CSS,
        theme=THEME,
    )
    return address


if __name__ == "__main__":
    from chat_command import finish

    finish(begun, build_ui, launch_ui)
