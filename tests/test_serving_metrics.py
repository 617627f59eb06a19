"""An endpoint's figures for Prometheus."""

import httpx

from endpoint_clients import post
from fake_chat import FakeChat, served


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
