"""From a checkpoint to a folder that OpenVINO runs: tiny checkpoints, and the default model's tokenizer."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from safetensors.torch import load as load_weights
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import conversion
import hub_source
import workspace
from checkpoint import Weights, look
from config import ModelConfig
from conftest import EXACT, MODEL_FILES, NAMES
from conversion import FOLDER_NAMES, load_model, prepare_model, prepare_models
from fake_hub import FakeHub
from hub_source import HubCheckpoint
from model_folder import REQUIRED_FILES, model_folder
from model_source import FoundCheckpoint
from peak_memory import peak_memory
from tiny_checkpoints import FAMILIES, make_tiny_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture
def instant_export(monkeypatch) -> list[str]:
    """Replaces the export by one that writes empty files; holds the names of the checkpoints exported."""
    exported = []

    def export(checkpoint_folder: Path, output: Path, config: ModelConfig) -> dict:
        exported.append(checkpoint_folder.name)
        for name in REQUIRED_FILES:
            (output / name).touch()
        return {"template": None, "eos_token_id": []}

    monkeypatch.setattr(conversion, "export_fp16", export)
    return exported


@pytest.fixture
def no_work(monkeypatch) -> None:
    """Whoever fetches, exports or compresses fails the test."""

    def fail(*_, **__):
        pytest.fail("work was done")

    for step in ("find_checkpoint", "fetch_weights", "export_fp16", "compress_weights"):
        monkeypatch.setattr(conversion, step, fail)


def visible_names(folder: Path) -> list[str]:
    """What is in a folder, the lock files aside: those stay and are empty."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def differences(folder: Path, other: Path) -> list[str]:
    """The names of the files that are not in both folders or not the same.

    OpenVINO numbers new operations through as long as a process lives: Constant_17 may become Constant_18.
    """

    def content(file: Path) -> object:
        if file.name == "conversion.json":
            manifest = json.loads(file.read_text())
            sizes, digests = manifest.pop("files"), manifest.pop("digests")
            same = {name: (sizes[name], digests.get(name)) for name in sizes if not name.endswith(".xml")}
            return manifest, same, sizes.keys()
        numbered = rb"(?<=[a-z0-9]_)\d+|(?<=Model)\d+" if file.suffix == ".xml" else rb"(?!)"
        return re.sub(numbered, b"", file.read_bytes())

    files, others = ({file.name: content(file) for file in place.iterdir()} for place in (folder, other))
    return [name for name in sorted(files | others) if files.get(name) != others.get(name)]


# What is in a finished folder


@pytest.mark.parametrize("precision", FOLDER_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_is_complete(converted, tiny_checkpoints, family, precision):
    folder = converted(family, precision)
    assert set(visible_names(folder)) - {"openvino_config.json"} == MODEL_FILES
    manifest = json.loads((folder / "conversion.json").read_text())
    assert manifest["checkpoint"] == str(tiny_checkpoints[family])
    assert len(manifest["revision"]) == 64
    assert manifest["precision"] == precision
    assert manifest["versions"]["openvino"] in openvino.get_version()
    assert manifest["files"] == {
        path.name: path.stat().st_size for path in folder.iterdir() if path.name != "conversion.json"
    }


@pytest.mark.parametrize("prompt_tokens", [40, 24], ids=["at once", "in two parts"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fp16_computes_what_pytorch_does(converted, tiny_checkpoints, family, prompt_tokens):
    reference = AutoModelForCausalLM.from_pretrained(tiny_checkpoints[family], dtype=torch.float32)
    ids = np.random.default_rng(0).integers(5, 300, size=(1, 40))
    with torch.inference_mode():
        expected = reference(torch.tensor(ids)).logits[0].numpy()

    model = openvino.Core().compile_model(converted(family, "FP16") / "openvino_model.xml", "CPU", EXACT)
    request = model.create_infer_request()
    positions = np.arange(40)[None]
    logits = []
    for part in filter(len, np.split(np.arange(40), [prompt_tokens])):
        inputs = {
            "input_ids": ids[:, part],
            "attention_mask": np.ones((1, part[-1] + 1), dtype=np.int64),
            "position_ids": positions[:, part],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        names = [port.get_any_name() for port in model.inputs]
        request.infer({name: inputs[name] for name in names})
        logits.append(request.get_tensor("logits").data[0].copy())
    np.testing.assert_allclose(np.concatenate(logits), expected, atol=1e-4)


# Memory: the weights stay in the files of the checkpoint


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("precision", "share"), [("FP16", 0.2), ("INT8", 0.6), ("INT4", 0.6)])
def test_memory_stays_below_a_share_of_the_checkpoint(tmp_path, precision, share):
    checkpoint = make_tiny_checkpoint(tmp_path / "checkpoint", "llama")
    config = LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=16, vocab_size=1000)
    LlamaForCausalLM(config).bfloat16().save_pretrained(checkpoint, max_shard_size="200MB")
    (checkpoint / "model.safetensors").unlink()
    size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    peak = peak_memory(
        "import nncf, openvino, openvino_tokenizers, optimum.exporters.openvino\n"
        "import conversion, mpt_converter, transformers.models.llama.modeling_llama",
        "conversion.prepare_model(*sys.argv[1:])",
        checkpoint,
        precision,
        tmp_path / "models",
    )
    assert peak <= share * size + 120e6  # what any conversion takes, however small the model


@pytest.mark.parametrize("precision", FOLDER_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_catalogue_s_template_is_in_the_folder(converted, family, precision):
    tokenizer = AutoTokenizer.from_pretrained(converted(family, precision))
    messages = [{"role": "user", "content": "Hi"}]
    prompts = {
        "llama": "<s>[INST] Hi [/INST]",
        "gpt_neox": "<human>: Hi\n<bot>:",
        "mpt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    }
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == prompts[family]


@pytest.mark.parametrize("precision", FOLDER_NAMES)
def test_both_end_tokens_of_mpt_are_in_its_generation_config(converted, precision):
    folder = converted("mpt", precision)
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    ends = sorted(vocabulary[text] for text in ("<|endoftext|>", "<|im_end|>"))
    assert GenerationConfig.from_pretrained(folder).eos_token_id == ends


# Asking again


def test_a_finished_model_is_found_without_work(converted, request):
    converted("llama", "INT8")
    request.getfixturevalue("no_work")
    assert converted("llama", "INT8").is_dir()


def test_finding_a_finished_model_imports_no_heavy_library(converted, tiny_checkpoints):
    folder = converted("llama", "INT8")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    script = (
        "import sys; from conversion import prepare_model; print(prepare_model(*sys.argv[1:]));"
        "print({'torch', 'transformers', 'openvino', 'nncf', 'optimum'} & set(sys.modules))"
    )
    arguments = [NAMES["llama"], "INT8", folder.parents[1], tiny_checkpoints["llama"]]
    output = subprocess.check_output(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, text=True
    )
    assert output.splitlines() == [str(folder), "set()"]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_checkpoint_for_the_same_name_has_a_folder_of_its_own(
    tiny_checkpoints, tmp_path, instant_export
):
    folders = [
        prepare_model("llama-2-chat-7b", "FP16", tmp_path, tiny_checkpoints[family])
        for family in ("llama", "gpt_neox", "gpt_neox", "llama")
    ]
    assert instant_export == ["llama", "gpt_neox"]
    assert folders == [folders[0], folders[1], folders[1], folders[0]]
    assert folders[0] != folders[1]


def test_a_relative_path_is_another_checkpoint_in_another_folder(tmp_path, monkeypatch, instant_export):
    for place in ("a", "b"):
        make_tiny_checkpoint(tmp_path / place / "checkpoint", "llama")
        monkeypatch.chdir(tmp_path / place)
        prepare_model("llama-2-chat-7b", "FP16", tmp_path / "models", "checkpoint")
        prepare_model("llama-2-chat-7b", "FP16", tmp_path / "models", tmp_path / place / "checkpoint")
    assert len(instant_export) == 2


def test_new_weights_under_the_same_path_convert_again(tmp_path, instant_export):
    checkpoint = make_tiny_checkpoint(tmp_path / "checkpoint", "llama")
    arguments = ("llama-2-chat-7b", "FP16", tmp_path / "models", checkpoint)
    prepare_model(*arguments)
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    before = (checkpoint / "model.safetensors").stat().st_size
    save_file(weights, checkpoint / "new", metadata={"format": "pt"})
    (checkpoint / "new").rename(checkpoint / "model.safetensors")
    assert (checkpoint / "model.safetensors").stat().st_size == before
    for _ in range(2):
        prepare_model(*arguments)
    assert len(instant_export) == 2


def test_a_new_configuration_converts_again_but_a_new_readme_does_not(tmp_path, instant_export):
    checkpoint = make_tiny_checkpoint(tmp_path / "checkpoint", "llama")
    arguments = ("llama-2-chat-7b", "FP16", tmp_path / "models", checkpoint)
    prepare_model(*arguments)
    (checkpoint / "README.md").write_text("# A model")
    prepare_model(*arguments)
    assert len(instant_export) == 1
    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(config.replace("1e-06", "1e-05"))
    assert (checkpoint / "config.json").read_text() != config
    prepare_model(*arguments)
    assert len(instant_export) == 2


def test_a_finished_model_outlives_its_checkpoint(tmp_path, instant_export):
    checkpoint = make_tiny_checkpoint(tmp_path / "checkpoint", "llama")
    arguments = ("llama-2-chat-7b", "FP16", tmp_path / "models", checkpoint)
    folder = prepare_model(*arguments)
    shutil.rmtree(checkpoint)
    assert prepare_model(*arguments) == folder


@pytest.fixture
def sharded_checkpoint(tmp_path) -> Path:
    folder = make_tiny_checkpoint(tmp_path / "checkpoint", "llama")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("deleted", ["*-00001-of-*.safetensors", "*.safetensors", "*.safetensors*"])
def test_a_finished_model_outlives_its_checkpoint_s_weights(
    sharded_checkpoint, tmp_path, instant_export, deleted
):
    arguments = ("llama-2-chat-7b", "FP16", tmp_path / "models", sharded_checkpoint)
    folder = prepare_model(*arguments)
    for file in sharded_checkpoint.glob(deleted):
        file.unlink()
    assert prepare_model(*arguments) == folder
    assert len(instant_export) == 1


def test_a_checkpoint_without_all_its_weights_is_named_as_incomplete(
    sharded_checkpoint, tmp_path, instant_export
):
    shards = sorted(sharded_checkpoint.glob("*.safetensors"))
    shards[-1].unlink()
    message = f"1 of {len(shards)} weight files are missing, the first is {shards[-1].name}"
    with pytest.raises(ValueError, match=message):
        prepare_model("llama-2-chat-7b", "FP16", tmp_path / "models", sharded_checkpoint)
    assert instant_export == []


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the Hub, which is out of reach."""

    def unreachable(*_, **__):
        raise ConnectionError("out of reach in this test")

    monkeypatch.setattr(hub_source.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_source.HfApi, "model_info", unreachable)
    return tmp_path / "hub"


def test_another_revision_of_a_hub_model_converts_again(
    tiny_checkpoints, tmp_path, hub_cache, instant_export
):
    for revision, exports in (("aaa", 1), ("bbb", 2)):
        snapshot = hub_cache / "models--someone--chatbot/snapshots" / revision
        shutil.copytree(tiny_checkpoints["llama"], snapshot)
        snapshot.touch()  # copied with the time of the original
        for _ in range(2):
            folder = prepare_model("someone/chatbot", "FP16", tmp_path / "models")
        assert len(instant_export) == exports
        manifest = json.loads((folder / "conversion.json").read_text())
        assert (manifest["checkpoint"], manifest["revision"]) == ("someone/chatbot", revision)
    shutil.rmtree(hub_cache)
    assert prepare_model("someone/chatbot", "FP16", tmp_path / "models") == folder
    assert len(instant_export) == 2


def test_every_revision_has_a_folder_of_its_own(tiny_checkpoints, tmp_path, hub_cache, instant_export):
    for commit in ("aaa", "bbb"):
        shutil.copytree(tiny_checkpoints["llama"], hub_cache / "models--someone--chatbot/snapshots" / commit)
    for count, commit in ((1, "aaa"), (2, "bbb"), (2, "aaa")):
        for _ in range(2):
            checkpoint = f"someone/chatbot@{commit}"
            folder = prepare_model("llama-2-chat-7b", "FP16", tmp_path / "models", checkpoint)
        assert len(instant_export) == count
        manifest = json.loads((folder / "conversion.json").read_text())
        assert (manifest["checkpoint"], manifest["revision"]) == (checkpoint, commit)


def test_a_folder_says_which_copy_it_was_made_from_where_the_hub_does_not_deliver_the_newest(
    tiny_checkpoints, tmp_path, monkeypatch, instant_export
):
    whole = tiny_checkpoints["llama"]
    coming = HubCheckpoint(look(whole), "newest", {"model.safetensors": 1000}, ("model.safetensors",))
    newest = FoundCheckpoint("someone/chatbot", look(whole), "newest", coming)
    older = FoundCheckpoint("someone/chatbot", look(whole), "older")
    monkeypatch.setattr(conversion, "find_checkpoint", lambda _: newest)
    monkeypatch.setattr(conversion, "fetch_weights", lambda _: older)
    for _ in range(2):
        folder = prepare_model("someone/chatbot", "FP16", tmp_path)
        assert json.loads((folder / "conversion.json").read_text())["revision"] == "older"
    assert len(instant_export) == 1


@pytest.mark.slow
def test_several_precisions_need_one_export_and_equal_those_made_alone(
    converted, tiny_checkpoints, tmp_path, monkeypatch
):
    exports, export = [], conversion.export_fp16

    def counted(*arguments):
        exports.append(export(*arguments))
        return exports[-1]

    monkeypatch.setattr(conversion, "export_fp16", counted)
    folders = prepare_models(NAMES["mpt"], ("INT8", "INT4"), tmp_path, tiny_checkpoints["mpt"])
    assert len(exports) == 1
    assert list(folders) == ["INT8", "INT4"]
    assert visible_names(folders["INT8"].parent) == ["INT4_compressed_weights", "INT8_compressed_weights"]
    for precision, folder in folders.items():
        assert differences(folder, converted("mpt", precision)) == []


@pytest.mark.slow
def test_all_precisions_are_the_default(tiny_checkpoints, tmp_path):
    folders = prepare_models("llama-2-chat-7b", models_dir=tmp_path, checkpoint=tiny_checkpoints["llama"])
    assert list(folders) == ["FP16", "INT8", "INT4"]
    assert all(json.loads((folders[p] / "conversion.json").read_text())["precision"] == p for p in folders)


def test_compressing_starts_from_the_fp16_folder_that_is_there(converted, monkeypatch):
    fp16 = converted("gpt_neox", "FP16")
    shutil.rmtree(fp16.with_name("INT8_compressed_weights"), ignore_errors=True)
    monkeypatch.setattr(conversion, "export_fp16", lambda *_: pytest.fail("exported again"))
    assert converted("gpt_neox", "INT8").is_dir()


def test_two_callers_at_once_convert_once(tiny_checkpoints, tmp_path, instant_export):
    def prepare(_):
        return prepare_model("llama-2-chat-7b", "FP16", tmp_path, tiny_checkpoints["llama"])

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(prepare, range(2)))
    assert folders[0] == folders[1]
    assert instant_export == ["llama"]


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_a_folder_with_an_unreadable_manifest_is_made_anew(
    tiny_checkpoints, tmp_path, instant_export, content
):
    arguments = ("llama-2-chat-7b", "FP16", tmp_path, tiny_checkpoints["llama"])
    (prepare_model(*arguments) / "conversion.json").write_text(content)
    prepare_model(*arguments)
    assert len(instant_export) == 2


# Interruptions


@pytest.mark.slow
@pytest.mark.parametrize("step", ["write_tokenizer", "compress_weights"])
def test_after_ctrl_c_nothing_is_left_and_the_next_call_succeeds(tiny_checkpoints, tmp_path, step):
    def interrupted(*arguments, **options):
        original(*arguments, **options)
        raise KeyboardInterrupt

    original = getattr(conversion, step)
    arguments = ("red-pajama-3b-chat", "INT8", tmp_path, tiny_checkpoints["gpt_neox"])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(conversion, step, interrupted)
        prepare_model(*arguments)
    home = model_folder("red-pajama-3b-chat", "INT8", tmp_path, tiny_checkpoints["gpt_neox"]).parent
    assert visible_names(home) == []
    folder = prepare_model(*arguments)
    assert visible_names(folder.parent) == ["INT8_compressed_weights"]  # and not the FP16 step in between
    assert set(visible_names(folder)) >= MODEL_FILES


@pytest.mark.slow
def test_after_a_kill_nothing_looks_finished_and_the_next_call_clears_up(tiny_checkpoints, tmp_path):
    script = """
import os, signal, sys
import conversion
# The weights are written by then.
conversion.write_tokenizer = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
conversion.prepare_model(*sys.argv[1:])
"""
    arguments = ("llama-2-chat-7b", "INT8", tmp_path, tiny_checkpoints["llama"])
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, capture_output=True, check=False
    )
    parent = model_folder("llama-2-chat-7b", "INT8", tmp_path, tiny_checkpoints["llama"]).parent
    assert process.returncode == -signal.SIGKILL
    assert list(parent.rglob("openvino_model.bin")) != []
    assert not (parent / "INT8_compressed_weights").exists()
    with pytest.raises(FileNotFoundError):
        load_model(parent / "INT8_compressed_weights")

    folder = prepare_model(*arguments)
    assert visible_names(parent) == ["INT8_compressed_weights"]
    assert set(visible_names(folder)) >= MODEL_FILES


@pytest.mark.parametrize("finished", [True, False])
def test_leftovers_of_a_killed_process_are_cleared_up(tiny_checkpoints, tmp_path, instant_export, finished):
    arguments = ("llama-2-chat-7b", "FP16", tmp_path, tiny_checkpoints["llama"])
    if finished:
        prepare_model(*arguments)
    home = model_folder("llama-2-chat-7b", "FP16", tmp_path, tiny_checkpoints["llama"]).parent
    for name in ("tmpabc.partial", "INT8_compressed_weights.partial"):
        (home / name).mkdir(parents=True)
    with workspace.exclusive(home):
        if finished:  # whoever holds the lock may be writing them
            prepare_model(*arguments)
            assert len(visible_names(home)) == 3
    prepare_model(*arguments)
    assert visible_names(home) == ["FP16"]


FORKS = """
import os, signal, sys
import telemetry
telemetry.turn_off()
import nncf, openvino, openvino_tokenizers, optimum.exporters.openvino
import mpt_converter, transformers.models.llama.modeling_llama
from conversion import prepare_model
STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
def count_steps(models_dir, kill_at):
    done = 0
    def look(event, values):
        nonlocal done
        if event not in STEPS or not str(values[0]).startswith(models_dir):
            return
        if event == "open" and not values[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
    sys.addaudithook(look)
    return lambda: done
for line in sys.stdin:
    kill_at, *models_dirs = line.split()
    children = []
    for models_dir in models_dirs:
        children.append(os.fork())
        if not children[-1]:
            steps = count_steps(models_dir, int(kill_at))
            prepare_model("llama-2-chat-7b", "INT8", models_dir, sys.argv[1])
            with open(sys.argv[2], "w") as file:
                print(steps(), file=file)
            os._exit(0)
    print(*[os.waitpid(child, 0)[1] for child in children], flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks after the imports")
def test_killed_at_any_step_the_next_run_goes_on_and_nothing_half_made_looks_finished(
    tiny_checkpoints, tmp_path
):
    """Twenty kills, each just before another change to the disk; in forks of a process with all imports."""
    checkpoint, counted = tiny_checkpoints["llama"], tmp_path / "steps"
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKS, str(checkpoint), str(counted)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    never = -1

    def run(kill_at: int, *models_dirs: Path) -> str:
        print(kill_at, *models_dirs, file=parent.stdin, flush=True)
        return parent.stdout.readline().strip()

    def folder_of(models_dir: Path) -> Path:
        return model_folder("llama-2-chat-7b", "INT8", models_dir, checkpoint)

    disturbed = tmp_path / "disturbed"
    undisturbed = folder_of(tmp_path / "undisturbed")
    with parent:
        assert run(never, tmp_path / "undisturbed") == "0"
        steps = int(counted.read_text())
        assert steps >= 20
        for kill_at in np.linspace(0, steps - 1, 20, dtype=int).tolist():
            assert run(kill_at, disturbed) == str(int(signal.SIGKILL))
            finished = folder_of(disturbed)
            assert not finished.exists() or differences(finished, undisturbed) == []
            assert run(never, disturbed) == "0"
            assert differences(finished, undisturbed) == []
            assert visible_names(finished.parent) == [finished.name]
            shutil.rmtree(disturbed)

        both = tmp_path / "both"
        assert run(never, both, both) == "0 0"
        assert differences(folder_of(both), undisturbed) == []
        assert visible_names(folder_of(both).parent) == ["INT8_compressed_weights"]
        parent.stdin.close()


# Refusals before any work


@pytest.mark.parametrize("precision", ["INT2", "int8", "", None])
def test_an_unknown_precision_is_refused_with_those_that_exist(no_work, precision):
    with pytest.raises(ValueError, match="choose one of FP16, INT8, INT4"):
        prepare_model("llama-2-chat-7b", precision)


def test_a_base_model_is_refused_for_a_chat_before_it_is_converted(tiny_checkpoints, tmp_path, monkeypatch):
    checkpoint = shutil.copytree(tiny_checkpoints["llama"], tmp_path / "checkpoint")
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    monkeypatch.setattr(conversion, "export_fp16", lambda *_: pytest.fail("export was tried"))
    with pytest.raises(ValueError, match=r"has no chat template, so it is probably no chat model"):
        prepare_model(str(checkpoint), "INT8", tmp_path / "models", for_chat=True)


# chatglm: Optimum could export it, but only with code that comes with the checkpoint
@pytest.mark.parametrize("model_type", ["t5", "made-up", None, "chatglm"], ids=str)
def test_an_architecture_that_cannot_be_exported_is_named(
    tiny_checkpoints, tmp_path, monkeypatch, model_type
):
    checkpoint = shutil.copytree(tiny_checkpoints["llama"], tmp_path / "checkpoint")
    (checkpoint / "config.json").write_text(json.dumps({"model_type": model_type}))
    monkeypatch.setattr(conversion, "export_fp16", lambda *_: pytest.fail("export was tried"))
    what = f"This is a model of type {model_type!r}" if model_type else "Its config.json has no model_type"
    message = f"{checkpoint} cannot be converted. {what}"
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare_model(str(checkpoint), "FP16", tmp_path / "models")
    assert visible_names(tmp_path / "models") == []


@pytest.mark.parametrize("precision", FOLDER_NAMES)
def test_a_full_disk_is_noticed_before_the_export(tiny_checkpoints, tmp_path, monkeypatch, precision):
    size = sum(path.stat().st_size for path in tiny_checkpoints["llama"].iterdir())
    usage = shutil.disk_usage(tmp_path)._replace(free=size - 1)
    monkeypatch.setattr(workspace.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(conversion, "export_fp16", lambda *_: pytest.fail("export was tried"))
    with pytest.raises(OSError, match=rf"to {precision} needs \d+\.\d GB .* but only \d+\.\d GB are free"):
        prepare_model("llama-2-chat-7b", precision, tmp_path, tiny_checkpoints["llama"])
    assert visible_names(tmp_path) == []


@pytest.mark.parametrize("precision", FOLDER_NAMES)
def test_too_little_memory_is_noticed_before_the_export(tiny_checkpoints, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(workspace, "available_memory", lambda: 500_000_000)
    monkeypatch.setattr(conversion, "export_fp16", lambda *_: pytest.fail("export was tried"))
    with pytest.raises(OSError, match=rf"to {precision} needs 0\.6 GB of memory, but only 0\.5 GB are av"):
        prepare_model("llama-2-chat-7b", precision, tmp_path, tiny_checkpoints["llama"])
    assert visible_names(tmp_path) == []


def test_the_memory_needed_grows_with_the_weights_but_not_for_fp16(tmp_path, monkeypatch):
    needed = {}
    monkeypatch.setattr(conversion, "check_memory", lambda size, what, _: needed.update({what: size}))
    monkeypatch.setattr(conversion, "check_disk", lambda *_: None)
    checkpoint = make_tiny_checkpoint(tmp_path, "llama")
    for precision in FOLDER_NAMES:
        weights = Weights(at_16_bits=13.5e9, itemsize=2, largest=32000 * 4096)
        conversion._check_room(checkpoint, Path("m"), [precision], has_fp16=False, weights=weights)
    assert needed["Converting m to FP16"] <= 0.2 * 13.5e9 + 0.6e9
    assert 0.5 * 13.5e9 < needed["Converting m to INT8"] <= 0.6 * 13.5e9 + 0.6e9
    assert 0.3 * 13.5e9 < needed["Converting m to INT4"] <= 0.6 * 13.5e9 + 0.6e9


PREPARE = """
import json, shutil, sys
import conversion, model_folder, workspace
def export(checkpoint_folder, output, config):
    for name in model_folder.REQUIRED_FILES:
        (output / name).touch()
conversion.export_fp16 = export
for model, free, memory in json.loads(sys.argv[2]):
    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1e12, 0, free)
    workspace.available_memory = lambda: memory
    try:
        conversion.prepare_model(model, "FP16", sys.argv[1])
        print("done")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_hub_model_that_cannot_be_converted_is_refused_before_its_weights_are_downloaded(
    tiny_checkpoints, tmp_path
):
    files = {file.name: file.read_bytes() for file in tiny_checkpoints["llama"].iterdir()}
    settings = json.loads(files["config.json"]) | {"dtype": "float16"}
    hub = FakeHub()
    small = dict(files)
    weights = io.BytesIO()
    torch.save(load_weights(small.pop("model.safetensors")), weights)
    hub.repos = {
        "someone/small": small | {"pytorch_model.bin": weights.getvalue()},
        "someone/large": files | {"config.json": json.dumps(settings).encode()},
        "someone/strange": files | {"config.json": json.dumps(settings | {"model_type": "t5"}).encode()},
    }
    hub.listed_sizes["model.safetensors"] = 10**10
    cases = [
        ("someone/strange", 1e12, 1e12),
        ("someone/large", 1e12, 0.8e9),
        ("someone/large", 15e9, 1e12),  # enough for the download or the result
        ("someone/small", 1e12, 0.8e9),
    ]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
    output = subprocess.check_output(
        [sys.executable, "-c", PREPARE, str(tmp_path / "models"), json.dumps(cases)],
        cwd=ROOT, text=True, env=inherited | environment | {"HF_HUB_DISABLE_XET": "1"},
    )  # fmt: skip
    hub.stop()
    strange, memory, disk, small = output.splitlines()
    assert re.match(r"ValueError .* cannot be converted\. This is a model of type 't5'", strange)
    assert re.match(r"OSError Downloading and converting .* needs 0\.9 GB of memory, but only 0\.8", memory)
    assert re.match(r"OSError Downloading and converting .* needs 20\.0 GB .* but only 15\.0 GB", disk)
    assert small == "done"
    assert "model.safetensors" not in hub.fetched()
    assert "pytorch_model.bin" in hub.fetched()


def no_export(monkeypatch) -> None:
    monkeypatch.setattr(conversion, "export_fp16", lambda *_: pytest.fail("exported"))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "has no chat template, so it is probably no chat model"),
        ({"rag": "x", "tool_use": "y"}, "has no chat template for a plain chat, only rag, tool_use"),
        ("{% for message in messages %}{{ message }", "is no Jinja that can be read"),
    ],
    ids=["none", "others", "broken"],
)
def test_for_a_chat_a_model_without_a_template_is_not_converted(tmp_path, monkeypatch, template, words):
    folder = make_tiny_checkpoint(tmp_path / "checkpoint", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    no_export(monkeypatch)
    with pytest.raises(ValueError, match=words):
        prepare_model(str(folder), "FP16", tmp_path / "models", for_chat=True)


def test_a_tokenizer_that_cannot_be_read_is_named_before_the_export(tmp_path, monkeypatch):
    folder = make_tiny_checkpoint(tmp_path / "checkpoint", "llama")
    (folder / "tokenizer.json").write_text('{"model": {"type": "Unheard"}}')
    no_export(monkeypatch)
    with pytest.raises(ValueError, match=r"tokenizer\.json holds no tokenizer that can be read"):
        prepare_model(str(folder), "FP16", tmp_path / "models")


def test_a_model_is_converted_while_another_thread_downloads(tiny_checkpoints, tmp_path, monkeypatch):
    downloading, converting = threading.Event(), threading.Event()
    slow, quick = (str(tiny_checkpoints[family]) for family in ("gpt_neox", "llama"))

    def fetch(found):
        if found.name == slow:
            downloading.set()
            assert converting.wait(60), "the conversion waited for the download"
        return found

    def export(folder, output, config):
        converting.set()
        raise ValueError("enough seen")

    monkeypatch.setattr(conversion, "export_fp16", export)
    monkeypatch.setattr(conversion, "fetch_weights", fetch)
    with ThreadPoolExecutor() as pool:
        results = [pool.submit(prepare_model, slow, "FP16", tmp_path)]
        assert downloading.wait(60)
        results.append(pool.submit(prepare_model, quick, "FP16", tmp_path))
        for result in results:
            with pytest.raises(ValueError, match="enough seen"):
                result.result(120)
