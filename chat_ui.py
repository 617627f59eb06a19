"""The chat page, and `python chat_ui.py` for people without Jupyter.

Knows Gradio and the conversation shown on the page. Refuses to know models, tokens and templates: all it
asks of `chat.ChatModel` is a stream of text. The page is served to this machine only, loads nothing from
elsewhere and reports nothing to anybody.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr

import telemetry
from chat import ChatModel, Message, SamplingParams

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


def build_ui(chat_model: ChatModel, title: str | None = None) -> gr.Blocks:
    """The chat page as Gradio Blocks; show it with `launch_ui`, or mount it in an application of your own.

    Args:
        chat_model: answers the questions.
        title: the heading; None makes one of the model's name.
    """
    defaults = SamplingParams()
    # A slider for every token of a 128k context would be hard to set; a reply is rarely longer than this.
    longest_reply = min(chat_model.max_context or 4096, 4096)

    def reply(
        message: str,
        history: list[dict[str, Any]],
        system_prompt: str,
        temperature: float,
        top_p: float,
        top_k: int,
        repetition_penalty: float,
        max_new_tokens: int,
    ) -> Iterator[str]:
        """Answer a message; yields the answer so far."""
        if not message.strip():
            raise gr.Error("The message is empty. Type a question first.")
        try:
            sampling = SamplingParams(
                temperature=temperature,
                top_p=top_p,
                top_k=int(top_k),
                repetition_penalty=repetition_penalty,
                max_new_tokens=int(max_new_tokens),
            )
            text = ""
            with closing(chat_model.stream(to_messages(message, history, system_prompt), sampling)) as deltas:
                for delta in deltas:
                    text += delta
                    yield text
        except ValueError as error:
            raise gr.Error(str(error)) from error
        except Exception as error:
            log.exception("The model failed")
            raise gr.Error(f"The model failed ({type(error).__name__}). The log has the details.") from error
        if not text:
            raise gr.Error("The model ended its answer before the first word. Retry, or ask in another way.")

    return gr.ChatInterface(
        reply,
        title=title or f"Chat with {Path(chat_model.config.model_id).name}",
        chatbot=gr.Chatbot(label="Conversation", height="65vh", buttons=["copy"], layout="bubble"),
        textbox=gr.Textbox(
            placeholder="Type a message, Enter sends it", label="Message", submit_btn=True, stop_btn=True
        ),
        examples=[[text] for text in EXAMPLES],
        editable=True,
        save_history=True,
        analytics_enabled=False,
        validator=lambda message: gr.validate(bool(message.strip()), "Type a question first."),
        api_name="chat",
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


def to_messages(message: str, history: list[dict[str, Any]], system_prompt: str) -> list[Message]:
    """The page's conversation as `ChatModel` reads it.

    A question that got no answer, because it was stopped or failed, is left out: most chat templates want
    questions and answers in turn. An empty system prompt is passed on as such, so that none is used.
    """
    messages = [{"role": "system", "content": system_prompt}]
    for turn in history:
        content = turn["content"]
        if not isinstance(content, str):
            content = "".join(part["text"] for part in content if part["type"] == "text")
        if turn["role"] == messages[-1]["role"]:
            messages.pop()
        messages.append({"role": turn["role"], "content": content})
    if messages[-1]["role"] == "user":
        messages.pop()
    return [*messages, {"role": "user", "content": message}]


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
    )
    return address


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
    parser.add_argument("--engine", default="optimum", choices=["optimum"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    models_dir = os.environ.get("LLM_CHATBOT_MODELS_DIR", "models")
    try:
        folder = conversion.prepare_model(options.model, options.precision, models_dir, options.checkpoint)
        print(f"Loading {folder} on {options.device} ...")
        model, tokenizer = conversion.load_model(folder, options.device)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    chat_model = ChatModel(model, tokenizer, config.get_model_config(options.model))
    ui = build_ui(chat_model)
    print(f"Open {launch_ui(ui, options.host, options.port)} in a browser. Ctrl+C ends the server.")
    ui.block_thread()


if __name__ == "__main__":
    main()
