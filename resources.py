"""What this machine has: room on the disk and in memory, and how its processor decodes fastest.

Too little room is refused in numbers. Knows files of the Linux kernel and of its control groups, and
properties of OpenVINO's devices. Refuses to know what the room is for.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

# Bytes of weights up to which a model waits less for the memory than for what is between two products.
SMALL_MODEL = 500e6
# With these, two ways to compute the same thing agree to 1e-5; the defaults trade that for speed.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def check_disk(folder: Path, needed: float, what: str) -> None:
    """Refuse work whose result does not fit.

    Args:
        folder: where the result goes; it need not exist yet.
        needed: bytes.
        what: what needs them, for the message.

    Raises:
        OSError: in numbers, with the way out.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"{what} needs {needed / 1e9:.1f} GB in {folder}, but only {free / 1e9:.1f} GB are free there. "
            "Free some space, or choose another disk: the environment variable HF_HOME moves downloads, "
            "LLM_CHATBOT_MODELS_DIR converted models."
        )


def check_memory(needed: float, what: str) -> None:
    """Refuse work for which the memory does not suffice; where that cannot be told, let it begin.

    Args:
        needed: bytes.
        what: what needs them, for the message.

    Raises:
        OSError: in numbers, with the way out.
    """
    available = available_memory()
    if available is not None and available < needed:
        raise OSError(
            f"{what} needs {needed / 1e9:.1f} GB of memory, but only {available / 1e9:.1f} GB are available. "
            "Close other programs, raise the container's limit, choose a smaller model, or copy the folder "
            "from a machine that has converted it."
        )


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still have, or None where the system does not say: there is no /proc.

    The least of what the machine has available and what the process's control groups leave it.
    """
    if not (root / "proc/meminfo").is_file():
        return None
    meminfo = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
    return min(int(meminfo["MemAvailable"].split()[0]) * 1024, *_left_by_control_groups(root))


def _left_by_control_groups(root: Path) -> Iterator[float]:
    """What each memory limit on this process leaves, in bytes; infinity comes last.

    Cached files do not count as used: the kernel drops them when memory is needed.
    Formats: https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html
    """
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            mount, limit, usage, prefix = "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            mount, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"
        else:
            continue
        # Inside a container the path may be the host's, and the mount itself the container's group.
        innermost = (root / mount).joinpath(group.strip("/"))
        for folder in (innermost, *innermost.parents):
            if folder.is_relative_to(root / mount) and (folder / limit).is_file():
                statistics = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
                cached = sum(int(statistics[f"{prefix}{state}_file"]) for state in ("active", "inactive"))
                bytes_allowed = float((folder / limit).read_text().replace("max", "inf"))
                yield bytes_allowed - int((folder / usage).read_text()) + cached
    yield float("inf")


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
