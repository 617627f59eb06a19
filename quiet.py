"""Keeps the converting libraries' notes and progress bars off the screen while they work.

Knows their loggers. Refuses to know what they convert.
"""

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep notes on tracing, tables of bit widths and the libraries' progress bars off the screen.

    The libraries are imported first: they set their loggers' levels at that moment.
    """
    import optimum.exporters.openvino  # noqa: F401
    from nncf.quantization.algorithms.weight_compression import algorithm
    from transformers.utils import logging as transformers_logging

    thresholds = {
        "nncf": logging.ERROR,
        "optimum": logging.ERROR,
        "transformers": logging.ERROR,
        # "Failed to build model wrapper.": it is built to put the inputs in order, which Optimum does anyway.
        "openvino.frontend.pytorch.utils": logging.CRITICAL,
    }
    loggers = [logging.getLogger(name) for name in thresholds]
    levels = [logger.level for logger in loggers]
    track, loading_bars = algorithm.track, transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(thresholds[logger.name])
    algorithm.track = functools.partial(track, disable=True)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        algorithm.track = track
        if loading_bars:
            transformers_logging.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
