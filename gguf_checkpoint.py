"""A GGUF file as a transformers checkpoint: weights, tokenizer and chat template.

Knows the format's metadata (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and the kinds of
tokenizer that were compared with llama.cpp's. Refuses to know where the file comes from.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quiet import quiet_libraries

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

# How byte-level vocabularies (tokenizer.ggml.model "gpt2") split a text before merging: tokenizer.ggml.pre.
# Those of Llama 3 and Qwen 2 differ in how many digits stay together; Llama 3's takes whole words that are in
# the vocabulary as they are.
LIKE_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = ("smollm", "llama-bpe", "qwen2")
WAY_OUT = (
    "Take the original model, in transformers' format: its name is on the page that the file comes from."
)


def convert_gguf(gguf_path: Path, folder: Path) -> None:
    """Write a GGUF file's weights (as float16), tokenizer and chat template as a transformers checkpoint.

    The weights go through transformers. The tokenizer does not: for a byte-level BPE vocabulary transformers
    builds a SentencePiece-style one, which loses every space. It is built from the file's metadata instead.

    Raises:
        ValueError: the file's tokenizer or architecture is of a kind that cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_from_gguf(gguf_path)
    with quiet_libraries():
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                gguf_path.parent,
                gguf_file=gguf_path.name,
                dtype=torch.float16,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except (ValueError, KeyError, NotImplementedError) as error:
            raise ValueError(f"transformers cannot read {gguf_path}: {error}. {WAY_OUT}") from error
        if missing := sorted(found["missing_keys"]):  # transformers fills them with random numbers
            raise ValueError(
                f"{gguf_path} lacks {len(missing)} of the weights that a {type(model).__name__} has, the "
                f"first is {missing[0]}. {WAY_OUT}"
            )
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tokenizer_from_gguf(gguf_path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that a GGUF file's metadata describes, as a transformers PreTrainedTokenizerFast.

    Known: tokenizer.ggml.model "gpt2" (byte-level BPE) with a tokenizer.ggml.pre of `KINDS`.

    Raises:
        ValueError: another tokenizer model or pre-tokenizer, a part of a model, or no GGUF file.
    """
    from gguf import GGUFReader
    from gguf.constants import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    try:
        fields = GGUFReader(gguf_path).fields
    except (ValueError, IndexError, OSError) as error:
        raise ValueError(f"{gguf_path} is no whole GGUF file: {error}. Fetch it again.") from error

    def value(key: str) -> Any:
        return fields[key].contents() if key in fields else None

    if (parts := value("split.count") or 1) > 1:
        raise ValueError(
            f"{gguf_path} is one of {parts} files that hold one model. Join them with llama.cpp's "
            f"`llama-gguf-split --merge`, and name the whole. {WAY_OUT}"
        )
    if value("general.architecture") == "clip":
        raise ValueError(f"{gguf_path} is only what a model sees pictures with. Name the model's own file.")
    kind = (value("tokenizer.ggml.model"), value("tokenizer.ggml.pre"))
    if kind[0] != "gpt2" or kind[1] not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise ValueError(
            f"{gguf_path} has a tokenizer of kind {kind}; only 'gpt2' with {known} can be read. {WAY_OUT}"
        )
    tokens = value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=kind[1] == "llama-bpe"))
    backend.pre_tokenizer = _pre_tokenizer(kind[1])
    backend.decoder = decoders.ByteLevel()
    for token, type_ in zip(tokens, value("tokenizer.ggml.token_type"), strict=True):
        if type_ in (TokenType.CONTROL, TokenType.USER_DEFINED):
            special = type_ == TokenType.CONTROL
            backend.add_tokens([AddedToken(token, special=special, normalized=False)])
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: value(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    named = {f"{name}_token": tokens[index] for name, index in ids.items() if index is not None}
    if value("tokenizer.ggml.add_bos_token") and "bos_token" in named:
        bos = named["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, ids["bos"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **named,
        model_max_length=value(f"{value('general.architecture')}.context_length"),
        chat_template=value("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )


def _pre_tokenizer(kind: str) -> "PreTokenizer":
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if kind == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    pattern = LIKE_GPT4.replace("DIGITS", "3" if kind == "llama-bpe" else "1")
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
