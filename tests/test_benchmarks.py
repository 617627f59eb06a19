"""What `make bench-check` compares, and what it calls slower."""

import json
from pathlib import Path

from benchmarks.check import slower
from benchmarks.decoding import BARE, Contestant, save


def run(ratio: float, spread: float = 0.1) -> dict:
    return {"processor": "any", "ratios": {"page: served": {"ratio": ratio, "spread": spread}}}


def test_what_grew_by_more_than_the_spread_is_slower():
    assert slower(run(1.0), run(1.5)) == ["page: served: 1.00 -> 1.50 of what it is compared with"]


def test_what_grew_within_the_spread_or_shrank_is_not():
    assert slower(run(1.0), run(1.15)) == slower(run(1.0), run(0.5)) == []


def test_what_was_not_measured_before_is_not():
    assert slower({"processor": "any", "ratios": {}}, run(9.0)) == []


def test_decoding_is_compared_with_the_bare_request_of_the_same_round(tmp_path):
    bare = Contestant(BARE, "bare", Path(), rates=[10.0, 20.0, 30.0], firsts=[1.0, 2.0, 3.0])
    ours = Contestant("ChatModel, INT8", "chat", Path(), rates=[20.0, 40.0, 120.0], firsts=[0.5, 1.0, 1.5])
    save(tmp_path / "ratios.json", [ours, bare])
    ratios = json.loads((tmp_path / "ratios.json").read_text())["ratios"]
    assert ratios == {
        "ChatModel, INT8: each token": {"ratio": 0.5, "spread": 0.5},
        "ChatModel, INT8: first token": {"ratio": 0.5, "spread": 0.0},
    }
