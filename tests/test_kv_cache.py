"""The two forms of a forward pass give the same logits, whatever was cached, cut or computed in one go."""

import random
import threading

import numpy as np
import openvino
import pytest
import torch
from optimum.intel import OVModelForCausalLM
from transformers import AutoModelForCausalLM

import compression
import conversion
import graph_edits
import kv_cache
from conftest import EXACT
from kv_cache import GROWTH, PagedModel, StatefulModel, has_paged_form
from tiny_checkpoints import FAMILIES

NAMES = {"llama": "llama-2-chat-7b", "gpt_neox": "red-pajama-3b-chat", "mpt": "mpt-7b-chat"}
IDS = torch.randint(3, 290, (1500,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def folders(tiny_checkpoints, tmp_path_factory):
    models_dir = tmp_path_factory.getbasetemp() / "models"
    return {
        family: conversion.prepare_model(NAMES[family], "FP16", models_dir, checkpoint)
        for family, checkpoint in tiny_checkpoints.items()
    }


@pytest.fixture(scope="module")
def models(folders):
    return {family: conversion.load_model(folder, ov_config=EXACT)[0] for family, folder in folders.items()}


@pytest.fixture(params=["compiled twice", "compiled once"])
def size(request, monkeypatch):
    """Lets a test run with a model that passes for small, and with one that passes for large."""
    monkeypatch.setattr(kv_cache, "SMALL_MODEL", 1e9 if request.param == "compiled twice" else 0)


def paged_form(model) -> PagedModel:
    """The paged form of an OVModelForCausalLM, with all that belongs to it."""
    paged = PagedModel(model.model, model._device, model.ov_config)
    paged.settle()
    return paged


def stateful_form(model) -> StatefulModel:
    return StatefulModel(model.model, model._device, model.ov_config)


def assert_close(one, other, atol: float) -> None:
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=atol, rtol=0)


@pytest.fixture
def paged(models) -> PagedModel:
    return paged_form(models["llama"])


@pytest.mark.parametrize("family", FAMILIES)
def test_both_forms_give_the_logits_of_pytorch(tiny_checkpoints, models, family, size):
    reference = AutoModelForCausalLM.from_pretrained(tiny_checkpoints[family], dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([IDS[:60]])).logits[0]
    paged, stateful = paged_form(models[family]), stateful_form(models[family])
    for past, total in ((0, 40), (40, 41), (41, 42), (42, 60)):
        logits = paged.infer(IDS[past:total], past)
        assert_close(logits, stateful.infer(IDS[past:total], past), atol=1e-4)
        # Rotary frequencies are stored with 16 bits in the converted model.
        assert_close(logits, expected[total - 1], atol=0.02)


def test_a_cut_cache_gives_what_a_fresh_one_does(models, size):
    """Also in the middle of a block, and after the room for the cache has grown."""
    choice = random.Random(0)
    model, fresh = paged_form(models["mpt"]), stateful_form(models["mpt"])  # MPT has no longest context
    cached: list[int] = []
    for _ in range(30):
        kept = choice.randrange(len(cached) + 1)
        new_ids = choice.sample(IDS, choice.choice([1, 2, 31, 32, 33, 200]))
        cached = [*cached[: model.cut(kept, kept + len(new_ids))], *new_ids]
        assert len(cached) == kept + len(new_ids)
        expected = fresh.infer(cached, past=fresh.cut(0, 0))
        assert_close(model.infer(new_ids, past=kept), expected, atol=1e-4)


@pytest.mark.parametrize("precision", ["f32", "f16", "u8"])
def test_the_cache_survives_growing(folders, precision, size):
    loaded, _ = conversion.load_model(folders["mpt"], ov_config=EXACT | {"KV_CACHE_PRECISION": precision})
    model = paged_form(loaded)
    model.infer(IDS[:GROWTH], past=0)
    before = model.infer(IDS[-16:], past=GROWTH - 16)
    assert model._capacity == GROWTH
    model.infer(IDS[-16:], past=GROWTH)
    assert model._capacity == 2 * GROWTH
    again = model.infer(IDS[-16:], past=GROWTH - 16)
    assert_close(again, before, atol=1e-4 if precision == "f32" else 0.05)


@pytest.mark.parametrize("length", [GROWTH - 20, GROWTH + 1, 1400])
def test_the_cache_has_room_for_a_prompt_and_a_reply_at_once(models, length):
    paged = paged_form(models["mpt"])
    paged.cut(0, length)
    room = paged.capacity
    assert length + GROWTH <= room < length + GROWTH + 32  # whole blocks
    paged.infer(IDS[:length], past=0)
    for past in range(length, length + 3):
        paged.cut(past, past + 1)
        paged.infer([5], past)
    assert paged.capacity == room


def test_a_long_cache_grows_by_a_quarter(models):
    paged = paged_form(models["mpt"])
    long = 8 * GROWTH
    paged.cut(0, long - GROWTH)
    assert paged.capacity == long
    paged.infer([5], past=long)  # what the cache holds does not matter here
    assert paged.capacity == 10 * GROWTH


@pytest.mark.parametrize("precision", ["INT8", "INT4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_products_joined_for_one_token_give_the_same(folders, family, precision):
    """In a graph that was not made by this project, which joins them while compressing."""
    graph = openvino.Core().read_model(folders[family] / "openvino_model.xml")
    graph = compression.compress(graph, precision)
    paged, stateful = PagedModel(graph, "CPU", EXACT), StatefulModel(graph, "CPU", EXACT)
    paged.settle()
    for past in range(5):
        logits = paged.infer([IDS[past]], past)
        assert_close(logits, stateful.infer([IDS[past]], past), atol=1e-4)


def test_a_large_model_is_compiled_once(models, monkeypatch):
    weights = graph_edits.weight_bytes(models["llama"].model)
    assert weights > 2 * 290 * models["llama"].config.hidden_size  # the embedding alone
    for limit, twice in ((weights * 2, True), (weights / 2, False)):
        monkeypatch.setattr(kv_cache, "SMALL_MODEL", limit)
        paged = paged_form(models["llama"])
        paged.infer(IDS[:1], 0)
        assert (paged._one_token is not None) == twice


def test_nothing_is_compiled_for_one_token_before_the_first_one_follows(models, monkeypatch):
    begun, compile_one = [], kv_cache.OneTokenRequest
    monkeypatch.setattr(
        kv_cache, "OneTokenRequest", lambda *given: begun.append(given) or compile_one(*given)
    )
    given = models["llama"]
    paged = PagedModel(given.model, given._device, given.ov_config)
    paged.infer(IDS[:10], 0)
    assert begun == []
    for past in range(10, 13):
        paged.infer(IDS[past : past + 1], past)
    paged.settle()
    assert len(begun) == 1


def test_the_form_for_one_token_takes_over_between_two_tokens(models, monkeypatch):
    may_compile = threading.Event()
    compile_one = kv_cache.OneTokenRequest

    def waiting(*arguments):
        may_compile.wait(30)
        return compile_one(*arguments)

    monkeypatch.setattr(kv_cache, "OneTokenRequest", waiting)
    given = models["llama"]
    paged, stateful = PagedModel(given.model, given._device, given.ov_config), stateful_form(given)
    for past in range(12):
        if past == 6:
            may_compile.set()
            paged.settle()
        new = IDS[past : past + 1]
        assert_close(paged.infer(new, past), stateful.infer(new, past), atol=1e-4)
        assert (paged._one_token is not None) == (past >= 6)


def test_the_stateful_form_keeps_all_or_nothing(models):
    model = stateful_form(models["llama"])
    model.settle()
    assert model.cut(0, 0) == 0
    model.infer(IDS[:10], past=0)
    assert model.cut(10, 0) == 10
    assert model.cut(9, 0) == 0


def test_few_lengths_are_computed_however_many_there_are(models, monkeypatch):
    monkeypatch.setattr(kv_cache, "SMALL_MODEL", 0)  # else another request computes single tokens
    paged = paged_form(models["llama"])
    lengths = set()
    infer = paged._request.infer

    class Noting:
        def infer(self, inputs):
            lengths.add(len(inputs["input_ids"]))
            return infer(inputs)

        def __getattr__(self, name):
            return getattr(request, name)

    request = paged._request
    monkeypatch.setattr(paged, "_request", Noting())
    for length in range(1, 65):
        paged.infer(IDS[:length], past=0)
    assert lengths == {1, 16, 32, 48, 64}


def test_logits_are_computed_for_the_last_token_only(paged):
    paged.infer(IDS[:50], past=0)
    assert paged._request.get_tensor("logits").shape[0] == 1


def test_the_given_model_is_neither_changed_nor_compiled(folders):
    model = OVModelForCausalLM.from_pretrained(folders["llama"], compile=False, ov_config=EXACT)
    inputs = {port.get_any_name() for port in model.model.inputs}
    assert has_paged_form(model.model, model._device)
    paged_form(model).infer(IDS[:10], past=0)
    assert model.request is None
    assert {port.get_any_name() for port in model.model.inputs} == inputs
    ids = torch.tensor([IDS[:10]])
    assert model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3).shape == (1, 13)


def test_the_model_s_settings_are_used(folders):
    for precision, expected in (("f32", "float"), ("u8", "uint8_t")):
        properties = EXACT | {"KV_CACHE_PRECISION": precision}
        loaded, _ = conversion.load_model(folders["llama"], ov_config=properties)
        ports = paged_form(loaded)._cache_ports
        assert {port.get_element_type().to_string() for port in ports.values()} == {
            {"float": "f32", "uint8_t": "u8"}[expected]
        }


def test_the_paged_form_runs_on_auto(folders):
    auto, _ = conversion.load_model(folders["llama"], "AUTO", ov_config=EXACT)
    assert has_paged_form(auto.model, auto._device)
    cpu, _ = conversion.load_model(folders["llama"], "CPU", ov_config=EXACT)
    expected = paged_form(cpu).infer(IDS[:20], past=0)
    assert_close(paged_form(auto).infer(IDS[:20], past=0), expected, atol=1e-4)


def test_a_model_with_another_state_than_keys_and_values_has_no_paged_form(models, monkeypatch):
    operations = models["llama"].model.get_ops()
    one_more = [*operations, next(node for node in operations if node.get_type_name() == "ReadValue")]
    monkeypatch.setattr(type(models["llama"].model), "get_ops", lambda _: one_more)
    assert not has_paged_form(models["llama"].model, models["llama"]._device)


def test_a_device_without_paged_attention_gets_the_stateful_form(models, monkeypatch):
    assert has_paged_form(models["llama"].model, models["llama"]._device)
    for device in ("NPU", "GPU", "GPU.1"):
        monkeypatch.setattr(models["llama"], "_device", device)
        assert not has_paged_form(models["llama"].model, models["llama"]._device)
