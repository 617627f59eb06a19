"""An engine of thirty lines is enough: `ChatModel`, the page and the endpoint run on it."""

from contextlib import closing

import pytest
from fastapi.testclient import TestClient
from gradio_client import Client

from chat import ChatModel
from chat_ui import build_ui, launch_ui
from config import ModelConfig
from fakes import ScriptedEngine
from prompt_formats import PROMPT_FORMATS, make_tokenizer
from serving.api import build_app

ANSWER = "I am an assistant. The user says hi."
ASK = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture
def chat() -> ChatModel:
    prompt_format = PROMPT_FORMATS["chatml"]
    tokenizer = make_tokenizer(prompt_format)
    script = tokenizer.encode(ANSWER + prompt_format.turn_end, add_special_tokens=False)
    return ChatModel(ScriptedEngine(script, max_context=512), tokenizer, ModelConfig("test/scripted"))


def test_it_drives_a_chat(chat):
    stream = chat.stream(ASK)
    assert "".join(stream) == ANSWER
    assert stream.stats.finish_reason == "stop"


def test_it_drives_the_page(chat):
    with closing(build_ui(chat)) as ui:
        client = Client(launch_ui(ui), verbose=False)
        assert client.predict("Who are you?", api_name="/chat") == ANSWER


def test_it_drives_the_endpoint(chat):
    with TestClient(build_app(chat), base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/chat/completions", json={"messages": ASK}).json()
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert answer["choices"][0]["finish_reason"] == "stop"
