"""Converting shows nothing of what its libraries have to say, and leaves their loggers as they were."""

import logging
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import quiet
from conftest import NAMES
from conversion import prepare_model
from quiet import quiet_libraries

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
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
    for words in ("Statistics", "Weight Compression", "Loading weights", "Writing model shards"):
        assert words not in shown.stderr


@pytest.mark.slow
def test_converting_logs_nothing_and_leaves_the_log_levels_alone(tiny_checkpoints, tmp_path, caplog):
    @contextmanager
    def levels_kept():
        names = ("nncf", "optimum", "transformers", "openvino.frontend.pytorch.utils")
        before = [logging.getLogger(name).level for name in names]
        yield
        assert [logging.getLogger(name).level for name in names] == before

    with quiet_libraries():  # importing the libraries sets the levels
        pass
    with levels_kept(), caplog.at_level(logging.WARNING):
        prepare_model("red-pajama-3b-chat", "INT8", tmp_path, tiny_checkpoints["gpt_neox"])
    assert [record.getMessage() for record in caplog.records] == []


def in_another_thread(work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


LIBRARIES = ("nncf", "optimum.exporters.openvino", "transformers.modeling_utils")


@pytest.mark.parametrize("name", LIBRARIES)
def test_another_thread_s_records_are_heard_while_this_one_s_are_not(name):
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger(name)
    with quiet_libraries():
        logger.addHandler(handler)
        logger.warning("of the conversion")
        logger.error("an error of the conversion")
        in_another_thread(lambda: logger.warning("of the caller"))
    logger.warning("afterwards")
    logger.removeHandler(handler)
    assert heard == ["an error of the conversion", "of the caller", "afterwards"]


def test_loggers_are_left_without_filters():
    with quiet_libraries():
        pass
    before = {name: list(logging.getLogger(name).filters) for name in LIBRARIES}
    with quiet_libraries():
        assert all(logging.getLogger(name).filters for name in LIBRARIES)
    assert {name: logging.getLogger(name).filters for name in LIBRARIES} == before


def test_another_thread_s_warnings_are_shown_while_this_one_s_are_not(monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    ours = warnings.showwarning
    with quiet_libraries():
        warnings.warn("of the conversion", stacklevel=1)
        in_another_thread(lambda: warnings.warn("of the caller", stacklevel=1))
    assert shown == ["of the caller"]
    assert warnings.showwarning is ours


def test_another_thread_s_bars_are_shown_while_this_one_s_are_not(capsys):
    from transformers.utils import logging as transformers_logging

    with quiet_libraries():
        list(transformers_logging.tqdm([1], desc="of the conversion"))
        in_another_thread(lambda: list(transformers_logging.tqdm([1], desc="of the caller")))
    shown = capsys.readouterr().err
    assert "of the caller" in shown
    assert "of the conversion" not in shown
    assert transformers_logging.is_progress_bar_enabled()


def test_the_caller_s_own_hook_for_bars_is_kept():
    from transformers.utils import logging as transformers_logging

    seen = []

    def hook(factory, arguments, named):
        seen.append(named["desc"])
        return factory(*arguments, **named | {"disable": True})

    transformers_logging.set_tqdm_hook(hook)
    with quiet_libraries():
        list(transformers_logging.tqdm([1], desc="of the conversion"))
        in_another_thread(lambda: list(transformers_logging.tqdm([1], desc="of the caller")))
    assert seen == ["of the caller"]
    assert transformers_logging.set_tqdm_hook(None) is hook


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_two_conversions_at_once_leave_everything_as_it_was(first_ends_first):
    from nncf.quantization.algorithms.weight_compression import algorithm

    before = (warnings.showwarning, algorithm.track)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet_libraries():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with quiet_libraries():
        thread.start()
        assert entered.wait(60)
        if not first_ends_first:
            leave.set()
            thread.join()
            assert warnings.showwarning is not before[0]  # this one is still quiet
    leave.set()
    thread.join()
    assert (warnings.showwarning, algorithm.track) == before


def test_what_nncf_has_compressed_is_reported(monkeypatch):
    from nncf.quantization.algorithms.weight_compression import algorithm

    shares = []
    monkeypatch.setattr(quiet, "report_progress", shares.append)
    with quiet_libraries():
        assert list(algorithm.track("abc", description="Applying", weights=[1, 1, 2])) == ["a", "b", "c"]
    assert shares == [0.25, 0.5, 1.0]


@pytest.mark.slow
def test_two_conversions_in_threads_make_what_each_makes_alone(tiny_checkpoints, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        made = [
            pool.submit(prepare_model, name, "INT8", tmp_path, tiny_checkpoints[family])
            for family, name in (("llama", NAMES["llama"]), ("gpt_neox", NAMES["gpt_neox"]))
        ]
    alone = [
        prepare_model(NAMES[family], "INT8", tmp_path / "alone", tiny_checkpoints[family])
        for family in ("llama", "gpt_neox")
    ]
    for together, one in zip(made, alone, strict=True):
        weights = "openvino_model.bin"
        assert (together.result() / weights).read_bytes() == (one / weights).read_bytes()
