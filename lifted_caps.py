"""Where Optimum Intel's exporter is too careful, or not careful enough, with the installed transformers.

Two tables of architectures, each row proved by `tests/test_architectures.py` on the installed versions: a
tiny model against PyTorch, on a cache, beyond its window, on both engines. Refuses to know how a checkpoint
is loaded and written (`optimum_export`).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimum.exporters.openvino.base import OpenVINOConfig
    from transformers import PreTrainedConfig

TASK = "text-generation-with-past"

# By model_type: whose description of inputs and cache the exporter is to use. One that stands for itself the
# exporter describes rightly, but refuses with a newer transformers than it was made for. The others are not
# known to it, and are in these respects like one that is.
#
# Soft-capping of attention scores (Gemma 2) is computed neither by transformers' own fast attention nor by
# OpenVINO's: what is exported is what transformers runs.
EXPORTED_AS = {
    "exaone4": "exaone4",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "glm": "glm",
    "ministral": "mistral",
    "ministral3": "mistral",
}

# By model_type: what the exporter or OpenVINO's paged attention silently get wrong.
WRONG_RESULTS = {
    "afmoe": "its exported form computes other probabilities than the model itself",
    "gpt_neo": "OpenVINO's paged attention does not know its local attention",
}


def check_results(settings: dict) -> None:
    """Refuse a model that could be exported, but whose answers would be wrong.

    Args:
        settings: the content of config.json.

    Raises:
        ValueError: names the architecture and what is wrong.
    """
    model_type = settings.get("model_type")
    reason = WRONG_RESULTS.get(model_type)
    if model_type == "falcon" and settings.get("alibi"):
        reason = "OpenVINO's paged attention does not know its kind of ALiBi"
    if reason:
        raise ValueError(
            f"This is a model of type {model_type!r}, which is not converted: {reason}. "
            "Choose a model of another type."
        )


def export_configs(config: "PreTrainedConfig") -> "dict[str, OpenVINOConfig] | None":
    """What `main_export` wants as `custom_export_configs`, or None for architectures without a row above.

    The exporter's cap is an attribute, and is lifted on this one object: nothing of Optimum is changed.
    """
    exported_as = EXPORTED_AS.get(config.model_type)
    if exported_as is None:
        return None

    import optimum.exporters.openvino  # noqa: F401  (registers what the OpenVINO exporter supports)
    from optimum.exporters.tasks import TasksManager

    describe = TasksManager.get_exporter_config_constructor(
        "openvino", model_type=exported_as, task=TASK, library_name="transformers"
    )
    description = describe(config, use_past_in_inputs=True)
    description.MAX_TRANSFORMERS_VERSION = None
    return {"model": description}
