"""The light tokenizer equals transformers': ids, decoded text and rendered prompts."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chat_tokenizer import open_tokenizer
from damaged_checkpoints import change
from prompt import PromptWriter
from prompt_formats import CHATML, CONVERSATION, PROMPT_FORMATS, make_tokenizer
from tiny_checkpoints import FAMILIES
from tokenizer_check import HARD_TEXTS

ROOT = Path(__file__).parents[1]
MODELS = ("default", *FAMILIES)


@pytest.fixture(scope="module")
def pairs(smollm2_folder, tiny_checkpoints) -> dict:
    """The tokenizer of each model, ours and transformers'."""
    folders = {"default": smollm2_folder, **tiny_checkpoints}
    return {
        name: (open_tokenizer(folders[name]), AutoTokenizer.from_pretrained(folders[name]))
        for name in folders
    }


def saved_pair(tokenizer: PreTrainedTokenizerFast, folder: Path):
    """A tokenizer saved and opened again, by us and by transformers."""
    tokenizer.save_pretrained(folder)
    return open_tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("name", MODELS)
def test_texts_become_the_same_ids(pairs, name):
    ours, theirs = pairs[name]
    for text in HARD_TEXTS:
        for add in (False, True):
            expected = theirs(text, add_special_tokens=add, verbose=False)["input_ids"]
            assert ours(text, add_special_tokens=add, verbose=False)["input_ids"] == expected
            assert ours.encode(text, add_special_tokens=add) == expected
        assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("name", MODELS)
def test_ids_become_the_same_text(pairs, name):
    ours, theirs = pairs[name]
    generator = random.Random(0)
    sequences = [theirs.encode(text) for text in HARD_TEXTS]
    sequences += [[number] for number in generator.sample(range(len(theirs)), 300)]
    sequences += [generator.choices(range(len(theirs) + 3), k=30) for _ in range(100)]
    for ids in sequences:
        for skip in (False, True):
            options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
            assert ours.decode(ids, **options) == theirs.decode(ids, **options)


@pytest.mark.parametrize("name", MODELS)
def test_vocabulary_and_names_are_the_same(pairs, name):
    ours, theirs = pairs[name]
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template
    for attribute in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
        assert getattr(ours, f"{attribute}_id") == getattr(theirs, f"{attribute}_id")
    added = theirs.added_tokens_decoder
    assert {n: (t.content, t.special) for n, t in ours.added_tokens_decoder.items()} == {
        n: (t.content, t.special) for n, t in added.items()
    }
    tokens = [*list(ours.get_vocab())[:50], "no such token"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids(tokens[0]) == theirs.convert_tokens_to_ids(tokens[0])
    assert ours.convert_ids_to_tokens([0, 5, 10**6]) == theirs.convert_ids_to_tokens([0, 5, 10**6])
    assert ours.convert_ids_to_tokens(3) == theirs.convert_ids_to_tokens(3)


def test_the_default_models_prompts_are_the_same(pairs):
    ours, theirs = pairs["default"]
    for turns in (CONVERSATION, CONVERSATION[1:], CONVERSATION[:3]):
        for prompt in (False, True):
            options = {"add_generation_prompt": prompt, "tokenize": False}
            assert ours.apply_chat_template(turns, **options) == theirs.apply_chat_template(turns, **options)
        expected = theirs.apply_chat_template(turns)["input_ids"]
        assert ours.apply_chat_template(turns)["input_ids"] == expected


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_prompt_formats_of_families(tmp_path, name):
    prompt_format = PROMPT_FORMATS[name]
    ours, theirs = saved_pair(make_tokenizer(prompt_format), tmp_path)
    options = {"add_generation_prompt": True, "tokenize": False} | prompt_format.options
    prompt = ours.apply_chat_template(prompt_format.conversation, **options)
    assert prompt == prompt_format.expected
    assert prompt == theirs.apply_chat_template(prompt_format.conversation, **options)
    ids = ours.encode(prompt, add_special_tokens=False)
    assert ids == theirs.encode(prompt, add_special_tokens=False)
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.decode(ids) == prompt
    whole = [*prompt_format.conversation, {"role": "assistant", "content": "I am."}]
    options["add_generation_prompt"] = False
    assert ours.apply_chat_template(whole, **options) == theirs.apply_chat_template(whole, **options)


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_a_chat_takes_either_tokenizer(tmp_path, name):
    prompt_format = PROMPT_FORMATS[name]
    ours, theirs = (PromptWriter(each, name) for each in saved_pair(make_tokenizer(prompt_format), tmp_path))
    for attribute in ("end_ids", "stop_strings", "template_ids", "reasoning", "options"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert ours.write(prompt_format.conversation) == theirs.write(prompt_format.conversation)


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_a_turn_ends_where_the_format_says(name):
    prompt_format = PROMPT_FORMATS[name]
    _, _, after = prompt_format.expected.partition("Hello!")
    assert after.lstrip().startswith(prompt_format.turn_end)


FEATURES = {
    "tojson": "{{ messages | tojson }} {{ {'b': '<é>', 'a': 1} | tojson(indent=2, sort_keys=True) }}",
    "tojson with separators": "{{ messages | tojson(separators=(',', ':'), ensure_ascii=True) }}",
    "blocks on lines": "  {% if true %}\n  yes\n  {% endif %}\nend\n",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
    "{{ m.role }}{% break %}{% endfor %}",
    "generation": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}\n{% endgeneration %}\n{{ x }}",
    "trimmed generation": "a\n  {%- generation -%}\n b {{ messages[0].role }} \n{%- endgeneration -%}\n c",
    "generation in a loop": "{% for m in messages %}"
    "{% generation %}{{ m.role }}{{ loop.index }}{% endgeneration %}{% endfor %}",
    "generation sets a namespace": "{% set n = namespace(x=1) %}"
    "{% generation %}{% set n.x = 2 %}{% endgeneration %}{{ n.x }}",
    "no tools": "{{ tools is none }} {{ documents is none }} {{ tools is defined }} {{ nothing is defined }}",
    "the year": "{{ strftime_now('%Y') }}",
    "names of tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}",
    "no escapes": "{{ '<b>&amp;' }}",
}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    tokenizer = make_tokenizer(PROMPT_FORMATS["llama-2"])
    folder = tmp_path_factory.mktemp("features")
    tokenizer.save_pretrained(folder)
    change(folder / "tokenizer_config.json", image_token="<image>")
    return open_tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("name", FEATURES)
def test_what_templates_may_use(features, name):
    ours, theirs = features
    prompt, expected = (
        tokenizer.apply_chat_template(CONVERSATION, chat_template=FEATURES[name], tokenize=False)
        for tokenizer in (ours, theirs)
    )
    assert prompt == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('No, thank you.') }}",
        "{% for x in",
        "{{ messages.nothing.at_all }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_what_templates_may_not_do(features, template):
    ours, theirs = features
    with pytest.raises(TemplateError) as expected:
        theirs.apply_chat_template(list(CONVERSATION), chat_template=template, tokenize=False)
    with pytest.raises(TemplateError) as raised:
        ours.apply_chat_template(list(CONVERSATION), chat_template=template, tokenize=False)
    assert (raised.type, str(raised.value)) == (expected.type, str(expected.value))


def test_arguments_of_transformers_alone_are_refused(pairs):
    with pytest.raises(TypeError, match="return_dict, return_tensors"):
        pairs["default"][0].apply_chat_template(CONVERSATION, return_tensors="pt", return_dict=False)


def test_no_template(pairs):
    with pytest.raises(ValueError, match="no default chat template"):
        pairs["llama"][0].apply_chat_template(CONVERSATION)


def test_several_templates(tmp_path):
    tokenizer = make_tokenizer(PROMPT_FORMATS["chatml"])
    tokenizer.chat_template = {"default": CHATML, "rag": "rag {{ messages | length }}", "tool_use": "tools"}
    ours, theirs = saved_pair(tokenizer, tmp_path)
    assert ours.chat_templates == theirs.chat_template
    assert ours.chat_template == CHATML
    for name in (None, "rag"):
        options = {"chat_template": name, "tokenize": False}
        expected = theirs.apply_chat_template(CONVERSATION, **options)
        assert ours.apply_chat_template(CONVERSATION, **options) == expected


def test_templates_without_a_default(tmp_path):
    tokenizer = make_tokenizer(PROMPT_FORMATS["chatml"])
    tokenizer.chat_template = {"rag": "rag", "tool_use": "tools"}
    tokenizer.save_pretrained(tmp_path)
    ours = open_tokenizer(tmp_path)
    assert ours.chat_template is None
    with pytest.raises(ValueError, match=r"only rag, tool_use"):
        ours.apply_chat_template(CONVERSATION)


@pytest.mark.parametrize(
    "templates",
    [
        "one {{ messages | length }}",
        [{"name": "default", "template": "a list"}, {"name": "rag", "template": "r"}],
        {"default": "a dict", "rag": "r"},
        None,
    ],
    ids=["text", "list", "dict", "none"],
)
def test_templates_in_the_settings(tmp_path, templates):
    tokenizer = make_tokenizer(PROMPT_FORMATS["chatml"])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    change(tmp_path / "tokenizer_config.json", chat_template=templates)
    ours, theirs = open_tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = theirs.chat_template
    assert ours.chat_template == (expected["default"] if isinstance(expected, dict) else expected)


def test_a_template_file_goes_before_the_settings(tmp_path):
    make_tokenizer(PROMPT_FORMATS["chatml"]).save_pretrained(tmp_path)
    change(tmp_path / "tokenizer_config.json", chat_template="another")
    assert open_tokenizer(tmp_path).chat_template == CHATML


SETTINGS = {
    "a name for a token of the vocabulary": {"pad_token": "Hi"},
    "a new token": {"pad_token": "<pad>", "sep_token": "<sep>"},
    "a token with properties": {
        "pad_token": {"__type": "AddedToken", "content": "<pad>", "lstrip": True, "rstrip": True}
    },
    "tokens without names": {"additional_special_tokens": ["<a>", "<b>"]},
    "extra tokens": {"extra_special_tokens": ["<a>", "<|im_end|>"]},
    "names of its own": {"extra_special_tokens": {"image_token": "<image>"}, "think_token": "<t>"},
    "described tokens": {
        "added_tokens_decoder": {
            "10": {"content": "<new>", "special": False, "normalized": False},
            "9": {"content": "<newer>", "special": True, "lstrip": True},
            "1": {"content": "<|im_start|>", "special": False},
        }
    },
    "no names": {"bos_token": None, "eos_token": None},
    "special tokens are text": {"split_special_tokens": True},
    "older keys": {"add_bos_token": True, "add_eos_token": True, "legacy": False, "use_fast": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_beside_tokenizer_json(tmp_path, name):
    make_tokenizer(PROMPT_FORMATS["chatml"]).save_pretrained(tmp_path)
    change(tmp_path / "tokenizer_config.json", **SETTINGS[name])
    ours, theirs = open_tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    compare(ours, theirs)


def test_names_in_special_tokens_map(tmp_path):
    make_tokenizer(PROMPT_FORMATS["chatml"]).save_pretrained(tmp_path)
    names = {
        "bos_token": "<|im_start|>",
        "pad_token": {"content": "<pad>", "lstrip": False, "normalized": False, "rstrip": False},
    }
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    compare(open_tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path))


def compare(ours, theirs) -> None:
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.eos_token_id == theirs.eos_token_id
    added = [{n: repr(t) for n, t in one.added_tokens_decoder.items()} for one in (ours, theirs)]
    assert added[0] == added[1]
    for text in (*HARD_TEXTS, "a <pad> b <new> c <newer> d <a><b> Hi"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_truncation_and_padding_are_off(tmp_path):
    tokenizer = make_tokenizer(PROMPT_FORMATS["chatml"])
    tokenizer.backend_tokenizer.enable_truncation(max_length=4)
    tokenizer.backend_tokenizer.enable_padding(length=300)
    tokenizer.save_pretrained(tmp_path)
    ours, theirs = open_tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = ours.encode("Hello there, how are you?")
    assert 4 < len(ids) < 30
    assert ids == theirs.encode("Hello there, how are you?")


def test_byte_order_marks_are_read(tmp_path):
    tokenizer = make_tokenizer(PROMPT_FORMATS["chatml"])
    tokenizer.save_pretrained(tmp_path)
    expected = open_tokenizer(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    ours = open_tokenizer(tmp_path)
    assert ours.chat_template == expected.chat_template
    assert ours.eos_token == expected.eos_token
    assert ours.encode("Hi there") == expected.encode("Hi there")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff\xfe{"),
        ("tokenizer_config.json", b'{"a": 1,}'),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b""),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    make_tokenizer(PROMPT_FORMATS["chatml"]).save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        open_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        open_tokenizer(tmp_path)


def test_spaces_are_never_cleaned_up(pairs):
    with pytest.raises(ValueError, match="clean_up_tokenization_spaces"):
        pairs["default"][0].decode([1], clean_up_tokenization_spaces=True)


def imported_by(code: str, folder: Path) -> str:
    """Which of the heavy packages are in a new process after the code, which finds the folder in `folder`."""
    heavy = ["torch", "transformers", "optimum", "nncf", "sklearn", "pandas", "scipy", "huggingface_hub"]
    code = f"import sys\nfolder = {str(folder)!r}\n{code}\nprint(sorted({set(heavy)} & sys.modules.keys()))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_nothing_heavy_is_imported(smollm2_folder):
    code = """
from chat_tokenizer import open_tokenizer
tokenizer = open_tokenizer(folder)
assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])["input_ids"]
assert "numpy" not in sys.modules and "openvino" not in sys.modules
"""
    assert imported_by(code, smollm2_folder) == "[]"


@pytest.mark.slow
def test_a_chat_on_a_finished_folder_imports_nothing_heavy(smollm2_folder):
    code = """
from chat import ChatModel, SamplingParams
from chat_tokenizer import open_tokenizer
from config import DEFAULT_MODEL, SUPPORTED_MODELS
from engine import OptimumEngine
engine = OptimumEngine.from_folder(folder)
chat = ChatModel(engine, open_tokenizer(folder), SUPPORTED_MODELS[DEFAULT_MODEL])
assert chat.generate([{"role": "user", "content": "Hi"}], SamplingParams(temperature=0, max_new_tokens=4))
"""
    assert imported_by(code, smollm2_folder) == "[]"
