"""The catalogue, its chat templates, and which module may import which."""

import dataclasses
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from config import (
    CHATML_TEMPLATE,
    DEFAULT_MODEL,
    LLAMA_2_TEMPLATE,
    RED_PAJAMA_TEMPLATE,
    SUPPORTED_MODELS,
    ModelConfig,
    get_model_config,
    models_dir,
)
from sampling import SamplingParams

ROOT = Path(__file__).parents[1]

# Chat templates. One conversation, cut after its first, second and third question.

QUESTIONS = ["Who are you?", "What is 1 + 1?", "Why?"]
ANSWERS = ["I am a bot.", "It is 2."]
SYSTEM = "Be brief."

RED_PAJAMA = {
    1: "<human>: Who are you?\n<bot>:",
    2: "<human>: Who are you?\n<bot>: I am a bot.\n<human>: What is 1 + 1?\n<bot>:",
    3: (
        "<human>: Who are you?\n<bot>: I am a bot.\n<human>: What is 1 + 1?\n<bot>: It is 2.\n"
        "<human>: Why?\n<bot>:"
    ),
}
RED_PAJAMA_SYSTEM = {
    1: "Be brief.\n<human>: Who are you?\n<bot>:",
    2: "Be brief.\n<human>: Who are you?\n<bot>: I am a bot.\n<human>: What is 1 + 1?\n<bot>:",
    3: (
        "Be brief.\n<human>: Who are you?\n<bot>: I am a bot.\n<human>: What is 1 + 1?\n<bot>: It is 2.\n"
        "<human>: Why?\n<bot>:"
    ),
}
LLAMA_2 = {
    1: "<s>[INST] Who are you? [/INST]",
    2: "<s>[INST] Who are you? [/INST] I am a bot. </s><s>[INST] What is 1 + 1? [/INST]",
    3: (
        "<s>[INST] Who are you? [/INST] I am a bot. </s><s>[INST] What is 1 + 1? [/INST] It is 2. </s>"
        "<s>[INST] Why? [/INST]"
    ),
}
LLAMA_2_SYSTEM = {
    1: "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho are you? [/INST]",
    2: (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho are you? [/INST] I am a bot. </s>"
        "<s>[INST] What is 1 + 1? [/INST]"
    ),
    3: (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho are you? [/INST] I am a bot. </s>"
        "<s>[INST] What is 1 + 1? [/INST] It is 2. </s><s>[INST] Why? [/INST]"
    ),
}
CHATML = {
    1: "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    2: (
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nI am a bot.<|im_end|>\n"
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    ),
    3: (
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nI am a bot.<|im_end|>\n"
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\nIt is 2.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ),
}
CHATML_SYSTEM = {
    1: (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    ),
    2: (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nI am a bot.<|im_end|>\n"
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    ),
    3: (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nI am a bot.<|im_end|>\n"
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\nIt is 2.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ),
}
# catalogue name -> the tiny checkpoint of its family, and what its prompts look like
PROMPTS = {
    "red-pajama-3b-chat": ("gpt_neox", RED_PAJAMA, RED_PAJAMA_SYSTEM),
    "llama-2-chat-7b": ("llama", LLAMA_2, LLAMA_2_SYSTEM),
    "mpt-7b-chat": ("mpt", CHATML, CHATML_SYSTEM),
}


@pytest.fixture(scope="module")
def tokenizers(tiny_checkpoints):
    return {family: AutoTokenizer.from_pretrained(folder) for family, folder in tiny_checkpoints.items()}


def conversation(turns: int, system: str | None) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in zip(QUESTIONS[:turns], [*ANSWERS, ""], strict=False):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages[:-1]


def render(tokenizer, template: str, messages: list[dict[str, str]], prompt: bool = True) -> str:
    return tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_without_a_system_message(tokenizers, name, turns):
    family, expected, _ = PROMPTS[name]
    template = SUPPORTED_MODELS[name].chat_template
    assert render(tokenizers[family], template, conversation(turns, None)) == expected[turns]


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_with_a_system_message(tokenizers, name, turns):
    family, _, expected = PROMPTS[name]
    template = SUPPORTED_MODELS[name].chat_template
    assert render(tokenizers[family], template, conversation(turns, SYSTEM)) == expected[turns]


@pytest.mark.parametrize("name", PROMPTS)
def test_the_tokens_of_a_prompt_are_those_of_its_text(tokenizers, name):
    tokenizer = tokenizers[PROMPTS[name][0]]
    text = PROMPTS[name][2][3]
    ids = tokenizer.apply_chat_template(
        conversation(3, SYSTEM),
        chat_template=SUPPORTED_MODELS[name].chat_template,
        add_generation_prompt=True,
        return_dict=False,
    )
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    # llama-2: <s> and </s> are the tokens, once for each sequence, not their letters
    assert ids.count(tokenizer.convert_tokens_to_ids("<s>")) == (3 if name == "llama-2-chat-7b" else 0)


@pytest.mark.parametrize(
    ("template", "family", "expected"),
    [
        (RED_PAJAMA_TEMPLATE, "gpt_neox", "<human>: Hi\n<bot>: Hello\n"),
        (LLAMA_2_TEMPLATE, "llama", "<s>[INST] Hi [/INST] Hello </s>"),
        (CHATML_TEMPLATE, "mpt", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"),
    ],
    ids=["red-pajama", "llama-2", "chatml"],
)
def test_a_finished_conversation_asks_for_no_reply(tokenizers, template, family, expected):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert render(tokenizers[family], template, messages, prompt=False) == expected


SPACES = " \n\t Hi  there \n"


@pytest.mark.parametrize(
    ("template", "family", "expected"),
    [
        (RED_PAJAMA_TEMPLATE, "gpt_neox", "Hi  there\n<human>: Hi  there\n<bot>: Hi  there\n"),
        # As in Meta's chat_completion: the first question is stripped together with the system prompt.
        (
            LLAMA_2_TEMPLATE,
            "llama",
            f"<s>[INST] <<SYS>>\n{SPACES}\n<</SYS>>\n\n \n\t Hi  there [/INST] Hi  there </s>",
        ),
        (
            CHATML_TEMPLATE,
            "mpt",
            f"<|im_start|>system\n{SPACES}<|im_end|>\n<|im_start|>user\n{SPACES}<|im_end|>\n"
            f"<|im_start|>assistant\n{SPACES}<|im_end|>\n",
        ),
    ],
    ids=["red-pajama", "llama-2", "chatml"],
)
def test_spaces_around_a_text_go_where_the_model_card_strips_them(tokenizers, template, family, expected):
    messages = [{"role": role, "content": SPACES} for role in ("system", "user", "assistant")]
    assert render(tokenizers[family], template, messages, prompt=False) == expected


def test_llama_2_strips_a_question_without_a_system_prompt(tokenizers):
    messages = [{"role": "user", "content": SPACES}]
    assert render(tokenizers["llama"], LLAMA_2_TEMPLATE, messages) == "<s>[INST] Hi  there [/INST]"


@pytest.mark.parametrize(
    "content",
    [
        "two\n\n lines\r\n\tand a tab",
        "{{ x }} {% for y in z %} {# note #}",
        "{user} {0} %s $x ${x} \\n \\u0041",
        "{{ ''.__class__ }}",
        "'quoted' \"twice\" <b>&amp;</b>",
        "日本語 👩‍👩‍👧 é",
    ],
)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("name", PROMPTS)
def test_what_people_write_stays_text(tokenizers, name, role, content):
    placeholder = "PLACEHOLDER"
    roles = ("system", "user", "assistant", "user")
    template = SUPPORTED_MODELS[name].chat_template
    plain, odd = (
        render(
            tokenizers[PROMPTS[name][0]],
            template,
            [{"role": each, "content": text if each == role else "x"} for each in roles],
        )
        for text in (placeholder, content)
    )
    assert odd == plain.replace(placeholder, content)


# The catalogue


def test_the_four_models_of_the_design_are_there():
    assert SUPPORTED_MODELS["smollm2-135m-instruct"].model_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert SUPPORTED_MODELS["red-pajama-3b-chat"].model_id == "togethercomputer/RedPajama-INCITE-Chat-3B-v1"
    assert SUPPORTED_MODELS["llama-2-chat-7b"].model_id == "meta-llama/Llama-2-7b-chat-hf"
    assert SUPPORTED_MODELS["mpt-7b-chat"].model_id == "mosaicml/mpt-7b-chat"
    assert DEFAULT_MODEL == "smollm2-135m-instruct"


def test_replies_end_where_the_design_says():
    assert SUPPORTED_MODELS["red-pajama-3b-chat"].stop_strings == ("<human>:",)
    assert set(SUPPORTED_MODELS["mpt-7b-chat"].stop_strings) == {"<|im_end|>", "<|endoftext|>"}


@pytest.mark.parametrize("name", SUPPORTED_MODELS)
def test_entry_is_well_formed(name):
    entry = SUPPORTED_MODELS[name]
    assert re.fullmatch(r"[a-z0-9.-]+", name)
    assert re.fullmatch(r"[A-Za-z][\w-]*/[A-Za-z][\w.-]*", entry.model_id)
    assert re.fullmatch(r"[a-z][a-z0-9.-]+", entry.license) and entry.license != "unknown"
    assert type(entry.parameters) is int and entry.parameters > 0
    assert type(entry.max_context) is int and entry.max_context > 0
    assert type(entry.gated) is bool
    assert entry.chat_template is None or "messages" in entry.chat_template
    assert entry.system_prompt is None or entry.system_prompt.strip()
    assert type(entry.stop_strings) is tuple and all(entry.stop_strings)
    SamplingParams(**entry.sampling or {})  # raises where a field is unknown or out of range


def test_names_and_model_ids_are_unique():
    ids = [entry.model_id.lower() for entry in SUPPORTED_MODELS.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelConfig)])
def test_an_entry_cannot_be_changed(field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(SUPPORTED_MODELS[DEFAULT_MODEL], field, None)


def test_the_bundled_wheel_is_pinned():
    bundled = SUPPORTED_MODELS[DEFAULT_MODEL].bundled
    assert re.fullmatch(r"[0-9a-f]{64}", bundled.sha256)
    assert re.fullmatch(r"\d+(\.\d+)+", bundled.version)


def test_hub_ids_find_their_entry_in_any_letter_case():
    found, entry = get_model_config("qwen/QWEN3-0.6b"), SUPPORTED_MODELS["qwen3-0.6b"]
    assert found == dataclasses.replace(entry, model_id="qwen/QWEN3-0.6b")
    assert get_model_config("Someone/Chatbot") == ModelConfig("Someone/Chatbot")


def test_a_hub_id_means_the_hub_and_only_the_catalogue_name_the_bundled_copy():
    assert get_model_config(DEFAULT_MODEL).bundled
    assert get_model_config("HuggingFaceTB/SmolLM2-135M-Instruct").bundled is None


def test_a_file_of_weights_can_be_named_like_a_folder(tmp_path):
    (tmp_path / "model.gguf").touch()
    (tmp_path / "notes.txt").touch()
    assert get_model_config(str(tmp_path / "model.gguf")).model_id == str(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=f"notes.txt is a single file.*perhaps {tmp_path}"):
        get_model_config(str(tmp_path / "notes.txt"))


def test_a_hub_id_with_a_revision_keeps_its_entry_but_for_the_weights():
    entry = get_model_config("HuggingFaceTB/SmolLM2-135M-Instruct@main")
    assert entry.model_id == "HuggingFaceTB/SmolLM2-135M-Instruct@main"
    assert entry.bundled is None
    assert entry.max_context == SUPPORTED_MODELS[DEFAULT_MODEL].max_context
    assert get_model_config("Someone/Chatbot@refs/pr/1").model_id == "Someone/Chatbot@refs/pr/1"
    for name in ("Someone/Chatbot@", "Someone/Chatbot@../x y", "@v1"):
        with pytest.raises(ValueError, match="Unknown model"):
            get_model_config(name)


@pytest.mark.parametrize("name", SUPPORTED_MODELS)
def test_recommended_sampling_is_within_its_range(name):
    SamplingParams(**SUPPORTED_MODELS[name].sampling or {})


def test_code_of_a_checkpoint_is_never_trusted():
    files = [
        *ROOT.glob("*.py"),
        *ROOT.glob("*.ipynb"),
        *ROOT.glob("tests/*.py"),
        *ROOT.glob("benchmarks/*.py"),
    ]
    trusting = [
        path.name for path in files if re.search(r"trust_remote_code\W{1,5}True", path.read_text("utf-8"))
    ]
    assert len(files) > 10
    assert trusting == []


def test_models_are_kept_where_the_environment_says_and_an_empty_variable_says_nothing(monkeypatch):
    monkeypatch.setenv("LLM_CHATBOT_MODELS_DIR", "~/my-models")
    assert models_dir() == Path.home() / "my-models"
    monkeypatch.setenv("LLM_CHATBOT_MODELS_DIR", "")
    assert models_dir() == Path("models")
