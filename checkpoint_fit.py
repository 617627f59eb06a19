"""Whether a checkpoint's weights, configuration and tokenizer belong together.

Knows what each says of the vocabulary and of quantized weights. Refuses to know everything else about them.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from checkpoint_files import read_header
from json_files import read_json_if_there

# How architectures name the tensor that has a row for each token.
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


def quantization_of(settings: dict) -> dict | None:
    """What config.json says of how others have quantized the weights, if they have."""
    text = settings.get("text_config") or {}
    keys = ("quantization_config", "quantization")  # the latter is MLX's
    return next((part[key] for part in (settings, text) for key in keys if part.get(key)), None)


def check_fit(folder: Path, settings: dict, files: Collection[str]) -> None:
    """Refuse weights, configuration and tokenizer that do not belong together.

    Args:
        settings: the content of config.json.
        files: the names of the files of weights; those that are not there yet are passed over.

    Raises:
        ValueError: says which two contradict each other, and the way out.
    """
    headers = {
        name: read_header(folder / name)
        for name in files
        if name.endswith(".safetensors") and (folder / name).is_file()
    }
    rows = (settings.get("text_config") or settings).get("vocab_size")
    quantized = quantization_of(settings)
    for file, tensors in headers.items():
        for name, tensor in tensors.items():
            integer = tensor.dtype[0] in "IU" or tensor.dtype.startswith("F8")
            if not quantized and integer and re.search(r"\.(weight|qweight|weight_packed)$", name):
                raise ValueError(
                    f"{folder / file} has been quantized already ({name} is {tensor.dtype}), but config.json "
                    "has no quantization_config that says how. Take the original model."
                )
            if name.endswith(EMBEDDINGS) and len(tensor.shape) == 2:
                if rows not in (None, tensor.shape[0]):
                    raise ValueError(
                        f"{folder / 'config.json'} says vocab_size = {rows}, but {name} in {file} has "
                        f"{tensor.shape[0]} rows. Write that number into config.json, or fetch both again."
                    )
                rows = tensor.shape[0]
    check_ids(folder, *max(_token_ids(folder), default=(-1, "")), rows)


def check_ids(folder: Path, highest: int, token: str, rows: int | None) -> None:
    """Refuse a tokenizer with ids that the embedding has no rows for.

    Args:
        highest, token: the tokenizer's highest id and what it stands for.
        rows: of the embedding; None where that is not known.

    Raises:
        ValueError: with both numbers and the way out.
    """
    if rows and highest >= rows:
        raise ValueError(
            f"The tokenizer in {folder} has the id {highest} for {token!r}, but the model's embedding has "
            f"only {rows} rows. Take the tokenizer that the model was trained with, or give the model the "
            "rows: model.resize_token_embeddings(len(tokenizer)), then save it."
        )


def _token_ids(folder: Path) -> Iterator[tuple[int, str]]:
    """Ids and tokens of a tokenizer, as far as its JSON files say."""
    whole = read_json_if_there(folder / "tokenizer.json")
    vocabulary = (whole.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):
        yield len(vocabulary) - 1, str(vocabulary[-1][0])
    else:
        yield from ((number, token) for token, number in vocabulary.items())
    yield from ((entry["id"], entry["content"]) for entry in whole.get("added_tokens") or ())
    for name in ("vocab.json", "added_tokens.json"):
        yield from ((number, token) for token, number in read_json_if_there(folder / name).items())
    decoder = read_json_if_there(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    yield from ((int(number), entry["content"]) for number, entry in decoder.items())
