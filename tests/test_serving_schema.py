"""What clients may ask: every field that is known, and what is said of those that are wrong."""

import json

import httpx
import pytest

from endpoint_clients import HELLO, error_of, post
from fake_chat import FakeChat
from sampling import OPTIONS, SamplingParams
from serving.schema import ChatRequest


def test_null_means_default(fake_chat, address):
    nulls = dict.fromkeys(
        ["model", "stream", "top_logprobs", "stop", "n", "stream_options", "response_format", "tools"]
    )
    nulls |= dict.fromkeys([*OPTIONS, "max_tokens", "max_completion_tokens", "chat_template_kwargs"])
    assert post(address, **nulls).status_code == 200
    assert fake_chat.asked[-1][1] == FakeChat.defaults


def test_unknown_fields_are_ignored(fake_chat, address):
    assert post(address, user="me", logit_bias={}, frequency_penalty=0.5, novelty=[1]).status_code == 200
    assert fake_chat.asked[-1][1] == FakeChat.defaults


def test_options_reach_the_model(fake_chat, address):
    wanted = {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 5}
    post(address, **wanted)
    sampling = fake_chat.asked[-1][1]
    assert {name: getattr(sampling, name) for name in wanted} == wanted


@pytest.mark.parametrize("stop", ["END", ["END"], ["END", "STOP"]])
def test_stop_is_text_or_a_list(fake_chat, address, stop):
    post(address, stop=stop)
    assert fake_chat.asked[-1][1].stop == (("END",) if stop == "END" else tuple(stop))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_length(fake_chat, address, name):
    post(address, **{name: 5})
    assert fake_chat.asked[-1][1].max_new_tokens == 5


def test_whole_numbers_may_be_written_with_a_point(fake_chat, address):
    assert post(address, top_k=3.0).status_code == 200
    assert fake_chat.asked[-1][1].top_k == 3


def test_one_answer_may_be_written_with_a_point(address):
    assert post(address, n=1.0).status_code == 200


def test_developer_means_system(fake_chat, address):
    post(address, messages=[{"role": "developer", "content": "Be kind."}, *HELLO])
    assert fake_chat.asked[-1][0][0] == {"role": "system", "content": "Be kind."}


def test_text_parts(fake_chat, address):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    post(address, messages=[{"role": "user", "content": parts}])
    assert fake_chat.asked[-1][0] == [{"role": "user", "content": "one\ntwo"}]


def test_thoughts_of_an_earlier_answer_come_back(fake_chat, address):
    earlier = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    post(address, messages=[*HELLO, earlier, *HELLO])
    assert fake_chat.asked[-1][0][1] == {"role": "assistant", "content": "Yes.", "thought": "Hm."}


def test_template_options(fake_chat, address):
    post(address, chat_template_kwargs={"enable_thinking": False, "unknown": 1})
    assert fake_chat.asked[-1][2] == {"enable_thinking": False}


@pytest.mark.parametrize(
    "response_format, schema",
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}},
            {"type": "array"},
        ),
    ],
)
def test_response_format(fake_chat, address, response_format, schema):
    assert post(address, response_format=response_format).status_code == 200
    wanted = fake_chat.asked[-1][1].json_schema
    assert (None if wanted is None else json.loads(wanted)) == schema


def test_unknown_value_of_a_template_option(address):
    error = error_of(post(address, chat_template_kwargs={"enable_thinking": "maybe"}), 400)
    assert error["param"] == "chat_template_kwargs.enable_thinking"


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": 2.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": 5}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"model": 5}, "model"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 10**9}, "n"),
        ({"temperature": True}, "temperature"),
        ({"top_k": True}, "top_k"),
        ({"seed": [1]}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": [None]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
)
def test_bad_field_is_named(address, fields, param):
    error = error_of(post(address, **fields), 400)
    assert error["param"] == param
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "Hello",
        [],
        [{}],
        ["Hello"],
        [None],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": []}],
        [{"role": "robot", "content": "Hello"}],
        [{"role": ["user"], "content": "Hello"}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
    ],
)
def test_bad_messages_are_refused_and_the_server_lives(address, messages):
    assert error_of(post(address, messages=messages), 400)["param"].startswith("messages")
    assert post(address).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": [{"name": "f"}]},
        {"messages": [*HELLO, {"role": "tool", "content": "5", "tool_call_id": "1"}]},
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
    ],
)
def test_tools_are_refused_in_words(address, fields):
    error = error_of(post(address, **fields), 400)
    assert error["code"] == "tools_not_supported"
    assert "Tools are not supported" in error["message"]


def test_no_tools_is_no_tools(address):
    assert post(address, tools=[], tool_choice="none").status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"seed": NaN}', b"1" * 9999]
)
def test_body_that_is_no_json_object(address, body):
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers)
    assert error_of(response, 400)["code"] == "invalid_json"


def test_half_a_character_in_an_error_does_no_harm(address):
    body = b'{"model": "\\ud800", "messages": []}'
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers)
    assert error_of(response, 404)["param"] == "model"


def test_a_thousand_stop_texts(fake_chat, address):
    assert post(address, stop=[f"stop {number}" for number in range(1000)]).status_code == 200
    assert len(fake_chat.asked[-1][1].stop) == 1000


def test_many_messages_that_are_none_are_refused_at_the_first(address):
    assert error_of(post(address, messages=[{}] * 100_000), 400)["param"] == "messages[0].role"


def request(*contents: str, system: str | None = None) -> ChatRequest:
    """Of a conversation whose user and assistant say this in turn."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for index, content in enumerate(contents):
        messages.append({"role": "assistant" if index % 2 else "user", "content": content})
    return ChatRequest(messages, SamplingParams(), {}, stream=False, usage=None)


def test_a_conversation_keeps_its_name():
    assert request("Hello").beginning() == request("Hello", "Hi", "And now?").beginning()


@pytest.mark.parametrize("other", [request("Hallo"), request("Hello", system="Be brief.")])
def test_other_conversations_have_other_names(other):
    assert other.beginning() != request("Hello").beginning()
