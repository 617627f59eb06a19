"""What is read of a processor, from imitations of the kernel's file, and what one token is said to cost."""

import pytest

import machine
from machine import WEIGHT_BYTES, DecodingSpeed, decoding_speed, memory_bandwidth, processor

AMD = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu avx avx2 fma\n\nprocessor\t: 1\n"
INTEL = "model name : Xeon\nflags : avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8\n"
ARM = "processor\t: 0\nBogoMIPS\t: 243\nFeatures\t: fp asimd asimddp i8mm bf16\n"


@pytest.mark.parametrize(
    ("text", "name", "instructions"),
    [
        (AMD, "AMD EPYC 7763", ("AVX2",)),
        (INTEL, "Xeon", ("AVX2", "AVX-512", "AVX-512 VNNI", "AVX-512 bf16", "AMX int8", "AMX bf16")),
        (ARM, "aarch64", ("NEON", "NEON dot product", "int8 products", "bf16")),
    ],
)
def test_the_kernel_tells_name_and_instructions(tmp_path, monkeypatch, text, name, instructions):
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text(text)
    found = processor(tmp_path / "cpuinfo")
    assert (found.name, found.instructions) == (name, instructions)
    assert found.cores >= 1


def test_a_machine_without_proc_has_a_name_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    found = processor(tmp_path / "cpuinfo")
    assert (found.name, found.instructions) == ("arm64", ())


def test_a_token_costs_its_layers_and_its_bytes():
    speed = DecodingSpeed(seconds_per_layer=1e-4, bytes_per_second=10e9)
    assert speed.tokens_per_second(weight_bytes=170e6, layers=30) == pytest.approx(1 / (0.003 + 0.017))


@pytest.mark.parametrize(("per_layer", "rate"), [(50e-6, 40e9), (0.0, 10e9)])
def test_both_unknowns_are_solved_for(monkeypatch, per_layer, rate):
    def time_one_token(width, layers, precision):
        size = 13 * width * width * layers
        return size, layers * per_layer + size / rate

    monkeypatch.setattr(machine, "_time_one_token", time_one_token)
    found = decoding_speed("INT8")
    assert found.seconds_per_layer == pytest.approx(per_layer, abs=1e-12)
    assert found.bytes_per_second == pytest.approx(rate)


def test_a_narrow_graph_from_the_cache_costs_nothing_less_than_nothing(monkeypatch):
    monkeypatch.setattr(
        machine, "_time_one_token", lambda width, *_: (1e6, 1e-6) if width == 256 else (4e8, 0.01)
    )
    found = decoding_speed("INT8")
    assert (found.seconds_per_layer, found.bytes_per_second) == (0.0, pytest.approx(4e10))


def test_a_disturbed_narrow_graph_leaves_a_speed_that_can_be(monkeypatch):
    monkeypatch.setattr(
        machine, "_time_one_token", lambda width, *_: (2e6, 1.0) if width == 256 else (4e8, 0.01)
    )
    found = decoding_speed("INT8")
    assert found.bytes_per_second == pytest.approx(8e10)


@pytest.mark.parametrize("precision", WEIGHT_BYTES)
def test_the_graphs_have_the_weights_that_are_counted(precision, monkeypatch):
    import numpy as np
    import openvino

    weights = machine.random_weights(np.random.default_rng(0), 128, 192, precision)
    assert weights.get_output_element_type(0) == openvino.Type.f32
    assert list(weights.get_output_shape(0)) == [128, 192]
    graph = openvino.Model([weights], [])
    if precision == "FP16":
        graph = machine.with_16_bits(graph)
    stored = sum(node.get_byte_size() for node in graph.get_ops() if node.get_type_name() == "Constant")
    # Scales and zero points of INT8 are one for each row, and a row is short here.
    assert (
        128 * 192 * machine.MEASURED_BYTES[precision] <= stored <= 128 * 192 * WEIGHT_BYTES[precision] * 1.1
    )


@pytest.mark.parametrize("precision", WEIGHT_BYTES)
def test_openvino_is_timed_on_small_graphs_too(monkeypatch, precision):
    monkeypatch.setattr(machine, "NARROW", (64, 4))
    monkeypatch.setattr(machine, "WIDE", dict.fromkeys(WEIGHT_BYTES, (256, 4)))
    found = decoding_speed(precision)
    assert found.seconds_per_layer >= 0
    assert found.bytes_per_second > 0


@pytest.mark.slow
def test_this_machine_reads_memory():
    assert 1e8 < memory_bandwidth() < 1e13


def test_weights_of_16_bits_bear_the_mark_that_keeps_them_so(tmp_path):
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    given = ops.parameter([-1, 128], np.float32)
    weights = machine.random_weights(np.random.default_rng(0), 192, 128, "FP16")
    model = machine.with_16_bits(openvino.Model([ops.matmul(given, weights, False, True)], [given]))
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    assert '<attribute name="decompression" version="0" />' in (tmp_path / "model.xml").read_text()
    stored = (tmp_path / "model.bin").stat().st_size
    assert stored == 192 * 128 * machine.MEASURED_BYTES["FP16"]
