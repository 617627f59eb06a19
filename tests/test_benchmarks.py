"""What `make bench-check` calls slower."""

from benchmarks.check import slower


def run(ratio: float, spread: float = 0.1) -> dict:
    return {"processor": "any", "ratios": {"page: served": {"ratio": ratio, "spread": spread}}}


def test_what_grew_by_more_than_the_spread_is_slower():
    assert slower(run(1.0), run(1.5)) == ["page: served: 1.00 -> 1.50 of what it is compared with"]


def test_what_grew_within_the_spread_or_shrank_is_not():
    assert slower(run(1.0), run(1.15)) == slower(run(1.0), run(0.5)) == []


def test_what_was_not_measured_before_is_not():
    assert slower({"processor": "any", "ratios": {}}, run(9.0)) == []
