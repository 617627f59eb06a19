"""`python -m serving.api`: a model behind an OpenAI-compatible endpoint, on one machine.

Knows the command line, the socket and the signals. Refuses to know what is asked and answered.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import uvicorn
from fastapi import FastAPI

import telemetry
from chat import Chat
from open_chat import add_model_options, open_chat, settle
from serving.endpoint import build_app
from serving.security import ImpatientProtocol, is_loopback, own_names

__all__ = ["build_app", "main", "make_server", "serve"]

KEEP_ALIVE = 10  # seconds; longer than the clients' pools keep a connection, so that they hang up first
DRAIN = 30  # seconds that running answers get to finish when the server is told to end


def main(arguments: list[str] | None = None) -> None:
    """Serve a model to other programs, as OpenAI's chat completions."""
    parser = argparse.ArgumentParser(prog="python -m serving.api", description=main.__doc__)
    add_model_options(parser, engine="genai")
    add_server_options(parser)
    options = parser.parse_args(arguments)
    telemetry.turn_off()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        sys.exit(
            f"Error: {options.host} port {options.port} is taken or not ours ({error}). Try --port 8001."
        )
    warn_if_open(options)
    loading: Future[Chat] = Future()
    app = build_app(
        loading,
        name=name_of(options.model),
        api_key=options.api_key,
        hosts={*own_names(options.host), *options.allow_host},
        cors=options.cors,
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listener.getsockname()[1]}/v1"

    def load() -> Chat:
        chat = open_chat(options)
        threading.Thread(target=settle, args=[chat], name="settle", daemon=True).start()
        return chat

    serve(app, listener, load, loading, address)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Let a command choose where it listens and who may ask."""
    parser.add_argument("--host", default="127.0.0.1", help="(default: %(default)s: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("LLM_CHATBOT_API_KEY") or None,
        help="what clients must send as Authorization: Bearer KEY; other users of this machine can see it "
        "in the list of processes, so rather set LLM_CHATBOT_API_KEY",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which clients may call this server, beside localhost, numeric addresses and the "
        "machine's own name; may be repeated",
    )
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="an origin (https://example.org) whose pages may ask; may be repeated",
    )


def warn_if_open(options: argparse.Namespace) -> None:
    """Say so where other machines can ask without a key."""
    if not options.api_key and not is_loopback(options.host):
        print(
            "Warning: whoever reaches this machine can use the model. Set LLM_CHATBOT_API_KEY to a secret, "
            "or listen on 127.0.0.1.",
            file=sys.stderr,
        )


def name_of(model: str) -> str | None:
    """What clients call a model; None leaves that to its chat, where it is a folder."""
    return None if Path(model).expanduser().is_dir() else model


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server with our time limits; `run(sockets=[...])` serves until `should_exit` is set."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=ImpatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=DRAIN,
        )
    )


def serve(
    app: FastAPI,
    listener: socket.socket,
    load: Callable[[], Chat],
    loading: "Future[Chat]",
    address: str,
) -> None:
    """Serve until the process is told to end, while the model is being loaded already.

    SIGTERM and Ctrl+C close the door, give the running answers `DRAIN` seconds and end the process with 0.
    """
    server = make_server(app)

    def fill() -> None:
        try:
            loading.set_result(load())
            print(f"Ready at {address}", flush=True)
        except (OSError, ValueError) as error:
            loading.set_exception(error)
            server.should_exit = True

    # Before uvicorn takes the signals: it hands them on to these handlers when all is done.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    print(f"Loading the model. The server will be at {address}", flush=True)
    threading.Thread(target=fill, name="load", daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        if loading.done() and not loading.exception():
            loading.result().close()
    if loading.done() and loading.exception():
        sys.exit(f"Error: {loading.exception()}")


if __name__ == "__main__":
    main()
