"""A GGUF file as a checkpoint: the tokenizer is llama.cpp's, the configuration says what the file says."""

import itertools
import json
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
from gguf.constants import GGMLQuantizationType, TokenType
from make_pre_tokenizer_reference import write_gguf as write_vocabulary
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from chat import ChatModel
from config import DEFAULT_MODEL, get_model_config
from conftest import EXACT
from conversion import load_model, prepare_model
from gguf_checkpoint import KINDS, convert_gguf, tokenizer_from_gguf
from model_source import fetch_checkpoint
from sampling import SamplingParams
from tiny_architectures import TWO_LAYERS

REFERENCE = json.loads(
    (Path(__file__).parent / "data/smollm2_token_reference.json").read_text(encoding="utf-8")
)


def write_gguf(path: Path, metadata: dict) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


# SentencePiece vocabularies come without a pre-tokenizer.
@pytest.mark.parametrize("pre", [{}, {"tokenizer.ggml.pre": "tekken"}], ids=["llama", "gpt2"])
def test_another_kind_of_tokenizer_is_refused(tmp_path, pre):
    kind = "gpt2" if pre else "llama"
    path = write_gguf(tmp_path / "model.gguf", {"tokenizer.ggml.model": kind, **pre})
    with pytest.raises(ValueError, match=f"kind .*{kind}.*{pre.get('tokenizer.ggml.pre', None)}"):
        tokenizer_from_gguf(path)


OTHERS = json.loads((Path(__file__).parent / "data/pre_tokenizer_reference.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def of_kind(tmp_path_factory):
    """The tokenizer of a GGUF file with one vocabulary and a kind of pre-tokenizer."""

    @cache
    def read(kind: str):
        path = tmp_path_factory.mktemp("gguf") / f"{kind}.gguf"
        return tokenizer_from_gguf(write_vocabulary(path, kind, OTHERS["tokens"], OTHERS["merges"]))

    return read


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_kind_of_tokenizer_gives_llama_cpp_s_ids(of_kind, kind):
    tokenizer = of_kind(kind)
    found = {name: tokenizer.encode(text, add_special_tokens=False) for name, text in OTHERS["texts"].items()}
    assert found == OTHERS["ids"][kind]


def test_the_reference_tells_the_kinds_apart():
    for one, other in itertools.combinations(KINDS, 2):
        assert OTHERS["ids"][one] != OTHERS["ids"][other]


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_kind_of_tokenizer_gives_the_text_back(of_kind, kind):
    for text in OTHERS["texts"].values():
        assert of_kind(kind).decode(of_kind(kind).encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("content", [b"GGUF", b"<html>", b"GGUF" + bytes(60)])
def test_what_is_no_whole_gguf_file_is_named(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.gguf (is no whole GGUF file|has a tokenizer of kind)"):
        tokenizer_from_gguf(path)


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return fetch_checkpoint(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


def encode(tokenizer, case: dict) -> list[int]:
    return tokenizer(case["text"], split_special_tokens=not case["parse_special"])["input_ids"]


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: case["name"])
def test_the_default_model_tokenizes_as_llama_cpp_does(tokenizer, case):
    assert encode(tokenizer, case) == case["ids"]
    if case["name"] not in REFERENCE["lossy_cases"]:
        assert tokenizer.decode(case["ids"]) == case["text"]


@pytest.mark.slow
def test_the_tokenizer_read_from_a_gguf_file_tokenizes_as_llama_cpp_does(tokenizer, tmp_path):
    # The checkpoint was written long ago, maybe by other code: take its vocabulary through a GGUF file again.
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    control = {token["id"] for token in REFERENCE["special_tokens"]}
    types = [
        TokenType.CONTROL if index in control else TokenType.NORMAL for index in range(len(model["vocab"]))
    ]
    settings = {key: value for key, value in REFERENCE["metadata"].items() if type(value) in (str, int)}
    path = write_gguf(
        tmp_path / "vocabulary.gguf",
        settings
        | {
            "tokenizer.ggml.tokens": sorted(model["vocab"], key=model["vocab"].get),
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        },
    )
    again = tokenizer_from_gguf(path)
    assert [case["name"] for case in REFERENCE["cases"] if encode(again, case) != case["ids"]] == []


def test_the_default_checkpoint_says_what_its_gguf_file_says(tokenizer, checkpoint):
    metadata = REFERENCE["metadata"]
    assert tokenizer.bos_token_id == metadata["tokenizer.ggml.bos_token_id"]
    assert tokenizer.eos_token_id == metadata["tokenizer.ggml.eos_token_id"]
    assert tokenizer.unk_token_id == metadata["tokenizer.ggml.unknown_token_id"]
    assert tokenizer.pad_token_id == metadata["tokenizer.ggml.padding_token_id"]
    assert tokenizer.chat_template == metadata["tokenizer.chat_template"]
    assert tokenizer.model_max_length == metadata["llama.context_length"]
    config = AutoConfig.from_pretrained(checkpoint)
    assert config.max_position_embeddings == metadata["llama.context_length"]
    assert config.rope_parameters["rope_theta"] == metadata["llama.rope.freq_base"]


# Other models than the bundled one, from a file to an answer


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
QUANTIZED = {"smollm": GGMLQuantizationType.Q4_1, "llama-bpe": GGMLQuantizationType.Q8_0}


def make_model(kind: str) -> PreTrainedModel:
    """A tiny random model as those that come with a kind of tokenizer are: Llama 3, SmolLM (tied), Qwen 2."""
    torch.manual_seed(0)
    sizes = TWO_LAYERS | {"vocab_size": len(OTHERS["tokens"]), "tie_word_embeddings": kind == "smollm"}
    model = (
        Qwen2ForCausalLM(Qwen2Config(**sizes)) if kind == "qwen2" else LlamaForCausalLM(LlamaConfig(**sizes))
    )
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    return model.half()


def write_model(path: Path, kind: str, leave: str = "nothing") -> dict[str, torch.Tensor]:
    """Write such a model as llama.cpp's converter does; returns its numbers by transformers' names.

    llama.cpp keeps the rows of Llama's queries and keys in another order, for its own rotary embedding.
    """
    architecture = "qwen2" if kind == "qwen2" else "llama"
    model = make_model(kind)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(OTHERS["tokens"]))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(OTHERS["tokens"])
    writer.add_token_merges(OTHERS["merges"])
    control = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    writer.add_token_types(
        [TokenType.CONTROL if token in control else TokenType.NORMAL for token in OTHERS["tokens"]]
    )
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(OTHERS["tokens"].index("<|im_end|>"))
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], 2)
    meant = {}
    for name, weight in model.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored == leave or (name == "lm_head.weight" and kind == "smollm"):
            continue
        numbers = weight.float().numpy()
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2], 0) if architecture == "llama" else 0
        if heads:
            numbers = numbers.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(numbers.shape)
        type_ = QUANTIZED.get(kind) if numbers.ndim == 2 else None
        raw = gguf.quantize(numbers, type_) if type_ is not None else numbers
        writer.add_tensor(stored, raw, raw_dtype=type_)
        meaning = gguf.dequantize(raw, type_) if type_ is not None else numbers
        if heads:
            meaning = meaning.reshape(heads, -1, 2, 64).swapaxes(1, 2).reshape(meaning.shape)
        meant[name] = torch.from_numpy(meaning.copy()).half()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_gguf_itself_makes_of_them(tmp_path, kind):
    meant = write_model(tmp_path / "model.gguf", kind)
    convert_gguf(tmp_path / "model.gguf", tmp_path / "checkpoint")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float16).state_dict()
    assert found.keys() - {"lm_head.weight"} == meant.keys() - {"lm_head.weight"}
    for name, weight in meant.items():
        assert torch.equal(found[name], weight), name
    if kind == "smollm":
        assert torch.equal(found["lm_head.weight"], meant["model.embed_tokens.weight"])


def test_a_file_that_lacks_weights_is_refused(tmp_path):
    write_model(tmp_path / "model.gguf", "qwen2", leave="blk.1.ffn_up.weight")
    with pytest.raises(ValueError, match=r"lacks 1 of the weights .*model\.layers\.1\.mlp\.up_proj\.weight"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"split.count": 3}, "one of 3 files that hold one model"),
        ({"general.architecture": "clip"}, "only what a model sees pictures with"),
    ],
)
def test_a_part_of_a_model_is_refused(tmp_path, metadata, words):
    with pytest.raises(ValueError, match=words):
        tokenizer_from_gguf(write_gguf(tmp_path / "model.gguf", metadata))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_becomes_a_chat(tmp_path, kind):
    meant = write_model(tmp_path / "model.gguf", kind)
    folder = prepare_model(str(tmp_path / "model.gguf"), "FP16", tmp_path / "models", for_chat=True)
    model, tokenizer = load_model(folder, ov_config=EXACT)
    reference = make_model(kind)
    reference.load_state_dict(meant, strict=False)
    reference.tie_weights()
    messages = [{"role": "user", "content": "Who are you?"}]
    chat = ChatModel(model, tokenizer, get_model_config(str(tmp_path / "model.gguf")))
    ids = torch.tensor([chat.encode(messages)])
    assert ids[0].tolist() == tokenizer.encode("<|im_start|>Who are you?<|im_end|><|im_start|>")
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, reference.float()(ids).logits, atol=2e-3, rtol=0)
    assert chat.generate(messages, SamplingParams(temperature=0, max_new_tokens=8))
