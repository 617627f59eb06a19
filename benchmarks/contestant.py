"""One contestant of `benchmarks.decoding`: loads a model in a process of its own and runs when it is told to.

Writes {"load": seconds} as a line of JSON, and then one for each line {"prompt": tokens, "new": tokens,
"users": n} that it reads: {"first": seconds to the first token, "rate": tokens per second after it}. Of
several users at once, "first" is the median and "rate" all tokens by all the time, prompts included. Nothing
of ours is imported before it is needed: `llama_cpp` runs in an environment that has nothing else.

Usage: python -m benchmarks.contestant KIND FOLDER_OR_FILE
"""

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

# Takes the number of prompt tokens, of new tokens, and the user's number; returns what is described above.
Run = Callable[[int, int, int], tuple[float, float]]


def timed(tokens: Iterable) -> tuple[float, float]:
    """Seconds to the first of the tokens, and tokens per second after it."""
    started = time.perf_counter()
    times = [time.perf_counter() - started for _ in tokens]
    return times[0], (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


def prompt_ids(length: int, user: int) -> list[int]:
    """A prompt that shares nothing with another user's, or with the last run's of another length."""
    return [100 + (length + 37 * user + 11 * place) % 10_000 for place in range(length)]


def chat(folder: str, engine_name: str = "optimum") -> Run:
    """ChatModel.stream, as the chat page uses it; the figures are those of its own stats."""
    from chat import ChatModel, SamplingParams
    from chat_tokenizer import open_tokenizer
    from config import CHATML_TEMPLATE, ModelConfig
    from engine import OptimumEngine
    from genai_engine import GenAIEngine

    engine = GenAIEngine(folder) if engine_name == "genai" else OptimumEngine.from_folder(folder)
    engine.settle()
    model = ChatModel(engine, open_tokenizer(folder), ModelConfig("benchmark", chat_template=CHATML_TEMPLATE))
    model.end_ids = frozenset()
    counter = iter(range(10**9))

    def run(length: int, new: int, user: int) -> tuple[float, float]:
        # Begins with another number each time, so that no cache helps; " so" is one token.
        asked = [{"role": "user", "content": f"{next(counter)}"}]
        asked[0]["content"] += " so" * max(0, length - len(model.encode(asked)))
        sampling = SamplingParams(temperature=0, repetition_penalty=1, max_new_tokens=new)
        stream = model.stream(asked, sampling)
        for _ in stream:
            pass
        return stream.stats.time_to_first_token, stream.stats.tokens_per_second or 0.0

    return run


def chat_genai(folder: str) -> Run:
    """The same on GenAIEngine."""
    return chat(folder, "genai")


def bare(folder: str) -> Run:
    """The infer request alone: the next token is always the same one."""
    import openvino

    from kv_cache import PagedModel

    graph = openvino.Core().read_model(f"{folder}/openvino_model.xml")
    model = PagedModel(graph, "CPU", our_properties(folder))
    model.settle()

    def run(length: int, new: int, user: int) -> tuple[float, float]:
        def tokens():
            yield model.infer(prompt_ids(length, user), 0)
            for past in range(length, length + new - 1):
                yield model.infer([100], past)

        return timed(tokens())

    return run


def optimum(folder: str) -> Run:
    """`generate` of OVModelForCausalLM with its default settings."""
    import torch
    from optimum.intel import OVModelForCausalLM

    return transformers_generate(OVModelForCausalLM.from_pretrained(folder), torch)


def pytorch(folder: str) -> Run:
    """`generate` of the checkpoint in PyTorch, bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    return transformers_generate(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), torch)


def transformers_generate(model, torch) -> Run:
    """`generate` with a streamer that notes the times."""

    class Clock:
        def __init__(self):
            self.times = []

        def put(self, value):
            self.times.append(time.perf_counter())

        def end(self):
            pass

    def run(length: int, new: int, user: int) -> tuple[float, float]:
        clock, ids = Clock(), torch.tensor([prompt_ids(length, user)])
        started = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            repetition_penalty=1.0,
            min_new_tokens=new,
            max_new_tokens=new,
            streamer=clock,
        )
        first, *rest = clock.times[1:]  # the streamer is given the prompt before the first token
        return first - started, len(rest) / (rest[-1] - first) if rest else 0.0

    return run


def genai_llm(folder: str) -> Run:
    """OpenVINO GenAI's LLMPipeline with the properties that we use."""
    import numpy as np
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(folder, "CPU", **our_properties(folder))
    counter = iter(range(10**9))  # it keeps prefixes

    def run(length: int, new: int, user: int) -> tuple[float, float]:
        times = []

        class Clock(openvino_genai.StreamerBase):
            def write(self, token):
                times.extend([time.perf_counter()] * (len(token) if isinstance(token, list) else 1))
                return openvino_genai.StreamingStatus.RUNNING

            def end(self):
                pass

        ids = openvino.Tensor(np.array([prompt_ids(length, next(counter))]))
        started = time.perf_counter()
        pipeline.generate(ids, genai_config(new), Clock())
        return times[0] - started, (len(times) - 1) / (times[-1] - times[0]) if new > 1 else 0.0

    return run


def genai_batching(folder: str) -> Run:
    """The bare ContinuousBatchingPipeline; its threads are the users', who step it in turns."""
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.enable_prefix_caching = True
    pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", our_properties(folder))
    lock, counter = threading.Lock(), iter(range(10**9))

    def run(length: int, new: int, user: int) -> tuple[float, float]:
        ids = openvino.Tensor(np.array([prompt_ids(length, next(counter))]))

        def tokens():
            handle = pipeline.add_request(next(counter), ids, genai_config(new))
            count = 0
            while count < new:
                with lock:
                    if not handle.can_read():
                        pipeline.step()
                while handle.can_read():
                    for output in handle.read().values():
                        for token in output.generated_ids:
                            count += 1
                            yield token

        return timed(tokens())

    return run


def our_properties(folder: str) -> dict[str, str]:
    """What `load_model` and the engines set on this machine."""
    from tuning import fastest_properties

    return fastest_properties(folder, "CPU")


def genai_config(new: int):
    """Greedy decoding of as many tokens."""
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = new
    config.ignore_eos = True
    config.do_sample = False
    return config


def llama_cpp(file: str) -> Run:
    """llama.cpp through llama-cpp-python, on a GGUF file."""
    import os

    from llama_cpp import Llama

    model = Llama(file, n_ctx=4096, n_threads=os.cpu_count(), n_batch=512, verbose=False)

    def run(length: int, new: int, user: int) -> tuple[float, float]:
        model.reset()
        tokens = model.generate(prompt_ids(length, user), temp=0.0, repeat_penalty=1.0)
        return timed(next(tokens) for _ in range(new))

    return run


KINDS = {
    run.__name__: run
    for run in (chat, chat_genai, bare, optimum, pytorch, genai_llm, genai_batching, llama_cpp)
}


def main() -> None:
    """Load, then run whenever a line comes in."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints shall be taken for an answer
    started = time.perf_counter()
    run = KINDS[sys.argv[1]](sys.argv[2])
    print(json.dumps({"load": time.perf_counter() - started}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        users, arguments = task["users"], (task["prompt"], task["new"])
        started = time.perf_counter()
        with ThreadPoolExecutor(users) as pool:
            results = list(pool.map(partial(run, *arguments), range(users)))
        rate = users * task["new"] / (time.perf_counter() - started) if users > 1 else results[0][1]
        first = statistics.median(first for first, _ in results)
        print(json.dumps({"first": first, "rate": rate}), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1] != "llama_cpp":
        import telemetry

        telemetry.turn_off()
    main()
