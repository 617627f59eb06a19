"""What clients may ask: the fields of OpenAI's chat completions, read strictly; and the one shape of errors.

Knows the fields of a request. Refuses to know HTTP servers, threads and models: which options a model has it
is told by `sampling.OPTIONS` and by the chat itself.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from chat import Chat, Message
from sampling import OPTIONS, SamplingParams

# What OpenAI's clients call the length of a reply, the name that wins last.
LENGTH_NAMES = ("max_tokens", "max_completion_tokens")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
KINDS = {bool: "true or false", str: "text", dict: "an object", int: "a whole number", list: "a list"}
NO_TOOLS = "Tools are not supported here: this server's models answer in text only. Ask without"


class ApiError(Exception):
    """What goes wrong, as a client is told it.

    Args:
        status: of the HTTP answer.
        message: words for a person.
        param: the field that is at fault, if one is.
        code: a name for programs.
        retry_after: seconds after which asking again makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def arguments(self) -> tuple:
        """What makes the same error anew, in another process."""
        return self.status, str(self), self.param, self.code, self.retry_after

    def body(self) -> dict[str, Any]:
        """The one shape of all errors."""
        kind = "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        elif self.status >= 500:
            kind = "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class ChatRequest:
    """What a client wants: the arguments of `Chat.stream`, and how the answer is to be sent."""

    messages: list[Message]
    sampling: SamplingParams
    template_options: dict[str, Any]
    stream: bool
    usage: str | None  # see `serving.wire.Envelope`
    user: str | None = None  # who asks, where the client tells

    def beginning(self) -> str:
        """A name for how it begins, up to the first question: all requests of a conversation have it."""
        roles = [message["role"] for message in self.messages]
        first = self.messages[: roles.index("user") + 1] if "user" in roles else self.messages[:1]
        turns = [(message["role"], message["content"]) for message in first]
        return hashlib.sha256(json.dumps(turns).encode()).hexdigest()


def read_json(body: bytes) -> dict[str, Any]:
    """The fields of a request's body.

    Raises:
        ApiError: 400, it is no JSON object.
    """
    try:
        fields = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body cannot be read as JSON: {error}", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise ApiError(400, f"The body must be a JSON object, not {_shown(fields)}", code="invalid_json")
    return fields


def read_request(fields: Mapping[str, Any], chat: Chat, names: Collection[str]) -> ChatRequest:
    """The request that the fields describe: null means the default, and unknown fields mean nothing.

    Args:
        names: what the model may be called; a request that names none means this one.

    Raises:
        ApiError: 400 or, for another model, 404; the message names the field.
    """
    model = _field(fields, "model", str, None)
    if model is not None and model not in names:
        message = f"There is no model {_shown(model)} here, only {', '.join(sorted(names))}."
        raise ApiError(404, message, "model", "model_not_found")
    _refuse_tools(fields)
    if _field(fields, "n", int, 1) != 1:
        raise ApiError(400, "n must be 1: for several answers ask several times, at once if you like.", "n")
    stream = _field(fields, "stream", bool, False)
    stream_options = _field(fields, "stream_options", dict, {})
    if stream_options and not stream:
        raise ApiError(400, "stream_options need stream: true.", "stream_options")
    return ChatRequest(
        messages=_read_messages(fields.get("messages")),
        sampling=_read_sampling(fields, chat.defaults),
        template_options=_read_template_options(fields, chat.template_options),
        stream=stream,
        usage=_read_usage(stream_options),
        user=_field(fields, "user", str, None),
    )


def _read_usage(stream_options: dict) -> str | None:
    """When a stream is to tell its usage; `continuous_usage_stats` is vLLM's name."""
    always = _field(stream_options, "continuous_usage_stats", bool, False)
    if not _field(stream_options, "include_usage", bool, False):
        return None
    return "always" if always else "end"


def _read_messages(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list with at least one message.", "messages")
    return [_read_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise ApiError(400, f"{where} must be an object with role and content, not {_shown(message)}", where)
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise ApiError(400, f"{NO_TOOLS} tool messages and tool calls.", where, "tools_not_supported")
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(
            400, f"{where}.role must be one of {', '.join(ROLES)}, not {_shown(role)}", f"{where}.role"
        )
    read = {"role": ROLES[role], "content": _read_content(message.get("content"), f"{where}.content")}
    thought = message.get("reasoning_content")
    if role == "assistant" and isinstance(thought, str) and thought:
        read["thought"] = thought
    return read


def _read_content(content: Any, where: str) -> str:
    """Text, or the texts of parts, each on a line of its own."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ApiError(400, f"{where} must be text or a list of text parts, not {_shown(content)}", where)
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise ApiError(
                400,
                f'{where}[{index}] must be {{"type": "text", "text": ...}}: this server\'s models read text '
                f"only, not {_shown(kind)}",
                f"{where}[{index}]",
            )
    return "\n".join(part["text"] for part in content)


def _read_sampling(fields: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    """The chat's own sampling with what the request changes, one by one, so that errors name the field."""
    names = {option: [option] for option in OPTIONS if option != "logprobs"}
    names.setdefault("max_new_tokens", []).extend(LENGTH_NAMES)
    response_format = _field(fields, "response_format", dict, {"type": "text"})
    sampling = replace(defaults, logprobs=_read_logprobs(fields), json_schema=_read_format(response_format))
    for option, spellings in names.items():
        for name in spellings:
            value = fields.get(name)
            if value is None:
                continue
            if OPTIONS[option].kind is tuple and not isinstance(value, str | list):
                raise ApiError(400, f"{name} must be text or a list of texts, not {_shown(value)}", name)
            if isinstance(value, float) and OPTIONS[option].kind is int and value.is_integer():
                value = int(value)  # JSON does not tell 3.0 from 3
            try:
                sampling = replace(sampling, **{option: value})
            except ValueError as error:
                raise ApiError(400, str(error).replace(option, name), name) from error
    return sampling


def _read_logprobs(fields: Mapping[str, Any]) -> int | None:
    """What `SamplingParams.logprobs` is to be."""
    top = _field(fields, "top_logprobs", int, None)
    if not _field(fields, "logprobs", bool, False):
        if top:
            raise ApiError(400, "top_logprobs needs logprobs: true.", "top_logprobs")
        return None
    try:
        return SamplingParams(logprobs=top or 0).logprobs
    except ValueError as error:
        raise ApiError(400, str(error).replace("logprobs", "top_logprobs"), "top_logprobs") from error


def _read_template_options(fields: Mapping[str, Any], known: Mapping[str, tuple]) -> dict[str, Any]:
    options = {}
    for name, value in _field(fields, "chat_template_kwargs", dict, {}).items():
        if name not in known or value is None:
            continue
        if value not in known[name]:
            choice = " or ".join(json.dumps(each) for each in known[name])
            where = f"chat_template_kwargs.{name}"
            raise ApiError(400, f"{where} must be {choice}, not {_shown(value)}", where)
        options[name] = value
    return options


def _refuse_tools(fields: Mapping[str, Any]) -> None:
    for name in ("tools", "functions"):
        if fields.get(name):
            raise ApiError(400, f"{NO_TOOLS} {name}.", name, "tools_not_supported")


def _read_format(response_format: Mapping[str, Any]) -> str | None:
    """What `SamplingParams.json_schema` is to be; whether the engine can follow one it says itself."""
    kind, where = response_format.get("type"), "response_format"
    if kind == "text":
        return None
    if kind == "json_object":
        return json.dumps({"type": "object"})
    if kind != "json_schema":
        message = f"{where}.type must be text, json_object or json_schema, not {_shown(kind)}"
        raise ApiError(400, message, f"{where}.type")
    schema = _field(response_format, "json_schema", dict, {}).get("schema")
    if not isinstance(schema, dict):
        where = f"{where}.json_schema.schema"
        raise ApiError(400, f"{where} must be a JSON schema, not {_shown(schema)}", where)
    return json.dumps(schema)


def _field(fields: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, float) and kind is int and value.is_integer():
        value = int(value)  # JSON does not tell 3.0 from 3
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ApiError(400, f"{name} must be {KINDS[kind]}, not {_shown(value)}", name)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"
