"""What the exporter is too careful with, or not careful enough: no type is forgotten, none untried."""

from contextlib import nullcontext

import optimum.exporters.openvino  # noqa: F401  (registers what the OpenVINO exporter supports)
import pytest
from optimum.exporters.tasks import TasksManager
from transformers import Gemma2Config, LlamaConfig, Ministral3Config, MinistralConfig

from lifted_caps import EXPORTED_AS, TASK, WRONG_RESULTS, check_results, export_configs
from routes import BY_HAND, route_of
from tiny_architectures import ARCHITECTURES


def test_every_row_of_the_tables_is_tried():
    tried = {model_type for model_type, _ in ARCHITECTURES.values()}
    assert {*EXPORTED_AS, *BY_HAND} <= tried


# Types that the exporter caps and that do not pass the tests of test_architectures, and those that would be
# wrong silently.
REFUSED = [
    "bitnet",
    "dbrx",
    "deepseek_v2",
    "deepseek_v3",
    "falcon_mamba",
    "gemma3n_text",
    "gemma4_text",
    "lfm2",
    "lfm2_moe",
    "llama4_text",
    "mamba",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "zamba2",
    *WRONG_RESULTS,
]


@pytest.mark.parametrize("model_type", REFUSED)
def test_other_types_are_refused_by_name(model_type):
    settings = {"model_type": model_type}
    with pytest.raises(ValueError, match=f"'{model_type}'"):
        route_of(settings).check_settings(settings)


def test_no_capped_type_is_forgotten():
    """Each that transformers still has is either lifted and tried, or refused above."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    unknown = []
    for model_type in TasksManager.get_supported_model_type_for_task(TASK, exporter="openvino"):
        settings = {"model_type": model_type, "text_config": {}}
        if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in BY_HAND:
            try:
                route_of(settings).check_settings(settings)
            except ValueError:
                unknown.append(model_type)
    assert set(unknown) - {"llama4", "marian"} == set(REFUSED)


@pytest.mark.parametrize(
    ("settings", "refused"), [({"alibi": True}, True), ({"alibi": False}, False), ({}, False)]
)
def test_falcon_is_refused_with_its_kind_of_alibi_only(settings, refused):
    settings = {"model_type": "falcon"} | settings
    with pytest.raises(ValueError, match="ALiBi") if refused else nullcontext():
        check_results(settings)


def test_the_cap_is_lifted_on_one_object_and_nowhere_else():
    (description,) = export_configs(Gemma2Config()).values()
    assert description.MAX_TRANSFORMERS_VERSION is None
    assert type(description).MAX_TRANSFORMERS_VERSION is not None  # else its row can go


def test_a_type_that_the_exporter_does_not_know_is_described_as_one_that_it_knows():
    assert "ministral" not in TasksManager.get_supported_model_type_for_task(TASK, exporter="openvino")
    ministral, mistral = (
        export_configs(MinistralConfig())["model"],
        export_configs(Ministral3Config())["model"],
    )
    assert type(ministral) is type(mistral)


def test_other_types_are_left_to_the_exporter():
    assert export_configs(LlamaConfig()) is None
