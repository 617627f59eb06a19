"""What is in tokenizer.json is what is used, whatever class a checkpoint is labelled with."""

import json

import openvino
import pytest
from openvino_tokenizers import convert_tokenizer
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig

import tokenizer_check
from chat_tokenizer import open_tokenizer
from prompt_formats import CONVERSATION, PROMPT_FORMATS, make_tokenizer
from tiny_checkpoints import FAMILIES
from tokenizer_check import GraphTokenizer, differences, read_tokenizer

LLAMA = LlamaConfig()


def labelled(folder, label: str, tokenizer=None, **changes):
    """A folder with a byte-level tokenizer that is labelled with a class."""
    (tokenizer or make_tokenizer(PROMPT_FORMATS["deepseek-r1"])).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": label} | changes
    file.write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture
def mislabelled(tmp_path):
    return labelled(tmp_path / "mislabelled", "LlamaTokenizerFast", legacy=True, add_bos_token=True)


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
    folder = labelled(tmp_path, "GPTNeoXTokenizer", tokenizer)
    read = read_tokenizer(folder)
    expected = str(tokenizer.backend_tokenizer.pre_tokenizer)
    assert str(AutoTokenizer.from_pretrained(folder).backend_tokenizer.pre_tokenizer) != expected
    assert str(read.backend_tokenizer.pre_tokenizer) == expected


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


def test_what_transformers_cannot_read_is_refused(mislabelled, monkeypatch):
    wrong = [tokenizer_check.Difference("a", [1], [2])]
    monkeypatch.setattr(tokenizer_check, "differences", lambda *_: wrong)
    with pytest.raises(
        ValueError, match=r"tokenizer.json as it is written: 'a' becomes \[2\] instead of \[1\]"
    ):
        read_tokenizer(mislabelled, LLAMA)


def save_graphs(tokenizer, folder):
    graphs = convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, graph in zip(("openvino_tokenizer", "openvino_detokenizer"), graphs, strict=True):
        openvino.save_model(graph, folder / f"{name}.xml")


@pytest.mark.parametrize("name", ["chatml", "llama-3", "deepseek-r1", "harmony"])
def test_graphs_of_a_tokenizer_are_compared(tmp_path, name):
    tokenizer = make_tokenizer(PROMPT_FORMATS[name])
    tokenizer.save_pretrained(tmp_path)
    save_graphs(tokenizer, tmp_path)
    assert differences(open_tokenizer(tmp_path), GraphTokenizer(tmp_path)) == []


def test_a_graph_of_another_tokenizer_is_noticed(tmp_path):
    tokenizer = make_tokenizer(PROMPT_FORMATS["chatml"])
    tokenizer.save_pretrained(tmp_path)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    save_graphs(tokenizer, tmp_path)
    found = differences(open_tokenizer(tmp_path), GraphTokenizer(tmp_path))
    assert [difference.given for difference in found][:2] == ["Hello, world! How are you doing?"] * 2
