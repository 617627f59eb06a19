"""An endpoint's figures for Prometheus."""

from dataclasses import replace

import httpx

from chat import ReplyStats
from endpoint_clients import post
from fake_chat import FakeChat, served
from serving.metrics import Metrics


def test_metrics():
    with served(FakeChat()) as address:
        post(address)
        post(address, temperature=9)
        figures = httpx.get(f"{address}/metrics")
    assert figures.headers["content-type"].startswith("text/plain")
    lines = figures.text.splitlines()
    for line in (
        'llm_chatbot_requests_total{outcome="stop"} 1.0',
        'llm_chatbot_requests_total{outcome="invalid"} 1.0',
        "llm_chatbot_prompt_tokens_total 7.0",
        "llm_chatbot_cached_tokens_total 3.0",
        "llm_chatbot_new_tokens_total 3.0",
        "llm_chatbot_running 0.0",
        "llm_chatbot_waiting 0.0",
    ):
        assert line in lines


def test_two_endpoints_count_for_themselves(address):
    post(address)
    with served(FakeChat()) as other:
        assert "llm_chatbot_new_tokens_total 0.0" in httpx.get(f"{other}/metrics").text


def lines_after(*counted: tuple) -> list[str]:
    metrics = Metrics(running=lambda: 2, waiting=lambda: 5)
    for arguments in counted:
        metrics.count(*arguments)
    return metrics.text().decode().splitlines()


def test_tokens_of_all_answers_are_added_up():
    stats = ReplyStats(prompt_tokens=10, reused_tokens=4, new_tokens=3)
    lines = lines_after(("stop", stats), ("length", stats), ("stop", replace(stats, reused_tokens=None)))
    assert 'llm_chatbot_requests_total{outcome="stop"} 2.0' in lines
    assert 'llm_chatbot_requests_total{outcome="length"} 1.0' in lines
    assert "llm_chatbot_prompt_tokens_total 30.0" in lines
    assert "llm_chatbot_cached_tokens_total 8.0" in lines
    assert "llm_chatbot_new_tokens_total 9.0" in lines


def test_times_and_speeds_fall_into_their_buckets():
    stats = ReplyStats(prompt_tokens=1, time_to_first_token=0.2, tokens_per_second=60.0)
    lines = lines_after(("stop", stats))
    assert 'llm_chatbot_time_to_first_token_seconds_bucket{le="0.1"} 0.0' in lines
    assert 'llm_chatbot_time_to_first_token_seconds_bucket{le="0.25"} 1.0' in lines
    assert 'llm_chatbot_tokens_per_second_bucket{le="50.0"} 0.0' in lines
    assert 'llm_chatbot_tokens_per_second_bucket{le="100.0"} 1.0' in lines


def test_who_was_refused_costs_nothing():
    lines = lines_after(("invalid",), ("queue_full",))
    assert 'llm_chatbot_requests_total{outcome="queue_full"} 1.0' in lines
    assert "llm_chatbot_prompt_tokens_total 0.0" in lines
    assert "llm_chatbot_time_to_first_token_seconds_count 0.0" in lines


def test_how_many_are_at_it_is_asked_each_time():
    lines = lines_after()
    assert {"llm_chatbot_running 2.0", "llm_chatbot_waiting 5.0"} <= set(lines)
