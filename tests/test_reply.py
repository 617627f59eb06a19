"""What a reply cost."""

import pytest

from replies import ASK, ids_of
from reply import ReplyStats


@pytest.mark.parametrize("tokens", [0, 1, 2, 5])
def test_stats_count_the_tokens_of_prompt_and_reply(playing, byte_level, tokens, tokenizer):
    chat = playing(ids_of(tokenizer, "x") * tokens)
    stream = chat.stream(ASK)
    assert (stream.stats.prompt_tokens, stream.stats.new_tokens) == (len(chat.encode(ASK)), 0)
    assert stream.stats.finish_reason is None
    list(stream)
    assert stream.stats.new_tokens == tokens == chat.engine.computed
    assert (stream.stats.time_to_first_token is not None) == (tokens > 0)
    assert (stream.stats.tokens_per_second is not None) == (tokens > 1)


def test_stats_say_what_the_engine_found_in_its_cache(playing):
    stream = playing("one two").stream(ASK)
    assert stream.stats.reused_tokens is None
    next(stream)
    assert stream.stats.reused_tokens == stream.stats.prompt_tokens - 1


def test_the_first_reason_for_an_end_stays():
    stats = ReplyStats(prompt_tokens=1)
    stats.finish("cancelled")
    stats.finish("length")
    assert stats.finish_reason == "cancelled"


def test_speed_is_that_of_the_tokens_after_the_first():
    stats = ReplyStats(prompt_tokens=1)
    for elapsed in (2.0, 2.5, 3.0):
        stats.count_token(elapsed)
    assert (stats.new_tokens, stats.time_to_first_token, stats.tokens_per_second) == (3, 2.0, 2.0)
