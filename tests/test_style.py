"""The whole project, notebook included, is formatted and free of what ruff finds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_is_content(arguments):
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
    ruff = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr
