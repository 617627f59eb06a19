"""The notebook in JupyterLab, in a real Chromium: Run All, then a look at cells, widgets and the page."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from conftest import MODELS_DIR, PROJECT
from fakes import free_port

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NOTEBOOK = "llm_chatbot.ipynb"
RUN_ALL = 15 * 60_000  # milliseconds; less than 4 minutes where nothing else is at work
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# What JupyterLab knows of the open notebook; the page shows only the cells near the one looked at.
CELLS = """() => jupyterapp.shell.currentWidget.content.widgets
    .filter(cell => cell.model.type === 'code')
    .map(cell => [cell.model.executionCount, cell.model.outputs.toJSON()])"""
HAS_KERNEL = "() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
ALL_DONE = """() => {
    const panel = jupyterapp.shell.currentWidget;
    const cells = panel.content.widgets.filter(cell => cell.model.type === 'code');
    const failed = cells.some(cell => cell.model.outputs.toJSON().some(one => one.output_type === 'error'));
    const idle = panel.sessionContext.session.kernel.status === 'idle';
    return idle && (failed || cells.every(cell => cell.model.executionCount !== null));
}"""
GO_TO = """text => {
    const notebook = jupyterapp.shell.currentWidget.content;
    const place = notebook.widgets.findIndex(cell => cell.model.sharedModel.getSource().includes(text));
    notebook.activeCellIndex = place;
    return notebook.scrollToItem(place);
}"""


def wait_for(address: str, server: subprocess.Popen) -> None:
    """Return when the server answers."""
    deadline = time.monotonic() + 120
    while True:
        try:
            httpx.get(address, trust_env=False)
            return
        except httpx.HTTPError:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab on a copy of the notebook, since it saves what it has run."""
    folder = tmp_path / "project"
    folder.mkdir()
    for file in PROJECT.iterdir():
        if file.name == NOTEBOOK:
            shutil.copy(file, folder)
        elif file.name not in ("models",) and not file.name.startswith("."):
            (folder / file.name).symlink_to(file)
    port = free_port()
    token = secrets.token_hex()
    own = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    environment = os.environ | own | {"LLM_CHATBOT_MODELS_DIR": str(Path(MODELS_DIR).absolute())}
    environment["JUPYTERLAB_WORKSPACES_DIR"] = str(tmp_path / "workspaces")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/api", server)
            yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token={token}"
        finally:
            server.terminate()  # with its kernels
            server.wait(timeout=30)


@pytest.fixture
def browser_page():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=ARGUMENTS
        )
        yield browser.new_page(viewport={"width": 1400, "height": 1000})
        browser.close()


def test_run_all(lab: str, browser_page: Page):
    page = browser_page
    page.goto(lab)
    expect(page.locator(".jp-NotebookPanel .jp-Notebook")).to_be_visible(timeout=60_000)
    page.wait_for_function(
        "() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel", timeout=60_000
    )
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Run All Cells$")).click()
    page.wait_for_function(ALL_DONE, timeout=RUN_ALL, polling=1000)

    cells = page.evaluate(CELLS)
    errors = [output for _, outputs in cells for output in outputs if output["output_type"] == "error"]
    assert errors == []
    assert [count for count, _ in cells] == list(range(1, len(cells) + 1))

    page.evaluate(GO_TO, "widgets.interactive(")
    controls = page.locator(".jupyter-widgets.widget-interact")
    picture = controls.locator("img").first
    before = picture.get_attribute("src", timeout=60_000)
    prompt = controls.locator("input[type=text]").first
    prompt.fill("The capital of France is")
    prompt.press("Enter")
    expect(picture).not_to_have_attribute("src", before, timeout=60_000)  # the kernel has drawn anew

    page.evaluate(GO_TO, "display(IFrame(")
    frame = page.frame_locator(".jp-OutputArea iframe[src*='127.0.0.1']")
    expect(frame.get_by_role("heading", name="Chat with")).to_be_visible(timeout=60_000)
