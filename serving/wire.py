"""What clients are answered: OpenAI's chat completions as JSON and as server-sent events.

Knows the JSON of answers. Refuses to know how they come about.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from chat import Chat, ReplyStats, TokenLogprob

# JSON allows them in strings, but readers that split lines as Unicode does would tear events apart.
LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def to_json(value: Any) -> bytes:
    """JSON in UTF-8 that holds no line breaks, not even Unicode's."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(LINE_BREAKS).encode("utf-8", "replace")  # lone surrogates cannot be encoded


def event(value: Any) -> bytes:
    """A server-sent event that holds JSON."""
    return b"data: " + to_json(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Envelope:
    """What all parts of one answer share: its id, the time (s since 1970) and the model's name.

    Args:
        usage: whether a stream tells its usage: "end" in a chunk of its own, where the others say null;
            "always" in the others too; None nowhere.
    """

    def __init__(self, model: str, usage: str | None = None):
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._usage = usage

    def _wrap(self, kind: str, choices: Sequence[dict]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def completion(
        self, text: str, thought: str, stats: ReplyStats, logprobs: Sequence[TokenLogprob] | None
    ) -> dict[str, Any]:
        """A whole answer; without log-probabilities where `logprobs` is None."""
        message = {"role": "assistant", "content": text, "refusal": None}
        if thought:
            message["reasoning_content"] = thought
        choice = {"index": 0, "message": message}
        choice |= {"logprobs": as_content(logprobs), "finish_reason": stats.finish_reason}
        return self._wrap("chat.completion", [choice]) | {"usage": usage(stats)}

    def chunk(
        self,
        delta: Mapping[str, str],
        stats: ReplyStats,
        logprobs: Sequence[TokenLogprob] | None = None,
        is_last: bool = False,
    ) -> dict[str, Any]:
        """A piece of an answer, which has cost `stats` up to here."""
        choice = {"index": 0, "delta": delta, "logprobs": as_content(logprobs)}
        choice["finish_reason"] = stats.finish_reason if is_last else None
        chunk = self._wrap("chat.completion.chunk", [choice])
        if self._usage is None:
            return chunk
        return chunk | {"usage": usage(stats) if self._usage == "always" else None}

    def usage_chunk(self, stats: ReplyStats) -> dict[str, Any]:
        """The last piece, for those who asked for it."""
        return self._wrap("chat.completion.chunk", []) | {"usage": usage(stats)}


def as_content(logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """Log-probabilities as OpenAI writes them."""
    if logprobs is None:
        return None
    content = [
        _entry(token.text, token.logprob)
        | {"top_logprobs": [_entry(text, logprob) for text, logprob in token.others]}
        for token in logprobs
    ]
    return {"content": content, "refusal": None}


def _entry(text: str, logprob: float) -> dict[str, Any]:
    """One token; its bytes are told where it is no part of a character."""
    return {
        "token": text,
        "logprob": logprob,
        "bytes": None if "\ufffd" in text else list(text.encode()),
    }


def usage(stats: ReplyStats) -> dict[str, Any]:
    """What an answer cost, in tokens. The last two fields are our own; `waited` is seconds in the queue."""
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.new_tokens,
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.reused_tokens},
        "completion_tokens_details": {"reasoning_tokens": stats.thought_tokens},
        "dropped_messages": stats.dropped_messages,
        "waited": round(stats.waited, 3),
    }


def model_entry(name: str, created: int, chat: Chat) -> dict[str, Any]:
    """What `/v1/models` says of a model.

    `max_model_len` is vLLM's name for the context. Under "chat" stands what the page shows of a chat; it is
    read by `serving.client`.
    """
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "llm-chatbot",
        "max_model_len": chat.max_context,
        "chat": {
            "description": chat.description,
            "system_prompt": chat.system_prompt,
            "max_requests": chat.max_requests,
            "defaults": asdict(chat.defaults),
            "template_options": chat.template_options,
        },
    }
