"""What a model's converted folders should say of themselves, and whether they do.

Knows everything that a folder's content depends on: checkpoint, precision, compression, template, stop
strings and this converter. Refuses to know how any of it is made (`conversion`).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression import SETTINGS
from config import ModelConfig
from model_folder import FOLDER_NAMES, state_of, write_manifest

# Raised whenever the same checkpoint becomes another folder than before.
CONVERTER = 3


@dataclass(frozen=True)
class Recipe:
    """Where a model's folders are and what they are made from.

    home: the folder that holds one for each precision.
    source: the checkpoint, in the manifest's words.
    """

    home: Path
    config: ModelConfig
    source: str

    def folder(self, precision: str) -> Path:
        """The folder of a precision."""
        return self.home / FOLDER_NAMES[precision]

    def says(self, precision: str) -> dict[str, Any]:
        """What the manifest of a current folder says, but for the state of the checkpoint."""
        template = self.config.chat_template
        return {
            "checkpoint": self.source,
            "precision": precision,
            "compression": SETTINGS[precision],
            "converter": CONVERTER,
            "template": template and hashlib.sha256(template.encode()).hexdigest(),
            "stop_strings": list(self.config.stop_strings),
        }

    def write_down(self, folder: Path, precision: str, of_checkpoint: dict[str, Any]) -> None:
        """Write the manifest of a folder that is made after this recipe.

        Args:
            of_checkpoint: "revision" and what else belongs to the state of the checkpoint.
        """
        write_manifest(folder, self.says(precision) | of_checkpoint)

    def state(self, precision: str, revision: str | None) -> str:
        """Whether the folder of a precision is current: see `model_folder.state_of`."""
        return state_of(self.folder(precision), self.says(precision), revision)

    def to_do(self, precisions: Iterable[str], revision: str | None) -> list[str]:
        """The precisions whose folders are not current."""
        return [precision for precision in precisions if self.state(precision, revision) != "current"]
