"""The usual way from a checkpoint to IR: Optimum Intel's exporter.

Knows what the exporter supports and how it is called. Refuses to know tokenizers, compression and folders.
"""

from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

from checkpoint import stored_dtype


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
    known = TasksManager.get_supported_model_type_for_task("text-generation-with-past", exporter="openvino")
    if model_type not in known or model_type not in CONFIG_MAPPING:  # the latter: needs code of its own
        raise ValueError(
            f"This is a model of type {model_type!r}, which Optimum Intel cannot export for text "
            "generation. Choose one of a supported type (llama, qwen2, qwen3, mistral, phi3, gpt_neox, mpt, "
            "...); code that a checkpoint brings along is not run."
        )
    exporter = TasksManager.get_exporter_config_constructor(
        "openvino", model_type=model_type, task="text-generation-with-past", library_name="transformers"
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
    """
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    main_export(
        str(checkpoint_folder),
        output=output,
        task="text-generation-with-past",
        ov_config=OVConfig(dtype="fp16"),
        trust_remote_code=False,
        model_loading_kwargs={"torch_dtype": stored_dtype(checkpoint_folder)},
    )
