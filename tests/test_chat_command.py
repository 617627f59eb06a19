"""`python chat_ui.py`: its options, and the line of words that it ends in."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

import chat_command
import chat_ui
import conversion
from chat_command import begin, finish, is_loopback, parsed
from fakes import free_port
from scripted_chat import FakeChat

ROOT = Path(__file__).parents[1]


def run(arguments: list[str]) -> None:
    """What `python chat_ui.py` does with the arguments."""
    finish(begin(arguments), chat_ui.build_ui, chat_ui.launch_ui)


class FakePage:
    """A page that is over as soon as it is served."""

    def block_thread(self) -> None:
        pass


@pytest.fixture
def served(monkeypatch):
    """What the command would serve: chat, host, port and what the page asks for."""
    calls = []

    def launch(page, host, port, auth):
        calls.append((host, port, auth))
        return f"http://{host}:{port}/"

    monkeypatch.setattr(chat_command, "open_chat", lambda options, in_background: FakeChat())
    monkeypatch.setattr(chat_command, "settle", lambda chat: None)
    monkeypatch.setattr(chat_command.telemetry, "turn_off", lambda: None)
    monkeypatch.setattr(chat_command, "check_address", lambda host, port: None)
    monkeypatch.setattr(chat_ui, "build_ui", lambda chat: FakePage())
    monkeypatch.setattr(chat_ui, "launch_ui", launch)
    return calls


@pytest.fixture
def failing(monkeypatch):
    """Lets the command find a model that cannot be opened."""

    def fail_with(error: Exception) -> None:
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(chat_command, "check_address", lambda host, port: None)
        monkeypatch.setattr(chat_command, "open_chat", fail)

    return fail_with


def test_nothing_is_compiled_for_speed_before_the_page_is_served(served, monkeypatch):
    seen = []
    monkeypatch.setattr(chat_command, "settle", lambda chat: seen.append(list(served)))
    run([])
    assert seen == [[("127.0.0.1", 7860, None)]]


def test_page_is_served_to_this_machine_unless_told_otherwise(served, capsys):
    run([])
    assert served == [("127.0.0.1", 7860, None)]
    assert capsys.readouterr().err == ""


def test_open_page_without_password_is_warned_of(served, capsys):
    run(["--host", "0.0.0.0"])
    assert "no password is asked for" in capsys.readouterr().err
    run(["--host", "0.0.0.0", "--auth", "me:secret:too"])
    assert capsys.readouterr().err == ""
    assert served[-1] == ("0.0.0.0", 7860, ("me", "secret:too"))


def test_password_can_come_from_the_environment(served, monkeypatch):
    monkeypatch.setenv("LLM_CHATBOT_AUTH", "me:secret")
    run([])
    assert served == [("127.0.0.1", 7860, ("me", "secret"))]


@pytest.mark.parametrize(
    ("hosts", "local"),
    [
        (("127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"), True),
        (("0.0.0.0", "192.168.1.7", "::", "my-machine"), False),
    ],
)
def test_what_only_this_machine_reaches(hosts, local):
    assert {is_loopback(host) for host in hosts} == {local}


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "9" * 5000])
def test_port_out_of_range_is_told(capsys, port):
    with pytest.raises(SystemExit):
        run(["--port", port])
    assert "must be a number from 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("auth", ["me", "me:", ":secret"])
def test_password_without_a_name_is_refused(capsys, auth):
    with pytest.raises(SystemExit):
        run(["--auth", auth])
    assert "must be USER:PASSWORD" in capsys.readouterr().err


def test_port_that_is_taken_is_told_before_any_work(failing):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"^Error: port {port} is taken\. Choose another: --port \d+$"):
            run(["--port", str(port)])


def test_address_of_another_machine_is_told():
    with pytest.raises(SystemExit, match=r"^Error: --host 192\.0\.2\.1 is no address of this machine"):
        run(["--host", "192.0.2.1"])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("me/base has no\nchat template"), "Error: me/base has no chat template"),
        (OSError("The disk is full"), "Error: The disk is full"),
        (
            PermissionError(13, "Permission denied", "/models/x"),
            "Error: Permission denied: /models/x. LLM_CHATBOT_MODELS_DIR names the folder for models.",
        ),
        (KeyError("rope"), "Error: smollm2-135m-instruct cannot be used (KeyError: 'rope')"),
    ],
)
def test_command_ends_in_a_line_of_words(failing, error, words):
    failing(error)
    with pytest.raises(SystemExit) as end:
        run([])
    assert end.value.code == words


@pytest.mark.parametrize("engine", ["optimum", "genai"])
def test_devices_are_named_where_there_is_no_such_one(smollm2_folder, monkeypatch, engine):
    monkeypatch.setattr(conversion, "prepare_model", lambda *_, **__: smollm2_folder)
    with pytest.raises(SystemExit, match=r"^Error: This machine has no OpenVINO device 'NPUX'; there is"):
        run(["--engine", engine, "--device", "npux", "--port", str(free_port())])


@pytest.mark.parametrize("engine", ["optimum", "genai"])
def test_file_that_is_damaged_is_named(smollm2_folder, monkeypatch, tmp_path, engine):
    for file in smollm2_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "openvino_model.bin").unlink()
    (tmp_path / "openvino_model.bin").write_bytes(b"cut off")
    monkeypatch.setattr(conversion, "prepare_model", lambda *_, **__: tmp_path)
    with pytest.raises(SystemExit, match=r"^Error: .*openvino_model.bin has 7 bytes.* convert the model"):
        run(["--engine", engine, "--port", str(free_port())])


def test_endpoint_answers_in_place_of_a_model(monkeypatch):
    made = []

    class Remote(FakeChat):
        def __init__(self, base_url, model=None, api_key=None):
            super().__init__()
            made.append((base_url, model, api_key))

    monkeypatch.setitem(sys.modules, "serving", type(sys)("serving"))
    client = type(sys)("serving.client")
    client.RemoteChatModel = Remote
    monkeypatch.setitem(sys.modules, "serving.client", client)
    monkeypatch.setenv("LLM_CHATBOT_API_KEY", "key")
    options = ["--connect", "http://127.0.0.1:8000/v1", "--temperature", "0.5"]
    assert chat_command.remote_chat(parsed(options)).defaults.temperature == 0.5
    chat_command.remote_chat(parsed([*options, "--model", "big"]))
    assert made == [("http://127.0.0.1:8000/v1", None, "key"), ("http://127.0.0.1:8000/v1", "big", "key")]


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    """The command in a process of its own, without the proxies of this one."""
    inherited = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.Popen(
        [sys.executable, "chat_ui.py", *arguments],
        cwd=ROOT,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_misspelt_model_ends_the_command_with_the_nearest_name():
    with start("--model", "smollm2-135m-instrukt", "--port", str(free_port())) as command:
        _, words = command.communicate(timeout=120)
    assert command.returncode != 0
    assert words.startswith("Error: Unknown model 'smollm2-135m-instrukt'")
    assert "smollm2-135m-instruct" in words
    assert words.count("\n") == 1


class Refusing(http.server.BaseHTTPRequestHandler):
    """A proxy that forwards nothing."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_error(403)

    do_HEAD = do_POST = do_CONNECT = do_GET

    def log_message(self, *arguments) -> None:
        pass


@pytest.mark.slow
def test_proxy_and_offline_hub_are_no_trouble_and_ctrl_c_ends_it(smollm2_folder):
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    proxy.asked = []
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    port = free_port()
    environment = {
        "http_proxy": f"http://127.0.0.1:{proxy.server_port}",
        "HF_HUB_OFFLINE": "1",
        "LLM_CHATBOT_MODELS_DIR": str(smollm2_folder.parents[1]),
    }
    with start("--port", str(port), **environment) as command:
        assert f"Open http://127.0.0.1:{port}/" in command.stdout.readline()
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
        command.send_signal(signal.SIGINT)
        _, words = command.communicate(timeout=60)
    proxy.shutdown()
    assert words == "Stopped.\n"
    assert proxy.asked == []


@pytest.mark.slow
def test_ctrl_c_ends_the_command_while_it_is_still_loading(smollm2_folder, tmp_path):
    interrupted = "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "gradio.py").write_text(interrupted)  # imported while the model is being loaded
    environment = {"PYTHONPATH": str(tmp_path), "LLM_CHATBOT_MODELS_DIR": str(smollm2_folder.parents[1])}
    with start("--port", str(free_port()), **environment) as command:
        _, words = command.communicate(timeout=30)
    assert words == "Stopped.\n"


@pytest.mark.slow
def test_ctrl_c_ends_the_command_while_an_endpoint_is_silent():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with start("--connect", url, "--port", str(free_port())) as command:
            silent.accept()
            command.send_signal(signal.SIGINT)
            _, words = command.communicate(timeout=30)
    assert words == "Stopped.\n"
