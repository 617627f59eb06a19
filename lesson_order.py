"""What a section of the notebook needs from earlier ones, so that a cell which is run too early says so.

Knows in which section each name is made. Refuses to know what the names hold.
"""

import __main__

MADE_IN = {
    "MODELS_DIR": "the first cell of the first path",
    "spread": "section 2",
    "model_config": "section 3",
    "lesson_model": "section 4",
    "folders": "section 5",
    "device_choice": "section 7",
    "tokenizer": "section 8",
    "chat_model": "section 9",
    "ScriptedEngine": "section 9",
}
ALWAYS = ("MODELS_DIR", "spread")


def needs(*names: str) -> None:
    """See that earlier sections have been run since the kernel started; the first two always.

    Args:
        names: one of each section that is needed besides.

    Raises:
        RuntimeError: one has not been run; the message says which.
    """
    for name in ALWAYS + names:
        if not hasattr(__main__, name):
            raise RuntimeError(
                f"This cell uses `{name}`, which {MADE_IN[name]} makes. Run that one first, or all cells "
                "above this one (menu Run, 'Run All Above Selected Cell')."
            )
