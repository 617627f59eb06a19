"""What `make bench-check` compares, what it calls slower, and what random checkpoints can be used for."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from benchmarks import check
from benchmarks.check import compare, slower
from benchmarks.decoding import BARE, Contestant, save
from benchmarks.random_checkpoint import SHAPES, shorten_vocabulary
from config import DEFAULT_MODEL
from machine import Processor
from model_source import fetch_checkpoint


def run(ratio: float, spread: float = 0.1) -> dict:
    return {"processor": "any", "ratios": {"page: served": {"ratio": ratio, "spread": spread}}}


def test_what_grew_by_more_than_the_spread_is_slower():
    assert slower(run(1.0), run(1.5)) == ["page: served: 1.00 -> 1.50 of what it is compared with"]


def test_what_grew_within_the_spread_or_shrank_is_not():
    assert slower(run(1.0), run(1.15)) == slower(run(1.0), run(0.5)) == []


def test_what_was_not_measured_before_is_not():
    assert slower({"processor": "any", "ratios": {}}, run(9.0)) == []


def test_processors_are_told_apart_by_what_they_can_do():
    fast, slow = {"AVX2": run(1.0)}, {"AVX2": run(1.5)}
    assert compare(fast, slow) == slower(fast["AVX2"], slow["AVX2"])
    assert compare(fast, fast) == []
    (line,) = compare(fast, {"AVX2, AVX-512": run(1.0)})
    assert line == "Nothing to compare with: no run on a processor with AVX2, AVX-512 was saved."


def test_a_run_takes_the_place_of_the_last_one_on_such_a_processor(tmp_path, monkeypatch):
    def save_on(instructions: tuple[str, ...], ratio: float) -> None:
        monkeypatch.setattr(check, "processor", lambda: Processor("any", 2, instructions))
        check.save(tmp_path / "ratios.json", run(ratio)["ratios"])

    for ratio in (1.0, 2.0):
        save_on(("AVX2",), ratio)
        save_on(("AVX2", "AVX-512"), 10 * ratio)
    save_on((), 3.0)
    saved = json.loads((tmp_path / "ratios.json").read_text())
    assert saved == {"AVX2": run(2.0), "AVX2, AVX-512": run(20.0), "any": run(3.0)}


def test_decoding_is_compared_with_the_bare_request_of_the_same_round(tmp_path):
    bare = Contestant(BARE, "bare", Path(), rates=[10.0, 20.0, 30.0], firsts=[1.0, 2.0, 3.0])
    ours = Contestant("ChatModel, INT8", "chat", Path(), rates=[20.0, 40.0, 120.0], firsts=[0.5, 1.0, 1.5])
    save(tmp_path / "ratios.json", [ours, bare])
    (result,) = json.loads((tmp_path / "ratios.json").read_text()).values()
    assert result["ratios"] == {
        "ChatModel, INT8: each token": {"ratio": 0.5, "spread": 0.5},
        "ChatModel, INT8: first token": {"ratio": 0.5, "spread": 0.0},
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_a_random_checkpoint_has_a_row_for_each_token_of_its_tokenizer(shape, tmp_path):
    rows = SHAPES[shape][0].vocab_size
    file = Path(shutil.copy(fetch_checkpoint(DEFAULT_MODEL) / "tokenizer.json", tmp_path))
    shorten_vocabulary(file, rows)
    tokenizer = Tokenizer.from_file(str(file))
    assert max(tokenizer.get_vocab().values()) < rows
    text = "Unquestionably, 17 electromagnetic naïvetés 🙂"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
