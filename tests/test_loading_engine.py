"""An engine that is still being made: who asks meanwhile waits, and says so."""

import threading

import pytest

from chat import ChatModel
from fakes import ScriptedEngine
from loading_engine import LoadingEngine
from sampling import SamplingParams

PARAMS = SamplingParams(max_new_tokens=3, logprobs=1)


class Door:
    """Makes an engine once it is opened."""

    def __init__(self, engine=None, error: Exception | None = None):
        self.opened = threading.Event()
        self.engine, self.error = engine or ScriptedEngine([7, 8, 9, 10], max_context=300), error

    def make(self):
        assert self.opened.wait(30)
        if self.error:
            raise self.error
        return self.engine

    def loading(self) -> LoadingEngine:
        return LoadingEngine(self.make, 512, frozenset([2]), 1, SamplingParams(top_k=5))


def read(stream) -> tuple[threading.Thread, list, list]:
    tokens, errors = [], []

    def work():
        try:
            tokens.extend(stream)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, tokens, errors


def until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it never came")


def test_what_the_engine_will_be_is_known_at_once():
    door = Door()
    engine = door.loading()
    assert (engine.max_context, engine.end_ids, engine.max_requests) == (512, {2}, 1)
    assert engine.defaults == SamplingParams(top_k=5) and not engine.ready
    door.opened.set()
    assert engine.result() is door.engine and engine.ready
    assert engine.max_context == 300  # what it turned out to be


def test_a_request_waits_says_so_and_gets_its_tokens():
    door = Door()
    stream = door.loading().generate([1, 2], PARAMS, spared={3})
    thread, tokens, _ = read(stream)
    until(lambda: stream.waiting)
    door.opened.set()
    thread.join(30)
    assert tokens == [7, 8, 9] and not stream.waiting and stream.waited > 0
    assert stream.reused_tokens == 1 and len(stream.logprobs) == 3
    assert (door.engine.prompt, door.engine.sampling, door.engine.spared) == ([1, 2], PARAMS, {3})


def test_later_requests_go_to_the_engine_itself():
    door = Door()
    door.opened.set()
    engine = door.loading()
    engine.result()
    stream = engine.generate([1], PARAMS)
    assert list(stream) == [7, 8, 9] and stream.waited == 0


def test_a_waiting_request_can_be_closed_and_never_reaches_the_engine():
    door = Door()
    stream = door.loading().generate([1], PARAMS)
    thread, tokens, errors = read(stream)
    until(lambda: stream.waiting)
    stream.close()
    thread.join(30)
    assert not thread.is_alive() and tokens == errors == []
    door.opened.set()
    assert door.engine.prompt is None


def test_closing_later_closes_the_engine_s_own_stream():
    door = Door()
    engine = door.loading()
    stream = engine.generate([1], PARAMS)
    door.opened.set()
    assert next(stream) == 7
    stream.close()
    assert list(stream) == [] and door.engine.closed


def test_what_goes_wrong_is_told_to_all():
    door = Door(error=ValueError("no such device"))
    engine = door.loading()
    thread, _, errors = read(engine.generate([1], PARAMS))
    door.opened.set()
    thread.join(30)
    assert str(errors[0]) == "no such device"
    with pytest.raises(ValueError, match="no such device"):
        engine.result()
    with pytest.raises(ValueError, match="no such device"):
        engine.generate([1], PARAMS)
    engine.close()


def test_an_empty_prompt_is_refused_at_once():
    door = Door()
    with pytest.raises(ValueError, match="prompt has no tokens"):
        door.loading().generate([], PARAMS)
    door.opened.set()


def test_a_prefix_is_computed_when_the_engine_is_there():
    door = Door()
    engine = door.loading()
    engine.prefill([4, 5])
    assert door.engine.prefilled is None
    door.opened.set()
    assert engine.result().prefilled == [4, 5]
    engine.prefill([6])
    assert door.engine.prefilled == [6]


def test_a_chat_can_be_opened_on_it(smollm2):
    from config import DEFAULT_MODEL, SUPPORTED_MODELS

    tokenizer = smollm2[1]
    script = tokenizer.encode("Paris.", add_special_tokens=False)
    door = Door(ScriptedEngine(script))
    chat = ChatModel(door.loading(), tokenizer, SUPPORTED_MODELS[DEFAULT_MODEL])
    stream = chat.stream([{"role": "user", "content": "What is the capital of France?"}])
    assert not stream.waiting
    door.opened.set()
    assert "".join(stream) == "Paris."
    chat.close()
    assert door.engine.closed
