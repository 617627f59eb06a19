"""Keeps the converting libraries' notes and progress bars off the screen while they work, in one thread.

Knows their loggers and bars. Refuses to know what they convert. What other threads log, warn or show
meanwhile is as it would be without us: nothing is switched off but for the thread that converts.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from workspace import report_progress

THRESHOLDS = {
    "nncf": logging.ERROR,
    "optimum": logging.ERROR,
    "transformers": logging.ERROR,
    # "Failed to build model wrapper.": it is built to put the inputs in order, which Optimum does anyway.
    "openvino.frontend.pytorch.utils": logging.CRITICAL,
}


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep notes on tracing, tables of bit widths and the libraries' progress bars off the screen.

    The libraries are imported first: they make their loggers at that moment. What they count for their own
    progress bars goes to `workspace.report_progress`.
    """
    import optimum.exporters.openvino  # noqa: F401
    from nncf.quantization.algorithms.weight_compression import algorithm
    from transformers.utils import logging as transformers_logging

    me = threading.get_ident()
    with ExitStack() as stack:
        for name, threshold in THRESHOLDS.items():
            stack.enter_context(_filtered(name, threshold, me))
        show = _Layer(warnings.showwarning, me, lambda *_, **__: None)
        stack.enter_context(_installed(show, warnings, "showwarning"))
        track = _Layer(algorithm.track, me, _count)
        stack.enter_context(_installed(track, algorithm, "track"))
        hook = _Layer(_plain_bar, me, _hidden_bar)
        stack.enter_context(_hooked(hook, transformers_logging.set_tqdm_hook))
        yield


class _Layer:
    """A function over another one: its own in one thread until it is lifted, the other's everywhere else.

    Two conversions may end in another order than they began. A layer that is lifted from the middle stays
    there and does nothing; whoever lifts the top one takes such layers along.
    """

    def __init__(self, below: Callable, thread: int, own: Callable):
        self.below, self.thread, self.own = below, thread, own

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        function = self.own if threading.get_ident() == self.thread else self.below
        return function(*arguments, **named)

    def lift(self) -> None:
        self.thread = None

    @staticmethod
    def uncovered(top: Callable) -> Callable:
        while isinstance(top, _Layer) and top.thread is None:
            top = top.below
        return top


_LAYERS = threading.Lock()  # installing and lifting, not the work in between


@contextmanager
def _installed(layer: _Layer, module: Any, name: str) -> Iterator[None]:
    with _LAYERS:
        layer.below = getattr(module, name)
        setattr(module, name, layer)
    try:
        yield
    finally:
        with _LAYERS:
            layer.lift()
            setattr(module, name, _Layer.uncovered(getattr(module, name)))


@contextmanager
def _hooked(layer: _Layer, set_hook: Callable) -> Iterator[None]:
    """The same where the function can only be exchanged: for transformers' hook, None is no function."""
    with _LAYERS:
        before = set_hook(layer)
        layer.below = before or _plain_bar
    try:
        yield
    finally:
        with _LAYERS:
            layer.lift()
            top = _Layer.uncovered(set_hook(None))
            set_hook(None if top is _plain_bar else top)


@contextmanager
def _filtered(name: str, threshold: int, thread: int) -> Iterator[None]:
    """Drop a thread's records below a level, from a logger and all that are named below it."""

    def heard(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= threshold

    root = logging.getLogger(name)
    below = [
        logger
        for logger in map(logging.getLogger, list(logging.root.manager.loggerDict))
        if logger.name.startswith(f"{name}.")
    ]
    # The handlers catch loggers that are made later.
    filtered = [root, *below, *root.handlers]
    for each in filtered:
        each.addFilter(heard)
    try:
        yield
    finally:
        for each in filtered:
            each.removeFilter(heard)


def _plain_bar(factory: Callable, arguments: tuple, named: dict) -> Any:
    return factory(*arguments, **named)


def _hidden_bar(factory: Callable, arguments: tuple, named: dict) -> Any:
    """transformers' bar, not shown."""
    return factory(*arguments, **named | {"disable": True})


def _count(sequence: Any = None, *_: Any, weights: list[float] | None = None, **__: Any) -> Iterator:
    """NNCF's bar: what has been compressed, in bytes, in relation to all."""
    items = list(sequence)
    sizes = weights or [1] * len(items)
    done = 0
    for item, size in zip(items, sizes, strict=True):
        yield item
        done += size
        report_progress(done / sum(sizes))
