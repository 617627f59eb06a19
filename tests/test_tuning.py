"""How a processor decodes fastest, on imitations of processors and of converted folders."""

import openvino
import pytest

from tuning import fastest_properties


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
    class Core:
        def get_property(self, device, name):
            return {("CPU", "OPTIMIZATION_CAPABILITIES"): capabilities}[device, name]

    monkeypatch.setattr(openvino, "Core", Core)
    (tmp_path / "openvino_model.xml").write_text(f'<data element_type="{weights}" shape="4, 4"/>')
    with (tmp_path / "openvino_model.bin").open("wb") as file:
        file.truncate(int(size))
    assert fastest_properties(tmp_path, device) == properties
