"""A GGUF file as a transformers checkpoint: weights, tokenizer and chat template.

Knows the format's metadata (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and the kinds of
tokenizer that were compared with llama.cpp's. Refuses to know where the file comes from.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def convert_gguf(gguf_path: Path, folder: Path) -> None:
    """Write a GGUF file's weights (as float16), tokenizer and chat template as a transformers checkpoint.

    The weights go through transformers. The tokenizer does not: for a byte-level BPE vocabulary transformers
    builds a SentencePiece-style one, which loses every space. It is built from the file's metadata instead.

    Raises:
        ValueError: the file's tokenizer is of a kind this function does not know.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_from_gguf(gguf_path)
    model = AutoModelForCausalLM.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float16, trust_remote_code=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tokenizer_from_gguf(gguf_path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that a GGUF file's metadata describes, as a transformers PreTrainedTokenizerFast.

    Known: tokenizer.ggml.model "gpt2" (byte-level BPE) with tokenizer.ggml.pre "smollm", which splits off
    single digits before the GPT-2 split.

    Raises:
        ValueError: another tokenizer model or pre-tokenizer.
    """
    from gguf import GGUFReader
    from gguf.constants import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf_path).fields

    def value(key: str):
        return fields[key].contents() if key in fields else None

    kind = (value("tokenizer.ggml.model"), value("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ValueError(
            f"{gguf_path} has a tokenizer of kind {kind}; only ('gpt2', 'smollm') can be read here."
        )
    tokens = value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = [
        token
        for token, kind in zip(tokens, value("tokenizer.ggml.token_type"), strict=True)
        if kind == TokenType.CONTROL
    ]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[value("tokenizer.ggml.bos_token_id")],
        eos_token=tokens[value("tokenizer.ggml.eos_token_id")],
        unk_token=tokens[value("tokenizer.ggml.unknown_token_id")],
        pad_token=tokens[value("tokenizer.ggml.padding_token_id")],
        model_max_length=value("llama.context_length"),
        chat_template=value("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )
