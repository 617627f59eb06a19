"""The README's recipes run as they stand, and its model table is the catalogue."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import SUPPORTED_MODELS
from conftest import MODELS_DIR, PROJECT
from forecast import ready_made_precision
from sampling import OPTIONS
from tiny_checkpoints import make_tiny_checkpoint

README = (PROJECT / "README.md").read_text(encoding="utf-8")
RECIPES_PAGE = (PROJECT / "docs" / "recipes.md").read_text(encoding="utf-8")
MODELS_PAGE = (PROJECT / "docs" / "models.md").read_text(encoding="utf-8")


def recipes_of(page: str) -> dict[str, str]:
    """The code under each heading of a page; a second one under the same heading counts on."""
    found: dict[str, str] = {}
    for section in re.split(r"^## ", page, flags=re.MULTILINE):
        title = section.partition("\n")[0]
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)):
            found[title if number == 0 else f"{title} {number + 1}"] = code
    return found


RECIPES = recipes_of(README) | recipes_of(RECIPES_PAGE)


def run(code: str, folder) -> str:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path, smollm2_folder):
    """A working folder as a reader has it: converted models, and a checkpoint of their own."""
    (tmp_path / "models").symlink_to(MODELS_DIR)
    return tmp_path


def test_every_recipe_is_tried_here():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [title for title in RECIPES if f'"{title}"' not in source] == []


# What the model says is not looked at: it depends on how a processor rounds.
@pytest.mark.slow
@pytest.mark.parametrize(
    "title", ["Recipes", "Recipes 2", "Several people at once", "Thoughts", "Stop when enough is enough"]
)
def test_recipe_on_the_default_model(title, folder):
    printed = run(RECIPES[title], folder)
    assert printed.strip()
    if title.startswith("Stop"):
        assert "finish_reason='cancelled'" in printed


@pytest.mark.slow
def test_recipe_own_checkpoint(tmp_path):
    make_tiny_checkpoint(tmp_path / "my-checkpoint", "mpt")
    assert run(RECIPES["Your own checkpoint, with greedy answers"], tmp_path).strip()


SERVE = """
import threading, time, uvicorn
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    time.sleep(0.05)
address = "http://127.0.0.1:%d" % server.servers[0].sockets[0].getsockname()[1]
"""


@pytest.mark.slow
def test_recipe_mounted_page_and_its_api(folder):
    """The page of one recipe answers the client of the next."""
    ask = RECIPES["Ask a running page"].replace('"http://127.0.0.1:7860"', 'address + "/chat"')
    assert run(RECIPES["The page in a web application of your own"] + SERVE + ask, folder).strip()


@pytest.mark.slow
def test_recipe_of_other_programs(folder):
    app = """
from config import DEFAULT_MODEL
from conversion import prepare_model
from open_chat import chat_on_folder
from serving.api import build_app

app = build_app(chat_on_folder(prepare_model(DEFAULT_MODEL), DEFAULT_MODEL), DEFAULT_MODEL)
"""
    ask = RECIPES["Other programs"].replace('"http://127.0.0.1:8000/v1"', 'address + "/v1"')
    assert run(app + SERVE + ask, folder).strip()


def test_the_readme_is_short():
    assert README.count("\n") <= 150


def test_links_lead_somewhere():
    for page in (PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").glob("*.md")):
        links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert missing == [], page


def test_model_table_is_the_catalogue():
    rows = re.findall(
        r"^\| `([a-z0-9.-]+)`(?: \(default\))? \| \[(.+?)\]\((.+?)\)", MODELS_PAGE, flags=re.MULTILINE
    )
    assert [(name, model_id) for name, model_id, _ in rows] == [
        (name, entry.model_id) for name, entry in SUPPORTED_MODELS.items()
    ]
    assert all(url == f"https://huggingface.co/{model_id}" for _, model_id, url in rows)


@pytest.mark.parametrize("name", SUPPORTED_MODELS)
def test_a_row_of_the_model_table_says_what_the_catalogue_says(name):
    entry = SUPPORTED_MODELS[name]
    (row,) = re.findall(rf"^\| `{re.escape(name)}`.*$", MODELS_PAGE, flags=re.MULTILINE)
    *_, parameters, size, context, license_, _ = (cell.strip() for cell in row.split("|"))
    billions = entry.parameters / 1e9
    assert parameters == (f"{1000 * billions:.0f} M" if billions < 0.9995 else f"{billions:.1f} B")
    if not ready_made_precision(entry.model_id):  # theirs is the size that is downloaded
        assert size == f"{billions:.1f} GB"
    assert context == str(entry.max_context)
    assert license_ == entry.license + ", gated" * entry.gated


def test_the_number_of_models_is_that_of_the_catalogue():
    assert f"lists all {len(SUPPORTED_MODELS)} " in README


def test_every_sampling_rule_is_in_the_documentation():
    design, serving = (
        (PROJECT / "docs" / page).read_text(encoding="utf-8") for page in ("design.md", "serving.md")
    )
    (line,) = (line for line in design.splitlines() if line.startswith("| `chat.SamplingParams`"))
    assert [name for name in OPTIONS if not re.search(rf"\b{name}\b", line)] == []
    other_names = {"max_new_tokens": "max_tokens"}
    assert [name for name in OPTIONS if f"`{other_names.get(name, name)}`" not in serving] == []


def test_plain_commands_match_the_makefile():
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    assert ".venv/bin/python chat_ui.py" in README and ".venv/bin/python chat_ui.py" in makefile
    targets = set(re.findall(r"`make ([a-z-]+)`", README))
    assert targets >= {"install", "chat", "lab", "serve", "cluster", "doctor", "test", "test-all"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def texts_in(module: Path) -> list[str]:
    """The literal texts of a module, with a star for what is filled in."""
    nodes = list(ast.walk(ast.parse(module.read_text(encoding="utf-8"))))
    filled_in = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
    whole = [[node] for node in nodes if isinstance(node, ast.Constant)]
    return [
        "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)
        for parts in filled_in + whole
    ]


def test_troubleshooting_quotes_what_the_programs_say():
    rows = re.findall(r"^\| `(.+?)` \|", README.partition("## Troubleshooting")[2], flags=re.MULTILINE)
    assert len(rows) > 5
    said = "\n".join(text for module in PROJECT.glob("*.py") for text in texts_in(module))
    for quoted in rows:
        if "torchvision" not in quoted:  # that is PyTorch's
            # "..." and numbers stand for what is filled in
            for part in re.split(r"\.\.\.,?|'\w+'|\b[\d.]+(?!\w)", quoted):
                assert part.strip(" .,") in said, quoted


def test_the_pytorch_that_is_named_is_the_tested_one():
    torch = re.search(r"^torch==\S+", (PROJECT / "constraints.txt").read_text(), flags=re.MULTILINE)[0]
    assert f"`{torch}`" in README
