"""Which way an architecture takes; another one by hand is one row in the table."""

import json
import shutil
from pathlib import Path

import pytest
from optimum.intel import OVModelForCausalLM

import conversion
import optimum_export
import routes
from checkpoint import Weights
from conversion import load_model, prepare_model
from ov_mpt_model import OVMPTModel
from routes import Route, route_of


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "never-heard-of", None])
def test_the_usual_way_is_optimum_s(model_type):
    route = route_of({"model_type": model_type})
    assert route.export is optimum_export.export_checkpoint
    assert route.model_class is OVModelForCausalLM


GO_BY_HAND = {
    "mpt": OVMPTModel,
    "gemma3": OVModelForCausalLM,
    "mistral3": OVModelForCausalLM,
    "granitemoehybrid": OVModelForCausalLM,
}


@pytest.mark.parametrize("model_type", GO_BY_HAND)
def test_some_go_by_hand(model_type):
    route = route_of({"model_type": model_type})
    assert route.export is not optimum_export.export_checkpoint
    assert route.model_class is GO_BY_HAND[model_type]


def test_no_way_by_hand_is_forgotten_here():
    assert routes.BY_HAND.keys() == GO_BY_HAND.keys()


@pytest.fixture
def by_hand(monkeypatch) -> list[Path]:
    """Models of type gpt_neox go another way, which Optimum's exporter stands in for; what it exported."""
    exported = []

    class OVOtherModel(OVModelForCausalLM):
        pass

    def check_settings(settings: dict) -> None:
        if settings.get("strange"):
            raise ValueError("This model is strange.")

    def export(checkpoint_folder: Path, output: Path) -> None:
        exported.append(checkpoint_folder)
        optimum_export.export_checkpoint(checkpoint_folder, output)

    route = Route(check_settings, export, OVOtherModel, traces_16_bits=True)
    monkeypatch.setitem(routes.BY_HAND, "gpt_neox", lambda: route)
    return exported


@pytest.mark.slow
def test_a_second_way_by_hand_is_one_row(by_hand, tiny_checkpoints, tmp_path):
    folder = prepare_model("red-pajama-3b-chat", "INT8", tmp_path, tiny_checkpoints["gpt_neox"])
    assert by_hand == [tiny_checkpoints["gpt_neox"]]
    assert type(load_model(folder)[0]).__name__ == "OVOtherModel"
    prepare_model("llama-2-chat-7b", "FP16", tmp_path, tiny_checkpoints["llama"])
    assert len(by_hand) == 1


def test_a_setting_that_a_way_cannot_honour_is_refused_before_any_work(by_hand, tiny_checkpoints, tmp_path):
    checkpoint = shutil.copytree(tiny_checkpoints["gpt_neox"], tmp_path / "checkpoint")
    settings = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(settings | {"strange": True}))
    with pytest.raises(ValueError, match=f"{checkpoint} cannot be converted. This model is strange."):
        prepare_model("red-pajama-3b-chat", "FP16", tmp_path / "models", checkpoint)
    assert by_hand == []


@pytest.mark.parametrize(("bits", "twice"), [(16, False), (32, True)])
def test_a_way_that_traces_16_bits_needs_the_disk_for_32_bit_weights_twice(
    by_hand, tiny_checkpoints, tmp_path, monkeypatch, bits, twice
):
    asked = []
    monkeypatch.setattr(conversion, "check_disk", lambda folder, needed, what: asked.append(needed))
    weights = Weights(at_16_bits=1e9, itemsize=bits // 8, largest=1000)
    for family in ("gpt_neox", "llama"):
        conversion._check_room(tiny_checkpoints[family], tmp_path, ["FP16"], has_fp16=False, weights=weights)
    by_hand_needs, optimum_needs = (round(needed / 1e9) for needed in asked)
    assert (by_hand_needs, optimum_needs) == (2 if twice else 1, 1)
