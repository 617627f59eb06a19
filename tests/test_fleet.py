"""The simulation of a cluster: what can be computed by hand, and what must hold whatever the times are."""

import pytest

from benchmarks.fleet import ROUTERS, TIMES, Figures, Times, Workload, draw, simulate, table

# A step of one answer 0.1 s, of sixteen 0.4 s; a token of a prompt 0.01 s.
FIRST = Times("paper", {1: 0.1, 16: 0.4}, prefill_seconds_per_token=0.01, cache_tokens=100_000)
ALONE = Workload(sessions=1, turns=2, system=0, question=64, answer=10, think=0, life=0, varied=False)
MANY = Workload(sessions=8, think=30, life=3600)


def test_one_session_takes_what_can_be_computed_by_hand():
    figures = simulate(FIRST, ALONE, 1, "random", answers=30)
    # 64 tokens at first; then 64 + 10 + 64, of which 74 are found in the cache.
    assert set(map(lambda seconds: round(seconds, 6), figures.first)) == {0.64}
    assert figures.cache_share == pytest.approx(74 / (64 + 138))
    assert figures.seconds / figures.answers == pytest.approx(0.64 + 10 * 0.1)


def test_context_and_overhead_take_their_time():
    times = Times("paper", {1: 0.1}, 0.01, 100_000, 0.001, 0.0001, overhead_seconds=0.05)
    once = Workload(sessions=1, turns=1, system=0, question=64, answer=10, think=0, life=0, varied=False)
    figures = simulate(times, once, 1, "random", answers=30)
    # 32 tokens are before one of the prompt, in the middle; 64 + 5 are in the cache while it is answered.
    first = 0.05 + 64 * (0.01 + 32 * 0.0001)
    assert figures.first[0] == pytest.approx(first)
    assert figures.seconds / figures.answers == pytest.approx(first + 10 * (0.1 + 69 * 0.001))


def test_sessions_that_nobody_follows_all_count():
    both = Workload(
        2, turns=3, system=0, question=64, answer=10, think=0, life=0, varied=False, followed=False
    )
    figures = simulate(FIRST, both, 1, "random")
    assert figures.answers == len(figures.first) == 6
    assert len(figures.last_turn) == 2
    assert figures.first[0] == pytest.approx(0.64)


def test_cost_is_the_time_of_all_replicas():
    figures = Figures(replicas=3, router="random", answers=500, seconds=7200)
    assert figures.hours_per_thousand == 12


@pytest.mark.parametrize(("answers", "seconds"), [(0, 0), (1, 0.1), (16, 0.4), (6, 0.2)])
def test_steps_between_the_measured_ones(answers, seconds):
    assert FIRST.decode(answers) == pytest.approx(seconds)


def test_with_one_replica_all_routers_are_the_same():
    runs = [simulate(FIRST, MANY, 1, router) for router in ROUTERS]
    assert runs[0].first == runs[1].first == runs[2].first


def test_same_seed_same_figures():
    once, again = (simulate(FIRST, MANY, 4, "consistent hashing", seed=3) for _ in range(2))
    assert once == again


def test_consistent_hashing_finds_conversations_again():
    shares = {router: simulate(FIRST, MANY, 4, router).cache_share for router in ROUTERS}
    assert shares["consistent hashing"] > 0.7
    assert max(shares["least loaded"], shares["random"]) < shares["consistent hashing"] - 0.2


def test_a_small_cache_forgets():
    small = Times("paper", FIRST.decode_seconds, 0.01, cache_tokens=1000)
    assert simulate(small, MANY, 1, "random").cache_share < simulate(FIRST, MANY, 1, "random").cache_share / 2


def test_every_question_is_answered_though_replicas_die():
    mortal = Workload(sessions=5, think=5, life=20, restart=5)
    figures = simulate(FIRST, mortal, 3, "consistent hashing", answers=300)
    assert figures.asked_again > 10
    assert figures.answers == 200  # of 300, the first third is not counted


def test_table_has_a_line_for_each_run():
    figures = simulate(FIRST, ALONE, 1, "random", answers=30)
    assert table([figures]).splitlines()[-1].startswith("| 1 | random | 0.")


def test_picture_is_drawn(tmp_path):
    figures = simulate(FIRST, ALONE, 1, "random", answers=30)
    draw([figures], tmp_path / "fleet.svg")
    assert "<svg" in (tmp_path / "fleet.svg").read_text(encoding="utf-8")


def test_the_measured_times_can_be_read():
    times = Times.read(TIMES)
    assert times.decode(16) > times.decode(1) > 0
