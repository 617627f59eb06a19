"""What one replica of a cluster needs, as its clients see it: the times that `benchmarks.fleet` is fed with.

Knows the chat's contract. The questions are repetitions of a short word behind a number, so that their length
in tokens is known and no cache helps unless it is meant to.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count

from benchmarks.fleet import Times
from chat import Chat
from config import DEFAULT_MODEL, models_dir
from conversion import prepare_model
from genai_engine import GenAIEngine
from machine import processor
from sampling import SamplingParams

ANSWERS = (1, 2, 4, 8, 16)  # of a replica at once
FEW = 4  # of those, as many have long questions
SHORT, LONG = 10, 600  # words that do not matter in a question
ROUNDS = 3
NUMBERS = count(10_000)


def question(words: int) -> list[dict[str, str]]:
    """One that nobody has asked, with a long answer."""
    text = f"{next(NUMBERS)}.{' so' * words} Write a long story about an old lighthouse."
    return [{"role": "user", "content": text}]


def answer(chat: Chat, words: int, new: int) -> tuple[int, list[tuple[float, int]]]:
    """Tokens of the prompt that were not in the cache; when the answer had how many tokens."""
    asked = SamplingParams(temperature=0, repetition_penalty=1.0, max_new_tokens=new)
    stream = chat.stream(question(words), asked)
    times = [(time.perf_counter(), stream.stats.new_tokens) for _ in stream]
    return stream.stats.prompt_tokens - (stream.stats.reused_tokens or 0), times


def step_seconds(chat: Chat, answers: int, words: int, new: int) -> float:
    """Median seconds of a step, as long as all the answers are being written.

    Raises:
        ValueError: an answer was over before all had begun.
    """
    with ThreadPoolExecutor(answers) as pool:
        all_times = [times for _, times in pool.map(lambda _: answer(chat, words, new), range(answers))]
    begin, end = max(times[0][0] for times in all_times), min(times[-1][0] for times in all_times)
    steps = []
    for times in all_times:
        inside = [(when, tokens) for when, tokens in times if begin <= when <= end]
        if len(inside) < 2:
            raise ValueError(f"Of {answers} answers one had {times[-1][1]} tokens only.")
        (first, had), (last, have) = inside[0], inside[-1]
        steps.append((last - first) / (have - had))
    return statistics.median(steps)


def prompt_seconds(chat: Chat, replicas: int, words: int) -> tuple[float, float]:
    """Median seconds to the first token while each replica has one prompt, and tokens of that prompt."""

    def first_token(_: int) -> tuple[float, int]:
        started = time.perf_counter()
        computed, times = answer(chat, words, 1)
        return times[0][0] - started, computed

    with ThreadPoolExecutor(replicas) as pool:
        got = [one for _ in range(ROUNDS) for one in pool.map(first_token, range(replicas))]
    return statistics.median(seconds for seconds, _ in got), statistics.median(n for _, n in got)


def measure(chat: Chat, replicas: int = 1) -> Times:
    """The times of a replica while all of them have as much to do. Takes two minutes.

    Args:
        chat: leads to replicas of the default model that get equal shares of what is asked.
    """

    def step(answers: int, words: int, new: int) -> float:
        return statistics.median(step_seconds(chat, answers * replicas, words, new) for _ in range(ROUNDS))

    decode = {answers: step(answers, SHORT, 96) for answers in ANSWERS}
    long = step(FEW, LONG, 224)
    (short_first, short), (half_first, half), (long_first, full) = (
        prompt_seconds(chat, replicas, words) for words in (SHORT, LONG // 2, LONG)
    )
    # seconds = overhead + a n + b n^2 / 2, through the three points
    slope = (half_first - short_first) / (half - short)
    bend = ((long_first - half_first) / (full - half) - slope) / (full - short)
    per_token = max(0.0, slope - bend * (half + short))
    with closing(GenAIEngine(prepare_model(DEFAULT_MODEL, models_dir=models_dir()))) as engine:
        cache_tokens = engine.cache_tokens
    here = processor()
    return Times(
        machine=f"{here.name}, {here.cores} cores",
        decode_seconds={answers: round(seconds, 5) for answers, seconds in decode.items()},
        decode_seconds_per_context_token=max(0.0, (long - decode[FEW]) / (FEW * (LONG - SHORT))),
        prefill_seconds_per_token=per_token,
        prefill_seconds_per_context_token=max(0.0, 2 * bend),
        overhead_seconds=max(0.0, short_first - short * per_token - decode[1]),
        cache_tokens=cache_tokens,
    )
