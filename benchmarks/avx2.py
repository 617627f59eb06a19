"""A processor kept to AVX2: what benchmarks set to see what most people's machines would do.

oneDNN, which computes the products with weights, takes no newer instructions; what it does not compute, such
as attention, still does. Activations are not quantized, since OpenVINO does that on newer processors only.
"""

import os

# For a process that is to be started: oneDNN reads it when it is loaded.
ENVIRONMENT = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def properties() -> dict[str, str]:
    """What belongs to `compile_model` besides, in a process with `ENVIRONMENT`; nothing in any other."""
    kept = all(os.environ.get(name) == value for name, value in ENVIRONMENT.items())
    return {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"} if kept else {}
