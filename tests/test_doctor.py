"""The doctor finds what is wrong, says the way out, and needs nothing installed for it."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import doctor
from conftest import PROJECT
from doctor import Finding, Report, in_words, look_at_libraries, look_at_ports, look_at_proxies
from forecast import forecast
from machine import WEIGHT_BYTES, DecodingSpeed


@pytest.fixture
def lists(tmp_path):
    """Writes a list of requirements and one of tested versions."""

    def write(requirements: str, constraints: str) -> tuple[Path, Path]:
        (tmp_path / "requirements.txt").write_text(requirements)
        (tmp_path / "constraints.txt").write_text(constraints)
        return tmp_path / "requirements.txt", tmp_path / "constraints.txt"

    return write


@pytest.fixture
def installed(monkeypatch):
    """Lets these versions be installed, and nothing else."""

    def install(**versions: str) -> None:
        def version(name: str) -> str:
            if name.replace("-", "_") not in versions:
                raise doctor.PackageNotFoundError(name)
            return versions[name.replace("-", "_")]

        monkeypatch.setattr(doctor, "version", version)

    return install


def test_all_in_the_tested_versions_is_well(lists, installed):
    installed(numpy="2.4.6", hugging_hub="1.0", torch="2.13.0+cpu")
    found = look_at_libraries(
        *lists(
            "# all\nnumpy\nhugging-hub~=1.0  # note\ntorch\n",
            "Hugging_Hub==1.0\nnumpy==2.4.6\ntorch==2.13.0\n",
        )
    )
    assert found == Finding("Libraries", "3 of 3 installed, in the versions that are tested")


def test_what_is_missing_is_named_with_the_command(lists, installed):
    installed(numpy="2.4.6")
    found = look_at_libraries(*lists("numpy\nopenvino\ntqdm\n", "numpy==2.4.6\nopenvino==2026.4.1\n"))
    assert found.value == "1 of 3 installed; missing: openvino, tqdm"
    assert found.way_out.endswith("pip install -r requirements.txt -c constraints.txt")


def test_another_version_than_the_tested_one_is_named(lists, installed):
    installed(numpy="2.0.0")
    found = look_at_libraries(*lists("numpy\n", "numpy==2.4.6\n"))
    assert found.value == "1 of 1 installed; numpy 2.0.0 instead of 2.4.6"
    assert "tested versions" in found.way_out


def test_the_projects_own_lists_can_be_read(installed):
    installed()
    assert look_at_libraries().value.startswith("0 of ")


@pytest.mark.parametrize(
    ("environment", "value", "helped"),
    [
        ({}, "no variable is set", False),
        ({"HTTP_PROXY": ""}, "no variable is set", False),
        ({"HTTPS_PROXY": "http://me:secret@proxy"}, "https_proxy set, for local addresses too", True),
        (
            {"http_proxy": "p", "NO_PROXY": "localhost, 127.0.0.1"},
            "http_proxy set; local addresses go past it",
            False,
        ),
        ({"all_proxy": "p", "no_proxy": "*"}, "all_proxy set; local addresses go past it", False),
        ({"all_proxy": "p", "no_proxy": "localhost"}, "all_proxy set, for local addresses too", True),
    ],
)
def test_a_proxy_must_let_local_addresses_pass(environment, value, helped):
    found = look_at_proxies(environment)
    assert (found.value, bool(found.way_out)) == (value, helped)


def test_a_port_that_is_taken_is_named():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert look_at_ports({port: "the chat page"}).value == f"taken: {port} (the chat page)"
    assert look_at_ports({port: "the chat page"}) == Finding("Ports", f"{port} free")


def test_a_container_that_leaves_less_than_the_machine_is_told(monkeypatch):
    import psutil

    import workspace

    monkeypatch.setattr(workspace, "available_memory", lambda: 1_000_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"total": 8e9, "available": 6e9}))
    left, found = doctor.memory_left()
    assert left == 1_000_000_000
    assert (
        found.value == "1.0 GB available of 8.0 GB; the container leaves less than the 6.0 GB of the machine"
    )
    assert "container's limit" in found.way_out


def test_a_machine_without_proc_has_memory_too(monkeypatch):
    import psutil

    import workspace

    monkeypatch.setattr(workspace, "available_memory", lambda: None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"total": 8e9, "available": 6e9}))
    assert doctor.memory_left() == (6e9, Finding("Memory", "6.0 GB available of 8.0 GB"))


def test_room_is_looked_at_where_the_folders_will_be(tmp_path):
    room, _, disk = doctor.look_at_room(tmp_path / "not" / "yet", tmp_path)
    assert room.one_disk
    assert room.models == pytest.approx(doctor.shutil.disk_usage(tmp_path).free, rel=0.1)
    assert "downloads included" in disk.value


@pytest.mark.parametrize("place", ["a file", "no right to write"])
def test_a_folder_that_cannot_be_written_is_named(place, tmp_path, monkeypatch):
    models = tmp_path / "models"
    if place == "a file":
        models.touch()
    else:
        models.mkdir()
        monkeypatch.setattr(doctor.os, "access", lambda folder, right: folder != models)
    _, _, disk = doctor.look_at_room(models, tmp_path)
    assert disk.value.endswith(f"; nothing can be written into {models}")
    assert "LLM_CHATBOT_MODELS_DIR" in disk.way_out


def test_nothing_is_measured_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(doctor, "memory_bandwidth", lambda: pytest.fail("measured"))
    speeds, (found,) = doctor.look_at_speed(1e9)
    assert speeds == {}
    assert found.value == "not measured: that takes 2.0 GB of memory"


@pytest.mark.parametrize(("busy", "said"), [(5.0, False), (100.0, True)])
def test_a_processor_that_was_busy_before_anything_was_measured_is_told(monkeypatch, busy, said):
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: busy)
    monkeypatch.setattr(doctor, "memory_bandwidth", lambda: 33e9)
    monkeypatch.setattr(doctor, "decoding_speed", lambda precision: DecodingSpeed(7e-5, 4e10))
    found = doctor.look_at_speed(16e9)[1][0].value
    assert found.startswith("33 GB/s")
    assert ("busy already (100%)" in found) == said


def test_a_full_disk_keeps_only_the_speed_from_being_measured(monkeypatch):
    import openvino

    def save_model(*_, **__):
        raise RuntimeError("disk full")

    monkeypatch.setattr(openvino, "save_model", save_model)
    monkeypatch.setattr(doctor, "memory_bandwidth", lambda: 33e9)
    speeds, (found,) = doctor.look_at_speed(16e9)
    assert speeds == {}
    assert "0.3 GB of temporary files: disk full" in found.value


def run(*arguments: str, flags: tuple[str, ...] = ()) -> str:
    command = [sys.executable, *flags, "doctor.py", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_any_library_it_says_what_is_missing():
    """Without site-packages: as in an environment that has just been made."""
    report = run(flags=("-S", "-E", "-s"))
    assert "missing: accelerate, " in report
    assert report.splitlines()[-1].startswith("Install what is missing: ")
    assert "Traceback" not in report


def test_an_older_python_is_told_before_anything_is_imported():
    code = "import sys; sys.version_info = (3, 9); sys.modules['forecast'] = None; import doctor"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Python 3.11 or newer is needed, this is 3.")


def test_as_json_without_any_library():
    report = json.loads(run("--json", flags=("-S", "-E", "-s")))
    assert {finding["name"] for finding in report["findings"]} >= {"Python", "Libraries", "Memory", "Ports"}
    assert {one["precision"] for one in report["outlooks"]} == set(WEIGHT_BYTES)


def test_the_whole_report_needs_neither_torch_nor_transformers():
    code = """
import sys
for name in ("torch", "transformers", "optimum", "nncf", "gradio"):
    sys.modules[name] = None
import doctor, machine
machine.NARROW, machine.WIDE = (64, 4), dict.fromkeys(machine.WEIGHT_BYTES, (256, 4))
doctor.memory_bandwidth = lambda: 33e9
sys.argv = ["doctor.py"]
doctor.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for expected in ("Memory speed  33 GB/s", "One token     FP16 ", "| smollm2-135m-instruct", "make chat"):
        assert expected in done.stdout
    assert "not looked at" not in done.stdout and "?" not in done.stdout


def test_problems_are_marked_with_their_way_out():
    speeds = {precision: DecodingSpeed(7e-5, 4e10) for precision in WEIGHT_BYTES}
    room = doctor.Room(16e9, 1e12, 1e12, True)
    findings = [Finding("Python", "3.11"), Finding("Ports", "taken: 7860", "Stop what runs there.")]
    lines = in_words(Report(findings, forecast(room, speeds), "Start.")).splitlines()
    assert lines[:3] == ["  Python  3.11", "! Ports   taken: 7860", "          -> Stop what runs there."]
    assert lines[-1] == "Start."
