"""The pages of `make walkthrough` in a real browser: `pytest tests/check_pages.py`, where chromium is installed.

Also pages of a run whose outputs are attacks (attacks.py), with a listener where they all want to go.
NBUTILS_PAGES names another folder than docs; NBUTILS_SHOTS a folder to keep screenshots in.
"""

import itertools
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from attacks import ALL, HTML, MARKDOWN, TEXT, aimed
from browser import CHROMIUM, Browser
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from pages import executed, stream

from nbutils.files.sources import CHECKOUT
from nbutils.params import STEMS
from tools import inert, walkthrough

PAGES = Path(os.environ.get("NBUTILS_PAGES", CHECKOUT / "docs")).resolve()
SHOTS = os.environ.get("NBUTILS_SHOTS")
VIEWS = list(itertools.product(("index", *STEMS), (1280, 390), ("light", "dark")))

# what is seen: the ratio of luminances of every text and the first opaque background behind it (WCAG: 4.5, large 3)
LOOK = """(() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number)
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  const light = c => { const [r, g, b] = rgb(c).map(v => linear(v / 255))
                       return 0.2126 * r + 0.7152 * g + 0.0722 * b }
  const behind = e => { const c = e ? getComputedStyle(e).backgroundColor : 'rgb(255, 255, 255)'
                        return rgb(c)[3] === 0 ? behind(e.parentElement) : c }
  const pale = new Set(), words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let n; n = words.nextNode();) {
    if (!n.data.trim()) continue
    const style = getComputedStyle(n.parentElement), pair = [light(style.color), light(behind(n.parentElement))].sort()
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)
    const least = parseFloat(style.fontSize) >= 24 ? 3 : 4.5
    if (ratio < least) pale.add(`${n.data.trim().slice(0, 30)}: ${ratio.toFixed(1)}`)
  }
  const images = [...document.images]
  return {
    wide: document.documentElement.scrollWidth,
    pale: [...pale],
    broken: images.filter(i => !i.naturalWidth || !i.alt || !i.closest('figure')?.querySelector('figcaption')).length,
    images: images.length,
    formulas: [...document.querySelectorAll('math')].filter(m => m.getBoundingClientRect().height > 8).length,
    background: getComputedStyle(document.body).backgroundColor,
    links: [...document.links].map(a => a.href),
  }
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("there is no chromium here")
    assert (PAGES / "index.html").is_file(), f"there are no pages in {PAGES}; run make walkthrough"
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize(("name", "width", "scheme"), VIEWS)
def test_a_page_fits_its_screen_can_be_read_and_asks_for_nothing(browser, name, width, scheme):
    browser.open((PAGES / f"{name}.html").as_uri(), width, scheme)
    seen = browser.call("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]["value"]
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        browser.shoot(Path(SHOTS) / f"{name}-{width}-{scheme}.png")
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url[:40] for url in asked if not url.startswith(("file://", "data:"))] == []
    assert [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")] == []
    assert seen["wide"] <= width
    assert seen["pale"] == []
    assert seen["broken"] == 0
    assert (seen["images"] > 0) == (name != "index")
    assert (seen["formulas"] > 5) == (name == "04_dpo")
    assert (seen["background"] == "rgb(255, 255, 255)") == (scheme == "light")
    local = {link.partition("#")[0] for link in seen["links"] if link.startswith("file:")}
    assert local
    assert [link for link in local if not Path(link.removeprefix("file://")).is_file()] == []


@pytest.fixture(scope="module")
def listener():
    """A server that notes what it is asked for, and its address."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_HEAD = do_OPTIONS = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def provoked(browser, path):
    """Open a page, move, scroll and tab on it, and return what else than files and figures it asked for or ran."""
    browser.open(path.as_uri(), 800, "light")
    for x, y in ((50, 50), (300, 400), (500, 800)):
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    for _ in range(5):
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    browser.call("Runtime.evaluate", expression="scrollTo(0, document.body.scrollHeight)")
    time.sleep(0.15)
    browser.call("Runtime.evaluate", expression="1")
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    noted = [e for e in browser.events if e["method"] in ("Page.javascriptDialogOpening", "Runtime.exceptionThrown")]
    return [url[:80] for url in asked if not url.startswith(("file://", "data:"))] + noted


def attacked(stem, run_dir, attacks, address):
    """Write an executed notebook whose outputs, Markdown and metadata are attacks."""
    executed(stem, run_dir)
    book = nbformat.read(run_dir / f"{stem}.ipynb", as_version=4)
    for attack in attacks:
        outputs = [new_output("display_data", {"text/html": attack}), stream(attack, "stdout"), stream(attack)]
        outputs += [
            new_output("display_data", {kind: attack}) for kind in ("text/plain", "image/svg+xml", "text/latex")
        ]
        cell = new_code_cell(
            f"{attack!r}", execution_count=1, outputs=outputs, metadata={"tags": [attack.replace(",", ";")]}
        )
        book.cells += [cell, new_markdown_cell(attack)]
    book.cells += [new_markdown_cell(attack) for attack in aimed(MARKDOWN, address)]
    book.metadata["language_info"] = {"name": "python", "pygments_lexer": attacks[0]}
    for figure in (o for cell in book.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})):
        figure.metadata["image/png"]["alt"] = f'" onload="x">{attacks[0]}'
    (run_dir / f"{stem}.ipynb").write_text(json.dumps(book))  # in ASCII: it holds what is no UTF-8


def test_attacks_reach_the_listener_where_nothing_holds_them(browser, listener, tmp_path):
    address, asked = listener
    came = 0
    for attack in aimed(HTML, address):
        asked.clear()
        path = tmp_path / "raw.html"
        path.write_text(f"<!DOCTYPE html><meta charset=utf-8><main>{attack}</main>", encoding="utf-8", errors="replace")
        provoked(browser, path)
        came += bool(asked)
    assert came > 60, "or the battery proves nothing"


def test_the_policy_alone_lets_nothing_load_or_run(browser, listener, tmp_path):
    address, asked = listener
    policy = f'<meta http-equiv="Content-Security-Policy" content="{inert.policy("x")}">'
    for attack in aimed(HTML, address):
        asked.clear()
        path = tmp_path / "held.html"
        page = f"<!DOCTYPE html><meta charset=utf-8>{policy}<main>{attack}</main>"
        path.write_text(page, encoding="utf-8", errors="replace")
        provoked(browser, path)
        # no policy of a page holds a browser that is told to go elsewhere or to open a connection in advance
        assert asked == [] or re.search("refresh", attack, re.IGNORECASE), attack


@pytest.mark.parametrize("policy", ["with the policy", "the allow list alone"])
def test_whatever_a_notebook_printed_its_page_asks_for_nothing_and_runs_nothing(browser, listener, tmp_path, policy):
    address, asked = listener
    attacks = aimed([*ALL, *TEXT], address)
    for i, stem in enumerate(STEMS):
        attacked(stem, tmp_path / "run", attacks[:1] + attacks[i :: len(STEMS)], address)
    walkthrough.publish(tmp_path / "run", tmp_path / "docs")
    asked.clear()
    for stem in ("index", *STEMS):
        path = tmp_path / "docs" / f"{stem}.html"
        if policy == "the allow list alone":
            path.write_text(path.read_text().replace("Content-Security-Policy", "x"))
        assert provoked(browser, path) == []
        # also what the attacks wanted to be clicked for
        script = "[...document.querySelectorAll('main :not(a)')].forEach(e => e.click?.())"
        browser.call("Runtime.evaluate", expression=script)
        names = "[...document.querySelectorAll('main *')].flatMap(e => e.getAttributeNames()).join(' ')"
        held = browser.call("Runtime.evaluate", expression=names, returnByValue=True)["result"]["value"].split()
        assert not [name for name in held if name.startswith("on")]
    assert asked == []
