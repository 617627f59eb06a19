"""From a checkpoint whose text model is another architecture's to IR: by way of that architecture.

Two kinds: the text part of a model that sees pictures too (Gemma 3, Mistral 3), and Granite 4 without Mamba
layers, which is a Granite 3 with two matrices in one. Knows their names of weights. Refuses to know
tokenizers, compression and folders.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint import stored_dtype
from optimum_export import check_settings, export_model
from weight_names import check_weight_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where a checkpoint with pictures has the weights of its text model, and where the text model has them.
TEXT_WEIGHTS = {
    r"^(model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}


def check_text_part(settings: dict) -> None:
    """Refuse a checkpoint with pictures whose text model cannot be exported.

    Args:
        settings: the content of config.json.

    Raises:
        ValueError: names the text model's type and what can be done.
    """
    check_settings({"model_type": f"{settings['model_type']}_text"} | settings.get("text_config", {}))


def export_text_part(checkpoint_folder: Path, output: Path) -> None:
    """Write the text model of a checkpoint with pictures as stateful FP16 IR; see `Route.export`.

    Raises:
        ValueError: the checkpoint lacks weights of the text model: see `check_weight_names`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    whole = AutoConfig.from_pretrained(checkpoint_folder, trust_remote_code=False)
    config = whole.get_text_config(decoder=True)
    config.tie_word_embeddings = whole.tie_word_embeddings  # as transformers does with the whole model
    check_weight_names(checkpoint_folder, config, TEXT_WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint_folder,
        config=config,
        dtype=stored_dtype(checkpoint_folder),
        key_mapping=TEXT_WEIGHTS,
        trust_remote_code=False,
    )
    export_model(model, output)


def check_granite_hybrid(settings: dict) -> None:
    """Refuse a Granite 4 that is no Granite 3 in other words.

    Raises:
        ValueError: names what it has that cannot be exported.
    """
    layers = settings.get("layer_types") or ["mamba"]
    if set(layers) != {"attention"} or settings.get("num_local_experts"):
        raise ValueError(
            "This is a Granite 4 with Mamba layers or experts, which cannot be exported with the installed "
            "versions. Choose one of the plain ones: granite-4.0-micro, granite-4.0-1b or granite-4.0-350m."
        )
    if settings.get("position_embedding_type") != "rope":
        raise ValueError("This is a Granite 4 without rotary position embedding, which cannot be exported.")


def export_granite_hybrid(checkpoint_folder: Path, output: Path) -> None:
    """Write a Granite 4 without Mamba layers as the Granite that computes the same; see `Route.export`."""
    export_model(load_granite(checkpoint_folder), output)


def load_granite(checkpoint_folder: Path) -> "PreTrainedModel":
    """A Granite 4 without Mamba layers as `GraniteForCausalLM`.

    Its gate and up projections are one matrix, the former above the latter; all else has the same names.
    """
    from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM

    check_weight_names(checkpoint_folder)
    dtype = stored_dtype(checkpoint_folder)
    hybrid = AutoModelForCausalLM.from_pretrained(checkpoint_folder, dtype=dtype, trust_remote_code=False)
    weights = {}
    for name, weight in hybrid.state_dict().items():
        layer, _, matrix = name.partition("shared_mlp.")
        if matrix == "input_linear.weight":
            gate, up = weight.chunk(2)
            weights |= {f"{layer}mlp.gate_proj.weight": gate, f"{layer}mlp.up_proj.weight": up}
        else:
            weights[name.replace("shared_mlp.output_linear", "mlp.down_proj")] = weight
    kept = GraniteConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    settings = {name: value for name, value in hybrid.config.to_dict().items() if name in kept}
    config = GraniteConfig(**settings | {"intermediate_size": hybrid.config.shared_intermediate_size})
    granite = GraniteForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    granite.generation_config = hybrid.generation_config
    return granite
