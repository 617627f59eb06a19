"""The endpoint over the default model, on both engines; and the command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import openai
import pytest

from conftest import MODELS_DIR
from fake_chat import served, served_app
from sampling import SamplingParams
from serving.client import RemoteChatModel

pytestmark = pytest.mark.slow

NAME = "SmolLM2-135M-Instruct"
QUESTION = [{"role": "user", "content": "Write a long story about a walk in the rain."}]
GREEDY = {"model": NAME, "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module", params=["smollm2_chat", "smollm2_genai_chat"])
def chat(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def address(chat):
    with served(chat) as address:
        yield address


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        yield client


def figure(address: str, name: str) -> float:
    text = httpx.get(f"{address}/metrics").text
    found = re.search(rf"^llm_chatbot_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0


def wait_until_idle(address: str) -> None:
    deadline = time.monotonic() + 30
    while figure(address, "running"):
        assert time.monotonic() < deadline


def test_all_ways_give_the_same_greedy_text(chat, address, client):
    expected = chat.generate(QUESTION, SamplingParams(temperature=0, max_new_tokens=24))
    whole = client.chat.completions.create(messages=QUESTION, **GREEDY)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 24
    parts = client.chat.completions.create(messages=QUESTION, stream=True, **GREEDY)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
    with closing(RemoteChatModel(f"{address}/v1")) as model:
        assert model.generate(QUESTION, SamplingParams(temperature=0, max_new_tokens=24)) == expected


def test_stop_text_over_several_tokens_is_never_shown(client):
    text = client.chat.completions.create(messages=QUESTION, **GREEDY).choices[0].message.content
    stop = text[10:20]
    parts = client.chat.completions.create(messages=QUESTION, stream=True, stop=stop, **GREEDY)
    choices = [part.choices[0] for part in parts]
    assert "".join(choice.delta.content or "" for choice in choices) == text[: text.index(stop)]
    assert choices[-1].finish_reason == "stop"


def test_log_probabilities_of_greedy_tokens_are_the_best(chat, client):
    top = 1 if chat.max_requests == 1 else 0  # OpenVINO GenAI tells those of the chosen tokens only
    whole = client.chat.completions.create(messages=QUESTION, logprobs=True, top_logprobs=top, **GREEDY)
    tokens = whole.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == whole.choices[0].message.content
    assert all(token.logprob < 0 for token in tokens)
    assert all(other.token == token.token for token in tokens for other in token.top_logprobs)


def test_answer_as_json(chat, client):
    schema = {
        "type": "object",
        "properties": {"planet": {"enum": ["Mars", "Venus"]}, "moons": {"type": "integer"}},
        "required": ["planet", "moons"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "planet", "schema": schema}}

    def ask(response_format: dict):
        question = [{"role": "user", "content": "Tell me about a planet in JSON."}]
        return client.chat.completions.create(
            model=NAME, messages=question, response_format=response_format, temperature=0, max_tokens=60
        )

    if chat.max_requests == 1:
        with pytest.raises(openai.BadRequestError, match="genai"):
            ask(wanted)
        return
    answer = json.loads(ask(wanted).choices[0].message.content)
    assert answer.keys() == {"planet", "moons"}
    assert answer["planet"] in ("Mars", "Venus")
    wanted["json_schema"]["schema"] = {"type": "no such type"}
    with pytest.raises(openai.BadRequestError):
        ask(wanted)


def test_same_seed_same_answer(client):
    def answer(seed: int) -> str:
        options = GREEDY | {"temperature": 1.5}
        return (
            client.chat.completions.create(messages=QUESTION, seed=seed, **options).choices[0].message.content
        )

    assert answer(1) == answer(1)


def test_second_turn_reuses_the_cache(chat, client):
    first = client.chat.completions.create(messages=QUESTION, **GREEDY)
    reply = {"role": "assistant", "content": first.choices[0].message.content}
    second = client.chat.completions.create(
        messages=[*QUESTION, reply, {"role": "user", "content": "And then?"}], **GREEDY
    )
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_leaving_a_stream_stops_the_model_within_two_tokens(address, client):
    before = figure(address, "new_tokens_total")
    parts = client.chat.completions.create(messages=QUESTION, stream=True, **(GREEDY | {"max_tokens": 500}))
    received = 0
    for part in parts:
        received += bool(part.choices[0].delta.content)
        if received == 3:
            parts.close()
            break
    wait_until_idle(address)
    assert figure(address, "new_tokens_total") - before <= received + 2


def test_leaving_in_the_prefill_stops_the_model(address):
    cancelled = 'requests_total{outcome="cancelled"}'
    before = figure(address, cancelled), figure(address, "new_tokens_total")
    long = [{"role": "user", "content": "one two three four " * 1500}]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/chat/completions", json={"messages": long}, timeout=0.5)
    wait_until_idle(address)
    assert (figure(address, cancelled), figure(address, "new_tokens_total")) == (before[0] + 1, before[1])


def test_too_long_a_question_is_a_bad_request(client):
    long = [{"role": "user", "content": "one two three four " * 5000}]
    with pytest.raises(openai.BadRequestError, match="room for"):
        client.chat.completions.create(messages=long, **GREEDY)


PAGE = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "127.0.0.1" in recipe])
def test_recipe_of_a_client(address, recipe, capsys):
    recipe = recipe.replace("http://127.0.0.1:8000", address).replace("smollm2-135m-instruct", NAME)
    exec(recipe, {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "app.mount" in recipe])
def test_recipe_of_an_application(smollm2_folder, recipe):
    names = {}
    recipe = recipe.replace("prepare_model(DEFAULT_MODEL)", repr(str(smollm2_folder)))
    exec(recipe, names)
    with served_app(names["app"]) as address:
        client = openai.OpenAI(base_url=f"{address}/llm/v1", api_key="a secret")
        answer = client.chat.completions.create(messages=QUESTION, **GREEDY)
    assert answer.choices[0].message.content


@pytest.mark.parametrize("engine", ["optimum", "genai"])
def test_command(engine):
    command = [sys.executable, "-m", "serving.api", "--port", "0", "--engine", engine, "--api-key", "secret"]
    environment = os.environ | {"LLM_CHATBOT_MODELS_DIR": str(MODELS_DIR)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent, env=environment
    )
    try:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        health = address.replace("/v1", "/health")
        assert httpx.get(health, timeout=30).json() == {"status": "loading"}
        assert process.stdout.readline() == f"Ready at {address}\n"
        assert httpx.get(health).json() == {"status": "ready"}
        with openai.OpenAI(base_url=address, api_key="secret") as client:
            parts = client.chat.completions.create(messages=QUESTION, stream=True, **GREEDY)
            next(parts)
            process.send_signal(signal.SIGTERM)
            assert [part.choices[0].finish_reason for part in parts][-1] == "length"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
