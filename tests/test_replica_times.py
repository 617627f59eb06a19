"""What a replica needs, as its clients see it: what comes of times that are known."""

import pytest

from benchmarks import replica_times
from tests.scripted_chat import FakeChat


def test_times_that_are_known_are_found_again(monkeypatch):
    def step(chat, answers, words, new):
        return 0.01 + 0.002 * answers + 1e-6 * answers * words

    def prompt(chat, replicas, words):
        tokens = words + 40
        return 0.05 + 0.013 + 1e-3 * tokens + 2e-6 * tokens**2 / 2, tokens

    class Engine:
        cache_tokens = 1000

        def close(self):
            pass

    monkeypatch.setattr(replica_times, "step_seconds", step)
    monkeypatch.setattr(replica_times, "prompt_seconds", prompt)
    monkeypatch.setattr(replica_times, "prepare_model", lambda *_, **__: None)
    monkeypatch.setattr(replica_times, "GenAIEngine", lambda _: Engine())
    times = replica_times.measure(FakeChat())
    assert times.decode_seconds[16] == pytest.approx(0.042, rel=0.01)
    assert times.decode_seconds_per_context_token == pytest.approx(1e-6, rel=0.01)
    assert times.prefill_seconds_per_token == pytest.approx(1e-3)
    assert times.prefill_seconds_per_context_token == pytest.approx(2e-6)
    assert times.overhead_seconds == pytest.approx(0.051, rel=0.05)
    assert times.cache_tokens == 1000


def test_an_answer_that_ends_before_all_have_begun_is_no_measurement():
    with pytest.raises(ValueError, match="1 tokens only"):
        replica_times.step_seconds(FakeChat(lambda _: ["word"]), 2, 3, 4)
