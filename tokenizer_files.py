"""The tokenizer's side of a converted folder: its files, its IR, the chat template and the tokens that end.

Knows tokenizers in transformers and as OpenVINO graphs. Refuses to know the model beside them.
"""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chat_templates import read_chat_templates
from chat_tokenizer import TOKENIZER_FILE, open_tokenizer
from checkpoint_fit import check_ids
from config import ModelConfig
from tokenizer_check import TOKENIZER_IR, graph_differences, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def check_tokenizer(checkpoint_folder: Path) -> None:
    """Refuse, before any work, a tokenizer that cannot be read.

    Raises:
        ValueError: names the file.
    """
    has_file = (checkpoint_folder / TOKENIZER_FILE).is_file()
    (open_tokenizer if has_file else read_tokenizer)(checkpoint_folder)


def write_tokenizer(checkpoint_folder: Path, output: Path, config: ModelConfig) -> dict[str, Any]:
    """Put a checkpoint's tokenizer beside its IR, with the catalogue's template and end tokens.

    Raises:
        ValueError: the tokenizer has ids that the model's embedding has no rows for.

    Returns:
        What the checkpoint itself says of what the catalogue may change, for `rewrite_tokenizer`.
    """
    from transformers import AutoConfig

    # The configuration as it was converted: transformers may not accept the checkpoint's own.
    own = AutoConfig.from_pretrained(output, trust_remote_code=False)
    tokenizer = read_tokenizer(checkpoint_folder, own)
    # Once more, now that every kind of tokenizer is read.
    highest, token = max((number, token) for token, number in tokenizer.get_vocab().items())
    check_ids(checkpoint_folder, highest, token, own.get_text_config().vocab_size)
    template = tokenizer.chat_template or read_chat_templates(checkpoint_folder, {}).get("default")
    published = {"template": template, "eos_token_id": _end_tokens(output)}
    _write_changeable(tokenizer, output, config, published)
    write_tokenizer_ir(tokenizer, output)
    return published


def rewrite_tokenizer(folder: Path, config: ModelConfig, published: dict[str, Any]) -> None:
    """Give a folder that is converted already the catalogue's present template and end tokens."""
    _write_changeable(read_tokenizer(folder), folder, config, published)


def write_tokenizer_ir(tokenizer: "PreTrainedTokenizerBase", output: Path) -> None:
    """The tokenizer as OpenVINO IR, for runtimes without Python; instead of one that is there.

    No IR is better than one that reads other texts than the model was trained on.
    """
    import openvino
    from openvino_tokenizers import convert_tokenizer

    for name in TOKENIZER_IR:
        for file in (output / name, (output / name).with_suffix(".bin")):
            file.unlink(missing_ok=True)
    _unite_digit_split(tokenizer)
    tokenizer_model, detokenizer_model = convert_tokenizer(tokenizer, with_detokenizer=True)
    if wrong := graph_differences(open_tokenizer(output), tokenizer_model, detokenizer_model):
        log.warning("The tokenizer is not written as IR, since that is not the same: there %s.", wrong[0])
        return
    for graph, name in zip((tokenizer_model, detokenizer_model), TOKENIZER_IR, strict=True):
        openvino.save_model(graph, output / name)


def _write_changeable(
    tokenizer: "PreTrainedTokenizerBase", output: Path, config: ModelConfig, published: dict[str, Any]
) -> None:
    """The tokenizer's files and the end tokens in generation_config.json, where every runtime looks for them.

    Of several named templates all are kept; the catalogue's is the one for a plain chat.
    """
    from transformers import GenerationConfig

    template = published["template"]
    if config.chat_template:
        named = template if isinstance(template, dict) else None
        template = named | {"default": config.chat_template} if named else config.chat_template
    tokenizer.chat_template = template
    tokenizer.padding_side = "left"  # a batch of prompts must end, not begin, at the same position
    (output / "chat_template.jinja").unlink(missing_ok=True)
    shutil.rmtree(output / "additional_chat_templates", ignore_errors=True)
    tokenizer.save_pretrained(output)
    vocabulary = tokenizer.get_vocab()
    extra = [vocabulary[text] for text in config.stop_strings if text in vocabulary]
    wanted = sorted({*published["eos_token_id"], *extra}) if extra else published["eos_token_id"]
    if wanted != _end_tokens(output):
        generation_config = GenerationConfig.from_pretrained(output)
        generation_config.eos_token_id = wanted
        generation_config.to_json_file(output / "generation_config.json")  # whatever else it says


def _end_tokens(folder: Path) -> list[int]:
    from transformers import GenerationConfig

    own = GenerationConfig.from_pretrained(folder).eos_token_id
    return [] if own is None else own if isinstance(own, list) else [own]


def _unite_digit_split(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make one expression of "split off each digit, then split as GPT-2 does" (SmolLM2); same tokens.

    openvino_tokenizers would unite the two as well, but it forgets that spaces before a digit are the end of
    their part: its tokens for the lines of a numbered list are not those that the model was trained with.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    two_splits = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if tokenizer.is_fast and str(tokenizer.backend_tokenizer.pre_tokenizer) == str(two_splits):
        one = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Split(Regex(one), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
        )
