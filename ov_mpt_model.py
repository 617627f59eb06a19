"""OVMPTModel: runs what `mpt_converter` wrote, with everything that transformers' `generate` offers.

Knows what OVModelForCausalLM lacks for this model, which is little: loading, compiling, greedy decoding,
sampling, beams, left padding, explicit caches and saving are all the base class's. Refuses to know how the
folder was made.
"""

from typing import TYPE_CHECKING

import numpy as np
from optimum.intel import OVModelForCausalLM

if TYPE_CHECKING:
    import openvino
    from transformers import PretrainedConfig


class OVMPTModel(OVModelForCausalLM):
    """An MPT model on OpenVINO.

    `OVMPTModel.from_pretrained(folder, device="CPU", ov_config=None)` loads a folder that
    `mpt_converter.convert_mpt` wrote, with the cache inside the model or as inputs and outputs of it. There
    is no longest context: `config.max_seq_len` only says what the model was trained on.

    Raises:
        ValueError: the folder holds a model of another architecture.
    """

    def __init__(self, model: "openvino.Model", config: "PretrainedConfig", **kwargs):
        if config.model_type != "mpt":
            raise ValueError(f"This is a model of type {config.model_type!r}; OVMPTModel runs 'mpt' only.")
        super().__init__(model, config, **kwargs)

    def _deduplicate_inputs(self, model_inputs: dict) -> tuple[dict, np.ndarray]:
        """In the first step of a beam search, compute each sequence once instead of once per beam.

        The base class takes rows with the same token ids for beams of one sequence. A short prompt padded on
        the left may have the ids of a longer one that begins with the padding token: such batches are
        computed as they are.
        """
        rows = np.concatenate([model_inputs["input_ids"], model_inputs["attention_mask"]], axis=1)
        if len(np.unique(rows, axis=0)) != len(np.unique(model_inputs["input_ids"], axis=0)):
            return model_inputs, np.arange(len(rows))
        return super()._deduplicate_inputs(model_inputs)
