"""What the catalogue's models would do on imagined machines: which fit, how fast they are, and the advice."""

import dataclasses

import pytest

import forecast as rooms
from config import DEFAULT_MODEL, SUPPORTED_MODELS
from forecast import Outlook, Room, advise, forecast, model_table
from machine import WEIGHT_BYTES, DecodingSpeed

SPEEDS = {precision: DecodingSpeed(70e-6, 40e9) for precision in WEIGHT_BYTES}
LARGE = Room(memory=200e9, models=1e12, downloads=1e12, one_disk=True)


def outlook(room: Room, model: str, precision: str, speeds=SPEEDS) -> Outlook:
    found = {(one.model, one.precision): one for one in forecast(room, speeds)}
    return found[model, precision]


def test_on_a_large_machine_everything_fits():
    assert all(one.converts and one.runs for one in forecast(LARGE, SPEEDS))


def test_every_model_is_looked_at_in_every_precision_there_is():
    found = {(one.model, one.precision) for one in forecast(LARGE, SPEEDS)}
    ready = {name for name, entry in SUPPORTED_MODELS.items() if entry.model_id.endswith("-int4-ov")}
    others = {(name, precision) for name in SUPPORTED_MODELS.keys() - ready for precision in WEIGHT_BYTES}
    assert found == others | {(name, "INT4") for name in ready}


def test_what_is_ready_made_needs_no_room_for_converting():
    room = Room(memory=6e9, models=1e9, downloads=6e9, one_disk=True)
    found = outlook(room, "qwen3-8b-int4", "INT4")
    assert (found.converts, found.runs) == (True, True)
    assert "download 4.9 GB" in advise([dataclasses.replace(found, tokens_per_second=20.0)])


def test_a_mixture_of_experts_reads_some_of_its_weights():
    ready, made, dense = (
        outlook(LARGE, name, "INT4") for name in ("gpt-oss-20b-int4", "gpt-oss-20b", "qwen3-8b-int4")
    )
    assert made.weights > dense.weights
    assert made.tokens_per_second == ready.tokens_per_second > dense.tokens_per_second


@pytest.mark.parametrize(
    ("memory", "precision", "converts", "runs"),
    [
        # Llama-2-7B takes 7.3 GB to run at INT8 and 8.0 GB to convert; at FP16 14.1 and 1.0 GB.
        (7.2e9, "INT8", False, False),
        (7.8e9, "INT8", False, True),
        (8.5e9, "INT8", True, True),
        (14e9, "FP16", True, False),
        (15e9, "FP16", True, True),
    ],
)
def test_memory_decides_what_runs_and_what_can_be_converted(memory, precision, converts, runs):
    found = outlook(dataclasses.replace(LARGE, memory=memory), "llama-2-chat-7b", precision)
    assert (found.converts, found.runs) == (converts, runs)


@pytest.mark.parametrize(
    ("models", "downloads", "one_disk", "converts"),
    [
        # 13.5 GB each for download and FP16, 7.4 GB for INT8.
        (40e9, 40e9, True, True),
        (30e9, 30e9, True, False),
        (30e9, 20e9, False, True),
        (30e9, 10e9, False, False),
        (20e9, 20e9, False, False),
    ],
)
def test_the_disk_decides_what_can_be_converted(models, downloads, one_disk, converts):
    found = outlook(Room(200e9, models, downloads, one_disk), "llama-2-chat-7b", "INT8")
    assert (found.converts, found.runs) == (converts, True)


def test_what_is_not_known_is_not_claimed():
    found = outlook(dataclasses.replace(LARGE, memory=None), DEFAULT_MODEL, "INT8", speeds={})
    assert (found.converts, found.runs, found.tokens_per_second) == (None, None, None)
    assert advise([found]).endswith("make chat")


def test_speed_follows_from_bytes_and_layers():
    found = outlook(LARGE, "llama-2-chat-7b", "INT8")
    weights = SUPPORTED_MODELS["llama-2-chat-7b"].parameters
    assert found.tokens_per_second == pytest.approx(1 / (rooms.LAYERS * 70e-6 + weights / 40e9))


def test_advice_is_the_largest_model_that_is_pleasant_and_free_to_use():
    sizes = {
        name: entry.parameters
        for name, entry in SUPPORTED_MODELS.items()
        if not entry.gated and entry.license in ("apache-2.0", "mit")
    }
    fast = [Outlook(name, "INT8", size, True, True, 20.0) for name, size in sizes.items()]
    largest = max(sizes, key=sizes.get)
    assert largest in advise(fast)
    assert SUPPORTED_MODELS[largest].license in advise(fast)
    assert f'make chat ARGS="--model {largest} --precision INT8"' in advise(fast)


@pytest.mark.parametrize(
    "change",
    [
        {"converts": False},
        {"runs": False},
        {"tokens_per_second": 5.0},
        {"model": "mistral-7b-instruct"},  # gated
        {"model": "mpt-7b-chat"},  # not for commercial use
    ],
    ids=str,
)
def test_what_does_not_fit_is_slow_or_not_free_is_not_advised(change):
    good = Outlook("smollm2-360m-instruct", "INT8", 4e8, True, True, 50.0)
    other = dataclasses.replace(Outlook("qwen2.5-7b-instruct", "INT8", 7e9, True, True, 20.0), **change)
    assert good.model in advise([other, good])


def test_where_only_the_default_model_is_pleasant_one_starts_with_it():
    assert advise([Outlook(DEFAULT_MODEL, "INT8", 1e8, True, True, 50.0)]).endswith(
        f"{DEFAULT_MODEL}: make chat"
    )


def test_of_one_model_int8_is_advised_before_int4():
    both = [Outlook("qwen2.5-1.5b-instruct", precision, 1e9, True, True, 20.0) for precision in WEIGHT_BYTES]
    assert "--precision INT8" in advise(both)


def test_the_table_says_of_each_model_what_it_does():
    found = forecast(dataclasses.replace(LARGE, memory=7.8e9), SPEEDS)
    lines = model_table(found).splitlines()
    assert len(lines) == len(SUPPORTED_MODELS) + 2
    assert len({len(line) for line in lines}) == 1  # the columns stand one under another
    llama = next(line for line in lines if "llama-2-chat-7b" in line)
    cells = [cell.strip() for cell in llama.strip("|").split("|")]
    assert cells == ["llama-2-chat-7b", "6.7 B", "llama2", "yes", "no", "5.9, not here", "9.7"]
