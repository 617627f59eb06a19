"""The command line of `python chat_ui.py`: its options, and an end in one line of words whatever goes wrong.

Knows options, addresses and where a chat comes from: a model here (`open_chat`) or an endpoint elsewhere.
Refuses to know Gradio: whoever calls hands over how a page is made and served.
"""

import argparse
import errno
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import telemetry
from open_chat import add_model_options, open_chat, settle
from sampling import OPTIONS

if TYPE_CHECKING:
    from chat import Chat

log = logging.getLogger(__name__)


@dataclass
class Begun:
    """A command on its way: what it was asked for, and the chat, whose model may still be loading."""

    options: argparse.Namespace
    chat: "Chat"


def begin(arguments: list[str] | None) -> Begun:
    """Prepare a model if need be, and load it in the background.

    Raises:
        SystemExit: with a line of words.
    """
    telemetry.turn_off()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = parsed(arguments)
    with ends_in_words(options.model):
        check_address(options.host, options.port)
        chat = remote_chat(options) if options.connect else open_chat(options, in_background=True)
    return Begun(options, chat)


def finish(begun: Begun, build: Callable[..., Any], launch: Callable[..., str]) -> None:
    """Serve the chat page until Ctrl+C. It is there before the model is; who asks meanwhile waits.

    Args:
        build, launch: `chat_ui.build_ui` and `chat_ui.launch_ui`.

    Raises:
        SystemExit: with a line of words.
    """
    options, chat = begun.options, begun.chat
    with ends_in_words(options.model), closing(chat):
        page = build(chat)
        address = launch(page, options.host, options.port, options.auth)
        if not options.auth and not is_loopback(options.host):
            print(f"Warning: {who_can_reach(options.host)}", file=sys.stderr)
        print(f"Open {address} in a browser. Ctrl+C ends the server.", flush=True)
        if not options.connect:
            settle(chat)
        page.block_thread()


@contextmanager
def ends_in_words(model: str) -> Iterator[None]:
    """What goes wrong inside ends the program with a line of words."""
    try:
        yield
    except (OSError, ValueError) as error:
        file = getattr(error, "filename", None)
        hint = ". LLM_CHATBOT_MODELS_DIR names the folder for models."
        sys.exit(in_one_line(f"Error: {error.strerror}: {file}{hint}" if file else f"Error: {error}"))
    except Exception as error:  # of the libraries that convert; OpenVINO's own come as ValueError
        log.debug("The command failed", exc_info=True)
        sys.exit(in_one_line(f"Error: {model} cannot be used ({type(error).__name__}: {error})"))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options; ends the program where they make no sense."""
    parser = argparse.ArgumentParser(
        prog="chat_ui.py",
        usage="%(prog)s [options]   (--help explains them)",
        description="Prepare a model if need be and serve the chat page on it.",
    )
    add_model_options(parser, engine="optimum")
    parser.add_argument(
        "--connect",
        metavar="URL",
        help="chat with a model behind an OpenAI-compatible endpoint instead, for example "
        "http://127.0.0.1:8000/v1; its key is taken from LLM_CHATBOT_API_KEY",
    )
    parser.add_argument(
        "--auth",
        metavar="USER:PASSWORD",
        type=name_and_password,
        default=os.environ.get("LLM_CHATBOT_AUTH") or None,
        help="what the page asks for (or LLM_CHATBOT_AUTH, which other users of this machine cannot see)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to serve at (default: %(default)s)")
    parser.add_argument("--port", type=port_number, default=7860, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    # With an endpoint, the default is the endpoint's, and only a model asked for here is asked for there.
    options.remote_model = None if options.model == parser.get_default("model") else options.model
    return options


def name_and_password(text: str) -> tuple[str, str]:
    """A name and a password, of "USER:PASSWORD"."""
    user, _, password = text.partition(":")
    if not user or not password:
        raise argparse.ArgumentTypeError("must be USER:PASSWORD, neither of them empty")
    return user, password


def port_number(text: str) -> int:
    """A port, from 1 to 65535."""
    if not text.isdecimal() or not 1 <= int(text[:6]) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 65535, not {text[:20]!r}")
    return int(text)


def check_address(host: str, port: int) -> None:
    """Find out, before any work, whether a page can be served there.

    Raises:
        OSError: in words.
    """
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            if os.name == "posix":  # elsewhere this would take the port from whoever has it
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} is taken. Choose another: --port {port % 65535 + 1}") from error
        if error.errno == errno.EACCES:
            raise OSError(f"port {port} is not for everybody. Choose another: --port 7860") from error
        raise OSError(f"--host {host} is no address of this machine ({error.strerror})") from error


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach what is served at this address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def who_can_reach(host: str) -> str:
    """What somebody should know who serves the page to others without a password."""
    at = "any address of this machine" if host in ("0.0.0.0", "::") else host
    return (
        f"everybody whose computer reaches {at} can chat with the model, and no password is asked for. "
        "To ask for one: --auth USER:PASSWORD"
    )


def remote_chat(options: argparse.Namespace) -> "Chat":
    """A chat behind an endpoint, sampled as the command says where it says something."""
    from serving.client import RemoteChatModel

    key = os.environ.get("LLM_CHATBOT_API_KEY") or None
    chat = RemoteChatModel(options.connect, model=options.remote_model, api_key=key)
    given = {name: getattr(options, name) for name in OPTIONS if getattr(options, name, None) is not None}
    chat.defaults = replace(chat.defaults, **given)
    return chat


def in_one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())
