"""Whether a JSON schema can be followed is found out without the model, and not kept compiled for ever."""

import itertools
import json
import shutil
from array import array
from types import SimpleNamespace

import numpy as np
import openvino
import openvino_genai
import psutil
import pytest

import genai_schema
import genai_worker
from genai_process import Request, Settings
from genai_schema import SchemaCheck, empty_pipeline

ONE = json.dumps({"type": "string", "pattern": "^(one )+$"})
OTHERS = [json.dumps({"enum": [word]}) for word in ("two", "three", "four")]


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


@pytest.fixture(scope="module")
def real_tokenizer(smollm2_folder):
    return openvino_genai.Tokenizer(smollm2_folder)


def large_schema(number: int) -> str:
    """With as many texts as take about a megabyte, compiled."""
    return json.dumps(
        {"properties": {f"{number} {n}": {"type": "string", "maxLength": 20} for n in range(20)}}
    )


def test_schemas_are_checked_alike_before_and_after_compiled_ones_were_dropped(real_tokenizer, monkeypatch):
    monkeypatch.setattr(genai_schema, "MOST_SCHEMAS", 1)
    check = SchemaCheck(real_tokenizer)
    for _ in range(2):
        for schema in (ONE, *OTHERS):
            check(schema)
        with pytest.raises(ValueError, match="cannot be followed"):
            check('{"type": "nonsense"}')


@pytest.mark.slow
def test_a_reply_goes_on_by_its_schema_when_compiled_ones_are_dropped(smollm2_folder, monkeypatch):
    monkeypatch.setattr(genai_schema, "MOST_SCHEMAS", 1)
    batch, _ = genai_worker.load(Settings(str(smollm2_folder), "CPU", {}, cache_gigabytes=1))
    numbers = itertools.count(1)

    def request(schema: str) -> Request:
        options = {"max_new_tokens": 12}
        return Request(next(numbers), array("q", [504, 338, 216]), options, json_schema=schema)

    def tokens(of: Request) -> list[int]:
        return [token for one in news if one.number == of.number for token in one.tokens]

    alone, interrupted = request(ONE), request(ONE)
    news = []
    assert batch.add(alone) is None
    while batch.busy:
        news += batch.step()
    assert batch.add(interrupted) is None
    news += batch.step()
    for schema in OTHERS:
        assert batch.add(request(schema)) is None
        news += batch.step()
    while batch.busy:
        news += batch.step()
    assert len(tokens(alone)) > 2
    assert tokens(interrupted) == tokens(alone)


@pytest.mark.slow
def test_a_schema_is_compiled_for_as_many_tokens_as_the_model_tells_apart(
    smollm2_folder, tmp_path, monkeypatch
):
    folder = shutil.copytree(smollm2_folder, tmp_path / "padded")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"vocab_size": 50_000}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    sizes = []

    def pipeline(_, size: int):
        sizes.append(size)
        return SimpleNamespace(generate=lambda *_: SimpleNamespace(tokens=[[1]]))

    monkeypatch.setattr(genai_schema, "empty_pipeline", pipeline)
    batch, _ = genai_worker.load(Settings(str(folder), "CPU", {}, cache_gigabytes=1))
    assert batch.add(Request(1, array("q", [504]), {"max_new_tokens": 1}, json_schema=ONE)) is None
    assert sizes[0] == 50_000


@pytest.mark.slow
def test_compiled_schemas_do_not_pile_up(real_tokenizer, monkeypatch):
    monkeypatch.setattr(genai_schema, "MOST_SCHEMAS", 8)
    check, numbers = SchemaCheck(real_tokenizer), itertools.count()

    def grown_by(schemas: int) -> int:
        """Bytes that so many new schemas take."""
        process = psutil.Process()
        before = process.memory_full_info().uss
        for number in itertools.islice(numbers, schemas):
            check(large_schema(number))
        return process.memory_full_info().uss - before

    grown_by(4 * 8)
    bounded = grown_by(64)
    monkeypatch.setattr(genai_schema, "MOST_SCHEMAS", 1000)
    assert bounded < grown_by(64) / 2
