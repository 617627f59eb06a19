"""A converted folder: where it lies, whether it is whole, loading it."""

import hashlib
import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import openvino
import pytest
from transformers import Phi3Config

from conftest import EXACT, MODEL_FILES
from model_folder import (
    REQUIRED_FILES,
    check_device,
    check_folder,
    load_model,
    model_folder,
    model_limits,
    newer_libraries,
    precision_of,
    sampling_defaults,
    source_name,
    state_of,
    vocabulary_size,
    write_manifest,
)
from sampling import SamplingParams


@pytest.mark.parametrize(
    ("precision", "folder"),
    [("FP16", "FP16"), ("INT8", "INT8_compressed_weights"), ("INT4", "INT4_compressed_weights")],
)
def test_precisions_have_their_documented_folders(precision, folder):
    assert model_folder("qwen3-4b", precision, "somewhere") == Path("somewhere/qwen3-4b", folder)


def test_hub_ids_and_paths_become_one_folder_name_with_a_hash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "My model").mkdir(parents=True)
    assert re.fullmatch(r"models/owner--name-[0-9a-f]{8}/FP16", model_folder("owner/name", "FP16").as_posix())
    assert re.fullmatch(r"models/My model-[0-9a-f]{8}/FP16", model_folder("deep/My model", "FP16").as_posix())


def test_the_models_folder_may_begin_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_folder("qwen3-4b", "FP16", "~/models") == tmp_path / "models/qwen3-4b/FP16"


def test_two_checkpoints_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("a", "b", "."):
        (tmp_path / place / "my-model").mkdir(parents=True)
        (tmp_path / place / "qwen3-4b-copy").mkdir()
    (tmp_path / "b/qwen3-4b").mkdir()
    names = ["a/my-model", "b/my-model", "my-model", "b/qwen3-4b", "owner/qwen3-4b", "qwen3-4b"]
    names += ["Qwen/Qwen3-4B", "owner/name@a/b", "owner/name@a--b", "owner--x/name", "owner/x--name"]
    folders = [model_folder(name, "INT8") for name in names]
    folders += [model_folder("qwen3-4b", "INT8", checkpoint=place) for place in ("a/my-model", "b/my-model")]
    assert len({str(folder).lower() for folder in folders}) == len(folders)


def test_one_checkpoint_has_one_folder_however_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "my-model").mkdir()
    names = ("my-model", "./my-model", "deep/../my-model", str(tmp_path / "my-model"))
    assert len({model_folder(name, "INT8", tmp_path) for name in names}) == 1
    assert len({model_folder("qwen3-4b", "INT8", tmp_path, name) for name in names}) == 1


# Loading


@pytest.fixture
def copy(converted, tmp_path) -> Path:
    """A converted folder to damage."""
    return shutil.copytree(converted("llama", "INT8"), tmp_path / "copy")


def test_loaded_model_computes_and_its_tokenizer_speaks_its_language(converted):
    model, tokenizer = load_model(converted("llama", "INT8"), ov_config=EXACT)
    inputs = tokenizer("Who are you?", return_tensors="pt")
    assert model(**inputs).logits.shape == (1, inputs["input_ids"].shape[1], len(tokenizer))
    assert model.request.get_compiled_model().get_property("KV_CACHE_PRECISION") == openvino.Type.f32


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere.*prepare_model"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("name", sorted(MODEL_FILES - {"conversion.json"}))
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing\. Delete it and convert the model again"):
        load_model(copy)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_missing_file_is_named_also_in_a_folder_made_by_others(copy, name):
    (copy / "conversion.json").unlink()
    (copy / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        load_model(copy)


def test_truncated_weights_are_noticed(copy):
    weights = copy / "openvino_model.bin"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"has {len(content) - 1} bytes instead of {len(content)}"):
        load_model(copy)


def test_a_tokenizer_that_was_exchanged_for_one_of_the_same_size_is_noticed(copy):
    file = copy / "openvino_tokenizer.xml"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"#")
    with pytest.raises(ValueError, match=r"openvino_tokenizer\.xml is not the one that was written for it"):
        check_folder(copy)


def test_an_unreadable_manifest_is_noticed(copy):
    (copy / "conversion.json").write_text("{")
    with pytest.raises(ValueError, match=r"conversion\.json cannot be read"):
        load_model(copy)


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin"])
def test_damage_in_a_folder_made_by_others_is_a_clear_error_too(copy, name):
    (copy / "conversion.json").unlink()
    (copy / name).write_bytes(b"garbage")
    with pytest.raises(ValueError, match=rf"OpenVINO cannot load {copy} on CPU"):
        load_model(copy)


@pytest.mark.parametrize("device", ["NPU", "GPU.1", "cpu", "", "MADEUP:CPU"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(converted, device):
    if device.split(".")[0] in openvino.Core().available_devices:
        pytest.skip(f"this machine has {device}")
    with pytest.raises(ValueError, match=f"no OpenVINO device '{device}'; there is .*CPU.* and AUTO"):
        load_model(converted("llama", "INT8"), device)


def test_an_unknown_property_is_a_clear_error(converted):
    with pytest.raises(ValueError, match=r"(?s)cannot load .* on CPU.*NONSENSE"):
        load_model(converted("llama", "INT8"), ov_config={"NONSENSE": "1"})


def accepted(device: str) -> bool:
    try:
        check_device(device)
    except ValueError:
        return False
    return True


def test_devices_have_families_and_may_be_combined(monkeypatch):
    core = SimpleNamespace(available_devices=["CPU", "GPU.0", "GPU.1"])
    monkeypatch.setattr(openvino, "Core", lambda: core)
    fine = ["CPU", "GPU", "GPU.1", "AUTO", "AUTO:GPU,CPU", "HETERO:GPU,CPU", "MULTI:CPU", "GPU:0"]
    assert [device for device in fine if not accepted(device)] == []
    assert not any(map(accepted, ["GPU.2", "NPU", "cpu", ""]))


def test_loading_does_not_compile_yet(converted):
    model, _ = load_model(converted("llama", "INT8"))
    assert model.request is None


def test_a_folder_may_begin_with_a_tilde(copy, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    assert check_folder("~/copy") == copy


def test_code_that_a_folder_brings_along_is_not_run(copy, tmp_path):
    (copy / "conversion.json").unlink()
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = json.loads((copy / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (copy / "config.json").write_text(json.dumps(settings | {"auto_map": own}))
    load_model(copy)
    assert not (tmp_path / "ran").exists()


# What a folder was made from

MADE_FROM = {"source": "test/model", "template": "x", "revision": "abc"}


@pytest.fixture
def made(tmp_path) -> Path:
    """A folder with all files that it must have, each of one byte, and their manifest."""
    for name in REQUIRED_FILES:
        (tmp_path / name).write_text("x")
    write_manifest(tmp_path, MADE_FROM)
    return tmp_path


@pytest.mark.parametrize(
    ("says", "revision", "state"),
    [
        ({}, None, "current"),
        ({"source": "test/model", "template": "x"}, "abc", "current"),
        ({"template": "y"}, "abc", "tokenizer"),
        ({"template": "y", "stop_strings": ["END"]}, "abc", "tokenizer"),
        ({"template": "y", "source": "other/model"}, "abc", "stale"),
        ({"source": "other/model"}, None, "stale"),
        ({}, "def", "stale"),
    ],
)
def test_a_folder_is_current_where_its_manifest_says_what_it_must(made, says, revision, state):
    assert state_of(made, says, revision) == state


def test_a_folder_stays_current_when_its_manifest_is_written_once_more(made):
    write_manifest(made, MADE_FROM | {"template": "a longer one"})
    assert state_of(made, {"template": "a longer one"}, None) == "current"


def test_the_model_s_own_files_are_known_by_their_sizes_and_all_others_by_their_content_too(made):
    (made / "folder").mkdir()
    write_manifest(made, MADE_FROM)
    manifest = json.loads((made / "conversion.json").read_text())
    assert manifest["files"] == dict.fromkeys(REQUIRED_FILES, 1)
    others = {name for name in REQUIRED_FILES if not name.startswith("openvino_model.")}
    assert manifest["digests"] == dict.fromkeys(others, hashlib.sha256(b"x").hexdigest())


def test_a_damaged_folder_or_one_without_a_manifest_is_stale(made):
    (made / REQUIRED_FILES[0]).write_text("xx")
    assert state_of(made, {}, None) == "stale"
    (made / "conversion.json").unlink()
    assert state_of(made, {}, None) == "stale"


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        (None, None),
        ({"nncf": version("nncf")}, None),
        ({"nncf": "99.0"}, None),  # it is older here
        ({"nncf": "0.1", "no-longer-counted": "0.1"}, f"nncf 0.1 ({version('nncf')} is installed)"),
    ],
)
def test_libraries_that_have_become_newer_are_named(made, versions, words):
    manifest = json.loads((made / "conversion.json").read_text())
    (made / "conversion.json").write_text(json.dumps(manifest | {"versions": versions}))
    assert newer_libraries(made) == words


def test_the_precision_of_a_folder_of_ours_is_what_its_manifest_says(made):
    write_manifest(made, MADE_FROM | {"precision": "INT4"})
    assert precision_of(made) == "INT4"


@pytest.mark.parametrize(
    ("constants", "precision"),
    [
        ([("u4", "8,2"), ("f16", "3")], "INT4"),
        ([("i8", "9"), ("f32", "8")], "INT8"),
        ([("bf16", "4"), ("f16", "3")], "BF16"),
        ([("f16", "3")], "FP16"),
        ([], "unknown"),
    ],
)
def test_the_precision_of_a_folder_made_by_others_is_that_of_most_numbers(tmp_path, constants, precision):
    lines = [f'<data element_type="{kind}" shape="{shape}" offset="0" />\n' for kind, shape in constants]
    (tmp_path / "openvino_model.xml").write_text("<net>\n" + "".join(lines))
    assert precision_of(tmp_path) == precision


def test_the_context_of_longrope_ends_where_its_frequencies_change():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    assert model_limits({"max_position_embeddings": 131072, "rope_parameters": rope}, {})[0] == 4096
    old = {"type": "longrope", "short_factor": [1.0]}  # as configurations were written before transformers 5
    settings = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    assert model_limits(settings | {"rope_scaling": old}, {})[0] == 4096
    assert model_limits({"max_position_embeddings": 131072, "rope_scaling": old}, {})[0] == 131072
    default = Phi3Config(max_position_embeddings=131072).to_dict()
    assert model_limits(default, {})[0] == 131072


@pytest.mark.parametrize(
    "name", ["max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"]
)
def test_the_context_length_has_several_names(name):
    assert model_limits({name: 77}, {})[0] == 77
    assert model_limits({"text_config": {name: 77}}, {})[0] == 77
    assert model_limits({}, {})[0] is None


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": None}, set()),
        ({"eos_token_id": 0}, {0}),
        ({"eos_token_id": [3, 5]}, {3, 5}),
        ({"bos_token_id": 1}, set()),
        ({}, {9}),  # without a generation_config.json, config.json says it
    ],
    ids=str,
)
def test_end_ids_may_be_none_one_or_several(generation, expected):
    assert model_limits({"eos_token_id": 9}, generation)[1] == expected
    assert model_limits({"text_config": {"eos_token_id": 9}}, generation)[1] == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"vocab_size": 5}, 5), ({"vocab_size": 5, "text_config": {"vocab_size": 7}}, 7), ({}, None)],
)
def test_the_size_of_the_vocabulary_is_the_text_model_s(settings, expected):
    assert vocabulary_size(settings) == expected


def test_sampling_defaults_are_what_the_generation_config_recommends():
    given = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1}
    expected = SamplingParams(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, repetition_penalty=1.1)
    assert sampling_defaults(given | {"repetition_penalty": 1.1, "bos_token_id": 1}) == expected
    assert sampling_defaults({}) == SamplingParams()
    assert (
        sampling_defaults({"top_p": "0.9", "top_k": -1, "repetition_penalty": 0.9, "temperature": None})
        == SamplingParams()
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0.0, "min_p": 0.0, "top_p": 1.0}, {"temperature": 0, "min_p": 0, "top_p": 1}),
        ({"temperature": 2.0, "repetition_penalty": 2.0}, {"temperature": 2, "repetition_penalty": 2}),
        ({"temperature": 2.5, "top_p": 1.1, "min_p": -0.1}, {}),
        ({"top_k": 20.0}, {"top_k": 20}),
        ({"max_new_tokens": 5, "seed": 7, "stop": ["x"]}, {}),  # are no recommendations
    ],
    ids=str,
)
def test_recommended_sampling_counts_within_its_bounds(given, expected):
    found = sampling_defaults(given)
    assert found == SamplingParams(**expected)
    assert type(found.top_k) is int


def test_a_name_means_the_same_in_every_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    names = ["here", "~/here", "owner/name", "/no/such/folder"]
    here = str((tmp_path / "here").resolve())
    assert [source_name(name) for name in names] == [here, here, "owner/name", "/no/such/folder"]
