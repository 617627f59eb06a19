"""Make the reference for all known GGUF pre-tokenizers: llama.cpp's ids on one vocabulary.

The vocabulary is trained here and holds one word that no merge leads to: whether it is found tells two kinds
apart. In the project's environment, then in one with llama-cpp-python and gguf:

    python tests/make_pre_tokenizer_reference.py vocabulary tests/data/pre_tokenizer_reference.json
    python tests/make_pre_tokenizer_reference.py ids tests/data/pre_tokenizer_reference.json

The JSON holds the tokens, the merges, the texts, and for each kind the ids of each text.
"""

import json
import sys
import tempfile
from pathlib import Path

KINDS = ("smollm", "llama-bpe", "qwen2")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WHOLE_WORD = "Ġunmergeable"
CONTROL, NORMAL = 3, 1


def make_vocabulary(texts: dict[str, str]) -> dict:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts.values(), trainer)
    model = json.loads(backend.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), WHOLE_WORD]
    return {"tokens": tokens, "merges": [" ".join(merge) for merge in model["merges"]], "texts": texts}


def write_gguf(path: Path, kind: str, tokens: list[str], merges: list[str]) -> Path:
    """A GGUF file without weights."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", kind)
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.merges", merges)
    types = [CONTROL if token in SPECIAL else NORMAL for token in tokens]
    writer.add_array("tokenizer.ggml.token_type", types)
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    for name, value in {"context_length": 512, "embedding_length": 64, "feed_forward_length": 64}.items():
        writer.add_uint32(f"llama.{name}", value)
    for name, value in {"block_count": 1, "attention.head_count": 4, "rope.dimension_count": 16}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_uint32("llama.vocab_size", len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_ids(reference: dict) -> dict:
    import llama_cpp

    ids = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = write_gguf(Path(folder, "model.gguf"), kind, reference["tokens"], reference["merges"])
            model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
            ids[kind] = {
                name: model.tokenize(text.encode(), add_bos=False, special=True)
                for name, text in reference["texts"].items()
            }
    return reference | {"ids": ids, "source": f"llama-cpp-python {llama_cpp.__version__}"}


def main() -> None:
    command, file = sys.argv[1], Path(sys.argv[2])
    if command == "vocabulary":
        cases = json.loads(
            (Path(__file__).parent / "data/smollm2_token_reference.json").read_text(encoding="utf-8")
        )["cases"]
        texts = {case["name"]: case["text"] for case in cases if len(case["text"]) < 400}
        made = make_vocabulary(texts)
        made["texts"]["unmergeable"] = "an unmergeable word, unmergeable2"
    else:
        made = add_ids(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(made, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
