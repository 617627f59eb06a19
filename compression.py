"""What INT8 and INT4 mean here, for every architecture.

Knows NNCF and OpenVINO graphs. Refuses to know how a graph was made and what runs it.
"""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quiet import quiet_libraries
from workspace import show_progress

if TYPE_CHECKING:
    import openvino

PRECISIONS = ("FP16", "INT8", "INT4")
# Bytes of weights up to which a model waits less for the memory than for what is between two products.
SMALL_MODEL = 500e6
# What `compress` gives to NNCF, in words; noted beside a compressed model.
SETTINGS = {
    "FP16": {},
    "INT8": {"mode": "INT8_ASYM"},
    "INT4": {"mode": "INT4_SYM", "group_size": 32, "ratio": 1.0, "group_size_fallback_mode": "ADJUST"},
}


def check_precision(precision: str) -> None:
    """Raises ValueError for a precision that is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"Unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")


def compress(graph: "openvino.Model", precision: str) -> "openvino.Model":
    """Compress the weights of a graph to 8 or 4 bits, or only note for FP16 that the cache wants 16 as well.

    INT8 has a scale and a zero point per output channel; without zero points answers change. INT4 has a scale
    per group of 32 input channels; embedding and head stay at 8 bits, and a layer whose width 32 does not
    divide. Groups of 64 with zero points are no more exact, and a processor with AVX2 only takes a fifth more
    time for them (docs/performance.md). Others are more exact (`benchmarks.quality --int4` has the
    table), but AWQ takes much more memory while converting, and scale estimation needs data.
    """
    if precision == "FP16":
        graph.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])
        return graph
    return compress_as(graph, SETTINGS[precision])


def compress_as(graph: "openvino.Model", settings: Mapping[str, Any]) -> "openvino.Model":
    """Compress the weights of a graph with settings like those in `SETTINGS`."""
    import nncf

    settings = dict(settings)
    settings["mode"] = nncf.CompressWeightsMode[settings["mode"]]
    if fallback := settings.pop("group_size_fallback_mode", None):
        settings["advanced_parameters"] = nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode[fallback]
        )
    return nncf.compress_weights(graph, **settings)


def compress_weights(fp16_folder: Path, output: Path, precision: str, leave: Collection[str] = ()) -> None:
    """Compress the weights of an FP16 model to 8 or 4 bits and copy what stands beside them.

    The activations stay floating point: only what is read from memory for every token becomes smaller.
    Matrices of a small model that are multiplied with the same vector, as those of queries, keys and values,
    become one (`graph_edits.join_products`); rows keep their scales, so results stay the same.

    Args:
        leave: names of files that are not copied.
    """
    import openvino

    from graph_edits import join_products, weight_bytes

    with quiet_libraries(), show_progress(f"Compressing to {precision}", output):
        graph = openvino.Core().read_model(fp16_folder / "openvino_model.xml")
        options = graph.get_rt_info("runtime_options").value
        # A note for 16-bit weights; with smaller ones the runtime chooses a smaller cache too.
        options.pop("KV_CACHE_PRECISION")
        graph.set_rt_info(options, "runtime_options")
        graph = compress(graph, precision)
        if weight_bytes(graph) <= SMALL_MODEL:  # of a larger one the joined matrices would need memory
            join_products(graph)
        openvino.save_model(graph, output / "openvino_model.xml", compress_to_fp16=False)
    for file in fp16_folder.iterdir():
        if file.is_dir():
            shutil.copytree(file, output / file.name)
        elif file.name not in leave and not (output / file.name).exists():
            shutil.copy2(file, output)
