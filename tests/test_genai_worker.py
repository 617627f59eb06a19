"""The process that computes for GenAIEngine: what it does with requests, and that it ends with its parent."""

import itertools
import os
import pickle
import queue
import random
import signal
import subprocess
import sys
import threading
from array import array
from pathlib import Path

import pytest

import conversion
import genai_worker
from genai_process import News, Ready, Request, Settings
from genai_worker import PREFILL_CHUNK, Batch, serve
from tuning import EXACT

ROOT = Path(__file__).parents[1]
PROMPT = [105, 64, 109, 168, 93, 268, 211, 251, 14, 82, 38, 164] * 4
BLOCK = 32
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def folder(tiny_checkpoints, tmp_path_factory) -> Path:
    models_dir = tmp_path_factory.getbasetemp() / "models"
    return conversion.prepare_model("llama-2-chat-7b", "FP16", models_dir, tiny_checkpoints["llama"])


@pytest.fixture(scope="module")
def settings(folder) -> Settings:
    return Settings(str(folder), "CPU", EXACT, cache_gigabytes=1)


@pytest.fixture(scope="module")
def batch(settings) -> Batch:
    return genai_worker.load(settings)[0]


def request(ids=PROMPT, new=40, **more) -> Request:
    return Request(next(NUMBERS), array("q", ids), {"ignore_eos": True, "max_new_tokens": new}, **more)


def run(batch: Batch, *requests: Request) -> dict[int, list[News]]:
    """All news of the requests, by their number."""
    news = {one.number: [] for one in requests}
    for one in requests:
        assert batch.add(one) is None
    while batch.busy:
        for one in batch.step():
            news[one.number].append(one)
    return news


class Served:
    """`serve` in a thread, with a pipeline that counts its steps and waits before each for `go`."""

    def __init__(self, batch: Batch, monkeypatch):
        self.commands, self.news, self.steps = queue.SimpleQueue(), queue.SimpleQueue(), 0
        self.go = threading.Semaphore(0)
        step = batch.step

        def counted():
            assert self.go.acquire(timeout=20)
            self.steps += 1
            return step()

        monkeypatch.setattr(batch, "step", counted)
        self._thread = threading.Thread(
            target=serve, args=(batch, self.commands, self.news.put, os.getppid())
        )
        self._thread.start()

    def end(self) -> None:
        self.go.release(10_000)
        self.commands.put(None)
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def served(batch, monkeypatch):
    served = Served(batch, monkeypatch)
    yield served
    served.end()


def test_each_token_is_told_once_and_the_end_with_the_last(batch):
    one = request(new=10)
    (news,) = run(batch, one).values()
    assert [len(step.tokens) for step in news] == [1] * 10
    assert [step.over for step in news] == [False] * 9 + [True]
    assert [step.reused is None for step in news] == [False] + [True] * 9
    assert [step.error for step in news] == [None] * 10


def test_requests_together_get_what_each_gets_alone(batch):
    together = run(batch, *(request(PROMPT[start:]) for start in range(3)))
    alone = [run(batch, request(PROMPT[start:])).popitem()[1] for start in range(3)]
    for ours, expected in zip(together.values(), alone, strict=True):
        assert [one.tokens for one in ours] == [one.tokens for one in expected]


def test_a_request_that_cannot_be_computed_is_refused_and_the_others_go_on(batch):
    fine = request()
    assert batch.add(fine) is None
    refusal = batch.add(request(new=0))
    assert refusal.over
    assert "max_new_tokens" in str(refusal.error)
    news = []
    while batch.busy:
        news += batch.step()
    assert {one.number for one in news} == {fine.number}
    assert sum(len(one.tokens) for one in news) == 40


@pytest.mark.parametrize("steps", [1, 3])
def test_a_request_is_cancelled_before_the_next_token(served, batch, steps):
    endless = request(new=10_000)
    served.commands.put(endless)
    for _ in range(steps):
        served.go.release()
        assert served.news.get(timeout=20)[0].tokens
    served.commands.put(endless.number)
    served.go.release(2)  # one may be waiting already, the other frees what the request had
    while not (news := served.news.get(timeout=20))[0].over:
        pass
    assert news == [News(endless.number, [], [], None, over=True)]
    served.end()
    assert served.steps <= steps + 2


def test_a_request_is_cancelled_within_its_prompt(served, batch):
    long = request([7 * place % 300 + 20 for place in range(50 * PREFILL_CHUNK)])
    served.commands.put(long)
    served.go.release(2)
    while served.steps < 2:
        threading.Event().wait(0.005)
    served.commands.put(long.number)
    served.go.release(2)
    assert served.news.get(timeout=20) == [News(long.number, [], [], None, over=True)]
    served.end()
    assert served.steps <= 4


def test_to_cancel_what_is_over_is_harmless(batch):
    one = request(new=1)
    run(batch, one)
    assert batch.cancel(one.number) is None


def test_a_failing_step_ends_serving(batch, monkeypatch):
    def fail():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(batch, "step", fail)
    commands = queue.SimpleQueue()
    commands.put(one := request())
    with pytest.raises(RuntimeError, match="out of memory"):
        serve(batch, commands, lambda news: None, os.getppid())
    batch.cancel(one.number)


@pytest.mark.parametrize("others", [1, 5])
def test_the_most_probable_tokens_are_told_with_each_token(batch, others):
    plain, asking = request(new=12), request(new=12, others=others)
    asking.options["logprobs"] = 1
    news = run(batch, plain, asking)
    tokens = [token for one in news[plain.number] for token in one.tokens]
    told = [
        pair for one in news[asking.number] for pair in zip(one.tokens, one.log_probabilities, strict=True)
    ]
    assert [token for token, _ in told] == tokens
    for token, (value, best) in told:
        assert len(best) == others
        assert best[token] == value == max(best.values()) < 0
    assert news[asking.number][-1].over


def used_blocks(batch: Batch, ids) -> int:
    """How many blocks of the real cache a prompt with these ids finds again.

    Nothing else is in the pipeline; a cancelled request holds what it found until the next step has ended.
    """
    handle = batch._add(array("q", ids), {"max_new_tokens": 1})
    handle.cancel()
    batch._pipeline.step()
    metrics = batch._pipeline.get_metrics()
    return round(metrics.cache_usage / 100 * batch._ledger._blocks)


def test_the_ledger_says_of_conversations_what_the_cache_does(batch):
    chance = random.Random(0)
    conversations = [[chance.randrange(20, 400) for _ in range(50)] for _ in range(3)]
    found = []
    for _ in range(8):
        ids = chance.choice(conversations)
        ids += (chance.randrange(20, 400) for _ in range(chance.randrange(1, 70)))
        expected = batch._ledger.reused(ids)
        found.append(expected)
        assert used_blocks(batch, ids) == -(-expected // BLOCK)
        (news,) = run(batch, request(ids, new=chance.randrange(1, 40))).values()
        assert news[0].reused == expected
        ids += [token for one in news for token in one.tokens]
    assert len(set(found)) > 4  # not always none, or the whole


def test_serving_ends_with_the_parent(batch):
    serve(batch, queue.SimpleQueue(), lambda news: None, parent=-1)


def test_errors_of_libraries_can_be_sent():
    class Strange(Exception):
        def __init__(self, one, other):
            super().__init__(f"{one} {other}")

    sent = pickle.loads(pickle.dumps(genai_worker.plain(Strange(1, 2))))
    assert isinstance(sent, RuntimeError) and str(sent) == "Strange: 1 2"
    assert type(genai_worker.plain(ValueError("3"))) is ValueError


# The process itself

START = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import genai_worker; "]


def start(code: str = "genai_worker.main()", **more) -> subprocess.Popen:
    command = [*START[:-1], START[-1] + code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **more)


def tell(process: subprocess.Popen, message: object) -> None:
    pickle.dump(message, process.stdin)
    process.stdin.flush()


@pytest.fixture
def process(settings):
    with start() as process:
        tell(process, settings)
        assert isinstance(pickle.load(process.stdout), Ready)
        yield process
        process.kill()


def test_the_process_says_how_much_its_cache_holds(settings):
    with start() as process:
        tell(process, settings)
        (tokens,) = pickle.load(process.stdout)
        process.kill()
    bytes_per_token = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, 32 bits
    assert tokens == pytest.approx(2**30 / bytes_per_token, rel=0.01)
    assert tokens % BLOCK == 0


@pytest.mark.slow
def test_what_cannot_be_loaded_is_told(settings, tmp_path):
    for wrong, error in (("folder", str(tmp_path)), ("device", "TPU")):
        with start() as process:
            tell(process, Settings(**{**vars(settings), wrong: error}))
            (failure,) = pickle.load(process.stdout)
            assert isinstance(failure, Exception)
            assert error in str(failure)
            assert process.wait(20) == 0


@pytest.mark.parametrize("new", [1, 100_000], ids=["idle", "computing"])
def test_the_process_ends_when_nobody_can_write_to_it_any_more(process, new):
    tell(process, request(new=new))
    pickle.load(process.stdout)
    process.stdin.close()
    assert process.wait(20) == 0


def test_the_process_ends_while_it_loads(settings):
    with start(
        "genai_worker.load = lambda settings: input_never_comes.wait()".join(
            ("import threading; input_never_comes = threading.Event(); ", "; genai_worker.main()")
        )
    ) as process:
        tell(process, settings)
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signals_that_are_meant_for_the_program_do_not_end_the_process(process):
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    one = request(new=1)
    tell(process, one)
    assert pickle.load(process.stdout)[0].number == one.number


def test_what_libraries_print_does_not_get_between_the_messages(settings):
    code = """
import os
load = genai_worker.load
def printing(settings):
    print("python's")
    os.write(1, b"a library's")
    return load(settings)
genai_worker.load = printing
genai_worker.main()
"""
    with start(f"exec({code!r})", stderr=subprocess.PIPE) as process:
        tell(process, settings)
        assert isinstance(pickle.load(process.stdout), Ready)
        process.stdin.close()
        assert b"a library's" in process.stderr.read()


@pytest.mark.slow
def test_neither_process_imports_what_models_are_converted_with(settings):
    """And the one that asks does not load OpenVINO GenAI."""
    loading = f"""
import pickle, sys
settings = pickle.loads({pickle.dumps(settings)!r})
genai_worker.load(settings)
print(*sys.modules)
print(sys.modules["openvino_telemetry"])
"""
    asking = f"""
from genai_engine import GenAIEngine
GenAIEngine({settings.folder!r}).prefill([5, 6, 7])
print(*sys.modules)
"""
    with start(f"exec({loading!r})") as process:
        *_, modules, telemetry = process.communicate()[0].decode().splitlines()
    assert telemetry == "None"
    with start(f"exec({asking!r})") as process:
        *_, asking_modules = process.communicate()[0].decode().splitlines()
    converting = {"torch", "transformers", "optimum", "nncf", "gradio"}
    assert not set(modules.split()) & converting
    assert not set(asking_modules.split()) & (converting | {"openvino_genai"})
    assert "openvino_genai" in modules.split()


SCRIPT = """
from genai_engine import GenAIEngine
from sampling import SamplingParams
stream = GenAIEngine({folder!r}).generate([5, 6, 7], SamplingParams(max_new_tokens=100_000))
print(next(stream), flush=True)
"""


def test_a_script_that_ends_in_the_middle_of_an_answer_ends_at_once(folder):
    """It has no `if __name__ == "__main__"` either."""
    with start(f"exec({SCRIPT.format(folder=str(folder))!r})", stderr=subprocess.PIPE) as process:
        output, errors = process.communicate(timeout=30)
    assert int(output) >= 0
    assert process.returncode == 0
    assert errors == b""


def test_the_process_ends_with_a_parent_that_is_killed(folder):
    script = SCRIPT + "import time; time.sleep(60)"
    with start(f"exec({script.format(folder=str(folder))!r})", stderr=subprocess.PIPE) as parent:
        parent.stdout.readline()
        os.kill(parent.pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        parent.communicate(timeout=20)  # both have stderr open, so it ends with the last of them
    assert parent.returncode != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_process_ends_even_if_a_fork_of_its_parent_lives_on(folder):
    script = (
        SCRIPT
        + """
import os, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork, from Python 3.12 on
if os.fork() == 0:
    os.close(2)
    time.sleep(30)
    os._exit(0)
os._exit(1)
"""
    )
    with start(f"exec({script.format(folder=str(folder))!r})", stderr=subprocess.PIPE) as parent:
        parent.wait(20)
        assert parent.stderr.read() == b""  # ends when nobody has it open
