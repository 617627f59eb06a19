"""Properties of OpenVINO's devices: those with which a chat decodes fastest, and the exact ones.

Knows processors and what was measured on them. Refuses to know how a model is loaded or run.
"""

from pathlib import Path

from compression import SMALL_MODEL

# With these, two ways to compute the same thing agree to 1e-5; the defaults trade that for speed.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def fastest_properties(folder: str | Path, device: str) -> dict[str, str]:
    """Properties for `compile_model` with which a chat decodes fastest; measured by `benchmarks.settings`.

    They concern models with integer weights on a CPU.

    A CPU with bfloat16 units computes in bfloat16 by default. OpenVINO then turns integer weights into
    bfloat16 for each token. With 32-bit floats it quantizes the activations instead and multiplies integers,
    which for SmolLM2-135M at INT8 took 10.9 ms a token and not 16.8, on two cores with AMX. Long prompts pay
    for it (2600 tokens: 2.3 s and not 0.7 s); as an engine computes only what is new in a prompt, a chat has
    few of them. To have it otherwise, pass {"INFERENCE_PRECISION_HINT": "bf16"} as `ov_config`.

    The KV cache holds 8-bit numbers by default. With a small model, to turn them back into floats costs more
    time than reading twice as many bytes: after 2000 tokens SmolLM2-135M took 9.4 ms a token, with 16-bit
    numbers 7.9. For 2.8 billion parameters it is the same, so these keep the smaller cache; to have it with a
    small model, pass {"KV_CACHE_PRECISION": "u8"}.

    Args:
        folder: of a converted model.
        device: an OpenVINO device.
    """
    import openvino

    graph = (Path(folder) / "openvino_model.xml").read_text(encoding="utf-8")
    if device != "CPU" or not any(f'element_type="{name}"' in graph for name in ("i8", "u8", "i4", "u4")):
        return {}
    properties = {}
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    if (Path(folder) / "openvino_model.bin").stat().st_size <= SMALL_MODEL:
        properties["KV_CACHE_PRECISION"] = "f16"
    return properties
