"""The notebooks: their form, what is saved in them, and runs that nbval's own does not cover."""

import ast
import builtins
import copy
import itertools
import re
import symtable
import sys
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
    the client waits for it until the time is over. ipykernel 7 is known to lose requests
    (ipython/ipykernel#1554).
    """
    settings = {"timeout": 120, "resources": {"metadata": {"path": str(folder)}}}
    try:
        NotebookClient(copy.deepcopy(notebook), **settings).execute()
    except CellTimeoutError:
        NotebookClient(notebook, **settings).execute()


@pytest.fixture(
    params=[("llama-2-chat-7b", "llama"), ("red-pajama-3b-chat", "gpt_neox")], ids=lambda model: model[1]
)
def models(request, tiny_checkpoints, tmp_path, monkeypatch) -> Path:
    """The empty models folder of a notebook that is told to use a tiny checkpoint of this family."""
    model, family = request.param
    monkeypatch.setenv("LLM_CHATBOT_MODEL", model)
    monkeypatch.setenv("LLM_CHATBOT_CHECKPOINT", str(tiny_checkpoints[family]))
    monkeypatch.setenv("LLM_CHATBOT_MODELS_DIR", str(tmp_path))
    return tmp_path


def visible_folders(models: Path) -> list[str]:
    homes = [home for home in models.iterdir() if home.is_dir()]
    return sorted(path.name for home in homes for path in home.iterdir() if not path.name.startswith("."))


@pytest.mark.slow
def test_all_cells_can_be_run_twice_for_other_families(models):
    notebook = read()
    again = copy.deepcopy(notebook.cells)
    for cell in again:
        cell.id += "-again"
    notebook.cells += again
    run(notebook)
    assert visible_folders(models) == ["FP16", "INT4_compressed_weights", "INT8_compressed_weights"]


@pytest.mark.slow
@pytest.mark.parametrize("models", [("llama-2-chat-7b", "llama")], indirect=True, ids=["llama"])
def test_no_later_cell_needs_an_optional_section(models):
    notebook = read()
    left_out = {cell.id for number in OPTIONAL for cell in numbered(notebook)[number] if cell.kind == "code"}
    assert len(left_out) > 15
    notebook.cells = [cell for cell in notebook.cells if cell.id not in left_out]
    run(notebook)
    assert "INT8_compressed_weights" in visible_folders(models)


@pytest.mark.slow
def test_solutions_run():
    run(read(SOLUTIONS))


def plain(source: str) -> str:
    """Code without IPython's own commands."""
    return re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE)


class Generators(ast.NodeTransformer):
    """Turns comprehensions into generators, whose names are their own for `symtable` of every Python."""

    def visit_ListComp(self, node: ast.ListComp) -> ast.GeneratorExp:
        return ast.GeneratorExp(self.visit(node.elt), [self.visit(part) for part in node.generators])

    visit_SetComp = visit_ListComp

    def visit_DictComp(self, node: ast.DictComp) -> ast.GeneratorExp:
        entry = ast.Tuple([self.visit(node.key), self.visit(node.value)], ast.Load())
        return ast.GeneratorExp(entry, [self.visit(part) for part in node.generators])


def reads_and_writes(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell uses, and those that it makes."""
    generators = ast.unparse(Generators().visit(ast.parse(plain(source))))
    top = symtable.symtable(generators, "cell", "exec")
    made = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    used, tables = set(), [top]
    for table in tables:
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                used.add(symbol.get_name())
        tables += table.get_children()
    return used - set(dir(builtins)), made


def test_reads_and_writes_are_those_of_the_cell_and_not_of_its_functions():
    source = "import a\n%pip install x\ndef f(b):\n    c = a + b + d\n    return c\n\ne = [f(g) for g in h]"
    assert reads_and_writes(source) == ({"a", "d", "f", "h"}, {"a", "f", "e"})


def foreign_names(notebook) -> dict[int, dict[str, int | None]]:
    """For each section the names that it uses without having made them, each with the section that had.

    The first path is section 0.
    """
    made_in, found = {}, {}
    for title, cells in sections(notebook).items():
        number = int(title.partition(".")[0]) if title[0].isdigit() else 0
        own = set()
        for source in code(cells):
            used, made = reads_and_writes(source)
            for name in used - made - own:
                found.setdefault(number, {})[name] = made_in.get(name)
            own |= made
        made_in |= dict.fromkeys(own, number)
    return found


def test_no_section_uses_a_name_as_an_optional_one_has_left_it():
    """So any of them can be left out, together or alone."""
    for number, foreign in foreign_names(read()).items():
        assert None not in foreign.values(), number  # nobody makes it
        assert not set(foreign.values()) & set(OPTIONAL), number


def needs_of(cells) -> set[int]:
    """The sections that a section's first cell asks for, in what must be its first line after the import."""
    lines = [line for line in code(cells)[0].splitlines() if line and not line.startswith("#")]
    assert lines[0] == "from lesson_order import needs"
    call = ast.parse(lines[1]).body[0].value
    assert call.func.id == "needs"
    made_in = [lesson_order.MADE_IN[argument.value] for argument in call.args]
    return {int(where.removeprefix("section ")) for where in made_in}


def test_each_section_asks_first_for_the_sections_whose_names_it_uses():
    notebook = read()
    foreign = foreign_names(notebook)
    checked = {number: cells for number, cells in numbered(notebook).items() if number > 2 and code(cells)}
    assert len(checked) == 13
    for number, cells in checked.items():
        used = set(foreign[number].values()) - {0, 2}  # these two `needs` looks for by itself
        assert needs_of(cells) == used, number


def test_a_section_that_is_run_first_after_a_restart_says_where_to_begin():
    for number, cells in numbered(read()).items():
        if number > 2 and code(cells):
            with pytest.raises(RuntimeError, match=r"This cell uses `MODELS_DIR`, which the first cell"):
                exec(code(cells)[0], {})


def test_what_is_not_installed_is_named_and_installed(monkeypatch, capsys):
    source = next(cell.source for cell in read().cells if cell.get("id") == "install")
    commands = []
    source = re.sub(r"%pip (.*)", r"pip('\1')", source)
    exec(source, {"pip": commands.append})
    assert commands == [] and capsys.readouterr().out == ""
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # as where it is not installed
    exec(source, {"pip": commands.append})
    assert commands == ["install --quiet -r requirements.txt -c constraints.txt openai"]
    assert "installing ipywidgets" in capsys.readouterr().out


@pytest.mark.slow
def test_first_path_needs_no_widgets(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ipywidgets'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    notebook = read()
    end = next(place for place, cell in enumerate(notebook.cells) if cell.id == "first-end")
    notebook.cells = notebook.cells[:end]
    run(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.get("name") == "stderr"] == []


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


def test_sections_open_with_a_question_and_close_with_what_to_keep_and_an_exercise():
    for number, cells in numbered(read()).items():
        text = prose(cells)
        assert re.search(r"^## .*\n\n\*The question: .*\?\*$", text, re.MULTILINE), number
        assert "**To keep.**" in text, number
        closing_part = text.partition("**To keep.**")[2]
        assert f"**Exercise {number}.1.**" in closing_part, number


def test_each_exercise_has_its_solution():
    exercises = re.findall(r"\*\*Exercise ([\d.]+)\.\*\*", prose_of(NOTEBOOK))
    assert re.findall(r"^## Exercise ([\d.]+)$", prose_of(SOLUTIONS), re.MULTILINE) == exercises
    assert len(exercises) >= 15


def test_each_solution_needs_no_other_one():
    parts = sections(read(SOLUTIONS))
    common = set().union(*(reads_and_writes(source)[1] for source in code(parts.pop("introduction"))))
    for title, cells in parts.items():
        used, made = reads_and_writes("\n".join(code(cells)))
        assert used - made <= common, title


def prose_of(path: Path) -> str:
    return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def test_checked_outputs_come_from_exact_arithmetic():
    notebook = read()
    checked = [cell.source for cell in notebook.cells if "NBVAL_CHECK_OUTPUT" in cell.source]
    assert len(checked) >= 3
    for source in checked:
        assert "chat_model" not in source, source


def test_table_of_needs_is_true():
    made_in = {}
    for title, cells in sections(read()).items():
        number = title.partition(".")[0]
        where = f"section {number}" if number.isdigit() else "the first cell of the first path"
        for source in code(cells):
            for name in reads_and_writes(source)[1]:
                made_in.setdefault(name, where)
    assert {name: made_in[name] for name in lesson_order.MADE_IN} == lesson_order.MADE_IN
    first_path = sections(read())["First path: from nothing to a conversation in five cells"]
    assert "MODELS_DIR" in reads_and_writes(code(first_path)[0])[1]


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
        "spread": lambda values, form: f"{np.median(values):{form}}",
        "folders": {"INT8": "a folder"},
        "variant": "INT8",
        "device": "CPU",
    }
    monkeypatch.setattr(lesson_order, "needs", lambda *names: None)
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
