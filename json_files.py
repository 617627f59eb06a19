"""Files of text and JSON beside a model's weights: each either readable, or refused by its name.

Knows encodings, byte order marks and what git-lfs leaves in a file's place. Refuses to know what a file says.
"""

import json
from pathlib import Path
from typing import Any

# What git shows of a large file that git-lfs has not fetched, or of one in git-annex.
POINTER = b"version https://git-lfs.github.com/spec/"


def check_fetched(file: Path) -> None:
    """Refuse a file that is empty, or only says where git-lfs finds it.

    Raises:
        ValueError: names the file and the way out.
    """
    with file.open("rb") as opened:
        start = opened.read(len(POINTER))
    if not start:
        raise ValueError(f"{file} is empty. Fetch the file again.")
    if start == POINTER:
        raise ValueError(
            f"{file} is only git-lfs's pointer to the file. Install git-lfs and run `git lfs pull` in "
            f"{file.parent}, or fetch the model with `hf download OWNER/NAME`."
        )


def read_text(file: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: names the file, and where in it a mistake is.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is no text in UTF-8: {error.reason} at byte {error.start}. Save it as UTF-8, or fetch "
            "the file again."
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, which may begin with a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file, and where in it a mistake is.
    """
    check_fetched(file)
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file} is no valid JSON: {error.msg} in line {error.lineno}, column {error.colno}. "
            "Mend it, or fetch the file again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__} where an object {{...}} is expected.")
    return content


def read_json_if_there(file: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no such file. Raises what `read_json` does."""
    return read_json(file) if file.is_file() else {}
