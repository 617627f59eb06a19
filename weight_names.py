"""Whether a checkpoint's weights are those that its architecture has, told before any of them is used.

Knows transformers' own account of what it finds and lacks. Refuses to know where the weights go from there.
"""

import logging
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

log = logging.getLogger(__name__)


def check_weight_names(
    folder: Path, config: "PreTrainedConfig | None" = None, key_mapping: dict[str, str] | None = None
) -> None:
    """Refuse weights of which a model for text generation cannot be made.

    transformers fills what is missing with random numbers, and passes over what it has no place for. Nothing
    is computed here: the weights have names and shapes, but no content.

    Args:
        folder: the checkpoint.
        config, key_mapping: as `from_pretrained` takes them.

    Raises:
        ValueError: names the first weight that is missing, or has another shape than config.json says.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = deepcopy(config or AutoConfig.from_pretrained(folder, trust_remote_code=False))
    tied = config.tie_word_embeddings
    config.tie_word_embeddings = False  # else the contents of both would be compared
    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
        key_mapping=key_mapping,
    )
    head = model.get_output_embeddings()
    heads = {name for name, weight in model.named_parameters() if tied and head and weight is head.weight}
    kind = type(model).__name__
    if missing := sorted(found["missing_keys"] - heads):
        raise ValueError(
            f"{folder} lacks {len(missing)} of the weights that a {kind} has, the first is {missing[0]}. "
            "Fetch it again if it should have them; one for embeddings, classes or rewards writes no text."
        )
    if wrong := sorted(found["mismatched_keys"]):
        name, there, expected = wrong[0]
        raise ValueError(
            f"{folder / 'config.json'} does not describe the weights beside it: {name} has the shape "
            f"{list(there)} instead of {list(expected)}. Fetch both again."
        )
    if not key_mapping and (unused := sorted(found["unexpected_keys"])):
        log.warning(
            "%s holds %d weights that a %s has no place for, the first is %s. They are not used.",
            folder,
            len(unused),
            kind,
            unused[0],
        )
