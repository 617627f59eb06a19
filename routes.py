"""Which way an architecture takes from a checkpoint to IR, and which class runs it: one table.

Another architecture that is converted by hand is a module of its own and a row here.
Refuses to know what a way does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimum.intel import OVModelForCausalLM


@dataclass(frozen=True)
class Route:
    """One way.

    check_settings: raises ValueError where the content of config.json cannot be honoured.
    export: writes a checkpoint folder's model as stateful FP16 IR, with config.json and
        generation_config.json, into another folder.
    model_class: what `from_pretrained` of the result is called on.
    traces_16_bits: 32-bit weights are on the disk once more, with 16 bits, while it works.
    """

    check_settings: Callable[[dict], None]
    export: Callable[[Path, Path], None]
    model_class: "type[OVModelForCausalLM]"
    traces_16_bits: bool = False


def _optimum() -> Route:
    from optimum.intel import OVModelForCausalLM

    import optimum_export

    return Route(optimum_export.check_settings, optimum_export.export_checkpoint, OVModelForCausalLM)


def _mpt() -> Route:  # Optimum's export of MPT ends at max_seq_len
    import mpt_converter
    from ov_mpt_model import OVMPTModel

    return Route(
        mpt_converter.check_settings, mpt_converter.export_checkpoint, OVMPTModel, traces_16_bits=True
    )


def _text_part() -> Route:
    from optimum.intel import OVModelForCausalLM

    import text_models

    return Route(text_models.check_text_part, text_models.export_text_part, OVModelForCausalLM)


def _granite_hybrid() -> Route:
    from optimum.intel import OVModelForCausalLM

    import text_models

    return Route(text_models.check_granite_hybrid, text_models.export_granite_hybrid, OVModelForCausalLM)


# By config.json's model_type; functions, since what they import takes seconds. Which architectures Optimum's
# way takes although its exporter would not, is a table of `lifted_caps`.
BY_HAND: dict[str, Callable[[], Route]] = {
    "mpt": _mpt,
    "gemma3": _text_part,
    "mistral3": _text_part,
    "granitemoehybrid": _granite_hybrid,
}


def route_of(settings: dict) -> Route:
    """The way of a model with this config.json: the one by hand, if there is one, or Optimum's."""
    return BY_HAND.get(settings.get("model_type"), _optimum)()
