"""OpenVINO IR that is there already is used as it is."""

import json
import shutil
from pathlib import Path

import pytest

import conversion
from checkpoint_files import fingerprint
from config import DEFAULT_MODEL, SUPPORTED_MODELS, ModelConfig
from conftest import EXACT
from conversion import load_model, prepare_model, prepare_models
from hub_source import constants
from model_folder import precision_of
from ready_made import find_ready_made
from tokenizer_check import TOKENIZER_IR, folder_differences


@pytest.fixture(autouse=True)
def no_conversion(converted, monkeypatch) -> None:
    """What the tests start from is made; from now on nothing is converted."""
    for family, precision in (("llama", "INT4"), ("llama", "INT8"), ("gpt_neox", "INT8")):
        converted(family, precision)
    for step in ("export_fp16", "compress_weights"):
        monkeypatch.setattr(conversion, step, lambda *_, **__: pytest.fail("converted again"))


@pytest.fixture
def ready(converted, tmp_path) -> Path:
    """A folder as optimum-cli makes it, at INT4."""
    folder = shutil.copytree(converted("llama", "INT4"), tmp_path / "ready")
    (folder / "conversion.json").unlink()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_ready_made_folder_is_used_where_it_lies(ready, tmp_path):
    assert prepare_model(str(ready), "INT4", tmp_path / "models") == ready
    assert not (tmp_path / "models").exists()


def test_one_of_our_folders_can_be_named_too(converted, tmp_path):
    folder = converted("llama", "INT8")
    assert prepare_model(str(folder), "INT8", tmp_path / "models") == folder


def test_a_precision_that_contradicts_it_is_said(ready, tmp_path, caplog):
    assert prepare_models(str(ready), ["INT8", "INT4"], tmp_path) == {"INT8": ready, "INT4": ready}
    assert [record.getMessage() for record in caplog.records] == [
        f"{ready} is converted already and used as it is: INT4, not INT8."
    ]


def test_it_can_stand_in_for_a_catalogue_model(ready, tmp_path):
    assert prepare_model("llama-2-chat-7b", "INT4", tmp_path / "models", ready) == ready


@pytest.mark.parametrize("missing", [TOKENIZER_IR, ("tokenizer_config.json",)], ids=str)
def test_what_the_tokenizer_lacks_is_made_in_a_copy(ready, tmp_path, missing):
    for name in missing:
        (ready / name).unlink()
    before = content(ready)
    copy = prepare_model(str(ready), "INT4", tmp_path / "models")
    assert copy != ready
    assert content(ready) == before
    assert {*TOKENIZER_IR, "tokenizer_config.json", "conversion.json"} <= content(copy).keys()
    assert precision_of(copy) == "INT4"
    made = (copy / "conversion.json").stat().st_mtime_ns
    assert prepare_model(str(ready), "INT4", tmp_path / "models") == copy
    assert (copy / "conversion.json").stat().st_mtime_ns == made  # not again
    model, tokenizer = load_model(copy, ov_config=EXACT)
    assert model(**tokenizer("Who are you?", return_tensors="pt")).logits.ndim == 3


def test_the_tokenizer_of_another_model_is_not_used_but_made_anew(ready, converted, tmp_path, caplog):
    other = converted("gpt_neox", "INT8")
    for file in other.glob("openvino_*tokenizer.*"):
        shutil.copy(file, ready)
    folder = prepare_model(str(ready), "INT4", tmp_path / "models")
    assert folder != ready
    assert folder_differences(folder) == []
    assert "is not that of its tokenizer.json, which is used" in caplog.text


def test_a_copy_follows_its_original(ready, tmp_path):
    (ready / TOKENIZER_IR[0]).unlink()
    copy = prepare_model(str(ready), "INT4", tmp_path / "models")
    (ready / "generation_config.json").write_text(json.dumps({"eos_token_id": 77}))
    assert prepare_model(str(ready), "INT4", tmp_path / "models") == copy
    assert json.loads((copy / "generation_config.json").read_text())["eos_token_id"] == 77


def test_weights_beside_the_ir_count_first(ready, tiny_checkpoints, tmp_path):
    shutil.copy(tiny_checkpoints["llama"] / "model.safetensors", ready)
    with pytest.raises(pytest.fail.Exception, match="converted again"):
        prepare_model(str(ready), "INT4", tmp_path / "models")


def test_ir_without_weights_is_refused(ready, tmp_path):
    (ready / "openvino_model.bin").unlink()
    with pytest.raises(ValueError, match=r"has no openvino_model\.bin"):
        prepare_model(str(ready), "INT4", tmp_path / "models")


def test_a_whole_copy_in_the_cache_of_the_hub_is_used_without_the_network(ready, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = shutil.copytree(ready, tmp_path / "hub/models--OpenVINO--ready/snapshots/abc")
    assert prepare_model("OpenVINO/ready", "INT4", tmp_path / "models") == snapshot


def test_what_lies_on_this_disk_is_found_with_its_state(ready, tmp_path, monkeypatch):
    assert find_ready_made(str(ready)) == (ready, fingerprint(ready))
    assert find_ready_made(ModelConfig(str(ready))) == (ready, fingerprint(ready))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = shutil.copytree(ready, tmp_path / "hub/models--OpenVINO--ready/snapshots/abc")
    assert find_ready_made("OpenVINO/ready") == (snapshot, "abc")


def test_nothing_is_found_where_there_is_no_ir(tiny_checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    nowhere = [
        str(tiny_checkpoints["llama"]),
        "OpenVINO/nothing",
        str(tmp_path / "nowhere"),
        "/no/such/folder",
    ]
    assert [find_ready_made(name) for name in nowhere] == [None] * 4
    assert find_ready_made(SUPPORTED_MODELS[DEFAULT_MODEL]) is None  # it comes as GGUF
