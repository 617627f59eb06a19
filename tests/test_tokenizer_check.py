"""What is in tokenizer.json is what is used, whatever class a checkpoint is labelled with."""

import json
from pathlib import Path

import pytest
from openvino_tokenizers import convert_tokenizer
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

import conversion
import tokenizer_check
import tokenizer_files
from chat_tokenizer import open_tokenizer
from config import ModelConfig
from prompt import PromptWriter
from prompt_formats import CONVERSATION, PROMPT_FORMATS, make_tokenizer
from tiny_checkpoints import FAMILIES
from tokenizer_check import Difference, differences, graph_differences, read_tokenizer

LLAMA = LlamaConfig()


def label(folder: Path, name: str, **changes) -> None:
    """Label a tokenizer with a class."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": name} | changes
    file.write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture
def mislabelled(tmp_path):
    """A folder with a byte-level tokenizer that is labelled as a SentencePiece one."""
    folder = tmp_path / "mislabelled"
    make_tokenizer(PROMPT_FORMATS["deepseek-r1"]).save_pretrained(folder)
    label(folder, "LlamaTokenizerFast", legacy=True, add_bos_token=True)
    return folder


def test_a_wrong_label_makes_another_tokenizer(mislabelled):
    found = differences(open_tokenizer(mislabelled), AutoTokenizer.from_pretrained(mislabelled, config=LLAMA))
    assert any(isinstance(difference.given, str) for difference in found)  # other ids
    assert any(isinstance(difference.given, list) for difference in found)  # other texts
    assert "instead of" in str(found[0])


def test_a_mislabelled_tokenizer_is_read_as_it_was_published(mislabelled):
    published = open_tokenizer(mislabelled)
    tokenizer = read_tokenizer(mislabelled, LLAMA)
    assert differences(published, tokenizer) == []
    assert tokenizer.get_vocab() == published.get_vocab()
    assert tokenizer.special_tokens_map == published.special_tokens_map  # no <unk>, which the class adds
    options = {"tokenize": False, "add_generation_prompt": True}
    prompt = tokenizer.apply_chat_template(CONVERSATION, **options)
    assert prompt == PROMPT_FORMATS["deepseek-r1"].expected


def test_it_stays_so_when_it_is_saved_and_read_again(mislabelled, tmp_path):
    read_tokenizer(mislabelled, LLAMA).save_pretrained(tmp_path / "saved")
    LLAMA.save_pretrained(tmp_path / "saved")
    published = open_tokenizer(mislabelled)
    for again in (open_tokenizer, read_tokenizer, AutoTokenizer.from_pretrained):
        assert differences(published, again(tmp_path / "saved")) == []


def test_another_expression_for_words_is_noticed(tmp_path):
    tokenizer = make_tokenizer(PROMPT_FORMATS["chatml"])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(tmp_path)
    label(tmp_path, "GPTNeoXTokenizer")
    expected = str(tokenizer.backend_tokenizer.pre_tokenizer)
    assert str(AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer.pre_tokenizer) != expected
    assert str(read_tokenizer(tmp_path).backend_tokenizer.pre_tokenizer) == expected


def test_the_class_gives_names_that_stand_in_no_file(tmp_path):
    make_tokenizer(PROMPT_FORMATS["llama-2"]).save_pretrained(tmp_path)
    settings = {"tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_tokenizer(tmp_path, LLAMA).special_tokens_map == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rightly_labelled_tokenizer_is_that_of_its_class(tiny_checkpoints, family):
    folder = tiny_checkpoints[family]
    assert type(read_tokenizer(folder)) is type(AutoTokenizer.from_pretrained(folder))
    assert differences(open_tokenizer(folder), read_tokenizer(folder)) == []


def test_a_tokenizer_s_own_code_is_not_run_and_not_needed_beside_a_tokenizer_json(tmp_path):
    make_tokenizer(PROMPT_FORMATS["chatml"]).save_pretrained(tmp_path)
    label(tmp_path, "OwnTokenizer", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
    (tmp_path / "own.py").write_text("raise SystemExit")
    assert differences(open_tokenizer(tmp_path), read_tokenizer(tmp_path, LLAMA)) == []
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"needs code that it brings along .* which is not run"):
        read_tokenizer(tmp_path, LLAMA)


def test_what_no_library_can_read_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"garbage")
    label_file = tmp_path / "tokenizer_config.json"
    label_file.write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(ValueError, match=f"cannot read the tokenizer in {tmp_path}"):
        read_tokenizer(tmp_path, LLAMA)


def test_what_transformers_cannot_read_is_refused(mislabelled, monkeypatch):
    wrong = [Difference("a", [1], [2])]
    monkeypatch.setattr(tokenizer_check, "differences", lambda *_: wrong)
    with pytest.raises(
        ValueError, match=r"tokenizer.json as it is written: 'a' becomes \[2\] instead of \[1\]"
    ):
        read_tokenizer(mislabelled, LLAMA)


@pytest.mark.parametrize("name", ["chatml", "llama-3", "deepseek-r1", "harmony"])
def test_graphs_of_a_tokenizer_are_compared(tmp_path, name):
    tokenizer = make_tokenizer(PROMPT_FORMATS[name])
    tokenizer.save_pretrained(tmp_path)
    graphs = convert_tokenizer(tokenizer, with_detokenizer=True)
    assert graph_differences(open_tokenizer(tmp_path), *graphs) == []


def test_a_graph_of_another_tokenizer_is_noticed(tmp_path):
    tokenizer = make_tokenizer(PROMPT_FORMATS["chatml"])
    tokenizer.save_pretrained(tmp_path)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    graphs = convert_tokenizer(tokenizer, with_detokenizer=True)
    found = graph_differences(open_tokenizer(tmp_path), *graphs)
    assert found[0].given == "Hello, world! How are you doing?"


def test_a_detokenizer_of_another_tokenizer_is_noticed(tmp_path):
    tokenizer = make_tokenizer(PROMPT_FORMATS["chatml"])
    tokenizer.save_pretrained(tmp_path)
    graph, _ = convert_tokenizer(tokenizer, with_detokenizer=True)
    _, other = convert_tokenizer(tokenizer, with_detokenizer=True, skip_special_tokens=False)
    found = graph_differences(open_tokenizer(tmp_path), graph, other)
    assert found and all(isinstance(difference.found, str) for difference in found)


# In the folders that are made and loaded


def test_a_mislabelled_tokenizer_is_written_as_it_was_published(mislabelled, tmp_path):
    output = tmp_path / "output"
    LLAMA.save_pretrained(output)
    GenerationConfig(eos_token_id=2).save_pretrained(output)
    tokenizer_files.write_tokenizer(mislabelled, output, ModelConfig("test/model"))
    assert differences(open_tokenizer(mislabelled), open_tokenizer(output)) == []
    assert (output / "openvino_tokenizer.xml").is_file()
    assert (output / "openvino_detokenizer.xml").is_file()


def test_a_graph_that_differs_is_not_written(mislabelled, tmp_path, monkeypatch, caplog):
    wrong = [Difference("a", [1], [2])]
    monkeypatch.setattr(tokenizer_files, "graph_differences", lambda *_: wrong)
    tokenizer = read_tokenizer(mislabelled, LLAMA)
    tokenizer.save_pretrained(tmp_path / "output")
    tokenizer_files.write_tokenizer_ir(tokenizer, tmp_path / "output")
    written = {file.name for file in (tmp_path / "output").iterdir()}
    assert written == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert "'a' becomes [2] instead of [1]" in caplog.text


@pytest.mark.slow
def test_a_mislabelled_checkpoint_is_chatted_with_in_its_own_tokens(mislabelled, tmp_path):
    published = open_tokenizer(mislabelled)
    config = LlamaConfig(
        vocab_size=len(published),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=published.bos_token_id,
        eos_token_id=published.eos_token_id,
    )
    LlamaForCausalLM(config).half().save_pretrained(mislabelled)
    folder = conversion.prepare_model(str(mislabelled), "FP16", tmp_path / "models")
    (folder / "conversion.json").unlink()  # a folder that others have made, with the wrong label
    label(folder, "LlamaTokenizerFast")
    _, tokenizer = conversion.load_model(folder)
    assert differences(published, tokenizer) == []
    expected = published.encode(PROMPT_FORMATS["deepseek-r1"].expected, add_special_tokens=False)
    for each in (tokenizer, open_tokenizer(folder)):
        prompt = PromptWriter(each, "test").write(CONVERSATION)
        assert prompt.ids == expected


def test_a_tokenizer_that_needs_code_of_its_own_is_refused(tmp_path):
    settings = '{"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", null]}}'
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(ValueError, match="needs code that it brings along"):
        read_tokenizer(tmp_path)


def test_a_tokenizer_that_nobody_can_read_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"garbage")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(ValueError, match="transformers cannot read the tokenizer in"):
        read_tokenizer(tmp_path)
