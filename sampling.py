"""Logits in, next token out: the rules that bend a model's prediction before a token is drawn.

Knows numbers only, NumPy arrays. Refuses to know models, text and which tokens end a reply.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

TINY = 1e-30  # a temperature below which nothing changes any more, and 32-bit numbers would end
FEW = 1000  # tokens that mostly have nearly all of the probability


@dataclass(frozen=True)
class Option:
    """A row of the one table of sampling options: what page, endpoint and command line need to know of it.

    kind: float or int for a number, tuple for several texts.
    low, high: the range a number may have; `high` None has no end.
    slider: where a slider ends, if it has one, and its step.
    off: what switches the option off; the default, too.
    """

    name: str
    label: str
    help: str
    kind: type
    off: Any
    low: float | None = None
    high: float | None = None
    slider: tuple[float, float] | None = None

    def check(self, value: Any) -> None:
        """Raises ValueError, which names the option, for a value that is out of range or no number."""
        if value is None and self.off is None:
            return
        if self.kind is tuple:
            if not isinstance(value, tuple) or not all(isinstance(text, str) and text for text in value):
                raise ValueError(f"{self.name} must be a text or a list of texts, none of them empty")
        elif self.kind is float:
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not self.low <= value <= self.high
            ):
                raise ValueError(
                    f"{self.name} must be a number from {self.low} to {self.high}, not {_shown(value)}"
                )
        else:
            # 2**63 is where the integers of the libraries below end
            high = 2**63 - 1 if self.high is None else self.high
            if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= high:
                upwards = "or more" if self.high is None else f"to {self.high}"
                raise ValueError(
                    f"{self.name} must be a whole number, {self.low} {upwards}, not {_shown(value)}"
                )


def _shown(value: object) -> str:
    endless = isinstance(value, int) and abs(value) >= 2**63  # Python refuses to write out the longest
    return "so large a number" if endless else repr(value)[:40]


def _option(off: Any, kind: type, label: str, help: str, **about: Any) -> Any:
    return field(default=off, metadata={"kind": kind, "label": label, "help": help, "off": off, **about})


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen from the logits, and when a reply is over. As created, no rule is on.

    temperature: divides the logits, 0 to 2; 1 changes nothing, 0 is greedy: the most probable token, every
        time the same.
    top_p: keep the smallest set of tokens whose probabilities add up to this, 0 to 1; 1 keeps all.
        (Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv 1904.09751)
    top_k: keep this many of the most probable tokens; 0 keeps all.
    repetition_penalty: divides the positive logits (multiplies the negative ones) of tokens that the prompt
        or the reply holds already, 1 to 2; 1 changes nothing. (Keskar et al., "CTRL", arXiv 1909.05858)
    min_p: keep the tokens that are at least this many times as probable as the most probable one, 0 to 1;
        0 keeps all. (Nguyen et al., "Turning Up the Heat", arXiv 2407.01082)
    stop: texts that end a reply where they appear; they are not shown. One text may be given as it is.
    max_new_tokens: the reply's largest length.
    seed: the same seed gives the same reply; None draws a new one each time.
    logprobs: 0 to 20; ask the engine for the log-probability of each token and of so many others, before any
        rule. None asks for none.
    json_schema: the reply is to be JSON that satisfies this schema, itself JSON. Not every engine can.

    Raises:
        ValueError: a value out of range; the message names the field.
    """

    temperature: float = _option(
        1.0,
        float,
        "Temperature",
        "How freely words are chosen. 0: always the most probable one; above 1: surprising.",
        low=0,
        high=2,
        slider=(2, 0.05),
    )
    top_p: float = _option(
        1.0,
        float,
        "Top-p",
        "Choose among the most probable words that together have this probability. 1: no limit.",
        low=0,
        high=1,
        slider=(1, 0.01),
    )
    top_k: int = _option(
        0,
        int,
        "Top-k",
        "Choose among this many of the most probable words. 0: no limit.",
        low=0,
        slider=(200, 1),
    )
    repetition_penalty: float = _option(
        1.0,
        float,
        "Repetition penalty",
        "Makes words that were used already less probable. 1: no penalty.",
        low=1,
        high=2,
        slider=(2, 0.05),
    )
    min_p: float = _option(
        0.0,
        float,
        "Min-p",
        "Choose among words at least this many times as probable as the most probable one. 0: no limit.",
        low=0,
        high=1,
        slider=(1, 0.01),
    )
    stop: tuple[str, ...] = _option((), tuple, "Stop at", "The answer ends before any of these texts.")
    max_new_tokens: int = _option(
        256,
        int,
        "Max new tokens",
        "The answer ends here at the latest; 100 tokens are about 75 English words.",
        low=1,
        slider=(4096, 1),
    )
    seed: int | None = _option(
        None, int, "Seed", "The same number gives the same answer. Empty: another one each time.", low=0
    )
    logprobs: int | None = _option(
        None, int, "Log-probabilities", "How many alternatives to each token are told.", low=0, high=20
    )
    json_schema: str | None = None  # no row in the table: it is for programs

    def __post_init__(self):
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        object.__setattr__(self, "stop", tuple(stop) if isinstance(stop, Iterable) else stop)
        for option in OPTIONS.values():
            option.check(getattr(self, option.name))
        if not isinstance(self.json_schema, str | None):
            raise ValueError("json_schema must be the text of a JSON schema")


OPTIONS = {row.name: Option(row.name, **row.metadata) for row in fields(SamplingParams) if row.metadata}


class Sampler:
    """Draws the tokens of one reply.

    It remembers which tokens there have been, so that no draw costs more than the one before.

    Args:
        sampling: the rules.
        prompt: its token ids, for the repetition penalty.
        spared: token ids that the penalty leaves alone: those that end a turn, for example, or a
            conversation of many turns would hardly let an answer end.
    """

    def __init__(self, sampling: SamplingParams, prompt: Iterable[int] = (), spared: Collection[int] = ()):
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._spared = frozenset(spared)
        self._seen = set() if sampling.repetition_penalty == 1 else set(prompt) - self._spared
        self._penalized = np.array(sorted(self._seen), dtype=np.int64)

    def draw(self, logits: np.ndarray) -> int:
        """The next token, for logits [vocabulary] of the last position.

        Raises:
            FloatingPointError: a logit is NaN or infinite.
        """
        tokens, probabilities = candidates(logits, self.sampling, self._penalized)
        if len(tokens) == 1:
            token = int(tokens[0])
        else:
            sums = np.cumsum(probabilities, dtype=np.float64)
            token = int(tokens[np.searchsorted(sums, self._random.random() * sums[-1], side="right")])
        if self.sampling.repetition_penalty != 1 and token not in self._seen and token not in self._spared:
            self._seen.add(token)
            self._penalized = np.append(self._penalized, token)
        return token


def candidates(
    logits: np.ndarray, sampling: SamplingParams, penalized: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that `sampling` chooses among, and the probability of each.

    The rules and their order are those of transformers' `generate`.

    Args:
        logits: [vocabulary], of the last position.
        penalized: the different token ids that the repetition penalty applies to.

    Returns:
        Token ids [n] and their probabilities [n]; n is 1 for greedy decoding.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
    """
    scores = np.array(logits, dtype=np.float32)  # a copy
    if not np.isfinite(scores).all():
        raise FloatingPointError(
            "The model computed logits that are not finite, so there is no next token. If it does so again, "
            "run it with 32-bit floats: ov_config={'INFERENCE_PRECISION_HINT': 'f32'}."
        )
    if penalized is not None and sampling.repetition_penalty != 1:
        factor, seen = np.float32(sampling.repetition_penalty), scores[penalized]
        scores[penalized] = np.where(seen < 0, seen * factor, seen / factor)
    if sampling.temperature == 0:
        return np.array([scores.argmax()]), np.ones(1)

    if 0 < sampling.top_k < len(scores):  # before the temperature, which does not change the order
        least = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        tokens = np.flatnonzero(scores >= least)
    else:
        tokens = np.arange(len(scores))
    # Less the largest, which changes no probability, but keeps a tiny temperature from making it infinite.
    distances = scores[tokens] - scores.max()
    with np.errstate(over="ignore"):  # minus infinity is a probability of 0
        probabilities = np.exp(distances / np.float32(max(sampling.temperature, TINY)))
    probabilities /= probabilities.sum(dtype=np.float64)

    if sampling.top_p < 1:
        kept = _most_probable(probabilities, sampling.top_p)
        tokens, probabilities = tokens[kept], probabilities[kept]
    if sampling.min_p > 0:
        kept = probabilities >= sampling.min_p * probabilities.max()
        tokens, probabilities = tokens[kept], probabilities[kept]
    return tokens, probabilities / probabilities.sum(dtype=np.float64)


def _most_probable(probabilities: np.ndarray, share: float) -> np.ndarray:
    """Places of the smallest set of probabilities that adds up to `share`; at least one."""
    for count in (FEW, len(probabilities)):  # mostly few suffice, and the others need not be sorted
        places = np.arange(len(probabilities))
        if count < len(probabilities):
            places = np.argpartition(probabilities, -count)[-count:]
        if count >= len(probabilities) or probabilities[places].sum(dtype=np.float64) > share:
            break
    order = places[np.argsort(probabilities[places])]
    sums = np.cumsum(probabilities[order], dtype=np.float64)
    # From below, the least probable go as long as they have no more than the rest together.
    keep = sums + (1 - sums[-1]) > 1 - share
    keep[-1] = True
    return order[keep]


def next_token_probabilities(
    logits: np.ndarray, ids: Iterable[int], sampling: SamplingParams, spared: Collection[int] = ()
) -> np.ndarray:
    """The distribution that `sampling` draws the next token from.

    Args:
        logits: [vocabulary], of the last position.
        ids: prompt and reply so far, for the repetition penalty.
        spared: token ids that the penalty leaves alone.

    Returns:
        Probabilities [vocabulary]; all on one token where the temperature is 0.
    """
    penalized = np.array([token for token in set(ids) if token not in spared], dtype=np.int64)
    tokens, probabilities = candidates(logits, sampling, penalized)
    result = np.zeros(len(logits))
    result[tokens] = probabilities
    return result


def log_probabilities(logits: np.ndarray, token: int, others: int) -> tuple[float, dict[int, float]]:
    """Natural logarithms of the probability, before any rule, of a token and of the most probable others."""
    scores = np.asarray(logits, dtype=np.float64)
    scores = scores - scores.max()
    scores -= np.log(np.exp(scores).sum())
    best = np.argsort(scores)[::-1][:others] if others else []
    return float(scores[token]), {int(index): float(scores[index]) for index in best}
