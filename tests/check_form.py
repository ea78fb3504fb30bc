"""The form that people choose in, clicked through in a real browser: `pytest tests/check_form.py`, with chromium.

JupyterLab serves a notebook with a sheet of ten pairs; five are chosen by buttons and keys, the notebook is left and
opened anew, and five more are. NBUTILS_SHOTS names a folder to keep a screenshot in.
"""

import csv
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from browser import CHROMIUM, Browser

SHOTS = os.environ.get("NBUTILS_SHOTS")
CELL = """
from pathlib import Path
from nbutils.core.records import prompt_id
from nbutils.judges import form, people

def row(i):
    prompt = [{"role": "user", "content": f"Quanto fa {i} + {i}? <b>Solo il numero</b>"}]
    texts = [{"text": f"{2 * i}, perché {i} + {i} = {2 * i}"}, {"text": f"{2 * i + 1}"}]
    return {"prompt_id": prompt_id(prompt), "prompt": prompt, "responses": texts, "scores": []}

sheet = people.Sheet(Path("labels/03_judge.csv"), [row(i) for i in range(10)])
form.show(sheet)
"""


def wait_for(what, seconds=90):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.3)
    return found


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a folder with the notebook; returns the address that opens it."""
    if not CHROMIUM:
        pytest.skip("there is no chromium here")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)]), tmp_path / "people.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = [f"--port={port}", "--ServerApp.port_retries=0", "--no-browser", "--allow-root"]
    homes = {f"JUPYTER_{name}_DIR": str(tmp_path / f".{name}") for name in ("CONFIG", "DATA", "RUNTIME")}
    with (tmp_path / "lab.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], cwd=tmp_path, stdout=log, stderr=log,
            env=os.environ | homes | {"JUPYTER_TOKEN": token},
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: process.poll() is None and answers(f"{address}/api?token={token}"))
            yield f"{address}/doc/tree/people.ipynb?token={token}&reset"
        finally:
            process.terminate()
            process.wait()


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def run_the_cell(browser):
    """Put the cursor into the only cell and press Shift and Enter, until the form is there."""
    shown = "document.querySelectorAll('.jupyter-widgets button').length"
    wait_for(lambda: browser.evaluate("!!document.querySelector('.jp-CodeCell .cm-content')"))

    def tried():
        browser.evaluate("document.querySelector('.jp-CodeCell .cm-content').focus()")
        browser.press("Enter", code=13, modifiers=8)
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if browser.evaluate(shown):
                return True
            time.sleep(0.3)
        return False

    wait_for(tried)


@contextmanager
def browsing(address, profile):
    """Open the notebook in a browser of its own and run its cell."""
    browser = Browser(profile)
    try:
        browser.open(address)
        run_the_cell(browser)
        yield browser
    finally:
        browser.close()


def page(browser):
    return browser.evaluate("document.querySelector('.widget-html-content')?.innerText") or ""


def click(browser, name):
    browser.evaluate(f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === '{name}').click()")


def test_ten_choices_are_there_after_ten_clicks_and_a_reload_in_the_middle(lab, tmp_path):
    def choices():
        with (tmp_path / "labels/03_judge.csv").open(encoding="utf-8-sig", newline="") as stream:
            return [line["label"] for line in csv.DictReader(stream)]

    with browsing(lab, tmp_path / "first") as browser:
        assert "pair 1 of 10" in page(browser)
        assert "<b>Solo il numero</b>" in page(browser), "what a stranger wrote is text"
        for n, name in enumerate(["1 is better", "2 is better", "tie", "skip"], 2):
            click(browser, name)
            wait_for(lambda n=n: f"pair {n} of 10" in page(browser))
        click(browser, "back")
        wait_for(lambda: "pair 4 of 10" in page(browser))
        assert choices() == ["1", "2", "0", *[""] * 7]
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            browser.shoot(Path(SHOTS) / "form.png")
        for n, key in ((5, "s"), (6, "2")):
            browser.evaluate("document.querySelector('.widget-text input').focus()")
            browser.press(key, text=key)
            wait_for(lambda n=n: f"pair {n} of 10" in page(browser))
        assert choices() == ["1", "2", "0", "skip", "2", *[""] * 5]
    with browsing(lab, tmp_path / "second") as browser:
        assert "pair 6 of 10" in page(browser)
        for n in range(7, 12):
            click(browser, "1 is better")
            wait_for(lambda n=n: ("Every pair" if n > 10 else f"pair {n} of 10") in page(browser))
    assert choices() == ["1", "2", "0", "skip", "2", *["1"] * 5]
