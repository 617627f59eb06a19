"""Fixtures shared by the tests. The default model is fetched once and converted once, into `models/`."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

import telemetry

telemetry.turn_off()

import conversion
from chat import ChatModel
from config import DEFAULT_MODEL, SUPPORTED_MODELS
from endpoint_clients import address, client, fake_chat  # noqa: F401 (fixtures)
from hub_downloads import fetch, home, hub  # noqa: F401 (fixtures)
from mpt_converter import convert_mpt
from replies import byte_fallback, byte_level, chat, chats, name, playing, tokenizer  # noqa: F401 (fixtures)
from tiny_checkpoints import FAMILIES, make_tiny_checkpoint, tiny_mpt
from tuning import EXACT

PROJECT = Path(__file__).parent.parent
MODELS_DIR = Path(os.environ.get("LLM_CHATBOT_MODELS_DIR", PROJECT / "models"))

# The tiny checkpoints stand in for these models, so that their templates and end tokens are used.
NAMES = {"llama": "llama-2-chat-7b", "gpt_neox": "red-pajama-3b-chat", "mpt": "mpt-7b-chat"}
# What is in a converted folder.
MODEL_FILES = {
    "openvino_model.xml",
    "openvino_model.bin",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
    "conversion.json",
}


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory) -> dict[str, Path]:
    """One tiny checkpoint folder per architecture."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: make_tiny_checkpoint(root / family, family) for family in FAMILIES}


@pytest.fixture
def llama_copy(tiny_checkpoints, tmp_path) -> Path:
    """A copy of a tiny checkpoint, to be changed or damaged."""
    return shutil.copytree(tiny_checkpoints["llama"], tmp_path / "checkpoint")


@pytest.fixture(scope="session")
def converted(tiny_checkpoints, tmp_path_factory):
    """Converts a tiny checkpoint, the first time it is asked for."""
    models_dir = tmp_path_factory.getbasetemp() / "models"
    return lambda family, precision: conversion.prepare_model(
        NAMES[family], precision, models_dir, tiny_checkpoints[family]
    )


@pytest.fixture(scope="session")
def mpt_model():
    """A tiny MPT of 32 bits, in PyTorch."""
    return tiny_mpt()


@pytest.fixture(scope="session")
def mpt_folder(mpt_model, tmp_path_factory) -> Path:
    """The same, converted."""
    return convert_mpt(mpt_model, tmp_path_factory.mktemp("mpt") / "FP16")


@pytest.fixture(scope="session")
def ray_is_there() -> None:
    """Skips tests of what needs Ray Serve where it is not installed; in CI it has to be."""
    if find_spec("ray") is None:
        reason = "needs Ray Serve: python -m pip install -r requirements-cluster.txt -c constraints.txt"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The default model at INT8."""
    return conversion.prepare_model(DEFAULT_MODEL, "INT8", MODELS_DIR)


@pytest.fixture(scope="session")
def smollm2(smollm2_folder):
    """The default model and its tokenizer, loaded in exact mode."""
    return conversion.load_model(smollm2_folder, ov_config=EXACT)


@pytest.fixture(scope="session")
def smollm2_chat(smollm2) -> ChatModel:
    """A ChatModel on the default model."""
    return ChatModel(*smollm2, SUPPORTED_MODELS[DEFAULT_MODEL])


@pytest.fixture(scope="session")
def smollm2_genai_chat(smollm2_folder, smollm2) -> ChatModel:
    """The same on the engine for many users."""
    from genai_engine import GenAIEngine

    engine = GenAIEngine(smollm2_folder, ov_config=EXACT)
    return ChatModel(engine, smollm2[1], SUPPORTED_MODELS[DEFAULT_MODEL])
