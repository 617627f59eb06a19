"""Adapters, quantized checkpoints and files with byte order marks become ordinary checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import conversion
from checkpoint import look
from conftest import EXACT
from conversion import load_model, prepare_model
from damaged_checkpoints import MARK, change
from model_source import find_checkpoint
from plain_checkpoint import expected_plain_weights, plain_checkpoint

IDS = torch.tensor([[5, 17, 300, 42, 8, 99]])


@pytest.fixture
def no_export(monkeypatch) -> list[Path]:
    """Replaces the export; holds what would have been exported, as it was."""
    exported = []

    def export(folder: Path, output: Path, config) -> dict:
        exported.append(shutil.copytree(folder, output.parent.parent / f"exported{len(exported)}"))
        for name in conversion_files():
            (output / name).touch()
        return {"template": None, "eos_token_id": []}

    monkeypatch.setattr(conversion, "export_fp16", export)
    return exported


def conversion_files() -> tuple[str, ...]:
    from model_folder import REQUIRED_FILES

    return REQUIRED_FILES


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model(IDS).logits.float()


# Adapters


def make_adapter(base: Path, folder: Path, **settings) -> Path:
    """A LoRA adapter with random weights that change the result."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj"]} | settings
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings))
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(params=[{}, {"use_dora": True}, {"use_rslora": True, "lora_alpha": 16}], ids=str)
def adapter(request, tiny_checkpoints, tmp_path) -> Path:
    return make_adapter(tiny_checkpoints["llama"], tmp_path / "adapter", **request.param)


def test_a_merged_adapter_computes_what_peft_does(adapter, tiny_checkpoints, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoints["llama"], dtype=torch.float32)
    before = logits(base)
    expected = logits(PeftModel.from_pretrained(base, adapter))
    assert (expected - before).abs().max() > 0.1
    with plain_checkpoint(find_checkpoint(str(adapter)), tmp_path) as folder:
        merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert look(folder).kind == "weights"
        assert not (folder / "adapter_config.json").exists()
    # half precision, as the base is stored
    assert (logits(merged) - expected).abs().max() < 0.02 * expected.abs().max()


def test_an_adapter_for_a_32_bit_model_is_merged_exactly(tiny_checkpoints, tmp_path):
    base = shutil.copytree(tiny_checkpoints["llama"], tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter")
    expected = logits(PeftModel.from_pretrained(model, adapter))
    with plain_checkpoint(find_checkpoint(str(adapter)), tmp_path) as folder:
        merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (logits(merged) - expected).abs().max() < 1e-4


def test_the_manifest_notes_adapter_and_base(tiny_checkpoints, tmp_path, no_export):
    adapter = make_adapter(tiny_checkpoints["llama"], tmp_path / "adapter")
    folder = prepare_model(str(adapter), "FP16", tmp_path / "models")
    manifest = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
    assert (manifest["adapter"], manifest["base"]) == (str(adapter), str(tiny_checkpoints["llama"]))
    assert prepare_model(str(adapter), "FP16", tmp_path / "models") == folder
    assert len(no_export) == 1


def test_a_changed_base_converts_again(tiny_checkpoints, tmp_path, no_export):
    base = shutil.copytree(tiny_checkpoints["llama"], tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    prepare_model(str(adapter), "FP16", tmp_path / "models")
    change(base / "generation_config.json", eos_token_id=7)
    prepare_model(str(adapter), "FP16", tmp_path / "models")
    assert len(no_export) == 2


def test_an_adapter_s_new_tokens_come_with_their_rows(tiny_checkpoints, tmp_path):
    base = tiny_checkpoints["llama"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    settings = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    adapted = get_peft_model(model, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    with plain_checkpoint(find_checkpoint(str(tmp_path / "adapter")), tmp_path) as folder:
        merged = AutoModelForCausalLM.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|new|>") == len(tokenizer) - 1
    assert merged.get_input_embeddings().num_embeddings == len(tokenizer)


def test_tokens_that_an_adapter_alone_has_trained_come_with_their_rows(tiny_checkpoints, tmp_path):
    base = tiny_checkpoints["llama"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    new = {"embed_tokens": [len(tokenizer) - 1]}
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=new)
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "adapter")
    with plain_checkpoint(find_checkpoint(str(tmp_path / "adapter")), tmp_path) as folder:
        merged = AutoModelForCausalLM.from_pretrained(folder)
    assert merged.get_input_embeddings().num_embeddings == len(tokenizer)


def test_a_base_whose_generation_config_transformers_would_not_save_is_merged(tiny_checkpoints, tmp_path):
    base = shutil.copytree(tiny_checkpoints["llama"], tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": 2}))
    adapter = make_adapter(base, tmp_path / "adapter")
    with plain_checkpoint(find_checkpoint(str(adapter)), tmp_path) as folder:
        assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.6


def test_an_adapter_of_another_model_is_refused_in_words(tiny_checkpoints, tmp_path):
    adapter = make_adapter(tiny_checkpoints["llama"], tmp_path / "adapter")
    change(adapter / "adapter_config.json", base_model_name_or_path=str(tiny_checkpoints["gpt_neox"]))
    found = find_checkpoint(str(adapter))
    with pytest.raises(ValueError, match=r"does not fit the model"), plain_checkpoint(found, tmp_path):
        pass


@pytest.mark.parametrize("base", ["/home/somebody/else", "just-a-name"])
def test_a_base_that_is_nowhere_is_named(tiny_checkpoints, tmp_path, base):
    adapter = make_adapter(tiny_checkpoints["llama"], tmp_path / "adapter")
    change(adapter / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(ValueError, match=f"changes the model '{base}', which is neither"):
        find_checkpoint(str(adapter))


def test_an_adapter_on_an_adapter_is_refused(tiny_checkpoints, tmp_path):
    first = make_adapter(tiny_checkpoints["llama"], tmp_path / "first")
    second = make_adapter(tiny_checkpoints["llama"], tmp_path / "second")
    change(second / "adapter_config.json", base_model_name_or_path=str(first))
    with pytest.raises(ValueError, match="of kind 'adapter'"):
        find_checkpoint(str(second))


@pytest.mark.slow
def test_an_adapter_becomes_a_model_that_runs(tiny_checkpoints, tmp_path):
    adapter = make_adapter(tiny_checkpoints["llama"], tmp_path / "adapter")
    model, _ = load_model(prepare_model(str(adapter), "FP16", tmp_path / "models"), ov_config=EXACT)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoints["llama"], dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(base, adapter))
    assert (logits(model) - expected).abs().max() < 0.02 * expected.abs().max()


# Quantized by others


def as_float8(folder: Path, block: int | None) -> dict[str, torch.Tensor]:
    """Quantize the layers' matrices to 8-bit floats in place; returns what they stand for."""
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if ".layers." in name and tensors[name].dim() == 2]:
        weight = tensors[name].float()
        rows, columns = (block, block) if block else weight.shape
        parts = weight.reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
        scale = parts.abs().amax((1, 3), keepdim=True) / 448
        tensors[name] = (parts / scale).reshape(weight.shape).to(torch.float8_e4m3fn)
        meant[name] = (tensors[name].float().reshape(parts.shape) * scale).reshape(weight.shape)
        tensors[name + "_scale_inv"] = scale[:, 0, :, 0].contiguous() if block else scale.reshape(1)
        tensors[name.replace("weight", "input_scale")] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    settings = {"quant_method": "fp8", "weight_block_size": block and [block, block]}
    change(folder / "config.json", quantization_config=settings)
    return meant


@pytest.mark.parametrize("block", [32, None], ids=["in blocks", "one scale"])
def test_8_bit_floats_become_the_numbers_they_stand_for(llama_copy, tmp_path, block):
    meant = as_float8(llama_copy, block)
    with plain_checkpoint(find_checkpoint(str(llama_copy)), tmp_path) as folder:
        found = load_file(folder / "model.safetensors")
        assert look(folder).quantization is None
        assert (folder / "tokenizer.json").read_bytes() == (llama_copy / "tokenizer.json").read_bytes()
        AutoModelForCausalLM.from_pretrained(folder)
    assert found.keys() == {
        name for name in load_file(llama_copy / "model.safetensors") if "scale" not in name
    }
    for name, weight in meant.items():
        torch.testing.assert_close(found[name], weight.bfloat16(), rtol=0, atol=0)


def test_a_missing_scale_is_named(llama_copy, tmp_path):
    name = min(as_float8(llama_copy, 32))
    tensors = load_file(llama_copy / "model.safetensors")
    del tensors[name + "_scale_inv"]
    save_file(tensors, llama_copy / "model.safetensors", {"format": "pt"})
    found = find_checkpoint(str(llama_copy))
    message = f"{name} is quantized, but its scale is not there"
    with pytest.raises(ValueError, match=message), plain_checkpoint(found, tmp_path):
        pass


def test_scales_of_rows_are_known(llama_copy, tmp_path):
    tensors = load_file(llama_copy / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    scale = tensors[name].float().abs().amax(1, keepdim=True) / 448
    tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
    tensors[name + "_scale"] = scale.bfloat16()
    save_file(tensors, llama_copy / "model.safetensors", {"format": "pt"})
    method = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    change(llama_copy / "config.json", quantization_config=method)
    with plain_checkpoint(find_checkpoint(str(llama_copy)), tmp_path) as folder:
        found = load_file(folder / "model.safetensors")[name]
    assert torch.equal(found, (tensors[name].float() * scale.bfloat16().float()).bfloat16())


def test_the_manifest_notes_that_weights_were_dequantized(llama_copy, tmp_path, no_export):
    as_float8(llama_copy, 32)
    folder = prepare_model(str(llama_copy), "FP16", tmp_path / "models")
    assert json.loads((folder / "conversion.json").read_text(encoding="utf-8"))["dequantized_from"] == "fp8"


def test_dequantized_weights_are_expected_to_be_larger(llama_copy):
    as_float8(llama_copy, 32)
    expected = expected_plain_weights(find_checkpoint(str(llama_copy)))
    assert (expected.at_16_bits, expected.itemsize) == (
        2 * (llama_copy / "model.safetensors").stat().st_size,
        2,
    )


# Others


def test_an_ordinary_checkpoint_is_used_where_it_lies(tiny_checkpoints, tmp_path):
    with plain_checkpoint(find_checkpoint(str(tiny_checkpoints["llama"])), tmp_path) as folder:
        assert folder == tiny_checkpoints["llama"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_byte_order_mark_is_left_out_and_the_checkpoint_untouched(llama_copy, tmp_path, name):
    (llama_copy / name).write_bytes(MARK + (llama_copy / name).read_bytes())
    before = {file: file.read_bytes() for file in llama_copy.iterdir()}
    with plain_checkpoint(find_checkpoint(str(llama_copy)), tmp_path) as folder:
        assert MARK + (folder / name).read_bytes() == before[llama_copy / name]
        AutoModelForCausalLM.from_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)
    assert {file: file.read_bytes() for file in llama_copy.iterdir()} == before
    assert list(tmp_path.iterdir()) == [llama_copy]
