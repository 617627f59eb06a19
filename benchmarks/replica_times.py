"""What one replica of a cluster needs, as its clients see it: the times that `benchmarks.fleet` is fed with.

Knows the chat's contract. Each question begins with another number, so that no cache helps.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path

from benchmarks.fleet import Times
from chat import Chat, ReplyStats
from config import DEFAULT_MODEL, models_dir
from conversion import prepare_model
from genai_engine import GenAIEngine
from machine import processor
from sampling import SamplingParams

ANSWERS = (1, 2, 4, 8, 16)  # of a replica at once
FEW = 4  # of those, as many have long questions
SHORT, LONG = 10, 400  # words in a question
ROUNDS = 3
NUMBERS = count(10_000)
WORDS = Path(__file__).with_name("quality_text.txt").read_text(encoding="utf-8").split()


def question(words: int) -> list[dict[str, str]]:
    """One that nobody has asked, with a long answer."""
    text = f"{next(NUMBERS)}. Write a long story that begins like this: {' '.join(WORDS[:words])}"
    return [{"role": "user", "content": text}]


def answer(chat: Chat, words: int, new: int) -> tuple[ReplyStats, list[tuple[float, int]]]:
    """What an answer cost, and when it had how many tokens."""
    asked = SamplingParams(temperature=0, repetition_penalty=1.0, max_new_tokens=new)
    stream = chat.stream(question(words), asked)
    times = [(time.perf_counter(), stream.stats.new_tokens) for _ in stream]
    return stream.stats, times


def step_seconds(chat: Chat, answers: int, words: int, new: int) -> float:
    """Median seconds of a step, as long as all the answers are being written.

    Raises:
        ValueError: an answer was over before all had begun.
    """
    with ThreadPoolExecutor(answers) as pool:
        all_times = [times for _, times in pool.map(lambda _: answer(chat, words, new), range(answers))]
    if not all(all_times):
        raise ValueError("An answer had no text.")
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

    with ThreadPoolExecutor(replicas) as pool:
        got = [
            stats
            for _ in range(ROUNDS)
            for stats, _ in pool.map(lambda _: answer(chat, words, FEW), range(replicas))
        ]
    computed = statistics.median(stats.prompt_tokens - (stats.reused_tokens or 0) for stats in got)
    return statistics.median(stats.time_to_first_token for stats in got), computed


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
        decode_seconds_per_context_token=max(0.0, (long - decode[FEW]) / (FEW * (full - short))),
        prefill_seconds_per_token=per_token,
        prefill_seconds_per_context_token=max(0.0, 2 * bend),
        overhead_seconds=max(0.0, short_first - short * per_token - decode[1]),
        cache_tokens=cache_tokens,
    )
