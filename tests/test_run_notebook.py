"""What is kept of a run of the notebooks."""

import nbformat
import nbformat.v4 as v4
import pytest
from nbclient.exceptions import CellExecutionError

import run_notebook
from run_notebook import WIDGET, strip_debris


def shown(**data: str) -> dict:
    return v4.new_output("display_data", data={kind.replace("_", "/"): text for kind, text in data.items()})


def printed(text: str, name: str = "stdout") -> dict:
    return v4.new_output("stream", name=name, text=text)


def stripped(*outputs: dict) -> list[dict]:
    notebook = v4.new_notebook(cells=[v4.new_code_cell("x", outputs=list(outputs))])
    strip_debris(notebook)
    return notebook.cells[0].outputs


def test_text_and_pictures_stay():
    outputs = [printed("a"), shown(image_png="b", text_plain="<Figure>"), shown(text_markdown="c")]
    assert stripped(*outputs) == outputs


@pytest.mark.parametrize(
    "debris",
    [
        v4.new_output("display_data", data={WIDGET: {}, "text/plain": "Dropdown()"}),
        shown(text_plain=""),  # what a finished progress bar leaves
        shown(text_html='<iframe src="http://127.0.0.1:7860"></iframe>', text_plain="<IFrame>"),
    ],
)
def test_what_lives_only_in_a_running_notebook_goes(debris):
    assert stripped(printed("a"), debris) == [printed("a")]


def test_text_that_was_printed_in_pieces_is_joined():
    outputs = stripped(printed("a"), printed("b"), printed("c", "stderr"), printed("d"))
    assert outputs == [printed("ab"), printed("c", "stderr"), printed("d")]


def test_times_and_states_of_widgets_go():
    cell = v4.new_code_cell("x", metadata={"execution": {"iopub.execute_input": "now"}, "tags": ["kept"]})
    notebook = v4.new_notebook(cells=[cell], metadata={"widgets": {}, "language_info": {"name": "python"}})
    strip_debris(notebook)
    assert cell.metadata == {"tags": ["kept"]} and list(notebook.metadata) == ["language_info"]


def test_a_notebook_whose_cell_fails_is_not_saved(tmp_path, monkeypatch):
    def fail(self):
        self.nb.cells[0].outputs = [printed("half")]
        raise CellExecutionError("traceback", "Error", "value")

    notebook = v4.new_notebook(cells=[v4.new_code_cell("1 / 0")])
    nbformat.write(notebook, tmp_path / "one.ipynb")
    before = (tmp_path / "one.ipynb").read_bytes()
    monkeypatch.setattr(run_notebook, "PROJECT", tmp_path)
    monkeypatch.setattr(run_notebook, "NOTEBOOKS", ("one.ipynb",))
    monkeypatch.setattr(run_notebook.NotebookClient, "execute", fail)
    with pytest.raises(CellExecutionError):
        run_notebook.main()
    assert (tmp_path / "one.ipynb").read_bytes() == before
