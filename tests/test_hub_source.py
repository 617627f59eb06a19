"""Checkpoints on the Hub: what is fetched, what an interrupted download leaves, which revision counts."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

import hub_source
from config import ModelConfig
from hub_downloads import (
    FULL_DISK,
    LAST_SHARD,
    METADATA,
    REPO,
    SHARDED,
    SHARDED_BIN,
    SINGLE,
    weights,
)
from model_source import (
    checkpoint_revision,
)


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
