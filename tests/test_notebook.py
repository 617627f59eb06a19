"""The notebooks: their form, what is saved in them, and runs that nbval's own does not cover."""

import ast
import copy
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError

import genai_engine
import lesson_order
from conftest import PROJECT

NOTEBOOK = PROJECT / "llm_chatbot.ipynb"
SOLUTIONS = PROJECT / "exercise_solutions.ipynb"
OPTIONAL = (6, 12, 13)


def read(path=NOTEBOOK):
    return nbformat.read(path, as_version=4)


def sections(notebook) -> dict[str, list]:
    """The cells under each heading of the second level; a cell that has one is split there."""
    found, title = {}, "introduction"
    for cell in notebook.cells:
        parts = [cell.source]
        if cell.cell_type == "markdown":
            parts = re.split(r"^(?=## )", cell.source, flags=re.MULTILINE)
        for part in parts:
            if cell.cell_type == "markdown" and part.startswith("## "):
                title = part.partition("\n")[0][3:]
            found.setdefault(title, []).append(SimpleNamespace(kind=cell.cell_type, source=part, id=cell.id))
    return found


def numbered(notebook) -> dict[int, list]:
    """The same by number."""
    return {
        int(title.partition(".")[0]): cells
        for title, cells in sections(notebook).items()
        if title[0].isdigit()
    }


def code(cells) -> list[str]:
    return [cell.source for cell in cells if cell.kind == "code"]


def prose(cells) -> str:
    return "\n\n".join(cell.source for cell in cells if cell.kind == "markdown")


def run(notebook, folder=PROJECT):
    """Run it, once more if need be.

    Now and then Jupyter loses a kernel's answer: the kernel is idle (all its threads wait in `select`), and
    the client waits for it until the time is over.
    """
    settings = {"timeout": 240, "resources": {"metadata": {"path": str(folder)}}}
    try:
        NotebookClient(copy.deepcopy(notebook), **settings).execute()
    except CellTimeoutError:
        NotebookClient(notebook, **settings).execute()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "family"), [("llama-2-chat-7b", "llama"), ("red-pajama-3b-chat", "gpt_neox")]
)
def test_notebook_runs_for_other_families(model, family, tiny_checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CHATBOT_MODEL", model)
    monkeypatch.setenv("LLM_CHATBOT_CHECKPOINT", str(tiny_checkpoints[family]))
    monkeypatch.setenv("LLM_CHATBOT_MODELS_DIR", str(tmp_path))
    run(read())
    folders = [folder for home in tmp_path.iterdir() if home.is_dir() for folder in home.iterdir()]
    assert sorted(folder.name for folder in folders if not folder.name.startswith(".")) == [
        "FP16",
        "INT4_compressed_weights",
        "INT8_compressed_weights",
    ]


@pytest.mark.slow
def test_no_later_cell_needs_an_optional_section():
    notebook = read()
    left_out = {cell.id for number in OPTIONAL for cell in numbered(notebook)[number] if cell.kind == "code"}
    assert len(left_out) > 15
    notebook.cells = [cell for cell in notebook.cells if cell.id not in left_out]
    run(notebook)


@pytest.mark.slow
def test_solutions_run():
    run(read(SOLUTIONS))


def names(sources, context) -> set[str]:
    """The names that code makes (ast.Store) or uses (ast.Load)."""
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, context):
                found.add(node.id)
            elif context is ast.Store and isinstance(node, ast.FunctionDef | ast.ClassDef | ast.alias):
                found.add(node.name)
            elif context is ast.Store and isinstance(node, ast.arg):
                found.add(node.arg)
    return found


def test_no_name_that_is_used_later_is_made_in_optional_sections_only():
    parts = numbered(read())
    optional = names([source for number in OPTIONAL for source in code(parts[number])], ast.Store)
    others = [
        source
        for title, cells in sections(read()).items()
        if not title.startswith(tuple(f"{number}." for number in OPTIONAL))
        for source in code(cells)
    ]
    assert names(others, ast.Load) & optional <= names(others, ast.Store)


def test_optional_sections_say_so():
    for number in OPTIONAL:
        assert "can be skipped" in prose(numbered(read())[number])


def test_first_cell_says_what_is_missing_and_where_to_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (NOTEBOOK, SOLUTIONS):
        first = next(cell.source for cell in read(path).cells if cell.cell_type == "code")
        with pytest.raises(
            FileNotFoundError, match=r"open_chat\.py.*beside this notebook.*make lab"
        ) as error:
            exec(first, {})
        assert str(error.value).count(". ") == 0  # one sentence
        assert str(tmp_path) in str(error.value)


def test_first_path_is_five_short_cells_that_link_to_their_sections():
    cells = sections(read())["First path: from nothing to a conversation in five cells"]
    lines = [line for source in code(cells) for line in source.splitlines() if line.strip()]
    assert len(code(cells)) == 5
    assert len(lines) < 25
    for before, cell in itertools.pairwise(cells):
        if cell.kind == "code":
            assert before.kind == "markdown" and re.search(r"\]\(#\d+\.-", before.source), cell.source


def test_no_code_cell_is_longer_than_a_screen():
    for path in (NOTEBOOK, SOLUTIONS):
        for cell in read(path).cells:
            assert cell.cell_type != "code" or len(cell.source.splitlines()) <= 25, cell.source


def test_sections_open_with_a_question_and_close_with_what_to_keep():
    for number, cells in numbered(read()).items():
        text = prose(cells)
        assert re.search(r"^## .*\n\n\*The question: .*\?\*$", text, re.MULTILINE), number
        assert "**To keep.**" in text, number
        closing_part = text.partition("**To keep.**")[2]
        has_exercise = f"**Exercise {number}.1.**" in closing_part
        assert has_exercise or number in (2, 16)


def test_each_exercise_has_its_solution():
    exercises = re.findall(r"\*\*Exercise ([\d.]+)\.\*\*", prose_of(NOTEBOOK))
    assert re.findall(r"^## Exercise ([\d.]+)$", prose_of(SOLUTIONS), re.MULTILINE) == exercises
    assert len(exercises) >= 15


def prose_of(path: Path) -> str:
    return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def test_checked_outputs_come_from_exact_arithmetic():
    notebook = read()
    checked = [cell.source for cell in notebook.cells if "NBVAL_CHECK_OUTPUT" in cell.source]
    assert len(checked) >= 3
    for source in checked:
        assert "chat_model" not in source, source


def test_table_of_needs_is_true():
    assigned = {}
    for title, cells in sections(read()).items():
        where = (
            f"section {title.partition('.')[0]}" if title[0].isdigit() else "the first cell of the first path"
        )
        for source in code(cells):
            tree = ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE))
            names = [
                node.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            ]
            names += [
                node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
            ]
            for name in names:
                assigned.setdefault(name, where)
    assert {name: assigned[name] for name in lesson_order.MADE_IN} == lesson_order.MADE_IN


def test_section_12_runs_on_the_scripted_engine_alone(smollm2, monkeypatch, capsys):
    import time

    import numpy as np

    from chat import ChatModel, SamplingParams
    from config import DEFAULT_MODEL, get_model_config

    tokenizer, config = smollm2[1], get_model_config(DEFAULT_MODEL)
    space = {
        "SamplingParams": SamplingParams,
        "ChatModel": ChatModel,
        "tokenizer": tokenizer,
        "model_config": config,
        "time": time,
        "needs": lambda *names: None,
        "spread": lambda values, form: f"{np.median(values):{form}}",
        "folders": {"INT8": "a folder"},
        "variant": "INT8",
        "device": "CPU",
    }
    exec("from contextlib import closing", space)
    for source in code(numbered(read())[9]):
        if source.startswith("class Scripted"):
            exec(source, space)
    script = tokenizer("word " * 40)["input_ids"]
    monkeypatch.setattr(genai_engine, "GenAIEngine", lambda folder, device: space["ScriptedEngine"](script))
    space["chat_model"] = ChatModel(space["ScriptedEngine"](script), tokenizer, config)
    for source in code(numbered(read())[12]):
        exec(source, space)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Optimum", "GenAI", "scripted"]


def test_saved_outputs_are_of_one_clean_run():
    for path, pictures in ((NOTEBOOK, 10), (SOLUTIONS, 0)):
        cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        outputs = [output for cell in cells for output in cell.outputs]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= pictures
        for output in outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            assert "%|" not in text and "Warning" not in text and str(Path.home()) not in text


def test_table_of_contents_links_to_every_section():
    markdown = prose_of(NOTEBOOK)
    headings = [line[3:] for line in markdown.splitlines() if line.startswith("## ")]
    assert len(headings) == 17
    for heading in headings:
        assert f"(#{heading.replace(' ', '-')})" in markdown
    targets = set(re.findall(r"\]\(#([^)\s]+)\)", markdown))
    assert targets <= {heading.replace(" ", "-") for heading in headings}


def test_linked_files_exist():
    for path in (NOTEBOOK, SOLUTIONS):
        for target in re.findall(r"\]\((?!#|http)([^)\s]+)\)", prose_of(path)):
            assert (PROJECT / target).is_file(), target
