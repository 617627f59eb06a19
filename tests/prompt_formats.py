"""Prompt formats of model families: a chat template for each, and what it has to make of a conversation.

The templates are written for these tests, in the different manners in which published ones are written; the
expected texts are written out from the formats' documentation. `make_tokenizer` makes a tiny tokenizer with a
format's tokens.
"""

from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CONVERSATION = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Who are you?"},
)


@dataclass(frozen=True)
class PromptFormat:
    """How a family's models read a conversation.

    tokens: the special tokens that the template writes, and others by which the family ends a sequence.
    turn_end: what follows an assistant's text, as its first token or words; the reply is over there.
    eos: the token that the family's tokenizer calls the end of a sequence, which need not be `turn_end`.
    expected: what becomes of `conversation`, up to where the reply begins.
    system: whether the format has a place for a system message.
    options: the variables with which `expected` comes out.
    """

    template: str
    tokens: tuple[str, ...]
    turn_end: str
    eos: str
    expected: str
    bos: str | None = None
    system: bool = True
    options: dict = field(default_factory=dict)

    @property
    def conversation(self) -> list[dict[str, str]]:
        """`CONVERSATION`, without the system message where the format has no place for one."""
        return [dict(message) for message in CONVERSATION[0 if self.system else 1 :]]


def make_tokenizer(prompt_format: PromptFormat) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of a few hundred tokens with the format's template and special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = " ".join(message["content"] for message in CONVERSATION)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(dict.fromkeys((prompt_format.eos, *prompt_format.tokens))),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        [f"{text} system user assistant I am an assistant. The user says hi."] * 3, trainer
    )
    names = {"eos_token": prompt_format.eos} | ({"bos_token": prompt_format.bos} if prompt_format.bos else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = prompt_format.template
    return tokenizer


CHATML = """
{%- for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

LLAMA_2 = """
{%- set instructions = "" %}
{%- set turns = messages %}
{%- if messages[0].role == "system" %}
    {%- set instructions = "<<SYS>>\\n" ~ messages[0].content ~ "\\n<</SYS>>\\n\\n" %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for turn in turns %}
    {%- if (turn.role == "user") != (loop.index0 is even) %}
        {{- raise_exception("Questions and answers must take turns.") }}
    {%- endif %}
    {%- if turn.role == "user" %}
        {%- set question = (instructions if loop.first else "") ~ turn.content.strip() %}
        {{- bos_token ~ "[INST] " ~ question ~ " [/INST]" }}
    {%- else %}
        {{- " " ~ turn.content.strip() ~ " " ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""

LLAMA_3 = """
{%- macro turn(role, text) -%}
    <|start_header_id|>{{ role }}<|end_header_id|>{{ "\\n\\n" ~ text | trim }}<|eot_id|>
{%- endmacro -%}
{{- bos_token }}
{%- for message in messages %}
    {{- turn(message.role, message.content) }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""

LLAMA_3_DATED = """
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]["role"] == "system" %}
    {%- set system, turns = messages[0]["content"] | trim, messages[1:] %}
{%- else %}
    {%- set system, turns = "", messages %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" + system + "<|eot_id|>" }}
{%- for message in turns %}
    {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" }}
    {{- message["content"] | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""

MISTRAL = """
{{- bos_token -}}
{%- set state = namespace(before="") -%}
{%- for message in messages -%}
    {%- if message["role"] == "system" -%}
        {%- set state.before = message["content"] + "\\n\\n" -%}
        {%- continue -%}
    {%- endif -%}
    {%- if message["role"] == "user" -%}
        {{- "[INST] " + state.before + message["content"] + " [/INST]" -}}
        {%- set state.before = "" -%}
    {%- elif message["role"] == "assistant" -%}
        {{- " " + message["content"] + eos_token -}}
    {%- else -%}
        {{- raise_exception("Nobody here is a " + message["role"]) -}}
    {%- endif -%}
{%- endfor -%}
"""

GEMMA_2 = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "system" %}{{ raise_exception("There is no system role.") }}{% endif %}
    {%- set role = "model" if message.role == "assistant" else message.role %}
    {{- "<start_of_turn>" ~ role ~ "\\n" ~ message.content | trim ~ "<end_of_turn>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<start_of_turn>model\\n" }}{% endif %}
"""

GEMMA_3 = """
{{- bos_token }}
{%- if messages[0].role == "system" %}
    {%- if messages[0].content is string %}
        {%- set first = messages[0].content + "\\n\\n" %}
    {%- else %}
        {%- set first = messages[0].content | map(attribute="text") | join + "\\n\\n" %}
    {%- endif %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set first, turns = "", messages %}
{%- endif %}
{%- for message in turns %}
    {{- "<start_of_turn>" ~ {"user": "user", "assistant": "model"}[message.role] ~ "\\n" }}
    {{- first if loop.first }}{{ message.content | trim }}{{ "<end_of_turn>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<start_of_turn>model\\n" }}{% endif %}
"""

PHI_3 = """
{%- for message in messages %}
{{ "<|" + message.role + "|>" }}
{{ message.content }}<|end|>
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% else %}
{{ eos_token }}
{%- endif %}
"""

PHI_4_MINI = """
{%- for message in messages %}
    {{- "<|" + message["role"] + "|>" }}
    {%- if message["role"] == "system" and message.tools is defined and message.tools is not none %}
        {{- message["content"] + "<|tool|>" + message["tools"] + "<|/tool|>" }}
    {%- else %}
        {{- message["content"] }}
    {%- endif %}
    {{- "<|end|>" }}
{%- endfor %}
{{- "<|assistant|>" if add_generation_prompt else eos_token }}
"""

PHI_4 = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

ZEPHYR = """
{%- for message in messages %}
<|{{ message.role }}|>
{{ message.content ~ eos_token }}
{% if loop.last and add_generation_prompt %}
<|assistant|>
{% endif %}
{% endfor %}
"""

QWEN_3 = """
{%- set last = namespace(question=-1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" %}
        {%- set last.question = messages | length - loop.index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set text = message.content %}
    {%- if message.role == "assistant" and "</think>" in text and loop.index0 < last.question %}
        {%- set text = text.split("</think>")[-1].lstrip("\\n") %}
    {%- endif %}
    {{- "<|im_start|>" + message.role + "\\n" + text + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- "<think>\\n\\n</think>\\n\\n" }}
    {%- endif %}
{%- endif %}
"""

DEEPSEEK_R1 = """
{%- set found = namespace(system="") -%}
{%- for message in messages if message.role == "system" -%}
    {%- set found.system = found.system ~ message.content -%}
{%- endfor -%}
{{- bos_token }}{{ found.system -}}
{%- for message in messages -%}
    {%- if message.role == "user" -%}<｜User｜>{{ message.content }}{%- endif -%}
    {%- if message.role == "assistant" -%}
        <｜Assistant｜>{{ message.content.split("</think>") | last }}<｜end▁of▁sentence｜>
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<｜Assistant｜><think>{{ "\\n" }}{%- endif -%}
"""

GRANITE = """
{%- macro role(name) %}<|start_of_role|>{{ name }}<|end_of_role|>{% endmacro %}
{%- if messages[0].role == "system" %}
    {%- set system, turns = messages[0].content, messages[1:] %}
{%- else %}
    {%- set system, turns = "You answer questions.", messages %}
{%- endif %}
{%- if thinking %}
    {%- set system = system + " Think first, between <think> and </think>." %}
{%- endif %}
{%- if tools %}
    {{- role("tools") + tools | tojson(indent=4) + "<|end_of_text|>\\n" }}
{%- endif %}
{{- role("system") + system + "<|end_of_text|>\\n" }}
{%- for turn in turns %}
    {{- role(turn.role) + turn.content + "<|end_of_text|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ role("assistant") }}{% endif %}
"""

OLMO_2 = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- "<|assistant|>\\n" }}
        {%- generation %}
            {%- set ended = message.content + eos_token %}
            {{- ended }}
        {%- endgeneration %}
        {{- "" if loop.last else "\\n" }}
    {%- else %}
        {{- "<|" + message.role + "|>\\n" + message.content + "\\n" }}
    {%- endif %}
    {%- if loop.last and add_generation_prompt %}{{ "<|assistant|>\\n" }}{% endif %}
{%- endfor %}
"""

GLM_4 = """[gMASK]<sop>
{%- for message in messages -%}
    <|{{ message.role }}|>
{{ message.content }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""

HARMONY = """
{%- macro message(who, text) -%}
    <|start|>{{ who }}<|message|>{{ text }}<|end|>
{%- endmacro -%}
{%- set effort = reasoning_effort | default("medium") -%}
{%- set today = current_date | default(strftime_now("%Y-%m-%d")) -%}
{%- set about -%}
You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: {{ today }}

Reasoning: {{ effort }}

# Valid channels: analysis, commentary, final. Channel must be included for every message.
{%- endset -%}
{{- message("system", about) -}}
{%- for turn in messages -%}
    {%- if turn.role in ("system", "developer") -%}
        {{- message("developer", "# Instructions\\n\\n" ~ turn.content) -}}
    {%- elif turn.role == "assistant" -%}
        {%- if turn.thinking is defined and loop.last -%}
            {{- message("assistant<|channel|>analysis", turn.thinking) -}}
        {%- endif -%}
        {{- message("assistant<|channel|>final", turn.content) -}}
    {%- else -%}
        {{- message(turn.role, turn.content) -}}
    {%- endif -%}
{%- endfor -%}
{{- "<|start|>assistant" if add_generation_prompt -}}
"""

RED_PAJAMA = """
{%- for message in messages %}
    {%- if message.role == "user" %}<human>: {{ message.content }}
{% elif message.role == "assistant" %}<bot>: {{ message.content }}
{% else %}{{ raise_exception("Only <human> and <bot> talk here.") }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<bot>:{% endif %}
"""

COMMAND_R = """
{{- bos_token }}
{%- set tokens = {"system": "SYSTEM", "user": "USER", "assistant": "CHATBOT"} %}
{%- for message in messages %}
    {{- "<|START_OF_TURN_TOKEN|><|%s_TOKEN|>" | format(tokens[message.role]) }}
    {{- message.content ~ "<|END_OF_TURN_TOKEN|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>" }}{% endif %}
"""

VICUNA = """
{%- for message in messages %}
    {%- if message.role == "system" %}{{ message.content }} {% endif %}
    {%- if message.role == "user" %}USER: {{ message.content }} {% endif %}
    {%- if message.role == "assistant" %}ASSISTANT: {{ message.content ~ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}ASSISTANT:{% endif %}
"""

CHATML_TEXT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello!<|im_end|>\n"
    "<|im_start|>user\nWho are you?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
LLAMA_3_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
LLAMA_3_TURNS = (
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWho are you?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA_TOKENS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
PHI_3_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
GRANITE_TOKENS = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")
GRANITE_TURNS = (
    "<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>Hello!<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Who are you?<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>"
)
GLM_TOKENS = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
HARMONY_TOKENS = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>")
COMMAND_R_TOKENS = (
    "<BOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
)

PROMPT_FORMATS = {
    "chatml": PromptFormat(
        template=CHATML,
        tokens=CHATML_TOKENS,
        turn_end="<|im_end|>",
        eos="<|im_end|>",
        expected=CHATML_TEXT,
    ),
    "chatml-on-a-base-model": PromptFormat(  # fine-tuned, with the base model's end of a sequence
        template=CHATML,
        tokens=CHATML_TOKENS,
        turn_end="<|im_end|>",
        eos="<|endoftext|>",
        expected=CHATML_TEXT,
    ),
    "llama-2": PromptFormat(
        template=LLAMA_2,
        tokens=("<s>", "</s>"),
        turn_end="</s>",
        eos="</s>",
        bos="<s>",
        expected="<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s>"
        "<s>[INST] Who are you? [/INST]",
    ),
    "llama-3": PromptFormat(
        template=LLAMA_3,
        tokens=LLAMA_3_TOKENS,
        turn_end="<|eot_id|>",
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        expected="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        + LLAMA_3_TURNS,
    ),
    "llama-3.2": PromptFormat(
        template=LLAMA_3_DATED,
        tokens=LLAMA_3_TOKENS,
        turn_end="<|eot_id|>",
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
        options={"date_string": "26 Jul 2024"},
        expected="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
        + LLAMA_3_TURNS,
    ),
    "mistral": PromptFormat(
        template=MISTRAL,
        tokens=("<s>", "</s>"),
        turn_end="</s>",
        eos="</s>",
        bos="<s>",
        expected="<s>[INST] Be brief.\n\nHi [/INST] Hello!</s>[INST] Who are you? [/INST]",
    ),
    "gemma-2": PromptFormat(
        template=GEMMA_2,
        tokens=GEMMA_TOKENS,
        turn_end="<end_of_turn>",
        eos="<eos>",
        bos="<bos>",
        system=False,
        expected="<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma-3": PromptFormat(
        template=GEMMA_3,
        tokens=GEMMA_TOKENS,
        turn_end="<end_of_turn>",
        eos="<eos>",
        bos="<bos>",
        expected="<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n"
        "<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "phi-3": PromptFormat(
        template=PHI_3,
        tokens=PHI_3_TOKENS,
        turn_end="<|end|>",
        eos="<|endoftext|>",
        expected="<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
        "<|user|>\nWho are you?<|end|>\n<|assistant|>\n",
    ),
    "phi-4-mini": PromptFormat(
        template=PHI_4_MINI,
        tokens=PHI_3_TOKENS,
        turn_end="<|end|>",
        eos="<|endoftext|>",
        expected="<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|>"
        "<|user|>Who are you?<|end|><|assistant|>",
    ),
    "phi-4": PromptFormat(
        template=PHI_4,
        tokens=(*CHATML_TOKENS, "<|im_sep|>"),
        turn_end="<|im_end|>",
        eos="<|endoftext|>",
        expected="<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
        "<|im_start|>assistant<|im_sep|>Hello!<|im_end|><|im_start|>user<|im_sep|>Who are you?<|im_end|>"
        "<|im_start|>assistant<|im_sep|>",
    ),
    "zephyr": PromptFormat(
        template=ZEPHYR,
        tokens=("<s>", "</s>"),
        turn_end="</s>",
        eos="</s>",
        bos="<s>",
        expected="<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n"
        "<|user|>\nWho are you?</s>\n<|assistant|>\n",
    ),
    "qwen-3": PromptFormat(
        template=QWEN_3,
        tokens=CHATML_TOKENS,
        turn_end="<|im_end|>",
        eos="<|im_end|>",
        expected=CHATML_TEXT,
    ),
    "qwen-3-without-thinking": PromptFormat(
        template=QWEN_3,
        tokens=CHATML_TOKENS,
        turn_end="<|im_end|>",
        eos="<|im_end|>",
        options={"enable_thinking": False},
        expected=CHATML_TEXT + "<think>\n\n</think>\n\n",
    ),
    "deepseek-r1": PromptFormat(
        template=DEEPSEEK_R1,
        tokens=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        turn_end="<｜end▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        expected="<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜>"
        "<｜User｜>Who are you?<｜Assistant｜><think>\n",
    ),
    "granite": PromptFormat(
        template=GRANITE,
        tokens=GRANITE_TOKENS,
        turn_end="<|end_of_text|>",
        eos="<|end_of_text|>",
        expected="<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n" + GRANITE_TURNS,
    ),
    "granite-thinking": PromptFormat(
        template=GRANITE,
        tokens=GRANITE_TOKENS,
        turn_end="<|end_of_text|>",
        eos="<|end_of_text|>",
        options={"thinking": True},
        expected="<|start_of_role|>system<|end_of_role|>Be brief. Think first, between <think> and </think>."
        "<|end_of_text|>\n" + GRANITE_TURNS,
    ),
    "olmo-2": PromptFormat(
        template=OLMO_2,
        tokens=("<|endoftext|>",),
        turn_end="<|endoftext|>",
        eos="<|endoftext|>",
        bos="<|endoftext|>",
        expected="<|endoftext|><|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello!<|endoftext|>\n"
        "<|user|>\nWho are you?\n<|assistant|>\n",
    ),
    "glm-4": PromptFormat(  # nothing ends a turn but the next one
        template=GLM_4,
        tokens=GLM_TOKENS,
        turn_end="<|user|>",
        eos="<|endoftext|>",
        expected="[gMASK]<sop><|system|>\nBe brief.<|user|>\nHi<|assistant|>\nHello!"
        "<|user|>\nWho are you?<|assistant|>",
    ),
    "harmony": PromptFormat(  # the model itself ends its answer with <|return|>
        template=HARMONY,
        tokens=HARMONY_TOKENS,
        turn_end="<|end|>",
        eos="<|return|>",
        bos="<|startoftext|>",
        options={"current_date": "2025-06-28", "reasoning_effort": "low"},
        expected="<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\nCurrent date: 2025-06-28\n\nReasoning: low\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nBe brief.<|end|><|start|>user<|message|>Hi<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello!<|end|>"
        "<|start|>user<|message|>Who are you?<|end|><|start|>assistant",
    ),
    "red-pajama": PromptFormat(  # plain text marks the turns
        template=RED_PAJAMA,
        tokens=(),
        turn_end="<human>:",
        eos="<|endoftext|>",
        system=False,
        expected="<human>: Hi\n<bot>: Hello!\n<human>: Who are you?\n<bot>:",
    ),
    "command-r": PromptFormat(
        template=COMMAND_R,
        tokens=COMMAND_R_TOKENS,
        turn_end="<|END_OF_TURN_TOKEN|>",
        eos="<|END_OF_TURN_TOKEN|>",
        bos="<BOS_TOKEN>",
        expected="<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello!<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who are you?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    "vicuna": PromptFormat(
        template=VICUNA,
        tokens=("<s>", "</s>"),
        turn_end="</s>",
        eos="</s>",
        bos="<s>",
        expected="Be brief. USER: Hi ASSISTANT: Hello!</s>USER: Who are you? ASSISTANT:",
    ),
}
