"""Chromium without a window, where it is installed."""

import base64
import json
import re
import shutil
import subprocess
import urllib.request

import websocket

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


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

    def open(self, url, width=1280, scheme="light"):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def shoot(self, path):
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self.socket.close()
        self.process.kill()
        self.process.wait()

    def evaluate(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key, *, code=0, text="", modifiers=0):
        """Press and release a key, by its name and, where it has none to type, its Windows code."""
        more = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=modifiers, **more
            )
