"""What the exporter is too careful with, or not careful enough: no type is forgotten, none untried."""

import pytest

from lifted_caps import EXPORTED_AS, WRONG_RESULTS
from routes import BY_HAND, route_of
from tiny_architectures import ARCHITECTURES


def test_every_row_of_the_tables_is_tried():
    tried = {model_type for model_type, _ in ARCHITECTURES.values()}
    assert {*EXPORTED_AS, *BY_HAND} <= tried


# Types that the exporter caps and that do not pass the tests above, and those that would be wrong silently.
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
    import optimum.exporters.openvino  # noqa: F401
    from optimum.exporters.tasks import TasksManager
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    task = "text-generation-with-past"
    unknown = []
    for model_type in TasksManager.get_supported_model_type_for_task(task, exporter="openvino"):
        settings = {"model_type": model_type, "text_config": {}}
        if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in BY_HAND:
            try:
                route_of(settings).check_settings(settings)
            except ValueError:
                unknown.append(model_type)
    assert set(unknown) - {"llama4", "marian"} == set(REFUSED)
