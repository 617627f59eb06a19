"""The notebook on other architectures, and what is saved in it. nbval runs it on the default model."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import PROJECT

NOTEBOOK = PROJECT / "llm_chatbot.ipynb"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "family"), [("llama-2-chat-7b", "llama"), ("red-pajama-3b-chat", "gpt_neox")]
)
def test_notebook_runs_for_other_families(model, family, tiny_checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CHATBOT_MODEL", model)
    monkeypatch.setenv("LLM_CHATBOT_CHECKPOINT", str(tiny_checkpoints[family]))
    monkeypatch.setenv("LLM_CHATBOT_MODELS_DIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(PROJECT)}}).execute()
    assert sorted(
        folder.name for folder in (tmp_path / model).iterdir() if not folder.name.startswith(".")
    ) == [
        "FP16",
        "INT4_compressed_weights",
        "INT8_compressed_weights",
    ]


def test_saved_outputs_are_of_one_clean_run():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 6
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        assert "%|" not in text and "Warning" not in text and str(Path.home()) not in text


def test_table_of_contents_links_to_every_section():
    markdown = "\n".join(
        cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "markdown"
    )
    sections = [line[3:] for line in markdown.splitlines() if line.startswith("## ")]
    assert len(sections) == 15
    for section in sections:
        assert f"(#{section.replace(' ', '-')})" in markdown
