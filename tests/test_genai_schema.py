"""Whether OpenVINO GenAI can follow a JSON schema is found out without the model."""

import json

import numpy as np
import openvino
import openvino_genai
import pytest

from genai_schema import SchemaCheck, empty_pipeline


@pytest.fixture(scope="module")
def tokenizers(converted) -> dict[str, openvino_genai.Tokenizer]:
    return {
        family: openvino_genai.Tokenizer(str(converted(family, "INT8"))) for family in ("gpt_neox", "llama")
    }


@pytest.fixture(scope="module")
def check(tokenizers) -> SchemaCheck:
    return SchemaCheck(tokenizers["gpt_neox"])


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"enum": ["yes", "no"]},
        {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]},
    ],
    ids=str,
)
def test_a_schema_that_can_be_followed_is_none_to_complain_of(check, schema):
    check(json.dumps(schema))


@pytest.mark.parametrize(
    ("schema", "word"),
    [("no json", "JSON"), ('{"type": "nonsense"}', "nonsense"), ('{"$ref": "#/x"}', "field x")],
)
def test_one_that_cannot_is_refused_with_the_reason_and_no_place_in_the_source(check, schema, word):
    with pytest.raises(ValueError, match=f"This JSON schema cannot be followed: .*{word}") as refused:
        check(schema)
    assert ".cc" not in str(refused.value)


def test_after_a_refusal_the_next_schema_is_tried_as_well(check):
    with pytest.raises(ValueError):
        check("no json")
    check('{"type": "object"}')


def test_one_that_none_of_the_tokens_can_begin_is_refused(tokenizers):
    with pytest.raises(ValueError, match="none of the model's tokens begins it"):
        SchemaCheck(tokenizers["llama"])('{"type": "object"}')  # it has no token with a brace


def test_the_model_that_computes_nothing_chooses_any_token_but_the_first(tokenizers):
    pipeline = empty_pipeline(tokenizers["gpt_neox"], 300)
    config = openvino_genai.GenerationConfig(max_new_tokens=3, ignore_eos=True)
    ((first, *_),) = pipeline.generate(openvino.Tensor(np.array([[1, 2, 3]])), config).tokens
    assert 0 < first < 300
