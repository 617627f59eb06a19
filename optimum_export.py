"""The usual way from a checkpoint to IR: Optimum Intel's exporter.

Knows what the exporter supports and how it is called. Refuses to know tokenizers, compression and folders.
"""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from checkpoint import stored_dtype
from lifted_caps import EXPORTED_AS, TASK, check_results, export_configs
from weight_names import check_weight_names

if TYPE_CHECKING:
    import torch
    from optimum.intel import OVConfig
    from transformers import GenerationConfig, PreTrainedModel

GENERATION = "generation_config.json"


def check_settings(settings: dict) -> None:
    """Refuse, before any work, an architecture that cannot be exported.

    Args:
        settings: the content of config.json.

    Raises:
        ValueError: names the architecture and what can be done.
    """
    import optimum.exporters.openvino  # noqa: F401  (registers what the OpenVINO exporter supports)
    from optimum.exporters.tasks import TasksManager
    from transformers import CONFIG_MAPPING

    model_type = settings.get("model_type")
    if model_type is None:
        raise ValueError(
            "Its config.json has no model_type, so nobody knows which architecture it is. Fetch it again, or "
            "write the original's there."
        )
    known = TasksManager.get_supported_model_type_for_task(TASK, exporter="openvino")
    if (
        EXPORTED_AS.get(model_type, model_type) not in known or model_type not in CONFIG_MAPPING
    ):  # the latter: needs code of its own
        raise ValueError(
            f"This is a model of type {model_type!r}, which Optimum Intel cannot export for text "
            "generation. Choose one of a supported type (llama, qwen2, qwen3, mistral, phi3, gpt_neox, mpt, "
            "...); code that a checkpoint brings along is not run."
        )
    check_results(settings)
    if model_type in EXPORTED_AS:
        return
    exporter = TasksManager.get_exporter_config_constructor(
        "openvino", model_type=model_type, task=TASK, library_name="transformers"
    ).func
    newest = getattr(exporter, "MAX_TRANSFORMERS_VERSION", None)
    if newest and Version(version("transformers")) > Version(str(newest)):
        raise ValueError(
            f"This is a model of type {model_type!r}, which this version of Optimum Intel exports with "
            f"transformers up to {newest} only, and transformers {version('transformers')} is installed. "
            "Choose a model of another type, or a newer Optimum Intel."
        )


def export_checkpoint(checkpoint_folder: Path, output: Path) -> None:
    """Write a checkpoint as a stateful IR with 16-bit weights, its configuration beside it.

    The weights are loaded in the type they are stored in: only then do they stay in the mapped files.
    bfloat16 stays bfloat16.

    Raises:
        ValueError: they are not the weights that the architecture has.
    """
    from optimum.exporters.openvino import main_export
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(checkpoint_folder, trust_remote_code=False)
    check_weight_names(checkpoint_folder, config)
    stored = stored_dtype(checkpoint_folder)
    main_export(
        str(checkpoint_folder),
        output=output,
        task=TASK,
        ov_config=_number_type(stored),
        trust_remote_code=False,
        model_loading_kwargs={"torch_dtype": stored},
        custom_export_configs=export_configs(config),
    )
    if (checkpoint_folder / GENERATION).is_file():
        generation = GenerationConfig.from_pretrained(checkpoint_folder)
    else:
        generation = GenerationConfig.from_model_config(config)
    _write_generation_config(generation, output)


def export_model(model: "PreTrainedModel", output: Path) -> None:
    """The same for a model that is loaded already."""
    from optimum.exporters.openvino import export_from_model
    from optimum.exporters.openvino.utils import clear_class_registry

    export_from_model(
        model,
        output,
        task=TASK,
        ov_config=_number_type(model.dtype),
        patch_16bit_model=model.dtype.itemsize == 2,
        custom_export_configs=export_configs(model.config),
    )
    clear_class_registry()  # gives back the memory of what was traced, as `main_export` does
    _write_generation_config(model.generation_config, output)


def _write_generation_config(generation: "GenerationConfig", output: Path) -> None:
    """Make up for the exporter, which leaves out one that transformers would not save.

    That is one with a temperature, or the like, and without do_sample: many published ones are.
    """
    if not (output / GENERATION).is_file():
        generation.to_json_file(output / GENERATION)


def _number_type(stored: "torch.dtype") -> "OVConfig":
    """Weights of 16 bits are written as they are, and what is not a weight with 32 bits.

    "fp16" would round everything, the frequencies of rotary position embeddings among it, which is an error
    of an angle that grows with the position. Weights of 32 bits can become smaller in no other way.
    """
    from optimum.intel import OVConfig

    return OVConfig(dtype="fp32" if stored.itemsize == 2 else "fp16")
