"""This machine: its processor, how fast memory can be read, and how fast OpenVINO decodes.

Knows /proc/cpuinfo, NumPy and small graphs with random weights. Refuses to know which models there are and
what is installed. NumPy and OpenVINO are imported where something is measured: the rest needs neither.

The model of decoding. For one token every weight is read once, so

    seconds per token = layers * seconds per layer + bytes of the weights / bytes per second

The second term is the usual bound for a batch of one (Pope et al., "Efficiently Scaling Transformer
Inference", arXiv 2211.05102, section 2). The first is attention and what passes between two products, above
all the start of threads, and it is a third and more of a small model's time. Both unknowns are solved for
from two measured graphs, one narrow and one wide, of OpenVINO's own products: memory's speed alone promises
too much where turning 4-bit numbers into floats takes longer than reading them.
"""

import math
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import openvino

# Flags of /proc/cpuinfo that matter to products of matrices, as the kernel spells them.
INSTRUCTIONS = (
    ("avx2", "AVX2"),
    ("avx_vnni", "AVX-VNNI"),
    ("avx512f", "AVX-512"),
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx512_bf16", "AVX-512 bf16"),
    ("avx512_fp16", "AVX-512 fp16"),
    ("amx_int8", "AMX int8"),
    ("amx_bf16", "AMX bf16"),
    ("asimd", "NEON"),
    ("asimddp", "NEON dot product"),
    ("i8mm", "int8 products"),
    ("bf16", "bf16"),
    ("sve", "SVE"),
)
# Bytes per weight of what conversion writes. INT4 has a scale for 32 weights, and embedding and head at INT8:
# 0.58 for Llama-2-7B, 0.60 for 2.8 billion parameters, 0.66 for SmolLM2-135M.
WEIGHT_BYTES = {"FP16": 2.0, "INT8": 1.0, "INT4": 0.6}
# The graphs that are measured: (width, layers). The wide ones are about 200 MB, more than caches hold.
NARROW = (256, 30)
WIDE = {"FP16": (2048, 2), "INT8": (2048, 4), "INT4": (2048, 7)}
GROUP = 32
MEASURED_BYTES = {"FP16": 2, "INT8": 1, "INT4": 0.5 + 2 / GROUP}  # per weight of these graphs
HEAD, PAST = 64, 64  # width of a head of attention; tokens in the cache
PASSES = 12


@dataclass(frozen=True)
class Processor:
    """Its name, how many of its cores this process may use, and its instructions in words."""

    name: str
    cores: int
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class DecodingSpeed:
    """What one token costs."""

    seconds_per_layer: float
    bytes_per_second: float

    def tokens_per_second(self, weight_bytes: float, layers: int) -> float:
        """Expected for a model of so many bytes and layers, after a short prompt."""
        return 1 / (layers * self.seconds_per_layer + weight_bytes / self.bytes_per_second)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """The processor; instructions are known only where there is /proc."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    if not cpuinfo.is_file():
        return Processor(platform.processor() or platform.machine(), cores, ())
    lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = (fields.get("flags") or fields.get("Features", "")).split()
    name = fields.get("model name") or platform.machine()  # ARM kernels give numbers only
    return Processor(name, cores, tuple(title for flag, title in INSTRUCTIONS if flag in flags))


def memory_bandwidth() -> float:
    """Bytes per second at which this machine reads memory: the best of five passes over 1 GB, all cores."""
    import numpy as np

    threads = os.cpu_count() or 1
    parts = [np.ones(2**27 // threads, dtype=np.int64) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            started = perf_counter()
            list(pool.map(np.max, parts))  # little to compute; a sum of floats takes twice as long
            best = max(best, sum(part.nbytes for part in parts) / (perf_counter() - started))
    return best


def decoding_speed(precision: str) -> DecodingSpeed:
    """Measure what one token costs at "FP16", "INT8" or "INT4"; takes seconds and 1.2 GB of memory."""
    (narrow_bytes, narrow), (wide_bytes, wide) = (
        _time_one_token(width, layers, precision) for width, layers in (NARROW, WIDE[precision])
    )
    narrow_layers, wide_layers = NARROW[1], WIDE[precision][1]
    # Two equations, layers * x + bytes * y = seconds. Where caches hold the narrow graph, x could be below 0.
    determinant = narrow_layers * wide_bytes - wide_layers * narrow_bytes
    per_layer = max(0.0, (narrow * wide_bytes - wide * narrow_bytes) / determinant)
    # Nor does the wide one spend most of its time between products: then the narrow one was disturbed.
    per_layer = min(per_layer, wide / wide_layers / 2)
    return DecodingSpeed(per_layer, wide_bytes / (wide - wide_layers * per_layer))


def _time_one_token(width: int, layers: int, precision: str) -> tuple[int, float]:
    """Bytes of weights of a graph like a Transformer's, and the seconds that it takes for one token.

    The lower quartile of some passes: the fastest one is luck, the slowest ones wait for others.
    """
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    def norm(x: openvino.Output) -> openvino.Node:
        mean = ops.reduce_mean(ops.power(x, np.float32(2)), np.int64([-1]), True)
        return ops.multiply(x, ops.power(ops.add(mean, np.float32(1e-5)), np.float32(-0.5)))

    def linear(x: openvino.Node, rows: int, columns: int) -> openvino.Node:
        return ops.matmul(x, random_weights(rng, rows, columns, precision), False, True)

    def attention(query: openvino.Output, *new: openvino.Output) -> openvino.Node:
        heads = [1, width // HEAD, -1, HEAD]
        past = rng.random((1, width // HEAD, PAST, HEAD), np.float32)
        keys, values = (ops.concat([ops.constant(past), ops.reshape(one, heads, False)], 2) for one in new)
        mixed = ops.scaled_dot_product_attention(ops.reshape(query, heads, False), keys, values)
        return ops.reshape(mixed, [1, 1, width], False)

    rng = np.random.default_rng(0)
    # As small models decode: a fixed shape, and products with the same input joined.
    given = x = ops.parameter([1, 1, width], np.float32)
    for _ in range(layers):
        joined = ops.split(linear(norm(x), 3 * width, width), 2, 3)
        x = ops.add(x, linear(attention(*joined.outputs()), width, width))
        gate, up = ops.split(linear(norm(x), 6 * width, width), 2, 2).outputs()
        x = ops.add(x, linear(ops.multiply(ops.swish(gate), up), width, 3 * width))
    core = openvino.Core()
    # As tuning.fastest_properties has it for integer weights.
    integers_on_bf16 = precision != "FP16" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    config = {"INFERENCE_PRECISION_HINT": "f32"} if integers_on_bf16 else {}
    model = openvino.Model([x], [given])
    if precision == "FP16":
        model = with_16_bits(model)
    request = core.compile_model(model, "CPU", config).create_infer_request()
    token, seconds = np.ones((1, 1, width), np.float32), []
    request.infer([token])
    for _ in range(PASSES):
        started = perf_counter()
        request.infer([token])
        seconds.append(perf_counter() - started)
    return math.ceil(13 * width * width * layers * MEASURED_BYTES[precision]), quantiles(seconds, n=4)[0]


def with_16_bits(model: "openvino.Model") -> "openvino.Model":
    """The model with weights of 16 bits, as a converted one has them.

    They bear a mark without which they are compiled to 32 bits, and only saving sets it.

    Raises:
        OSError: the folder for temporary files has no room.
    """
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # Windows does not remove a file that is mapped
    with TemporaryDirectory() as folder:
        try:
            openvino.save_model(model, Path(folder) / "model.xml", compress_to_fp16=True)
            return core.read_model(Path(folder) / "model.xml")
        except RuntimeError as error:  # what OpenVINO makes of a full disk
            raise OSError(f"{folder} cannot be used for 0.3 GB of temporary files: {error}") from error


def random_weights(rng: "np.random.Generator", rows: int, columns: int, precision: str) -> "openvino.Node":
    """Random weights [rows, columns] as float32, in the form in which NNCF compresses them.

    Those of FP16 are numbers of 32 bits until `with_16_bits`.
    """
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    if precision == "FP16":
        return ops.constant(rng.random((rows, columns), np.float32))
    if precision == "INT8":
        kind, shape = openvino.Type.u8, [rows, columns]
    else:
        kind, shape = openvino.Type.i4, [rows, columns // GROUP, GROUP]
    weights = openvino.Tensor(kind, openvino.Shape(shape))
    raw = weights.data.reshape(-1).view(np.uint8)
    raw[:] = rng.integers(0, 256, raw.size, np.uint8)
    numbers = ops.convert(ops.constant(weights, shared_memory=True), "f16")
    if precision == "INT8":
        zero_points = ops.constant(rng.integers(0, 256, (rows, 1), np.uint8))
        numbers = ops.subtract(numbers, ops.convert(zero_points, "f16"))
    scaled = ops.multiply(numbers, ops.constant(np.full((*shape[:-1], 1), 1e-3, np.float16)))
    if precision == "INT4":
        scaled = ops.reshape(scaled, [rows, columns], special_zero=False)
    return ops.convert(scaled, "f32")
