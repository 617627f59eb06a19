"""Downloads from an imitated Hub, and the files that are there.

Each runs in a process of its own, since huggingface_hub reads its environment variables when it is imported.
"""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fake_hub import FakeHub

ROOT = Path(__file__).parents[1]

METADATA = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b'{"eos_token_id": 2}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"eos_token": "</s>"}',
}


def weights(content: bytes, suffix: str = "safetensors") -> bytes:
    """A whole file of weights that tells which one it is."""
    if suffix == "bin":  # as PyTorch wrote it before 1.6
        return b"\x80\x02" + content
    tensor = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    header = json.dumps({"content": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + content


def sharded(name: str, suffix: str) -> dict[str, bytes]:
    shards = [f"{name}-{number:05}-of-00002.{suffix}" for number in (1, 2)]
    weight_map = {"embedding": shards[0], "head": shards[1], "norm": shards[1]}
    index = json.dumps({"weight_map": weight_map}).encode()
    parts = (weights(words * 100, suffix) for words in (b"first", b"second"))
    return {f"{name}.{suffix}.index.json": index} | dict(zip(shards, parts, strict=True))


SINGLE = {"model.safetensors": weights(b"weights" * 100)}
SHARDED = sharded("model", "safetensors")
SHARDED_BIN = sharded("pytorch_model", "bin")
LAST_SHARD = "model-00002-of-00002.safetensors"

REPO = "someone/chatbot"
FULL_DISK = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(9e9, 8.5e9, 0.5e9)"
FETCH = """
import json, sys
from model_source import fetch_checkpoint
for model in sys.argv[1:]:
    try:
        print(json.dumps(["", str(fetch_checkpoint(model))]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


class Outcome(NamedTuple):
    error: str
    text: str  # the message, or the folder if there is no error


def run_python(script: str, *arguments: object, **environment: str) -> subprocess.Popen:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env=inherited | {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def hub():
    hub = FakeHub()
    yield hub
    hub.stop()


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "hf_home"


@pytest.fixture
def fetch(hub, home):
    def fetch(*models: str, before: str = "", **environment: str) -> Outcome | list[Outcome]:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        process = run_python(before + FETCH, *(models or [REPO]), **settings | environment)
        outcomes = [Outcome(*json.loads(line)) for line in process.communicate()[0].splitlines()]
        return outcomes if len(models) > 1 else outcomes[0]

    return fetch
