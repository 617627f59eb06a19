"""OVMPTModel generates what PyTorch does: prompts, steps on a cache, padded batches, sampling and beams."""

import json

import openvino
import pytest
import torch
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer, pipeline

from conftest import EXACT
from mpt_converter import convert_mpt
from mpt_forward import load_mpt
from mpt_reference import (
    GREEDY,
    converted_mpt,
    largest,
    logits,
    padded_batch,
    random_ids,
    with_length,
)
from ov_mpt_model import OVMPTModel
from tiny_checkpoints import MPT_LENGTH


@pytest.fixture(scope="module", params=["state", "explicit cache"])
def ov_model(request, mpt_model, mpt_folder, tmp_path_factory) -> OVMPTModel:
    if request.param == "explicit cache":
        mpt_folder = convert_mpt(mpt_model, tmp_path_factory.mktemp("mpt") / "explicit", stateful=False)
    return OVMPTModel.from_pretrained(mpt_folder, device="CPU", ov_config=EXACT)


def test_prefill(mpt_model, ov_model):
    ids = random_ids(2, 40)
    assert largest(logits(ov_model, ids) - logits(mpt_model, ids)) <= 1e-4


def test_one_token_steps_on_a_cache(mpt_model, ov_model):
    ids = random_ids(1, 40)
    expected = logits(mpt_model, ids)
    cache = None
    for position in range(40):
        mask = torch.ones(1, position + 1, dtype=torch.int64)
        step = ov_model(ids[:, position : position + 1], attention_mask=mask, past_key_values=cache)
        cache = step.past_key_values
        assert largest(step.logits[:, 0] - expected[:, position]) <= 1e-4


def test_several_tokens_on_a_cache(mpt_model, ov_model):
    ids, mask = padded_batch()
    first = ov_model(ids[:, :12], attention_mask=mask[:, :12])
    second = ov_model(ids[:, 12:], attention_mask=mask, past_key_values=first.past_key_values)
    difference = torch.cat([first.logits, second.logits], dim=1) - logits(mpt_model, ids, mask)
    assert largest(difference[mask.bool()]) <= 1e-4


def test_left_padded_batch(mpt_model, ov_model):
    ids, mask = padded_batch()
    found = logits(ov_model, ids, mask)
    assert found.isfinite().all()
    assert largest((found - logits(mpt_model, ids, mask))[mask.bool()]) <= 1e-4


@pytest.mark.parametrize("times", [1, 3])
def test_no_context_limit(mpt_model, ov_model, times):
    ids = random_ids(1, times * MPT_LENGTH)
    expected = logits(with_length(mpt_model, ids.shape[1]), ids)
    assert largest(logits(ov_model, ids) - expected) <= 1e-4
    if times > 1:
        with pytest.raises(RuntimeError, match="must match the size"):
            logits(mpt_model, ids)


def test_generation_goes_on_beyond_the_native_length(mpt_model, ov_model):
    ids = random_ids(1, MPT_LENGTH - 10)
    expected = with_length(mpt_model, 3 * MPT_LENGTH).generate(ids, max_new_tokens=64, **GREEDY)
    assert torch.equal(ov_model.generate(ids, max_new_tokens=64, **GREEDY), expected)


def test_greedy_tokens(mpt_model, ov_model):
    ids = random_ids(1, 12)
    longer = with_length(mpt_model, 128)
    expected = longer.generate(ids, max_new_tokens=64, **GREEDY)
    assert torch.equal(ov_model.generate(ids, max_new_tokens=64, **GREEDY), expected)


def test_greedy_tokens_of_a_padded_batch_are_those_of_each_alone(mpt_model, ov_model):
    ids, mask = padded_batch()
    together = ov_model.generate(ids[:2], attention_mask=mask[:2], max_new_tokens=32, **GREEDY)
    for row in range(2):
        prompt = ids[row, mask[row].bool()][None]
        alone = ov_model.generate(prompt, max_new_tokens=32, **GREEDY)
        assert torch.equal(together[row, 20:], alone[0, prompt.shape[1] :])


def test_beam_search(mpt_model, ov_model):
    ids, mask = padded_batch()
    arguments = {"attention_mask": mask, "num_beams": 4, "max_new_tokens": 32} | GREEDY
    assert torch.equal(ov_model.generate(ids, **arguments), mpt_model.generate(ids, **arguments))


def test_beam_search_tells_equal_ids_with_different_padding_apart(mpt_model, ov_model):
    ids = random_ids(1, 6).repeat(3, 1)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    arguments = {"attention_mask": mask, "num_beams": 4, "max_new_tokens": 12} | GREEDY
    assert torch.equal(ov_model.generate(ids, **arguments), mpt_model.generate(ids, **arguments))


def test_sampling(mpt_model, ov_model):
    ids, mask = padded_batch()
    arguments = {"attention_mask": mask, "max_new_tokens": 16} | GREEDY | {"do_sample": True, "top_k": 20}
    torch.manual_seed(0)
    expected = mpt_model.generate(ids, **arguments)
    torch.manual_seed(0)
    assert torch.equal(ov_model.generate(ids, **arguments), expected)


def test_only_new_tokens_are_computed(ov_model, monkeypatch):
    lengths = []
    original = ov_model.prepare_inputs

    def prepare_inputs(input_ids, **arguments):
        lengths.append(input_ids.shape[1])
        return original(input_ids=input_ids, **arguments)

    monkeypatch.setattr(ov_model, "prepare_inputs", prepare_inputs)
    ov_model.generate(random_ids(1, 12), max_new_tokens=4, **GREEDY)
    assert lengths == [12, 1, 1, 1]


def test_other_architectures_are_refused(tmp_path, mpt_folder):
    config = json.loads((mpt_folder / "config.json").read_text())
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / name).symlink_to(mpt_folder / name)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="type 'llama'; OVMPTModel runs 'mpt' only"):
        OVMPTModel.from_pretrained(tmp_path)


def test_a_transformers_pipeline(tiny_checkpoints, tmp_path):
    pt_model = load_mpt(tiny_checkpoints["mpt"]).float()
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints["mpt"])
    texts = []
    for model in (converted_mpt(pt_model, tmp_path), pt_model):
        generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
        texts.append(generate("Hello! Tell me", max_new_tokens=12, do_sample=False)[0]["generated_text"])
    assert texts[0] == texts[1]
    assert len(texts[0]) > len("Hello! Tell me")


def test_save_and_load_again(ov_model, tmp_path):
    ov_model.save_pretrained(tmp_path)
    again = OVMPTModel.from_pretrained(tmp_path, ov_config=EXACT)
    assert again.stateful == ov_model.stateful
    ids, mask = padded_batch()
    assert torch.equal(logits(again, ids, mask), logits(ov_model, ids, mask))
    arguments = {"attention_mask": mask, "num_beams": 2, "max_new_tokens": 8} | GREEDY
    assert torch.equal(again.generate(ids, **arguments), ov_model.generate(ids, **arguments))


def test_it_is_an_ov_model_for_causal_lm(ov_model):
    assert isinstance(ov_model, OVModelForCausalLM)
    precision = ov_model.request.get_compiled_model().get_property("KV_CACHE_PRECISION")
    assert precision == openvino.Type.f32
