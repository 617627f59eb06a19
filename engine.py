"""Token ids in, token ids out: sampling and the decode loop on an OVModelForCausalLM.

Knows token ids, logits and the model's KV cache. Refuses to know text, turns and end tokens: whoever reads
the ids decides when the reply is over and closes the iterator, which stops the model at once, because
every token is computed only when it is asked for.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

if TYPE_CHECKING:
    from optimum.intel import OVModelForCausalLM


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen from the logits.

    temperature: divides the logits, 0 to 2; 0 is greedy: the most probable token, every time the same.
    top_p: keep the smallest set of tokens whose probabilities add up to this, 0 to 1; 1 keeps all.
        (Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv 1904.09751)
    top_k: keep this many of the most probable tokens; 0 keeps all.
    repetition_penalty: divides the positive logits (multiplies the negative ones) of tokens that the prompt
        or the reply holds already, 1 to 2; 1 changes nothing. (Keskar et al., "CTRL", arXiv 1909.05858)
    max_new_tokens: the reply's largest length.
    seed: the same seed gives the same reply; None draws a new one each time.

    Raises:
        ValueError: a value out of range; the message names the field.
    """

    temperature: float = 0.1
    top_p: float = 1.0
    top_k: int = 50
    repetition_penalty: float = 1.1
    max_new_tokens: int = 256
    seed: int | None = None

    def __post_init__(self):
        _check_number("temperature", self.temperature, 0, 2)
        _check_number("top_p", self.top_p, 0, 1)
        _check_integer("top_k", self.top_k, 0)
        _check_number("repetition_penalty", self.repetition_penalty, 1, 2)
        _check_integer("max_new_tokens", self.max_new_tokens, 1)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0)


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number from {low} to {high}, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value!r}")


def _check_integer(name: str, value: int, low: int) -> None:
    # 2**63 is where torch's integers end
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
        raise ValueError(f"{name} must be a whole number, {low} or more, not {str(value)[:40]}")


def logits_processors(sampling: SamplingParams) -> LogitsProcessorList:
    """The rules of `sampling` as transformers' logits processors, in the order `generate` applies them."""
    rules = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        rules.append(RepetitionPenaltyLogitsProcessor(penalty=float(sampling.repetition_penalty)))
    if sampling.temperature not in (0, 1):
        rules.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k != 0:
        rules.append(TopKLogitsWarper(top_k=sampling.top_k))
    if sampling.top_p < 1:
        rules.append(TopPLogitsWarper(top_p=float(sampling.top_p)))
    return rules


def next_token_probabilities(
    logits: torch.Tensor, ids: Sequence[int], sampling: SamplingParams
) -> torch.Tensor:
    """The distribution that `sampling` draws the next token from.

    Args:
        logits: [vocabulary], of the last position.
        ids: prompt and reply so far, for the repetition penalty.

    Returns:
        Probabilities [vocabulary]; all on one token where the temperature is 0.
    """
    scores = logits_processors(sampling)(torch.tensor([ids]), logits[None].float())[0]
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(scores.argmax(), len(scores)).float()
    return torch.softmax(scores, dim=-1)


def draw(probabilities: torch.Tensor, generator: torch.Generator) -> int:
    """One token id from a distribution [vocabulary]."""
    # Few tokens are left after top-k or top-p, and torch's draw costs by their number.
    candidates = probabilities.nonzero()[:, 0]
    return int(candidates[torch.multinomial(probabilities[candidates], 1, generator=generator)])


class OptimumEngine:
    """Decoding on an OVModelForCausalLM, several requests at a time if need be.

    Each request has its own OpenVINO infer request, and with it its own KV cache: all share the compiled
    model and its weights, and none can see another's tokens.

    Attributes:
        max_context: how many tokens prompt and reply may have together, or None if the model does not say.
        end_ids: what the model's generation config calls the end of a sequence; not acted upon here.
    """

    def __init__(self, model: "OVModelForCausalLM"):
        model.compile()
        self._compiled = model.request.get_compiled_model()
        self._input_names = {port.get_any_name() for port in self._compiled.inputs}
        mpt_context = getattr(model.config, "max_seq_len", None)
        self.max_context: int | None = getattr(model.config, "max_position_embeddings", mpt_context)
        eos = model.generation_config.eos_token_id
        self.end_ids = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])

    def generate(self, ids: Sequence[int], sampling: SamplingParams) -> Iterator[int]:
        """Yield `sampling.max_new_tokens` token ids; `.close()` stops between two of them.

        Args:
            ids: the prompt, at least one token.

        Raises:
            ValueError: the prompt is empty.
        """
        if not ids:
            raise ValueError("The prompt has no tokens.")
        return self._decode(list(ids), sampling)

    def _decode(self, ids: list[int], sampling: SamplingParams) -> Iterator[int]:
        request = self._compiled.create_infer_request()
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        for count in range(sampling.max_new_tokens):
            new_ids = ids if count == 0 else ids[-1:]
            logits = self._infer(request, new_ids, past=len(ids) - len(new_ids))
            token = draw(next_token_probabilities(logits, ids, sampling), generator)
            ids.append(token)
            yield token

    def _infer(self, request, new_ids: list[int], past: int) -> torch.Tensor:
        """Run the model on tokens that follow `past` cached ones; returns the last position's logits."""
        total = past + len(new_ids)
        inputs = {
            "input_ids": np.array([new_ids]),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(past, total)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        request.infer({name: value for name, value in inputs.items() if name in self._input_names})
        return torch.from_numpy(request.get_tensor("logits").data[0, -1].copy())
