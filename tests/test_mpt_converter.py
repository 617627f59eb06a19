"""The hand-made MPT export on tiny random models: what it writes, refuses and leaves alone."""

import gc
import json
import sys
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from openvino._offline_transformations import paged_attention_transformation
from transformers import MptConfig, MptForCausalLM
from transformers.models.mpt import modeling_mpt

import conversion
import mpt_converter
from chat import ChatModel, SamplingParams
from config import SUPPORTED_MODELS
from conftest import EXACT
from model_folder import model_folder
from mpt_converter import cache_names, convert_mpt, export_mpt_onnx
from mpt_forward import alibi_slopes, load_mpt
from mpt_reference import (
    converted_mpt,
    largest,
    logits,
    random_ids,
    reference_logits,
)
from ov_mpt_model import OVMPTModel
from peak_memory import peak_memory
from tiny_checkpoints import MPT_LENGTH, MPT_VOCABULARY, make_tiny_checkpoint, tiny_mpt

# The numbers


def test_the_reference_of_these_tests_agrees_with_transformers(mpt_model):
    ids = random_ids(1, 40)
    assert largest(reference_logits(mpt_model, ids[0]) - logits(mpt_model, ids)[0]) < 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_config": {"clip_qkv": 0.5}},
        {"attn_config": {"softmax_scale": 0.5}},
        {"attn_config": {"alibi_bias_max": 4}},
        {"attn_config": {"alibi_bias_max": 16, "clip_qkv": 1.0, "softmax_scale": 0.1}},
        {"n_heads": 6, "d_model": 96},
        {"n_heads": 5, "d_model": 80, "attn_config": {"alibi_bias_max": 6}},
        {"tie_word_embeddings": False},
        {"logit_scale": 0.25},
        {"logit_scale": "inv_sqrt_d_model"},
        {"layer_norm_epsilon": 0.5},
        {"no_bias": True, "norm_type": "layernorm", "attn_config": {"attn_uses_sequence_id": True}},
    ],
    ids=str,
)
def test_settings_are_honoured(tmp_path, settings):
    model = tiny_mpt(**settings)
    ids = random_ids(1, 40)
    expected = reference_logits(model, ids[0])
    assert largest(logits(converted_mpt(model, tmp_path), ids)[0] - expected) <= 1e-4


# The graph


def test_inputs_and_outputs(mpt_model, mpt_folder, tmp_path):
    def names(ports):
        return [port.get_any_name() for port in ports]

    core = openvino.Core()
    stateful = core.read_model(mpt_folder / "openvino_model.xml")
    assert names(stateful.inputs) == ["input_ids", "attention_mask", "beam_idx"]
    assert names(stateful.outputs) == ["logits"]
    assert len(stateful.get_variables()) == 4

    explicit = core.read_model(convert_mpt(mpt_model, tmp_path, stateful=False) / "openvino_model.xml")
    past = cache_names(mpt_model.config, "past_key_values")
    assert past[:3] == ["past_key_values.0.key", "past_key_values.0.value", "past_key_values.1.key"]
    assert names(explicit.inputs) == ["input_ids", "attention_mask", *past]
    assert names(explicit.outputs) == ["logits", *cache_names(mpt_model.config, "present")]
    assert str(explicit.input(past[0]).get_partial_shape()) == "[?,4,?,16]"
    assert str(explicit.output("logits").get_partial_shape()) == f"[?,?,{MPT_VOCABULARY}]"


def test_openvino_fuses_attention_with_its_cache(mpt_folder):
    compiled = openvino.Core().compile_model(mpt_folder / "openvino_model.xml", "CPU", EXACT)
    kinds = Counter()
    for node in compiled.get_runtime_model().get_ops():
        kind = node.get_rt_info()["layerType"]
        kinds[kind] += 1
        if kind == "MemoryOutput":  # written by the attention itself, with no concatenation in between
            assert node.input_value(0).get_node().get_rt_info()["layerType"] == "ScaledDotProductAttention"
    assert kinds["ScaledDotProductAttention"] == 2
    assert kinds["MemoryOutput"] == 4
    assert not kinds.keys() & {"Softmax", "MatMul"}


@pytest.mark.parametrize(("heads", "bias_max"), [(4, 8), (6, 4)])
def test_paged_attention_finds_the_slopes(tmp_path, heads, bias_max):
    """Where it does not recognise ALiBi, the transformation goes on without it and says nothing."""
    model = tiny_mpt(d_model=96, n_heads=heads, attn_config={"alibi_bias_max": bias_max})
    graph = openvino.Core().read_model(convert_mpt(model, tmp_path) / "openvino_model.xml")
    paged_attention_transformation(graph)
    attentions = [node for node in graph.get_ops() if node.get_type_name() == "PagedAttentionExtension"]
    assert len(attentions) == 2
    for node in attentions:
        slopes = openvino.compile_model(openvino.Model([node.input_value(11)], []), "CPU")([])[0]
        np.testing.assert_array_equal(slopes, alibi_slopes(heads, bias_max))


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_stored_once(tmp_path, tied):
    model = tiny_mpt(tie_word_embeddings=tied, vocab_size=5000)
    size = (convert_mpt(model, tmp_path) / "openvino_model.bin").stat().st_size
    matrices = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
    assert 2 * matrices < size < 2 * matrices + 20_000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_kept_as_they_are(tmp_path, dtype):
    model = tiny_mpt().to(dtype)
    folder = convert_mpt(model, tmp_path)
    assert next(model.parameters()).dtype == dtype
    types = {torch.bfloat16: openvino.Type.bf16, torch.float16: openvino.Type.f16}
    constants = [
        node.get_element_type()
        for node in openvino.Core().read_model(folder / "openvino_model.xml").get_ops()
        if node.get_type_name() == "Constant" and len(node.shape) == 2 and min(node.shape) > 1
    ]
    assert constants == [types[dtype]] * 9
    ids = random_ids(1, 40)
    found = logits(OVMPTModel.from_pretrained(folder, ov_config=EXACT), ids)
    assert largest(found - logits(model.float(), ids)) <= 1e-4


@pytest.mark.slow
def test_int8_loses_little_and_halves_the_size(tmp_path):
    model = tiny_mpt(d_model=512, n_heads=8, n_layers=3, vocab_size=4000, initializer_range=0.05)
    folders = {p: convert_mpt(model, tmp_path / p, p) for p in ("FP16", "INT8", "INT4")}
    ids = random_ids(4, 64)
    distributions = {}
    for precision, folder in folders.items():
        ov_model = OVMPTModel.from_pretrained(folder, ov_config=EXACT)
        distributions[precision] = logits(ov_model, ids).double().log_softmax(-1)
    exact = distributions["FP16"]
    divergence = (exact.exp() * (exact - distributions["INT8"])).sum(-1).mean().item()
    assert exact.exp().max(-1).values.mean() > 10 / 4000  # not all tokens the same anyway
    assert divergence <= 0.01
    sizes = {p: (folder / "openvino_model.bin").stat().st_size for p, folder in folders.items()}
    assert sizes["FP16"] / sizes["INT8"] >= 1.9
    assert sizes["FP16"] / sizes["INT4"] >= 2.7


# What is refused


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"attn_config": {"qk_ln": True}}, "attn_config.qk_ln = True"),
        ({"attn_config": {"alibi": False}}, "attn_config.alibi = False"),
        ({"attn_config": {"prefix_lm": True}}, "attn_config.prefix_lm = True"),
        ({"attn_config": {"attn_type": "multiquery_attention"}}, "attn_type = 'multiquery_attention'"),
        ({"attn_config": {"rope": True}}, "attn_config.rope = True"),
        ({"attn_config": {"sliding_window_size": 128}}, "sliding_window_size = 128"),
        ({"no_bias": False}, "no_bias = False"),
        ({"norm_type": "rmsnorm"}, "norm_type = 'rmsnorm'"),
        ({"ffn_config": {"ffn_type": "mptglu"}}, "ffn_config.ffn_type = 'mptglu'"),
        ({"ffn_config": {"ffn_hidden_size": 128}}, "ffn_hidden_size = 128"),
        ({"architectures": ["MPTForCausalLM"], "expansion_ratio": 2}, "expansion_ratio = 2"),
        ({"ffn_config": {"ffn_act_fn": {"name": "relu"}}}, "ffn_config.ffn_act_fn = {'name': 'relu'}"),
        ({"norm_eps": 1e-6}, "norm_eps = 1e-06"),
        ({"block_overrides": {"order": []}}, "block_overrides = {'order': "),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ({"fc_type": {"name": "te"}}, "fc_type = {'name': 'te'}"),
        ({"residual_modification": "layer"}, "residual_modification = 'layer'"),
        ({"invented_next_year": 1}, "invented_next_year = 1, a setting that is not known"),
        ({"attn_config": {"invented": True}}, "attn_config.invented = True, a setting that is not known"),
        ({"ffn_config": {"invented": True}}, "ffn_config.invented = True, a setting that is not known"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_named_before_any_work(tmp_path, monkeypatch, settings, name):
    model = tiny_mpt(**settings)
    monkeypatch.setattr(mpt_converter, "MptWithCache", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=name):
        convert_mpt(model, tmp_path / "model")
    with pytest.raises(ValueError, match=name):
        export_mpt_onnx(model, tmp_path / "model.onnx")

    checkpoint = make_tiny_checkpoint(tmp_path / "checkpoint", "mpt")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | settings))
    monkeypatch.setattr(MptForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=name):
        load_mpt(checkpoint)
    with pytest.raises(ValueError, match=f"{checkpoint} cannot be converted. This MPT model has .*{name}"):
        conversion.prepare_model(str(checkpoint), "FP16", tmp_path / "models")
    assert not list(tmp_path.rglob("openvino_model.*")) + list(tmp_path.rglob("*.onnx"))


def test_an_unknown_precision_is_refused(mpt_model, tmp_path):
    with pytest.raises(ValueError, match="'INT2'; choose one of FP16, INT8, INT4"):
        convert_mpt(mpt_model, tmp_path, "INT2")


# What is left alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["FP16", "INT8", "ONNX"])
def test_the_caller_s_model_is_left_as_it_was(tmp_path, dtype, precision):
    model = tiny_mpt().to(dtype).train()
    ids = random_ids(1, 20)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    expected = logits(model, ids)
    functions = {
        value: dict(vars(value)) for value in vars(modeling_mpt).values() if isinstance(value, type)
    } | {torch.nn.Linear: dict(vars(torch.nn.Linear)), torch.nn.Embedding: dict(vars(torch.nn.Embedding))}
    attributes = {module: set(vars(module)) for module in model.modules()}
    bmm = torch.bmm

    if precision == "ONNX":
        export_mpt_onnx(model, tmp_path / "model.onnx")
    else:
        convert_mpt(model, tmp_path, precision)

    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == places
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert torch.equal(logits(model, ids), expected)
    assert all(dict(vars(owner)) == methods for owner, methods in functions.items())
    assert {module: set(vars(module)) for module in model.modules()} == attributes
    assert torch.bmm is bmm


def test_nothing_keeps_the_weights_alive(tmp_path):
    model = tiny_mpt().bfloat16()
    weights = [weakref.ref(weight) for weight in model.parameters()]
    storages = [weakref.ref(weight.untyped_storage()) for weight in model.parameters()]
    convert_mpt(model, tmp_path / "ir", "INT8")
    export_mpt_onnx(model, tmp_path / "model.onnx")
    assert not torch.jit._recursive.concrete_type_store.type_store
    del model
    gc.collect()
    assert not [weight for weight in weights if weight() is not None]
    assert not [storage for storage in storages if storage() is not None]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("precision", "dtype", "share"),
    [("FP16", torch.bfloat16, 0.2), ("INT8", torch.bfloat16, 0.6), ("FP16", torch.float32, 0.2)],
    ids=str,
)
def test_memory_stays_below_a_share_of_the_checkpoint(tmp_path, precision, dtype, share):
    config = MptConfig(d_model=1024, n_heads=16, n_layers=12, vocab_size=4000)
    MptForCausalLM(config).to(dtype).save_pretrained(tmp_path / "checkpoint")
    size = (tmp_path / "checkpoint" / "model.safetensors").stat().st_size
    peak = peak_memory(
        "import nncf, openvino, optimum.exporters.openvino, optimum.intel\n"
        "import transformers.models.mpt.modeling_mpt\n"
        "from mpt_converter import convert_mpt, load_mpt",
        "convert_mpt(load_mpt(sys.argv[1]), sys.argv[2], sys.argv[3])",
        tmp_path / "checkpoint",
        tmp_path / "model",
        precision,
    )
    assert peak <= share * size + 60e6  # what any conversion takes, however small the model


# From checkpoint to chat


@pytest.fixture
def hub_checkpoint(tmp_path) -> Path:
    """A checkpoint as MosaicML put theirs on the Hub: for code of its own, in shards of bfloat16."""
    folder = make_tiny_checkpoint(tmp_path / "hub", "mpt")
    state = MptForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    (folder / "model.safetensors").unlink()
    names = [name for name in state if name != "lm_head.weight"]
    index = {}
    for number, part in enumerate((names[:5], names[5:]), start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name].clone() for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    total = sum(2 * state[name].numel() for name in names)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    for code in ("configuration_mpt.py", "modeling_mpt.py"):
        (folder / code).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = {
        "architectures": ["MPTForCausalLM"],
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": 8,
            "attn_impl": "torch",
            "attn_pdrop": 0,
            "attn_type": "multihead_attention",
            "attn_uses_sequence_id": False,
            "clip_qkv": 6,
            "prefix_lm": False,
            "qk_ln": False,
            "softmax_scale": None,
        },
        "auto_map": {
            "AutoConfig": "configuration_mpt.MPTConfig",
            "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM",
        },
        "d_model": 64,
        "emb_pdrop": 0,
        "embedding_fraction": 1.0,
        "expansion_ratio": 4,
        "init_config": {"emb_init_std": None, "fan_mode": "fan_in", "name": "kaiming_normal_"},
        "init_device": "cpu",
        "learned_pos_emb": True,
        "logit_scale": None,
        "max_seq_len": 512,
        "model_type": "mpt",
        "n_heads": 4,
        "n_layers": 2,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "resid_pdrop": 0,
        "tokenizer_name": "EleutherAI/gpt-neox-20b",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.28.1",
        "use_cache": False,
        "verbose": 0,
        "vocab_size": state["transformer.wte.weight"].shape[0],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_checkpoint_as_on_the_hub_becomes_a_chat(hub_checkpoint, tmp_path):
    pt_model = load_mpt(hub_checkpoint)
    assert pt_model.dtype == torch.bfloat16
    assert pt_model.config.attn_config.clip_qkv == 6.0

    folder = conversion.prepare_model("mpt-7b-chat", "FP16", tmp_path / "models", hub_checkpoint)
    ov_model, tokenizer = conversion.load_model(folder, ov_config=EXACT)
    assert isinstance(ov_model, OVMPTModel)
    ids = random_ids(1, 40)
    assert largest(logits(ov_model, ids) - logits(pt_model.float(), ids)) <= 1e-4
    chat = ChatModel(ov_model, tokenizer, SUPPORTED_MODELS["mpt-7b-chat"])
    messages = [{"role": "user", "content": "Hello"}]
    sampling = SamplingParams(temperature=0, repetition_penalty=1, max_new_tokens=16)
    prompt = torch.tensor([chat.encode(messages)])
    end = sorted(chat.end_ids)
    reply = pt_model.generate(prompt, max_new_tokens=16, do_sample=False, eos_token_id=end, pad_token_id=0)
    expected = tokenizer.decode(reply[0, prompt.shape[1] :], skip_special_tokens=True)
    assert chat.generate(messages, sampling) == expected.lstrip()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("precision", ["INT8", "INT4"])
def test_prepared_models_of_all_precisions_chat(tiny_checkpoints, tmp_path, precision):
    folder = conversion.prepare_model("mpt-7b-chat", precision, tmp_path, tiny_checkpoints["mpt"])
    ov_model, tokenizer = conversion.load_model(folder)
    chat = ChatModel(ov_model, tokenizer, SUPPORTED_MODELS["mpt-7b-chat"])
    stream = chat.stream([{"role": "user", "content": "Hello"}], SamplingParams(max_new_tokens=8, seed=0))
    list(stream)
    assert stream.stats.new_tokens > 0
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]


@pytest.mark.parametrize("step", ["export_fp16", "write_tokenizer"])
def test_after_ctrl_c_nothing_is_left(tiny_checkpoints, tmp_path, monkeypatch, step):
    def interrupted(*arguments, **options):
        original(*arguments, **options)
        raise KeyboardInterrupt

    original = getattr(conversion, step)
    monkeypatch.setattr(conversion, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        conversion.prepare_model("mpt-7b-chat", "INT8", tmp_path, tiny_checkpoints["mpt"])
    home = model_folder("mpt-7b-chat", "INT8", tmp_path, tiny_checkpoints["mpt"]).parent
    assert not [path for path in home.iterdir() if not path.name.endswith(".lock")]


# ONNX


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_onnx_computes_the_same(tmp_path, dtype):
    model = tiny_mpt(n_heads=4, attn_config={"clip_qkv": 1.0, "alibi_bias_max": 4}).to(dtype)
    file = export_mpt_onnx(model, tmp_path / "model.onnx")
    onnx.checker.check_model(file, full_check=True)
    compiled = openvino.Core().compile_model(file, "CPU", EXACT)
    past = cache_names(model.config, "past_key_values")
    assert [port.get_any_name() for port in compiled.inputs] == ["input_ids", "attention_mask", *past]

    ids, total = random_ids(1, 3 * MPT_LENGTH), 3 * MPT_LENGTH
    cache = {name: np.zeros((1, 4, 0, 16), dtype=np.float32) for name in past}
    found = []
    for part in (slice(0, 100), slice(100, 101), slice(101, total)):
        inputs = {
            "input_ids": ids[:, part].numpy(),
            "attention_mask": np.ones((1, part.stop), dtype=np.int64),
        }
        outputs = compiled(inputs | cache)
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        found.append(torch.tensor(outputs["logits"][0]))
    assert largest(torch.cat(found) - reference_logits(model.float(), ids[0])) <= 1e-4
