"""Tokens become text as they come: never half a character, nor what may be the beginning of a stop string."""

import random
from collections.abc import Sequence

import pytest

from replies import ASK, REPLACEMENT, STOP, TEXTS, byte_tokens, ids_of, random_text, text_of
from text_stream import TextDecoder


def deltas_of(tokenizer, ids: Sequence[int]) -> list[str]:
    decoder = TextDecoder(tokenizer)
    return [*[decoder.add(token) for token in ids], decoder.flush()]


@pytest.mark.parametrize("split", [ids_of, byte_tokens], ids=["usual tokens", "a token for each byte"])
@pytest.mark.parametrize("text", TEXTS)
def test_deltas_add_up_to_the_text_and_never_show_half_a_character(tokenizer, text, split):
    ids = split(tokenizer, text)
    deltas = deltas_of(tokenizer, ids)
    assert REPLACEMENT not in "".join(deltas)
    assert "".join(deltas) == text_of(tokenizer, ids)
    assert "".join(deltas).strip() == text.strip()


def test_random_text_streams_as_it_decodes(tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        text = random_text(rng)
        ids = rng.choice([ids_of, byte_tokens])(tokenizer, text)
        deltas = deltas_of(tokenizer, ids)
        assert "".join(deltas) == text_of(tokenizer, ids)
        assert REPLACEMENT not in "".join(deltas)


def test_random_tokens_stream_as_they_decode(byte_level):
    # Not so byte fallback: there, one wrong byte makes the right ones before it unreadable as well.
    rng = random.Random(0)
    vocabulary = range(len(byte_level))
    for _ in range(200):
        ids = rng.choices(vocabulary, k=30)
        assert "".join(deltas_of(byte_level, ids)) == text_of(byte_level, ids)


def test_a_delta_comes_with_each_finished_character(byte_level):
    ids = byte_tokens(byte_level, "a€b")
    assert deltas_of(byte_level, ids) == ["a", "", "", "€", "b", ""]


def test_a_character_cut_off_by_the_end_is_shown_as_such(tokenizer):
    ids = byte_tokens(tokenizer, "a€")[:-1]
    assert deltas_of(tokenizer, ids)[:-1] == ["a", "", ""]
    assert set(deltas_of(tokenizer, ids)[-1]) == {REPLACEMENT}


def test_a_reply_cut_off_in_a_character_ends_with_the_mark_for_it(playing, tokenizer):
    reply = playing(byte_tokens(tokenizer, "a€")[:-1], stop_strings=(STOP,)).generate(ASK)
    assert reply.rstrip(REPLACEMENT) == "a" != reply


def test_a_special_token_inside_a_reply_does_not_swallow_the_space_after_it(byte_fallback):
    before, after = ids_of(byte_fallback, "the quick"), ids_of(byte_fallback, "brown fox")
    ids = [*before, byte_fallback.bos_token_id, *after]
    assert "".join(deltas_of(byte_fallback, ids)) == text_of(byte_fallback, ids) == "the quick brown fox"


@pytest.mark.parametrize("space", [" ", "\n", " \n\n  "])
def test_space_before_a_reply_is_dropped_and_inside_it_is_kept(playing, tokenizer, space):
    deltas = list(playing(byte_tokens(tokenizer, f"{space}one \n\n two\n")).stream(ASK))
    assert deltas[0] == "o"
    assert "".join(deltas) == "one \n\n two\n"


def test_a_reply_of_nothing_but_space_is_empty(playing):
    stream = playing(" \n \n", stop_strings=("\nhuman",)).stream(ASK)
    assert list(stream) == []
    assert stream.stats.finish_reason == "length"
