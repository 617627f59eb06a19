"""Runs the tutorial and its solutions from top to bottom and saves them with the outputs of that run.

Left out are the outputs that say nothing when read on a page: widgets and progress bars, which live only
in a running notebook, and the frame around a server that is gone. Usage: python run_notebook.py
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

PROJECT = Path(__file__).parent
NOTEBOOKS = ("llm_chatbot.ipynb", "exercise_solutions.ipynb")
WIDGET = "application/vnd.jupyter.widget-view+json"


def main() -> None:
    """Run and save in place; an error in a cell is raised and that notebook is not saved."""
    for name in NOTEBOOKS:
        notebook = nbformat.read(PROJECT / name, as_version=4)
        resources = {"metadata": {"path": str(PROJECT)}}
        NotebookClient(notebook, timeout=1800, resources=resources).execute()
        strip_debris(notebook)
        nbformat.write(notebook, PROJECT / name)


def strip_debris(notebook: nbformat.NotebookNode) -> None:
    """Take out, in place, what says nothing when it is read on a page."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # time stamps
        if cell.cell_type == "code":
            cell.outputs = merge_streams([output for output in cell.outputs if is_readable(output)])


def is_readable(output: nbformat.NotebookNode) -> bool:
    """Whether an output means something outside a running notebook."""
    data = output.get("data")
    if data is None:
        return True
    is_finished_progress_bar = data.get("text/plain") == ""
    return WIDGET not in data and not is_finished_progress_bar and "<iframe" not in data.get("text/html", "")


def merge_streams(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join consecutive pieces of the same stream, as they appear when text is printed bit by bit."""
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


if __name__ == "__main__":
    main()
