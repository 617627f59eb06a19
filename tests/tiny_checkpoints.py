"""Tiny checkpoints with random weights and a real tokenizer class, one per architecture of the catalogue.

They stand in for models of several gigabytes wherever the code, not the answer, is what is tested.
Run `python tests/tiny_checkpoints.py llama FOLDER` to make one by hand.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MptConfig,
    MptForCausalLM,
)

CORPUS = """The quick brown fox jumps over the lazy dog. What is OpenVINO? Who are you? I am an assistant.
user assistant system human bot: Hello! Tell me a fairy tale in one sentence, please. Once upon a time there
was a model that answered questions, and it answered them all. def main(): return [x for x in range(10)]
"""
FAMILIES = ("llama", "gpt_neox", "mpt")
MPT_VOCABULARY = 300
MPT_LENGTH = 64


def make_tiny_checkpoint(folder: Path, family: str, max_context: int = 512) -> Path:
    """Write a checkpoint of two layers and width 64 to `folder`; the same call gives the same weights."""
    tokenizer = _llama_tokenizer() if family == "llama" else _neox_tokenizer(chat_tokens=family == "mpt")
    torch.manual_seed(0)
    if family == "llama":
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=max_context,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.2,  # wide enough that greedy decoding does not settle on one token
        )
        model = LlamaForCausalLM(config)
    elif family == "gpt_neox":
        config = GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=max_context,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.2,
        )
        model = GPTNeoXForCausalLM(config)
    else:
        config = MptConfig(
            vocab_size=len(tokenizer),
            d_model=64,
            n_heads=4,
            n_layers=2,
            expansion_ratio=2,
            max_seq_len=max_context,
            initializer_range=0.2,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = MptForCausalLM(config)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def tiny_mpt(attn_config: dict | None = None, **settings) -> MptForCausalLM:
    """Two layers of width 64, the same weights every time, which 16 bits hold exactly."""
    sizes = {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "vocab_size": MPT_VOCABULARY,
        "max_seq_len": MPT_LENGTH,
    }
    torch.manual_seed(0)
    config = MptConfig(**(sizes | {"initializer_range": 0.2} | settings), attn_config=attn_config)
    return MptForCausalLM(config).half().float().eval()


def _llama_tokenizer() -> LlamaTokenizer:
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    vocab, merges = _train(pre_tokenizers.Metaspace(), special, alphabet=[])
    return LlamaTokenizer(vocab=vocab, merges=merges)


def _neox_tokenizer(chat_tokens: bool) -> GPTNeoXTokenizer:
    special = ["<|endoftext|>", "<|padding|>"]
    vocab, merges = _train(
        pre_tokenizers.ByteLevel(add_prefix_space=False), special, pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer = GPTNeoXTokenizer(vocab=vocab, merges=merges)
    if chat_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def _train(pre_tokenizer, special: list[str], alphabet: list[str]) -> tuple[dict, list]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([CORPUS], trainer)
    backend_model = json.loads(backend.to_str())["model"]
    return backend_model["vocab"], [tuple(merge) for merge in backend_model["merges"]]


if __name__ == "__main__":
    make_tiny_checkpoint(Path(sys.argv[2]), sys.argv[1])
