"""Whether OpenVINO GenAI can follow a JSON schema, found out before a request with it joins the others.

A schema that it cannot follow would be noticed in the middle of a step, and after that the pipeline is of no
use to anybody. Knows schemas and the pipeline's tokenizer. Refuses to know requests.
"""

import tempfile
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from openvino import opset13 as ops

MOST_SCHEMAS = 64  # that are kept compiled; one takes up to 4 MB, and a tenth of a second to compile again


class SchemaCheck:
    """A function of a JSON schema, which raises an error for one that cannot be followed.

    OpenVINO GenAI reads a schema only where it draws a token. So one is drawn here, from a model that
    computes nothing.

    What it compiles, it keeps for ever, with the tokenizer and for one size of the vocabulary. So the size
    here is that of the pipeline: else each would drop what the other has compiled. And after `MOST_SCHEMAS` a
    token is drawn with another size, so that all of them go; requests that are running keep theirs.

    Args:
        tokenizer: the one that the pipeline uses.
        vocabulary: how many tokens the model tells apart; None: as many as the tokenizer has.
    """

    def __init__(self, tokenizer: "openvino_genai.Tokenizer", vocabulary: int | None = None):
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._pipeline: openvino_genai.LLMPipeline | None = None
        self._compiled: set[str] = set()

    def __call__(self, schema: str) -> None:
        """Try a schema.

        Raises:
            ValueError: it is no JSON, no schema, or needs what is not supported; or the tokenizer is missing.
        """
        if self._pipeline is None:
            try:
                vocabulary = self._tokenizer.get_vocab()
            except RuntimeError as error:  # of folders without openvino_tokenizer.xml
                raise ValueError(
                    "No JSON schema can be followed: the model's folder has no tokenizer for OpenVINO GenAI."
                ) from error
            self._vocabulary = self._vocabulary or max(vocabulary.values()) + 1
            self._pipeline = empty_pipeline(self._tokenizer, self._vocabulary)
        if len(self._compiled) >= MOST_SCHEMAS and schema not in self._compiled:
            draw(empty_pipeline(self._tokenizer, self._vocabulary + 1), "{}")
            self._compiled.clear()
        self._compiled.add(schema)
        try:
            token = draw(self._pipeline, schema)
        except RuntimeError as error:
            # "[time] path/of/the/source.cc:line: reason"
            reason = str(error).rpartition(".cc:")[2].partition(": ")[2].strip() or str(error)
            raise ValueError(f"This JSON schema cannot be followed: {reason}") from error
        if token == 0:  # the pipeline takes it as well where it may choose none
            raise ValueError("This JSON schema cannot be followed: none of the model's tokens begins it.")


def draw(pipeline: "openvino_genai.LLMPipeline", schema: str) -> int:
    """The first token of a reply that satisfies a schema."""
    config = openvino_genai.GenerationConfig(
        max_new_tokens=1,
        structured_output_config=openvino_genai.StructuredOutputConfig(json_schema=schema),
    )
    return pipeline.generate(openvino.Tensor(np.array([[1]])), config).tokens[0][0]


def empty_pipeline(tokenizer: "openvino_genai.Tokenizer", size: int) -> "openvino_genai.LLMPipeline":
    """A pipeline on a model whose logits are all alike, but for token 0, which is the last to be chosen.

    Args:
        tokenizer: of the model.
        size: of its vocabulary.
    """
    inputs, sums = [], []
    for name, kind, rank in (
        ("input_ids", np.int64, 2),
        ("attention_mask", np.int64, 2),
        ("beam_idx", np.int32, 1),
    ):
        inputs.append(ops.parameter([-1] * rank, kind, name=name))
        inputs[-1].output(0).set_names({name})
        sums.append(ops.reduce_sum(ops.convert(inputs[-1], "f32"), ops.constant(list(range(rank)))))
    # An input that nothing depends on would be left out of the compiled model.
    ids = ops.add(ops.add(ops.convert(inputs[0], "f32"), sums[1]), sums[2])
    weights = np.zeros((1, 1, size), np.float32)
    weights[0, 0, 0] = -1
    logits = ops.multiply(ops.unsqueeze(ids, ops.constant(-1)), ops.constant(weights))
    logits.output(0).set_names({"logits"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.xml"
        openvino.save_model(openvino.Model([logits], inputs, "empty"), path)
        constants = openvino.Tensor(np.fromfile(path.with_suffix(".bin"), np.uint8))
        return openvino_genai.LLMPipeline(
            path.read_text(encoding="utf-8"),
            constants,
            tokenizer,
            "CPU",
            openvino_genai.GenerationConfig(),
            ATTENTION_BACKEND="SDPA",
        )
