"""A model's name, its options on a command line, and the chat they describe.

Knows the options that every command of this project has, and the shortest way from a finished folder to an
answer: without torch and transformers, engine and tokenizer side by side. Refuses to know who chats with it.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import DEFAULT_MODEL, get_model_config, models_dir
from sampling import OPTIONS, SamplingParams

if TYPE_CHECKING:
    from chat import ChatModel
    from engine import Engine

PRECISIONS = ("FP16", "INT8", "INT4")
# How each is described.
ENGINES = {"optimum": "one answer at a time", "genai": "OpenVINO GenAI"}


def add_model_options(parser: argparse.ArgumentParser, engine: str) -> None:
    """Let a command choose a model, its weights, how it runs and how it is sampled.

    Args:
        engine: the default, "optimum" or "genai".
    """
    parser.add_argument(
        "--model",
        default=os.environ.get("LLM_CHATBOT_MODEL") or DEFAULT_MODEL,
        help="a catalogue name, a Hugging Face Hub id or a local folder (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        default=os.environ.get("LLM_CHATBOT_CHECKPOINT") or None,
        help="a Hub id or a local folder to use instead of the model's own weights",
    )
    parser.add_argument("--precision", type=str.upper, default="INT8", choices=PRECISIONS)
    parser.add_argument(
        "--device",
        type=str.upper,
        default="CPU",
        help="an OpenVINO device, or AUTO (default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        default=engine,
        choices=list(ENGINES),
        help=" or ".join(f"{name} ({title})" for name, title in ENGINES.items()) + " (default: %(default)s)",
    )
    group = parser.add_argument_group("sampling", "what an answer gets for which nothing else is asked")
    for option in OPTIONS.values():
        if option.name != "logprobs":
            group.add_argument(
                f"--{option.name.replace('_', '-')}",
                type=str if option.kind is tuple else option.kind,
                action="append" if option.kind is tuple else "store",
                help=option.help,
            )


def open_chat(
    options: argparse.Namespace, in_background: bool = False, ov_config: dict[str, Any] | None = None
) -> "ChatModel":
    """The chat that the options of `add_model_options` describe; converted first if need be.

    Args:
        in_background, ov_config: see `chat_on_folder`.

    Raises:
        OSError, ValueError: in words for whoever typed the command.
    """
    import conversion
    from model_folder import precision_of

    if options.engine == "genai" and find_spec("openvino_genai") is None:
        raise ValueError(
            f"--engine genai needs OpenVINO GenAI: {sys.executable} -m pip install openvino-genai"
        )
    given = {name: getattr(options, name) for name in OPTIONS if getattr(options, name, None) is not None}
    SamplingParams(**given)  # a bad value is told before any work
    folder = conversion.prepare_model(
        options.model, options.precision, models_dir(), options.checkpoint, for_chat=True
    )
    precision = precision_of(folder)  # its own, where it was converted by others
    chat = chat_on_folder(
        folder, options.model, precision, options.device, options.engine, in_background, ov_config
    )
    chat.defaults = replace(chat.defaults, **given)
    return chat


def chat_on_folder(
    folder: str | Path,
    model: str,
    precision: str = "INT8",
    device: str = "CPU",
    engine: str = "optimum",
    in_background: bool = False,
    ov_config: dict[str, Any] | None = None,
) -> "ChatModel":
    """A chat on a converted folder.

    Args:
        model: the name under which the folder was made.
        precision: of the folder, for the description.
        device: an OpenVINO device.
        engine: "optimum" or "genai".
        in_background: return while the engine is still being made, in a thread; who asks meanwhile waits.
            `settle` waits for it too.
        ov_config: properties for OpenVINO that go before the fastest ones.

    Raises:
        OSError, ValueError: see `model_folder.check_folder`; or OpenVINO cannot run the model.
    """
    from chat import ChatModel
    from chat_tokenizer import open_tokenizer
    from json_files import read_json_if_there
    from loading_engine import LoadingEngine
    from model_folder import check_folder, model_limits, sampling_defaults

    folder = check_folder(folder)
    generation = read_json_if_there(folder / "generation_config.json")
    max_context, end_ids = model_limits(read_json_if_there(folder / "config.json"), generation)

    def make() -> "Engine":
        try:
            return make_engine(folder, device, ov_config)
        except RuntimeError as error:  # all that OpenVINO raises, in its own words
            raise ValueError(
                f"OpenVINO cannot run {model} at {precision} on {device}: {str(error).strip()}\n"
                "Choose another --device, --precision or --engine. If this one worked before, delete the "
                f"folder {folder}: it will be converted again."
            ) from error

    make_engine, max_requests = _engine(engine)
    coming = LoadingEngine(make, max_context, end_ids, max_requests, sampling_defaults(generation))
    description = f"{precision} on {device}, {ENGINES[engine]}"
    chat = ChatModel(coming, open_tokenizer(folder), get_model_config(model), description)
    if not in_background:
        coming.result()
    return chat


def settle(chat: "ChatModel") -> None:
    """Wait until a chat's engine is there and computes tokens as fast as it is going to.

    For commands, as soon as they serve: before, this would take processor time from what they wait for.

    Raises:
        OSError, ValueError: what went wrong with making the engine.
    """
    chat.engine.settle()


def _engine(name: str) -> "tuple[Callable[[Path, str, dict[str, Any] | None], Engine], int]":
    """What makes an engine, and how many answers it will compute at a time."""
    if name == "genai":
        from genai_engine import GenAIEngine

        return GenAIEngine, GenAIEngine.max_requests
    from engine import OptimumEngine

    return OptimumEngine.from_folder, OptimumEngine.max_requests
