"""Tiny random checkpoints, one per architecture of the catalogue and per row of `lifted_caps`.

Settings that change what is computed are on, and small enough to matter within 60 tokens: windows of 32
tokens, rotary embeddings stretched beyond 32. `tiny_checkpoints` makes the tokenizer.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from tiny_checkpoints import _llama_tokenizer

TWO_LAYERS = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # wide enough that greedy decoding does not settle on one token
    "pad_token_id": None,
}
WINDOW = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "original_max_position_embeddings": 32, "beta_fast": 32.0}
GEMMA_3 = TWO_LAYERS | WINDOW | {"head_dim": 16, "query_pre_attn_scalar": 16}
MINISTRAL_3 = TWO_LAYERS | {
    "head_dim": 16,
    "rope_parameters": YARN
    | {"factor": 16.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
}
GRANITE = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 2.0,
    "logits_scaling": 0.5,
    "residual_multiplier": 0.5,
}
PICTURES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

# By the name of a test: model_type, and its configuration without the vocabulary.
ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "exaone4": ("exaone4", TWO_LAYERS | WINDOW | {"head_dim": 16, "sliding_window_pattern": 2}),
    "gemma": ("gemma", TWO_LAYERS | {"head_dim": 16}),
    "gemma2": ("gemma2", GEMMA_3 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 5.0}),
    "gemma3_text": (
        "gemma3_text",
        GEMMA_3
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    "gemma3": (
        "gemma3",
        {
            "text_config": GEMMA_3,
            "vision_config": PICTURES,
            "mm_tokens_per_image": 4,
        },
    ),
    "glm": ("glm", TWO_LAYERS | {"head_dim": 16}),
    "glm4": ("glm4", TWO_LAYERS | {"head_dim": 16}),
    "gpt_neox": ("gpt_neox", {k: v for k, v in TWO_LAYERS.items() if k != "num_key_value_heads"}),
    "gpt_oss": (
        "gpt_oss",
        TWO_LAYERS
        | WINDOW
        | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
        | {"rope_parameters": YARN | {"factor": 32.0, "truncate": False}},
    ),
    "granite": ("granite", TWO_LAYERS | GRANITE),
    "granite4": (
        "granitemoehybrid",
        TWO_LAYERS
        | GRANITE
        | {
            "layer_types": ["attention"] * 2,
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
        },
    ),
    "llama": (
        "llama",
        TWO_LAYERS
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "ministral": ("ministral", TWO_LAYERS | WINDOW | {"head_dim": 16}),
    "ministral3": ("ministral3", MINISTRAL_3),
    "mistral": ("mistral", TWO_LAYERS | {"sliding_window": None}),
    "mistral_window": ("mistral", TWO_LAYERS | {"sliding_window": 32}),
    "mistral3": (
        "mistral3",
        {
            "text_config": MINISTRAL_3 | {"model_type": "ministral3"},
            "vision_config": PICTURES | {"model_type": "pixtral"},
            "image_token_index": 300,
        },
    ),
    "mpt": (
        "mpt",
        {"d_model": 64, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 512}
        | {"initializer_range": 0.2},
    ),
    "olmo2": ("olmo2", TWO_LAYERS),
    "phi3": (
        "phi3",
        TWO_LAYERS
        | {
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
                "original_max_position_embeddings": 256,
            },
        },
    ),
    "qwen2": ("qwen2", TWO_LAYERS),
    "qwen3": ("qwen3", TWO_LAYERS | {"head_dim": 16}),
    "qwen3_moe": (
        "qwen3_moe",
        TWO_LAYERS
        | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "smollm3": ("smollm3", TWO_LAYERS | {"no_rope_layers": [1, 0]}),
}


def make_tiny_architecture(folder: Path, name: str) -> Path:
    """Write a 16-bit checkpoint of two layers and width 64; the same call gives the same weights."""
    model_type, settings = ARCHITECTURES[name]
    tokenizer = _llama_tokenizer()
    words = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if "text_config" in settings:
        settings = settings | {"text_config": settings["text_config"] | words}
    else:
        settings = settings | words
    torch.manual_seed(0)
    kind = AutoModelForImageTextToText if "text_config" in settings else AutoModelForCausalLM
    model = kind.from_config(CONFIG_MAPPING[model_type](**settings))
    for parameter_name, parameter in model.named_parameters():
        # Norms begin as ones and biases as zeros, which would hide that one is left out.
        if parameter.dim() == 1 or parameter_name.endswith("bias"):
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if "text_config" in settings:
        name_as_published(folder / "model.safetensors")
    return folder


def name_as_published(file: Path) -> None:
    """Give the weights of a model with pictures the names that the Hub's checkpoints have."""
    weights = {}
    for name, weight in load_file(file).items():
        name = name.removeprefix("model.")
        if name.startswith("language_model.") and not name.startswith(
            ("language_model.model.", "language_model.lm")
        ):
            name = name.replace("language_model.", "language_model.model.", 1)
        if name.startswith("lm_head."):
            name = f"language_model.{name}"
        weights[name] = weight
    save_file(weights, file, {"format": "pt"})


def load_pytorch(folder: Path, name: str) -> PreTrainedModel:
    """The checkpoint in transformers, computing in 32 bits."""
    kind = AutoModelForImageTextToText if "text_config" in ARCHITECTURES[name][1] else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval()
