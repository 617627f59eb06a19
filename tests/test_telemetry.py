"""Nothing leaves this machine: every attempt of Python code to reach another one is noted, and stopped.

Runs in processes of its own with a fresh home folder, as on the first day of a user. HF_HUB_OFFLINE is not
set, and neither is CI, which would keep OpenVINO silent anyway.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import conversion
import telemetry

ROOT = Path(__file__).parents[1]

# Written to a file, since OpenVINO and NNCF report from child processes.
RECORD = """
import os, socket, sys

def watched(call, address_of):
    def wrapper(*arguments, **named):
        address = address_of(*arguments, **named)
        host = address[0] if isinstance(address, tuple) else None  # None: a socket of this machine's own
        if isinstance(host, bytes):
            host = host.decode()
        if host not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::"):
            with open(os.environ["ATTEMPTS"], "a") as attempts:
                attempts.write(f"{host}\\n")
            raise OSError(f"{host} is out of reach in this test")
        return call(*arguments, **named)
    return wrapper

for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, watched(getattr(socket.socket, name), lambda self, address: address))
socket.socket.sendto = watched(socket.socket.sendto, lambda self, *arguments: arguments[-1])
socket.getaddrinfo = watched(socket.getaddrinfo, lambda host, *_, **__: (host,))
"""

WHOLE_WAY = """
import telemetry
telemetry.turn_off()

import conversion
from chat import ChatModel, SamplingParams
from chat_ui import build_ui, launch_ui
from config import get_model_config

checkpoint, models_dir = sys.argv[1:]
folder = conversion.prepare_model("llama-2-chat-7b", "INT8", models_dir, checkpoint)
chat = ChatModel(*conversion.load_model(folder), get_model_config("llama-2-chat-7b"))
chat.generate([{"role": "user", "content": "Hi"}], SamplingParams(max_new_tokens=3))
page = build_ui(chat)
launch_ui(page)
page.close()
print("openvino" in sys.modules, "nncf" in sys.modules, "gradio" in sys.modules)
"""


def outside_attempts(tmp_path: Path, script: str, *arguments: object) -> tuple[str, list[str]]:
    """What a script prints, and the hosts it tried to reach."""
    attempts = tmp_path / "attempts"
    attempts.touch()
    silencing = ("CI", "HF_", "HUGGING", "GRADIO", "DO_NOT_TRACK")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(silencing) and not name.lower().endswith("_proxy")
    }
    output = subprocess.check_output(
        [sys.executable, "-c", RECORD + script, *map(str, arguments)],
        cwd=ROOT,
        env=environment | {"HOME": str(tmp_path), "ATTEMPTS": str(attempts)},
        text=True,
    )
    return output, attempts.read_text().split()


@pytest.mark.slow
def test_converting_loading_chatting_and_serving_reach_nobody(tiny_checkpoints, tmp_path):
    output, hosts = outside_attempts(tmp_path, WHOLE_WAY, tiny_checkpoints["llama"], tmp_path / "models")
    assert hosts == []
    assert output.splitlines()[-1] == "True True True"
    assert not (tmp_path / "intel").exists()  # where OpenVINO keeps the id it gives its users


@pytest.mark.slow
def test_the_process_of_genai_engine_reaches_nobody(tiny_checkpoints, tmp_path):
    folder = conversion.prepare_model(
        "llama-2-chat-7b", "FP16", tmp_path / "models", tiny_checkpoints["llama"]
    )
    script = """
import genai_worker
from genai_process import Settings
genai_worker.load(Settings(sys.argv[1], "CPU", {}, 1))
print("openvino_genai" in sys.modules)
"""
    output, hosts = outside_attempts(tmp_path, script, folder)
    assert hosts == []
    assert output.splitlines()[-1] == "True"


@pytest.mark.slow
def test_without_turning_it_off_there_would_be_reports(tmp_path):
    script = "import openvino, nncf; print(sys.modules['openvino_telemetry'] is not None)"
    output, hosts = outside_attempts(tmp_path, script)
    assert output.splitlines()[-1] == "True"
    assert "www.google-analytics.com" in hosts


def test_a_request_to_another_machine_is_noted(tmp_path):
    script = """
import urllib.request
try:
    urllib.request.urlopen("http://reports.example/")
except OSError as error:
    print(error)
"""
    output, hosts = outside_attempts(tmp_path, script)
    assert hosts == ["reports.example"]
    assert "out of reach" in output


def test_turning_off_reaches_the_settings_of_gradio_and_the_hub(monkeypatch):
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setattr(telemetry.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    telemetry.turn_off()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert telemetry.constants.HF_HUB_DISABLE_TELEMETRY is True
    with pytest.raises(ImportError):
        import openvino_telemetry  # noqa: F401
