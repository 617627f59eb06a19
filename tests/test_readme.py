"""The README's recipes run as they stand, and its model table is the catalogue."""

import os
import re
import subprocess
import sys

import pytest

from config import SUPPORTED_MODELS
from conftest import MODELS_DIR, PROJECT
from tiny_checkpoints import make_tiny_checkpoint

README = (PROJECT / "README.md").read_text()
RECIPES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(code: str, folder) -> str:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path, smollm2_folder):
    """A working folder as a reader has it: converted models, and a checkpoint of their own."""
    (tmp_path / "models").symlink_to(MODELS_DIR)
    return tmp_path


def test_six_recipes_are_found():
    assert len(RECIPES) == 6


@pytest.mark.slow
def test_recipe_stream(folder):
    assert "Python" in run(RECIPES[0], folder)


@pytest.mark.slow
def test_recipe_stop(folder):
    assert "finish_reason='cancelled'" in run(RECIPES[1], folder)


@pytest.mark.slow
def test_recipe_own_checkpoint(tmp_path):
    make_tiny_checkpoint(tmp_path / "my-checkpoint", "mpt")
    assert run(RECIPES[2], tmp_path).strip()


@pytest.mark.slow
def test_recipe_mounted_page_and_its_api(folder):
    """The page of one recipe answers the client of the next."""
    serve = """
import threading, time, uvicorn
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    time.sleep(0.05)
address = "http://127.0.0.1:%d/chat" % server.servers[0].sockets[0].getsockname()[1]
"""
    ask = RECIPES[4].replace('"http://127.0.0.1:7860"', "address")
    serve_and_ask = RECIPES[3] + serve + ask
    assert "OpenVINO" in run(serve_and_ask, folder)


@pytest.mark.slow
def test_recipe_several_people_at_once(folder):
    assert "Python" in run(RECIPES[5], folder)


def test_model_table_is_the_catalogue():
    rows = re.findall(
        r"^\| `([a-z0-9.-]+)`(?: \(default\))? \| \[(.+?)\]\((.+?)\)", README, flags=re.MULTILINE
    )
    assert [(name, model_id) for name, model_id, _ in rows] == [
        (name, entry.model_id) for name, entry in SUPPORTED_MODELS.items()
    ]
    assert all(url == f"https://huggingface.co/{model_id}" for _, model_id, url in rows)


def test_plain_commands_match_the_makefile():
    makefile = (PROJECT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    for command in (
        ".venv/bin/python chat_ui.py",
        ".venv/bin/jupyter lab llm_chatbot.ipynb",
        ".venv/bin/python -m pytest",
    ):
        assert command in README and command in makefile
