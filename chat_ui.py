"""The chat page, and `python chat_ui.py` for people without Jupyter.

Knows Gradio and the conversation shown on the page. Refuses to know models, tokens and templates: all it
asks of `chat.ChatModel` is a stream of text and what it cost. The page is served to this machine only, loads
nothing from elsewhere and reports nothing to anybody.
"""

import argparse
import html
import importlib.util
import logging
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, closing
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from anyio.to_thread import run_sync
from gradio.events import Dependency
from gradio.utils import cancel_tasks

import telemetry
from chat import ChatModel, Message, ReplyStats, SamplingParams, short_name

log = logging.getLogger(__name__)

EXAMPLES = [
    "Hello! What can you do for me?",
    "What is OpenVINO?",
    "Who are you?",
    "What is Python?",
    "Tell me a fairy tale in one sentence.",
    "Which mistakes do people often make when they write code?",
    "Write a blog post of 100 words about a walk in the rain.",
]

PLACEHOLDER = "Type a message, Enter sends it"
QUEUE_LENGTH = 16  # questions that may wait while others are being answered
SESSIONS = 100  # open pages that the server remembers, 0.3 MB each; the one longest unused is forgotten first
CSS = """
/* What would take the conversation away from under the answer that is being written waits for its end. */
body:has(.stop-button) :is(.side-panel, button[aria-label="Clear"]) { pointer-events: none; opacity: 0.5; }
/* On a phone the saved conversations stand above the chat: however many, it must stay in view. */
@media (max-width: 768px) {
  div.side-panel { max-height: 4.5rem; overflow-y: auto !important; }
  .conversation { height: 55vh !important; }
}
/* Gradio's subdued color is too light for small letters on white. */
.stats p { color: var(--neutral-500) !important; font-size: var(--text-sm); }
.dark .stats p { color: var(--neutral-400) !important; }
"""
# The message box lost it when it was locked; who has gone elsewhere since is left there.
FOCUS = (
    "() => { if (document.activeElement === document.body) "
    "document.querySelector('.question-box textarea').focus() }"
)
THINK, END_OF_THINK = "<think>", "</think>"
# Gradio's default but for the bold weight: its semi-bold files (600) hold a few letters only.
THEME = gr.themes.Default(
    font=[
        gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)),
        "ui-sans-serif",
        "system-ui",
        "sans-serif",
    ]
)


class ChatPage(gr.ChatInterface):
    """Gradio's chat page, with what release 6.31 leaves undone.

    - After an error the browser does not run what was chained with `.then`, so the page would stay locked:
      here an error is shown, and the step that asked the model ends as if all were well. Where the queue is
      full there is no such step, and the page is unlocked by what is chained with `.failure`.
    - Answers to typed questions, edits and API requests waited in queues of their own, and quick steps waited
      with them.
    - Texts lost their tabs and the indentation of their first line.
    - Answers left the keyboard's focus nowhere, the message box without its placeholder, and erased what was
      typed at their end.
    - Retry repeated unanswered questions along with the last one.
    - The answer to an edited message could not be stopped.
    - Who closed the page while the first word was being computed left the model at work.
    - A click on an example left the page unlocked, and the conversation it began was not saved.
    - Saved conversations were encrypted with a key that died with the server.
    - A conversation emptied by Undo made each entry of the side panel open its neighbour.
    """

    def _render_chatbot_area(self, *arguments) -> None:
        super()._render_chatbot_area(*arguments)
        (self.stats,) = self.additional_outputs
        self.stats.render()
        siblings = self.stats.parent.children
        siblings.insert(siblings.index(self.chatbot) + 1, siblings.pop())

    def _setup_events(self) -> None:
        super()._setup_events()
        self.saved_conversations.storage_key = "llm-chatbot"
        self.saved_conversations.secret = "the page itself carries this key, so it hides nothing"
        self.new_chat_button.elem_classes = self.chat_history_dataset.elem_classes = ["side-panel"]

        quiet = {"queue": False, "api_visibility": "undocumented"}
        answers = []
        for index, step in self.fns.items():
            if self.null_component in step.outputs:
                step.fn = shows_errors(step.fn)
                step.show_progress_on = [self.chatbot]
                answers.append(Dependency(None, step.get_config(), index, step.fn))
            elif self.api_response in step.outputs:
                step.fn, step.outputs = without_stats(step.fn), step.outputs[:-1]
            else:
                step.queue = step.validator is not None  # validators run in the queue only
                if step.queue:  # where a full queue would cover the question with the word "Error"
                    step.show_progress = "hidden"
                continue
            step.concurrency_id = "answers"
        submit, example, retry, _option, edit = answers
        gr.on(
            [self.chatbot.edit, self.chatbot.example_select],
            lambda: gr.Textbox(interactive=False, submit_btn=False, stop_btn="Stop"),
            None,
            self.textbox,
            **quiet,
        )
        self.textbox.stop(None, None, None, cancels=[edit], api_visibility="undocumented")
        synchronizing = [
            index
            for index, step in self.fns.items()
            if step.outputs == [self.chatbot_state, self.chatbot_value]
        ]
        for step in self.fns.values():
            if step.trigger_after in synchronizing and step.outputs == [self.textbox]:
                step.fn = unlocked_textbox
        synchronize_and_unlock = {
            "fn": lambda conversation: (conversation, unlocked_textbox()),
            "inputs": self.chatbot,
            "outputs": [self.chatbot_state, self.textbox],
        }
        # Gradio itself saves after an edit that was not stopped; what was stopped counts as a failure.
        for ended in (example.then, edit.failure):
            ended(**synchronize_and_unlock, **quiet).then(
                self._save_conversation,
                [self.conversation_id, self.chatbot_state, self.saved_conversations],
                [self.conversation_id, self.saved_conversations],
                **quiet,
            )
        for answer in (submit, example, retry):
            answer.failure(**synchronize_and_unlock, **quiet).then(None, js=FOCUS, **quiet)
        for answer in (submit, example, retry, edit):
            answer.failure(stopped, self.stats, self.stats, **quiet)
        self.saved_conversations.change(None, js=FOCUS, **quiet)
        gr.on(
            [
                self.textbox.submit,
                self.chatbot.example_select,
                self.chatbot.retry,
                self.chatbot.edit,
                self.chatbot.undo,
                self.chatbot.clear,
                self.new_chat_button.click,
                self.chat_history_dataset.click,
            ],
            None,
            None,
            self.stats,
            js="() => ''",
            **quiet,
        )
        self.unload(self._stop_answers)

    async def _stop_answers(self, request: gr.Request) -> None:
        """Do what the Stop button does, for whoever has closed the page."""
        await cancel_tasks({f"{request.session_hash}_{index}" for index in self.fns})

    def _clear_and_save_textbox(self, message: str):
        return super()._clear_and_save_textbox(whole_characters(message))

    def example_clicked(self, example: gr.SelectData) -> tuple[list[dict], str]:  # not a generator: no queue
        """The conversation that an example begins, and its text."""
        text = example.value["text"]
        return self._append_message_to_history(text, [], "user"), text

    def _edit_message(self, history: list[dict], edit_data: gr.EditData):
        *histories, message = super()._edit_message(history, edit_data)
        return *histories, whole_characters(message)

    def _message_as_message_dict(self, message: str, role: str) -> list[dict]:
        return shown_messages(message, role)

    def _pop_last_user_message(self, history: list[dict]) -> tuple[list[dict], str]:
        questions = [position for position, turn in enumerate(history) if turn["role"] == "user"]
        if not questions:
            return history, ""
        return history[: questions[-1]], text_of(history[questions[-1]])

    def _load_conversation(self, index: int, conversations: list[list]):
        shown = [position for position, conversation in enumerate(conversations) if conversation]
        return super()._load_conversation(shown[index], conversations)


def unlocked_textbox() -> gr.Textbox:
    """The message box as it is while no answer is being written."""
    return gr.Textbox(interactive=True, submit_btn="Send", stop_btn=False, placeholder=PLACEHOLDER)


def shows_errors(answer: Callable[..., AsyncGenerator]) -> Callable[..., AsyncGenerator]:
    """The same steps, but a `gr.Error` becomes a message on the page and the end of the steps."""

    @wraps(answer)
    async def steps(*inputs):
        async with aclosing(answer(*inputs)) as given:
            try:
                async for step in given:
                    yield step
            except gr.Error as error:
                gr.Warning(html.escape(error.message))
                # without any step the page would empty the conversation
                yield gr.skip(), gr.skip(), gr.skip()

    return steps


def without_stats(answer: Callable[..., AsyncGenerator]) -> Callable[..., AsyncGenerator]:
    """The same steps less their last part, so that the API gives the text of an answer and no more."""

    @wraps(answer)
    async def steps(*inputs):
        async with aclosing(answer(*inputs)) as given:
            async for *step, _stats in given:
                yield tuple(step)

    return steps


def build_ui(chat_model: ChatModel, title: str | None = None) -> gr.Blocks:
    """The chat page as Gradio Blocks.

    Show it with `launch_ui`, or mount it in an application of your own: `gr.mount_gradio_app(app, page, path,
    css=CSS, theme=THEME)`.

    Args:
        chat_model: answers the questions, `chat_model.engine.max_requests` at a time; up to `QUEUE_LENGTH`
            more wait.
        title: the heading; None makes one of the model's name.
    """
    defaults = chat_model.defaults
    # A slider for every token of a 128k context would be hard to set; a reply is rarely longer than this.
    longest_reply = min(chat_model.max_context or 4096, 4096)

    async def reply(
        message: str,
        history: list[dict[str, Any]],
        system_prompt: str,
        temperature: float,
        top_p: float,
        top_k: int,
        repetition_penalty: float,
        max_new_tokens: int,
    ) -> AsyncIterator[tuple[str, str]]:
        """Answer a message; yields the answer so far and what it cost, in Markdown.

        The model works in another thread. Who stops the answer cancels the task that waits for it here, and
        the stream is closed at once. Were this no coroutine, Gradio would close it after the next delta.
        """
        if not message or not message.strip():
            raise refusal("The message is empty. Type a question first.")
        try:
            sampling = SamplingParams(
                temperature=temperature,
                top_p=top_p,
                top_k=whole(top_k),
                repetition_penalty=repetition_penalty,
                max_new_tokens=whole(max_new_tokens),
            )
            text = ""
            messages = to_messages(message, history, system_prompt)
            with closing(await run_sync(chat_model.stream, messages, sampling)) as deltas:
                while (delta := await run_sync(next, deltas, None)) is not None:
                    text += delta
                    yield text, describe(deltas.stats)
                if text:
                    yield text, describe(deltas.stats)
        except ValueError as error:
            raise refusal(str(error)) from error
        except Exception as error:
            log.exception("The model failed")
            raise refusal(f"The model failed ({type(error).__name__}). The log has the details.") from error
        if not text:
            raise refusal(
                "The model ended its answer before the first word. Edit the question, or ask another."
            )

    page = ChatPage(
        reply,
        title=title or f"Chat with {short_name(chat_model.config.model_id)}",
        chatbot=gr.Chatbot(
            label="Conversation",
            height="65vh",
            buttons=["copy"],
            layout="bubble",
            elem_classes=["conversation"],
        ),
        textbox=gr.Textbox(
            placeholder=PLACEHOLDER,
            label="Message",
            submit_btn="Send",
            stop_btn="Stop",
            autofocus=True,
            elem_classes=["question-box"],
        ),
        examples=[[text] for text in EXAMPLES],
        editable=True,
        save_history=True,
        analytics_enabled=False,
        validator=lambda message: gr.validate(bool(message.strip()), "Type a question first."),
        api_name="chat",
        concurrency_limit=chat_model.engine.max_requests,
        additional_outputs=gr.Markdown(elem_classes=["stats"], render=False),
        additional_inputs_accordion=gr.Accordion("Advanced options", open=False),
        additional_inputs=[
            gr.Textbox(
                chat_model.config.system_prompt or "",
                label="System prompt",
                info="What the model is told about its role. Empty: the default of its chat template.",
                lines=2,
            ),
            gr.Slider(
                0,
                2,
                defaults.temperature,
                step=0.05,
                label="Temperature",
                info="How freely words are chosen. 0: always the most probable one; above 1: surprising.",
            ),
            gr.Slider(
                0,
                1,
                defaults.top_p,
                step=0.01,
                label="Top-p",
                info="Choose among the most probable words that together have this probability. 1: no limit.",
            ),
            gr.Slider(
                0,
                200,
                defaults.top_k,
                step=1,
                label="Top-k",
                info="Choose among this many of the most probable words. 0: no limit.",
            ),
            gr.Slider(
                1,
                2,
                defaults.repetition_penalty,
                step=0.05,
                label="Repetition penalty",
                info="Makes words that were used already less probable. 1: no penalty.",
            ),
            gr.Slider(
                1,
                longest_reply,
                min(defaults.max_new_tokens, longest_reply),
                step=1,
                label="Max new tokens",
                info="The answer ends here at the latest; 100 tokens are about 75 English words.",
            ),
        ],
    )
    for option in page.additional_inputs:
        if isinstance(option, gr.Slider):  # whose refusals would not say which option is out of range
            option.preprocess = lambda value: value
    return page.queue(max_size=QUEUE_LENGTH)


def refusal(message: str) -> gr.Error:
    """An error that the page shows; without the traceback that Gradio would write to the terminal."""
    return gr.Error(message, print_exception=False)


def whole(value: Any) -> Any:
    """3.0 as 3, since JSON does not tell them apart; anything else as it is, for SamplingParams to judge."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each surrogate without its other half, which could not be encoded."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def describe(stats: ReplyStats) -> str:
    """What a reply cost, in one line; and in another, which messages the model did not see."""
    parts = [counted(stats.prompt_tokens, "prompt token")]
    if stats.reused_tokens is not None:
        parts[0] += f" ({stats.reused_tokens} from the cache)"
    if stats.time_to_first_token is not None:
        parts.append(f"first token {stats.time_to_first_token:.2f} s")
    if stats.tokens_per_second is not None:
        parts.append(f"{stats.tokens_per_second:.{0 if stats.tokens_per_second >= 10 else 1}f} tokens/s")
    parts.append(counted(stats.new_tokens, "token"))
    if stats.finish_reason == "length":
        parts[-1] += ", stopped at the limit"
    line = " · ".join(parts)
    if stats.dropped_messages == 1:
        line += "\n\nThe oldest message no longer fits into the model's context and was left out."
    elif stats.dropped_messages:
        line += (
            f"\n\nThe {stats.dropped_messages} oldest messages no longer fit into the model's context "
            "and were left out."
        )
    return line


def stopped(line: str) -> str:
    """The line that `describe` made of an answer, once that was stopped; empty where none had begun."""
    cost, *notices = line.split("\n\n")
    return "\n\n".join([f"{cost}, stopped", *notices]) if line else ""


def counted(number: int, noun: str) -> str:
    """As in "1 token" and "2 tokens"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shown_messages(text: str, role: str) -> list[dict[str, Any]]:
    """One message as `gr.Chatbot` shows it; what a model thinks before it answers is folded.

    The thoughts of a reply stand between <think>, its first characters, and </think>.
    """
    if role == "user" or not text.startswith(THINK):
        return [{"role": role, "content": [{"type": "text", "text": text}]}]
    thoughts, closed, answer = text.removeprefix(THINK).partition(END_OF_THINK)
    title = "Thoughts" if closed else "Thoughts (unfinished)"
    folded = {
        "role": role,
        "content": [{"type": "text", "text": thoughts.strip()}],
        "metadata": {"title": title, "status": "done"},
    }
    return [folded, *(shown_messages(answer.lstrip(), role) if answer.strip() else [])]


def text_of(turn: dict[str, Any]) -> str:
    """The text of one of the page's messages."""
    if isinstance(turn["content"], str):
        return turn["content"]
    return "".join(part["text"] for part in turn["content"] if part["type"] == "text")


def to_messages(message: str, history: list[dict[str, Any]], system_prompt: str) -> list[Message]:
    """The page's conversation as `ChatModel` reads it.

    Folded thoughts are left out, and so is a question that got no answer, because it was stopped or failed:
    most chat templates want questions and answers in turn. An empty system prompt is passed on as such, so
    that none is used.
    """
    messages = [{"role": "system", "content": whole_characters(system_prompt or "")}]
    for turn in history:
        if (turn.get("metadata") or {}).get("title"):
            continue
        if turn["role"] == messages[-1]["role"]:
            messages.pop()
        messages.append({"role": turn["role"], "content": text_of(turn)})
    if messages[-1]["role"] == "user":
        messages.pop()
    return [*messages, {"role": "user", "content": whole_characters(message)}]


def launch_ui(ui: gr.Blocks, host: str = "127.0.0.1", port: int | None = None) -> str:
    """Serve the page in the background and return its address; `ui.close()` ends it.

    Args:
        host: 127.0.0.1 can be reached from this machine only.
        port: None takes the first free one from 7860 on.
    """
    _, address, _ = ui.launch(
        server_name=host,
        server_port=port,
        share=False,
        footer_links=[],
        prevent_thread_lock=True,
        quiet=True,
        inline=False,
        ssr_mode=False,
        state_session_capacity=SESSIONS,
        css=CSS,
        theme=THEME,
    )
    return address


def load_genai(folder: Path, device: str) -> tuple:
    """The converted model in OpenVINO GenAI, and its tokenizer.

    Raises:
        FileNotFoundError, ValueError: see `conversion.load_model`.
    """
    import conversion
    from genai_engine import GenAIEngine

    # First, since it says in clear words what is wrong with folder or device. It compiles nothing.
    tokenizer = conversion.load_model(folder, device)[1]
    return GenAIEngine(folder, device), tokenizer


def main(arguments: list[str] | None = None) -> None:
    """Prepare a model if need be and serve the chat page on it."""
    telemetry.turn_off()
    import config
    import conversion

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--model",
        default=os.environ.get("LLM_CHATBOT_MODEL", config.DEFAULT_MODEL),
        help="a catalogue name, a Hugging Face Hub id or a local folder (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        default=os.environ.get("LLM_CHATBOT_CHECKPOINT"),
        help="a Hub id or a local folder to use instead of the model's own weights",
    )
    parser.add_argument("--precision", default="INT8", choices=list(conversion.FOLDER_NAMES))
    parser.add_argument("--device", default="CPU", help="an OpenVINO device, or AUTO (default: %(default)s)")
    parser.add_argument(
        "--engine",
        default="optimum",
        choices=["optimum", "genai"],
        help="optimum answers one question at a time, genai (OpenVINO GenAI) several (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args(arguments)
    if options.engine == "genai" and importlib.util.find_spec("openvino_genai") is None:
        parser.error(f"--engine genai needs OpenVINO GenAI: {sys.executable} -m pip install openvino-genai")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    models_dir = os.environ.get("LLM_CHATBOT_MODELS_DIR", "models")
    try:
        folder = conversion.prepare_model(options.model, options.precision, models_dir, options.checkpoint)
        load = load_genai if options.engine == "genai" else conversion.load_model
        chat_model = ChatModel(*load(folder, options.device), config.get_model_config(options.model))
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    except RuntimeError as error:  # all that OpenVINO raises, in its own words
        sys.exit(
            f"Error: OpenVINO cannot run {options.model} at {options.precision} on {options.device}: "
            f"{str(error).strip()}\nChoose another --device, --precision or --engine. If this one worked "
            f"before, delete the model's folder in {models_dir}: it will be converted again."
        )
    ui = build_ui(chat_model)
    try:
        address = launch_ui(ui, options.host, options.port)
    except OSError:
        sys.exit(
            f"Error: {options.host} port {options.port} is taken or not ours. Choose another: --port 7861"
        )
    print(f"Open {address} in a browser. Ctrl+C ends the server.")
    ui.block_thread()


if __name__ == "__main__":
    main()
