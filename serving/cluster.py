"""`python -m serving.cluster`: the endpoint on many machines, with Ray Serve. See docs/cluster.md.

Knows the command line, how a Ray of one machine is started or another one joined, and the signals. Refuses to
know what runs there (`serving.replicas`).
"""

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import telemetry
from open_chat import add_model_options
from serving.api import add_server_options, name_of, warn_if_open
from serving.security import is_loopback

if TYPE_CHECKING:
    from ray import serve

APPLICATION = "chat"
OBJECT_STORE = 100_000_000  # bytes; answers travel in small pieces, and Ray would take a third of the memory


def make_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = argparse.ArgumentParser(prog="python -m serving.cluster", description=main.__doc__)
    add_model_options(parser, engine="genai")
    add_server_options(parser)
    parser.add_argument("--replicas", type=int, help="how many engines (default: 1)")
    parser.add_argument("--min-replicas", type=int, help="at least so many; more where more is asked (1)")
    parser.add_argument("--max-replicas", type=int, help="at most so many")
    return parser


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked.

    Raises:
        SystemExit: they make no sense; in words.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.engine != "genai":
        parser.error("A cluster is for many at once: its engine is genai.")
    if options.replicas and (options.min_replicas or options.max_replicas):
        parser.error("Either --replicas, or --min-replicas and --max-replicas.")
    if options.min_replicas and not options.max_replicas:
        parser.error("--min-replicas needs --max-replicas.")
    if options.max_replicas:
        options.min_replicas = 1 if options.min_replicas is None else options.min_replicas
        if not 1 <= options.min_replicas <= options.max_replicas:
            parser.error("--min-replicas must be at least 1 and at most --max-replicas.")
    else:
        options.replicas = 1 if options.replicas is None else options.replicas
        if options.replicas < 1:
            parser.error("--replicas must be at least 1.")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Serve a model with many replicas, on this machine or, where RAY_ADDRESS is set, on a cluster of Ray."""
    options = parsed(arguments)
    if find_spec("ray") is None:
        sys.exit(
            f"Error: a cluster needs Ray Serve: {sys.executable} -m pip install -r requirements-cluster.txt "
            "-c constraints.txt"
        )
    try:
        socket.create_server((options.host, options.port)).close()
    except OSError as error:
        sys.exit(
            f"Error: {options.host} port {options.port} is taken or not ours ({error}). Try --port 8001."
        )
    warn_if_open(options)
    telemetry.turn_off()
    start_ray()

    import ray
    from ray import serve

    told = threading.Event()
    # After Ray, which has handlers of its own.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    address = f"http://{options.host}:{options.port}/v1"
    print(f"Loading the model. The server will be at {address}", flush=True)
    try:
        serve.start(
            proxy_location="HeadOnly" if is_loopback(options.host) else "EveryNode",
            http_options={"host": options.host, "port": options.port},
        )
        serve.run(on_this_cluster(options), name=APPLICATION)
        print(f"Ready at {address}", flush=True)
        while not told.wait(1):  # a wait without end is not interrupted on Windows
            pass
        serve.delete(APPLICATION)  # ends when all answers have, at the latest after `replicas.DRAIN`
    except (ValueError, RuntimeError) as error:  # the latter where an engine does not start
        sys.exit(f"Error: {error}")
    finally:
        ray.shutdown()


def set_environment() -> bool:
    """Say to Ray, before it is imported, how it is to behave; returns whether it will be one of its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever else runs here goes before the engines
    # A loop less that each piece of an answer has to cross; our own code never blocks the one that is left.
    os.environ.setdefault("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0")
    os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "0")
    os.environ.setdefault("RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE", "1000")
    alone = not os.environ.get("RAY_ADDRESS")
    if alone:
        # What Ray does on macOS and Windows anyway: its own processes listen on 127.0.0.1 only.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return alone


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine alone.

    Raises:
        SystemExit: Ray does not start; in words.
    """
    alone = set_environment()

    import ray

    own = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(logging_level="WARNING", log_to_driver=False, **(own if alone else {}))
    except Exception as error:  # Ray has no class of its own for this
        sys.exit(
            f"Error: Ray does not start ({error}) On a busy machine it gives up after 15 seconds: try again. "
            "Its logs are in /tmp/ray/session_latest/logs."
        )


def on_this_cluster(options: argparse.Namespace) -> "serve.Application":
    """What the options describe, with all processors of the cluster shared among its engines.

    Raises:
        ValueError: there are fewer processors than engines.
    """
    import ray

    from serving.replicas import application

    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    cpus = cpus_each(nodes, options.max_replicas or options.replicas)
    return application(options, name_of(options.model), cpus, ingresses=len(nodes))


def cpus_each(nodes: Iterable[float], replicas: int) -> int:
    """The most processors that so many replicas can have each.

    Args:
        nodes: processors of each machine; no replica spans two.

    Raises:
        ValueError: not even one.
    """
    nodes = [int(cpus) for cpus in nodes]
    for each in range(max(nodes, default=0), 0, -1):
        if sum(cpus // each for cpus in nodes) >= replicas:
            return each
    raise ValueError(f"{replicas} replicas need as many processors, and the cluster has {sum(nodes)}.")


def build(arguments: Mapping[str, Any]) -> "serve.Application":
    """The same for `serve deploy`: the arguments in its file are the options of this command, without --.

    The API key is taken from LLM_CHATBOT_API_KEY where the application is built: a file is no place for it.
    """
    listed = [[value] if not isinstance(value, list) else value for value in arguments.values()]
    names = [name.replace("_", "-") for name in arguments]
    words = [f"--{name}={value}" for name, values in zip(names, listed, strict=True) for value in values]
    return on_this_cluster(parsed(words))


if __name__ == "__main__":
    main()
