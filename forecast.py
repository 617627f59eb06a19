"""What each model of the catalogue would do on a machine: whether it fits, and how fast it would answer.

Knows the catalogue and what was measured on such models. Refuses to know how a machine is looked at: `doctor`
tells what room there is, `machine` what a token costs.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from config import DEFAULT_MODEL, SUPPORTED_MODELS
from machine import WEIGHT_BYTES, DecodingSpeed
from weight_sizes import DISK_SHARE, Weights, memory_for

# The catalogue does not say how many layers a model has: they have 16 to 40.
LAYERS = 30
# Nor how large the embedding is, which can be what converting takes most memory for: at most this share of
# the weights, and so many numbers. These families have a vocabulary of more than 200,000 tokens.
LARGE_VOCABULARY = ("gemma-", "phi-4-")
EMBEDDING = {True: (0.63, 0.68e9), False: (0.28, 0.4e9)}
# A mixture of experts reads for one token only these of its weights (OpenAI's model card of gpt-oss), whoever
# converted it: at each precision, OpenVINO gathers the experts that were chosen.
WEIGHTS_READ = {"gpt-oss-20b": 3.6e9, "gpt-oss-20b-int4": 3.6e9}
FREE_LICENSES = ("apache-2.0", "mit")
# Anonymous memory of the chat page: so many bytes, and so many for each byte of weights. Measured: 0.7 GB for
# 0.14 GB of weights after a prompt of 2000 tokens, 2.1 GB for 1.6 GB and 2.9 GB for 2.8 GB after 400 tokens.
CHAT_BASE, CHAT_SHARE = 0.6e9, 1.0
# Tokens per second, twice what people read: 238 words a minute (Brysbaert, "How many words do we read per
# minute?", 2019) of 1.3 tokens each. Long conversations are slower than what is forecast here.
PLEASANT = 10
LEGEND = """\
Tokens per second to expect. "no": too little memory to run it. "not here": runs, but converting it takes more
memory or disk than there is; copy the folder from a machine that has converted it. Empty: comes ready-made,
at another precision. Gated: accept the licence on the model's page and log in with `hf auth login`."""


@dataclass(frozen=True)
class Room:
    """Bytes that a model may take. Memory is None where the system does not say."""

    memory: float | None
    models: float  # on the disk for converted models
    downloads: float  # on the disk for the Hub's files
    one_disk: bool  # these two are one


@dataclass(frozen=True)
class Outlook:
    """One model at one precision on this machine; None is not known."""

    model: str
    precision: str
    weights: float  # bytes
    converts: bool | None
    runs: bool | None
    tokens_per_second: float | None


def forecast(room: Room, speeds: Mapping[str, DecodingSpeed]) -> list[Outlook]:
    """What every model of the catalogue would do here, at each precision that there is of it."""
    outlooks = []
    for name, entry in SUPPORTED_MODELS.items():
        ready = ready_made_precision(entry.model_id)
        for precision in [ready] if ready else WEIGHT_BYTES:
            weights = entry.parameters * WEIGHT_BYTES[precision]
            read = WEIGHTS_READ.get(name, entry.parameters) * WEIGHT_BYTES[precision]
            speed = speeds.get(precision)
            outlooks.append(
                Outlook(
                    name,
                    precision,
                    weights,
                    room.downloads > weights if ready else _converts(name, precision, room),
                    fits(CHAT_BASE + CHAT_SHARE * weights, room.memory),
                    speed and speed.tokens_per_second(read, LAYERS),
                )
            )
    return outlooks


def ready_made_precision(model_id: str) -> str | None:
    """The precision of a model that is published in OpenVINO's format, which its name ends with, or None."""
    ending = re.search(r"-(fp16|int8|int4)(-\w+)?-ov$", model_id)
    return ending and ending[1].upper()


def _converts(name: str, precision: str, room: Room) -> bool | None:
    """Whether disk and memory suffice to make it; others than FP16 are made from FP16."""
    parameters, written = SUPPORTED_MODELS[name].parameters, {"FP16", precision}
    at_16_bits = 2 * parameters
    share, most = EMBEDDING[name.startswith(LARGE_VOCABULARY)]
    memory = memory_for(Weights(at_16_bits, 2, int(min(share * parameters, most))), written)
    models = sum(at_16_bits * DISK_SHARE[one] for one in written)
    fits_disk = room.models > models + at_16_bits * room.one_disk and room.downloads > at_16_bits
    return fits_disk and fits(memory, room.memory)


def fits(needed: float, available: float | None) -> bool | None:
    """Whether there is enough, as far as that is known."""
    return None if available is None else needed < available


def advise(outlooks: Iterable[Outlook]) -> str:
    """One sentence: the largest model that anybody may use, and that answers pleasantly fast."""
    good = [
        one
        for one in outlooks
        if one.converts
        and one.runs
        and not SUPPORTED_MODELS[one.model].gated
        and SUPPORTED_MODELS[one.model].license in FREE_LICENSES
        and one.precision != "FP16"
        and (one.tokens_per_second or 0) >= PLEASANT
        and one.model != DEFAULT_MODEL
    ]
    if not good:
        return f"Start with the default model, {DEFAULT_MODEL}: make chat"
    # Of one model INT8, as it is closer to the original.
    best = max(good, key=lambda one: (SUPPORTED_MODELS[one.model].parameters, one.precision == "INT8"))
    entry = SUPPORTED_MODELS[best.model]
    download = best.weights if ready_made_precision(entry.model_id) else 2 * entry.parameters
    command = f'make chat ARGS="--model {best.model} --precision {best.precision}"'
    return (
        f"The largest model that answers here faster than one reads is {best.model} at {best.precision}, "
        f"with about {best.tokens_per_second:.0f} tokens per second (licence {entry.license}, download "
        f"{gigabytes(download)}): {command}"
    )


def model_table(outlooks: Iterable[Outlook]) -> str:
    """The catalogue in Markdown, with one column for each precision."""
    cells = {(one.model, one.precision): cell(one) for one in outlooks}
    rows = [["model", "weights", "licence", "gated", *WEIGHT_BYTES]]
    for name, entry in SUPPORTED_MODELS.items():
        columns = [cells.get((name, precision), "") for precision in WEIGHT_BYTES]
        size = f"{entry.parameters / 1e9:.2g} B"
        rows.append([name, size, entry.license, "yes" if entry.gated else "", *columns])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [" | ".join(map(str.ljust, row, widths)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def cell(outlook: Outlook) -> str:
    """What the table says of one model at one precision."""
    if outlook.runs is False:
        return "no"
    speed = outlook.tokens_per_second
    words = "?" if speed is None else f"{speed:.1f}" if speed < 10 else f"{speed:.0f}"
    return f"{words}, not here" if outlook.converts is False else words


def gigabytes(size: float) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:.1f} GB"
