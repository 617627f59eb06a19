"""Turns in, token ids out: chat templates, text that stays text, and what of a conversation fits the context.

Knows tokenizers and the turns of a conversation. Refuses to know engines, replies as they come and where text
is shown.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from thoughts import USUAL, format_of, without_thoughts
from turn_guard import CUT, HERE, TurnGuard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
SLICE = 100_000  # characters that a tokenizer reads in a moment
# Switches that chat templates have, and their values; which of these is the default shows in the result.
SWITCHES = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "reasoning_effort": ("low", "medium", "high"),
}


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    ids: up to where the reply begins, or goes on.
    dropped_messages: how many of the oldest messages were left out because the context was full.
    in_thought: whether it ends inside a thought.
    in_answer: whether it ends inside an answer.
    """

    ids: list[int]
    dropped_messages: int
    in_thought: bool
    in_answer: bool


class PromptWriter:
    """Writes the prompts of one model.

    Args:
        tokenizer: of `chat_tokenizer.open_tokenizer`, or a fast one of transformers.
        name: the model's, for error messages.
        chat_template: Jinja text; None takes the tokenizer's own.
        system_prompt: what a conversation without a system message begins with; None sends none.
        end_ids: tokens that end a reply, as far as they are known.

    Attributes:
        end_ids: those, and the token that the template writes after an assistant's text.
        stop_strings: what it writes there instead, where that is plain text.
        template_ids: the tokens that the template itself writes.
        reasoning: how the model marks its thoughts.
        options: the template's switches, each with its values, the default first.

    Raises:
        ValueError: there is no template, or it refuses a plain question.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        name: str,
        chat_template: str | None = None,
        system_prompt: str | None = None,
        end_ids: frozenset[int] = frozenset(),
    ):
        if not chat_template and not tokenizer.chat_template:
            raise ValueError(
                f"{name} has no chat template, so it is probably no chat model. If it is one, "
                "set ModelConfig.chat_template to the Jinja text of its model card."
            )
        self._tokenizer = tokenizer
        self._name = name
        self._own_template = chat_template
        self._template = chat_template or tokenizer.chat_template
        self._system_prompt = system_prompt
        self.reasoning = format_of(str(self._template), tokenizer.get_vocab())
        self.options = self._find_options()
        skeleton = self._skeleton()
        end_of_turn, self.stop_strings = self._turn_end()
        self.end_ids = end_ids | end_of_turn
        self._guard = TurnGuard.of(tokenizer, skeleton, self.end_ids)
        self.template_ids = frozenset(self._ids(skeleton))

    def write(
        self,
        messages: Sequence[Message],
        options: Mapping[str, Any] | None = None,
        max_context: int | None = None,
        max_new_tokens: int = 0,
    ) -> Prompt:
        """The prompt for the next reply. An assistant's message at the end is a reply to go on with.

        Prompt and reply together never exceed the context: of a longer conversation the oldest turns are left
        out.

        Args:
            messages: dicts with "role" (system, user, assistant) and "content"; an assistant's may have the
                "thought" that came before it.
            options: values for the template's switches.
            max_context: tokens; None is endless.
            max_new_tokens: of the reply.

        Raises:
            ValueError: no message, an unknown role, content that is no text, turns in an order that the
                model's template refuses, an unknown switch; or the last message is too long for the context.
        """
        for option, value in (options or {}).items():
            if value not in self.options.get(option, ()):
                known = ", ".join(f"{name}: {values}" for name, values in self.options.items()) or "none"
                raise ValueError(
                    f"The template of {self._name} has no option {option}={value!r}; it has {known}"
                )
        turns = self._turns(messages)
        kept, text, ids = self._fit(turns, max_context, max_new_tokens, options or {})
        goes_on = turns[-1]["role"] == "assistant"
        thinks_on = goes_on and bool(turns[-1].get("thought")) and not turns[-1]["content"]
        in_thought = thinks_on or text.rstrip().endswith(self.reasoning.opens)
        return Prompt(ids, len(turns) - len(kept), in_thought, goes_on and not in_thought)

    def shared_prefix(self) -> list[int]:
        """The tokens that every conversation with the model's own system prompt begins with."""
        one, other = (self.write([{"role": "user", "content": text}]).ids for text in ("a", "b"))
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        return [token for token, _ in same]

    def _find_options(self) -> dict[str, tuple]:
        """Switches that the template has: those that change what it writes."""
        found = {}
        for name, values in SWITCHES.items():
            if name in str(self._template):
                plain = self._probe({})
                texts = {value: self._probe({name: value}) for value in values}
                if len(set(texts.values())) > 1:
                    found[name] = tuple(sorted(values, key=lambda value: texts[value] != plain))
        return found

    def _probe(self, options: Mapping[str, Any]) -> str:
        return self._render([{"role": "user", "content": CUT}], options)

    def _skeleton(self) -> str:
        """What the template writes around texts, with `CUT` in the place of each text."""
        roles = ("system", "user", "assistant", "user")
        try:
            return self._render([{"role": role, "content": CUT} for role in roles])
        except ValueError:  # some templates know no system message
            return self._render([{"role": role, "content": CUT} for role in roles[1:]])

    def _turn_end(self) -> tuple[frozenset[int], tuple[str, ...]]:
        """What the template writes after an assistant's text: a token, or else a text."""
        roles = ("user", "assistant", "user")
        after = self._render([{"role": role, "content": CUT} for role in roles]).split(CUT)[-2]
        tokens = {token.content: number for number, token in self._tokenizer.added_tokens_decoder.items()}
        begins = [text for text in tokens if text.strip() and after.lstrip().startswith(text)]
        if begins:
            return frozenset([tokens[max(begins, key=len)]]), ()
        for text in tokens:  # only what comes before a token of another turn
            after = after.partition(text)[0] if text.strip() else after
        return frozenset(), (after.rstrip(),) if after.strip() else ()

    def _turns(self, messages: Sequence[Message]) -> list[Message]:
        """The messages, checked, and with the system prompt that is the model's or their own."""
        for message in messages:
            is_dict = isinstance(message, Mapping)
            texts = [message.get("content"), message.get("thought") or ""] if is_dict else [None]
            if not all(isinstance(text, str) for text in texts) or message.get("role") not in ROLES:
                raise ValueError(
                    f"A message has a role ({', '.join(ROLES)}) and text as content, not {str(message)[:200]}"
                )
        turns = [message for message in messages if message["role"] != "system" or message["content"].strip()]
        if not any(message["role"] == "system" for message in messages) and self._system_prompt:
            turns.insert(0, {"role": "system", "content": self._system_prompt})
        if not any(turn["role"] == "user" for turn in turns) or turns[-1]["role"] == "system":
            raise ValueError(
                "The last message must be the user's, or an answer of the assistant's to go on with."
            )
        return turns

    def _render(
        self, turns: Sequence[Message], options: Mapping[str, Any] | None = None, prompts: bool = True
    ) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                turns,
                chat_template=self._own_template,
                add_generation_prompt=prompts,
                tokenize=False,
                **(options or {}),
            )
        except TemplateError as error:
            raise ValueError(f"The template of {self._name} refuses this: {error}") from error

    def _harmless(self, turn: Message) -> Message:
        """A turn whose text can neither end it nor begin another, under the names that templates read."""
        content = turn["content"]
        if turn["role"] == "assistant":
            content = without_thoughts(without_thoughts(content, self.reasoning), USUAL)
        message = {"role": turn["role"], "content": self._guard.harmless(content)}
        if turn.get("thought"):  # a template decides itself which thoughts it wants
            thought = self._guard.harmless(turn["thought"])
            message |= {"reasoning_content": thought, "thinking": thought}
        return message

    def _text(self, turns: Sequence[Message], options: Mapping[str, Any]) -> str:
        messages = [self._harmless(turn) for turn in turns]
        if turns[-1]["role"] == "user":
            return self._render(messages, options)
        thought = self._guard.harmless(turns[-1].get("thought", ""))
        if thought and not messages[-1]["content"]:  # it goes on thinking
            text = self._render(messages[:-1], options)
            opened = text.rstrip().endswith(self.reasoning.opens)
            return text + (thought if opened else f"{self.reasoning.opens}\n{thought}")
        messages[-1]["content"] += HERE
        before, here, _ = self._render(messages, options, prompts=False).rpartition(HERE)
        if not here:
            raise ValueError(
                f"The template of {self._name} does not show the last answer, so it cannot go on."
            )
        return before

    def _encode(self, turns: Sequence[Message], options: Mapping[str, Any]) -> tuple[str, list[int]]:
        text = self._text(turns, options)
        return text, self._ids(text)

    def _ids(self, text: str) -> list[int]:
        pieces = (
            self._tokenizer(piece, add_special_tokens=False, verbose=False) for piece in text.split(CUT)
        )
        return [token for piece in pieces for token in piece["input_ids"]]

    def _fit(
        self, turns: list[Message], max_context: int | None, max_new_tokens: int, options: Mapping[str, Any]
    ) -> tuple[list[Message], str, list[int]]:
        """The turns that fit into the context beside the reply, their text, and their tokens.

        System prompt and last question always stay, and an answer to go on with. Of the rest the oldest turns
        (a question with its answer) go, by about half of the prompt's budget at a time: were it only as much
        as need be, then each question would begin its prompt with another turn, and the KV cache would be
        worth nothing.
        """
        if max_context is None:
            return turns, *self._encode(turns, options)
        budget = max_context - min(max_new_tokens, max_context // 2)
        starts = [position for position, turn in enumerate(turns) if turn["role"] == "user"]

        def since(start: int) -> list[Message]:
            return [
                turn for position, turn in enumerate(turns) if position >= start or turn["role"] == "system"
            ]

        stays = since(starts[-1])
        self._refuse_far_too_long("".join(turn["content"] for turn in stays), budget)
        text, ids = self._encode(turns, options)
        if len(ids) <= budget:
            return turns, text, ids

        def saved(start: int) -> int:
            return len(ids) - len(self._encode(since(start), options)[1])

        step = (budget + 1) // 2
        goal = math.ceil((len(ids) - budget) / step) * step  # tokens to save
        kept = since(starts[min(bisect_left(starts, goal, key=saved), len(starts) - 1)])
        text, kept_ids = self._encode(kept, options)
        if len(kept_ids) > budget:
            raise too_long(f"{len(kept_ids)} tokens", budget)
        return kept, text, kept_ids

    def _refuse_far_too_long(self, text: str, budget: int) -> None:
        """Spare the tokenizer a text that would take it minutes, where the beginning is too long already."""
        count = 0
        for end in range(SLICE, len(text) + 1, SLICE):
            count += len(self._ids(self._guard.harmless(text[end - SLICE : end])))
            if count > budget:
                raise too_long(f"about {count * len(text) // end} tokens", budget)


def too_long(length: str, budget: int) -> ValueError:
    """The error for a last message that does not fit into the context, whatever else is left out."""
    return ValueError(
        f"The message (with the system prompt) has {length}, the model's context has room for {budget} "
        "tokens. Shorten it, or lower max_new_tokens."
    )
