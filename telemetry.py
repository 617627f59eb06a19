"""Turns off the usage reports that the libraries below send by default. Knows nothing of chat or models."""

import os
import sys

from huggingface_hub import constants


def turn_off() -> None:
    """Stop OpenVINO, NNCF, Hugging Face and Gradio from reporting usage, in this process.

    Call it before openvino is imported: OpenVINO and NNCF report at import, and leave it only where their
    optional dependency openvino_telemetry cannot be imported, which the None entry below brings about.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    constants.HF_HUB_DISABLE_TELEMETRY = True
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
