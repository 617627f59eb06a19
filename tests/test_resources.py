"""How much memory there is, read from imitations of the kernel's files, and what is said if too little."""

import os
from pathlib import Path

import pytest
import resources
from resources import available_memory, check_memory, fastest_properties

MEMINFO = "MemTotal:       24576000 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n"
MACHINE = 20_000_000 * 1024
STAT = {
    "v1": "cache 9\ntotal_active_file {}\ntotal_inactive_file {}\n",
    "v2": "active_file {}\ninactive_file {}\n",
}
NAMES = {
    "v1": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    "v2": ("sys/fs/cgroup", "memory.max", "memory.current"),
}


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    return tmp_path


def add_group(root: Path, version: str, group: str, limit: object, used: int, cached: int = 0) -> None:
    mount, limit_name, usage_name = NAMES[version]
    folder = root / mount / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / usage_name).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(STAT[version].format(cached, cached))


def put_into_group(root: Path, version: str, group: str) -> None:
    lines = {"v1": f"12:pids:/else\n3:cpu,memory:/{group}\n0::/\n", "v2": f"0::/{group}\n"}
    (root / "proc/self/cgroup").write_text(lines[version])


def test_without_control_groups_it_is_what_the_machine_has(root):
    assert available_memory(root) == MACHINE


def test_a_machine_without_proc_does_not_say(tmp_path, monkeypatch):
    assert available_memory(tmp_path) is None
    monkeypatch.setattr(resources, "available_memory", lambda: None)
    check_memory(1e15, "Anything")


@pytest.mark.parametrize("version", NAMES)
def test_a_group_leaves_its_limit_less_what_is_used_and_cannot_be_dropped(root, version):
    put_into_group(root, version, "outer/inner")
    add_group(root, version, "outer/inner", 12_000_000_000, used=9_000_000_000, cached=1_000_000_000)
    assert available_memory(root) == 5_000_000_000
    add_group(root, version, "outer", 10_000_000_000, used=9_000_000_000)  # the outer limit holds too
    assert available_memory(root) == 1_000_000_000


@pytest.mark.parametrize(("version", "unlimited"), [("v1", 9223372036854771712), ("v2", "max")])
def test_a_group_without_a_limit_leaves_what_the_machine_has(root, version, unlimited):
    put_into_group(root, version, "group")
    add_group(root, version, "group", unlimited, used=9_000_000_000)
    assert available_memory(root) == MACHINE


@pytest.mark.parametrize("version", NAMES)
def test_in_a_container_the_group_is_the_mount(root, version):
    put_into_group(root, version, "docker/0123")  # a path of the host
    add_group(root, version, "", 4_000_000_000, used=1_000_000_000)
    assert available_memory(root) == 3_000_000_000


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads /proc")
def test_this_machine_says_something_sensible():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() <= total


def test_too_little_is_said_in_numbers_with_the_way_out(monkeypatch):
    monkeypatch.setattr(resources, "available_memory", lambda: 3_210_000_000)
    check_memory(3.2e9, "Work")
    with pytest.raises(OSError, match=r"Work needs 8\.7 GB of memory, but only 3\.2 GB .*smaller model"):
        check_memory(8.7e9, "Work")


# How the processor decodes fastest


@pytest.mark.parametrize(
    ("device", "capabilities", "weights", "size", "properties"),
    [
        ("CPU", ["FP32", "INT8", "BF16"], "u8", 1e9, {"INFERENCE_PRECISION_HINT": "f32"}),
        ("CPU", ["FP32", "INT8", "BF16"], "u4", 1e9, {"INFERENCE_PRECISION_HINT": "f32"}),
        ("CPU", ["FP32", "INT8"], "u8", 1e9, {}),
        ("CPU", ["FP32", "INT8"], "i4", 1e8, {"KV_CACHE_PRECISION": "f16"}),
        ("CPU", ["BF16"], "i8", 1e8, {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16"}),
        ("CPU", ["FP32", "INT8", "BF16"], "f16", 1e8, {}),
        ("AUTO", ["FP32", "INT8", "BF16"], "u8", 1e8, {}),
        ("GPU", ["FP32", "INT8", "BF16"], "u8", 1e8, {}),
    ],
)
def test_integer_weights_want_long_floats_and_small_models_a_long_cache(
    tmp_path, monkeypatch, device, capabilities, weights, size, properties
):
    import openvino

    class Core:
        def get_property(self, device, name):
            return {("CPU", "OPTIMIZATION_CAPABILITIES"): capabilities}[device, name]

    monkeypatch.setattr(openvino, "Core", Core)
    (tmp_path / "openvino_model.xml").write_text(f'<data element_type="{weights}" shape="4, 4"/>')
    with (tmp_path / "openvino_model.bin").open("wb") as file:
        file.truncate(int(size))
    assert fastest_properties(tmp_path, device) == properties
