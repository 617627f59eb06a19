"""Converting shows nothing of what its libraries have to say, and leaves their loggers as they were."""

import logging
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from conftest import NAMES
from conversion import prepare_model

ROOT = Path(__file__).parents[1]


def test_a_script_shows_no_tables_and_bars_of_the_libraries(tiny_checkpoints, tmp_path):
    script = "import sys; from conversion import prepare_model; prepare_model(*sys.argv[1:])"
    arguments = [
        sys.executable,
        "-c",
        script,
        NAMES["gpt_neox"],
        "INT4",
        tmp_path,
        tiny_checkpoints["gpt_neox"],
    ]
    shown = subprocess.run([*map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == ""
    for words in ("Statistics", "Weight Compression", "Loading weights"):
        assert words not in shown.stderr


def test_converting_logs_nothing_and_leaves_the_log_levels_alone(tiny_checkpoints, tmp_path, caplog):
    @contextmanager
    def levels_kept():
        names = ("nncf", "optimum", "transformers", "openvino.frontend.pytorch.utils")
        before = [logging.getLogger(name).level for name in names]
        yield
        assert [logging.getLogger(name).level for name in names] == before

    with levels_kept(), caplog.at_level(logging.WARNING):
        prepare_model("red-pajama-3b-chat", "INT8", tmp_path, tiny_checkpoints["gpt_neox"])
    assert [record.getMessage() for record in caplog.records] == []
