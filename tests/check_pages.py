"""The pages of `make walkthrough` in a real browser: `pytest tests/check_pages.py`, where chromium is installed.

NBUTILS_PAGES names another folder than docs; NBUTILS_SHOTS a folder to keep screenshots in.
"""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import websocket

from nbutils.params import STEMS
from nbutils.sources import CHECKOUT

PAGES = Path(os.environ.get("NBUTILS_PAGES", CHECKOUT / "docs")).resolve()
SHOTS = os.environ.get("NBUTILS_SHOTS")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
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


class Browser:
    """Chromium without a window, spoken to over its own protocol."""

    def __init__(self, profile):
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--remote-debugging-port=0", "--remote-allow-origins=*"]
        self.process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.PIPE, text=True
        )
        port = next(m[1] for line in self.process.stderr if (m := re.search(r"ws://127.0.0.1:(\d+)/", line)))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            (tab,) = [t for t in json.load(answer) if t["type"] == "page"]
        self.socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=30)
        self.events, self.sent = [], 0
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        while (message := json.loads(self.socket.recv())).get("id") != self.sent:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def open(self, path, width, scheme):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def shoot(self, path):
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self.socket.close()
        self.process.kill()
        self.process.wait()


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
    browser.open(PAGES / f"{name}.html", width, scheme)
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
