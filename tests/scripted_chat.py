"""A `chat.Chat` without a model, for tests of what stands in front of one."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator

from chat import Delta, Message, ReplyStats
from sampling import SamplingParams


class FakeStream:
    """Gives texts as a ReplyStream gives deltas; an exception among them is raised in its turn."""

    def __init__(self, texts: Iterable[str | Exception]):
        self._texts = iter(texts)
        self.stats = ReplyStats(prompt_tokens=1)
        self.closed = False
        self.waiting = False  # for the next text

    def __iter__(self) -> "FakeStream":
        return self

    def __next__(self) -> Delta:
        if self.closed:
            raise StopIteration
        self.waiting = True
        try:
            text = next(self._texts)
        except StopIteration:
            self.stats.finish("stop")
            raise
        finally:
            self.waiting = False
        if isinstance(text, Exception):
            raise text
        self.stats.new_tokens += 1
        return text if isinstance(text, Delta) else Delta(text)

    def close(self) -> None:
        self.closed = True
        self.stats.finish("cancelled")


class FakeChat:
    """Answers with what `answer` makes of the last message, and remembers what it was asked."""

    def __init__(self, answer: Callable[[str], Iterable] = lambda question: ["You said ", question, "."]):
        self.name = "fake-1b"
        self.description = "INT8 on CPU, FakeEngine"
        self.system_prompt = None
        self.max_context = 2048
        self.defaults = SamplingParams()
        self.max_requests = 1
        self.template_options = {}
        self.answer = answer
        self.asked: list[list[Message]] = []
        self.samplings: list[SamplingParams] = []
        self.switches: list[dict | None] = []
        self.streams: list[FakeStream] = []

    def stream(
        self,
        messages: list[Message],
        sampling: SamplingParams | None = None,
        template_options: dict | None = None,
    ) -> FakeStream:
        self.asked.append(messages)
        self.samplings.append(sampling)
        self.switches.append(template_options)
        self.streams.append(FakeStream(self.answer(messages[-1]["content"])))
        return self.streams[-1]

    def close(self) -> None:
        pass


def endless(question: str) -> Iterator[str]:
    """Words without end, so slowly that what a request takes is little in comparison."""
    for number in itertools.count():
        time.sleep(0.25)
        yield f"word{number} "


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **more: str) -> Message:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> Message:
    return {"role": "system", "content": text}
