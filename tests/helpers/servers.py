"""A scripted OpenAI-compatible chat server on 127.0.0.1, for tests: it counts, delays, fails and lies as told.

    with ChatServer(lambda body: body["messages"][-1]["content"].upper()) as server:
        ...                            # server.url, server.calls, server.max_in_flight
    ChatServer([Answer(status=429), Answer(raw="<html>"), "fine"])   # answers in turn, the last one for ever

In a process of its own, with a script named `module:attribute` and every request body kept as a line of a file:

    with serving("servers:echo", log=tmp_path / "calls.jsonl") as url: ...
"""

import argparse
import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Answer:
    """What to send back; text alone is a proper chat completion."""

    text: str = "ok"
    status: int = 200
    error: str = ""  # what a status other than 200 is explained with
    finish_reason: str = "stop"
    delay: float = 0.0  # seconds before answering
    raw: str | bytes | None = None  # sent as it is in place of a completion; as HTML if it begins so
    headers: Mapping[str, str] = field(default_factory=dict)
    logprobs: Sequence[Mapping[str, Any]] | None = None  # the tokens of the text, see `token`
    chunks: int = 0  # the raw bytes are sent so often, in chunks and without a length; -1 is without end
    drop: bool = False  # close the connection without a word
    hang: bool = False  # answer nothing until the server stops
    drip: bool = False  # keep the connection busy with spaces instead of answering, until the server stops


Script = Callable[[dict[str, Any]], Answer | str] | Sequence[Answer | str]


def echo(body: dict[str, Any]) -> str:
    """Repeat the last message."""
    return str(body["messages"][-1]["content"])


def slow(_: dict[str, Any]) -> Answer:
    """Take 200 ms for a judge's reply."""
    return Answer(
        '{"feedback_1": "Clear and right.", "score_1": 4, "feedback_2": "Too long.", "score_2": 2}', delay=0.2
    )


def quick(body: dict[str, Any]) -> str:
    """Give the reply of `slow` at once."""
    return slow(body).text


def token(text: str | bytes, options: Mapping[str, float] | None = None, *, given: bool = True) -> dict[str, Any]:
    """Return a token as servers describe it: with its alternatives, and with its bytes where they are given."""
    raw = text.encode() if isinstance(text, str) else text
    written = text if isinstance(text, str) else raw.decode(errors="replace")
    top = [{"token": name, "logprob": p, "bytes": list(name.encode())} for name, p in (options or {}).items()]
    return {"token": written, "logprob": 0.0, "bytes": list(raw) if given else None, "top_logprobs": top}


class ChatServer:
    """A server in a thread, running while the `with` block does."""

    def __init__(self, script: Script = echo, *, log: Path | None = None):
        self._script, self._log, self._lock = script, log, threading.Lock()
        self.calls: list[dict[str, Any]] = []  # request bodies in the order they came
        self.times: list[float] = []  # when they came
        self.tokens: list[str] = []  # what came as bearer token
        self.headers: list[dict[str, str]] = []
        self.max_in_flight = self._in_flight = 0
        self._stopped = threading.Event()
        self._http = _Http(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._http.shutdown()
        self._http.server_close()

    def asked(self) -> list[str]:
        """Return the last message of every call."""
        return [echo(body) for body in self.calls]

    def _next(self, body: dict[str, Any], token: str) -> Answer:
        with self._lock:
            number = len(self.calls)
            self.calls.append(body)
            self.times.append(time.monotonic())
            self.tokens.append(token)
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
            if self._log:
                with self._log.open("a") as stream:
                    stream.write(json.dumps(body) + "\n")
        said = self._script(body) if callable(self._script) else self._script[min(number, len(self._script) - 1)]
        return Answer(said) if isinstance(said, str) else said

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.headers.append(dict(self.headers))
                try:
                    token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                    self._send(server._next(body, token), body)
                finally:
                    with server._lock:
                        server._in_flight -= 1

            def _send(self, answer: Answer, body: dict[str, Any]) -> None:
                if answer.delay or answer.hang:
                    server._stopped.wait(None if answer.hang else answer.delay)
                if answer.drop or answer.hang:
                    self.close_connection = True
                    return
                content = answer.raw
                if content is None:
                    content = json.dumps(_completion(answer, body["model"]) if answer.status == 200 else _error(answer))
                if isinstance(content, str):
                    content = content.encode()
                self.send_response(answer.status)
                self.send_header("Content-Type", "text/html" if content.startswith(b"<") else "application/json")
                if answer.chunks:
                    self.send_header("Transfer-Encoding", "chunked")
                else:
                    self.send_header("Content-Length", str(len(content) + 9999 * answer.drip))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                sent = 0
                while answer.chunks and sent != answer.chunks and not server._stopped.is_set():
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
                    sent += 1
                if answer.chunks:
                    self.wfile.write(b"0\r\n\r\n")
                    return
                while answer.drip and not server._stopped.wait(0.05):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        pass  # the other side was killed


def _completion(answer: Answer, model: str) -> dict[str, Any]:
    """Tokens are counted as words; every prompt has 7."""
    choice = {
        "index": 0,
        "finish_reason": answer.finish_reason,
        "message": {"role": "assistant", "content": answer.text},
        "logprobs": {"content": answer.logprobs} if answer.logprobs is not None else None,
    }
    words = len(answer.text.split())
    usage = {"prompt_tokens": 7, "completion_tokens": words, "total_tokens": 7 + words}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


def _error(answer: Answer) -> dict[str, Any]:
    message = answer.error or f"scripted {answer.status}"
    return {"error": {"message": message, "type": "scripted", "code": answer.status}}


@contextmanager
def serving(script: str = "servers:echo", *, log: Path | None = None) -> Iterator[str]:
    """Run a server in another process; yields its URL. Request bodies are appended to `log`, one JSON per line."""
    command = [sys.executable, __file__, script, *(["--log", str(log)] if log else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def logged(log: Path) -> list[dict[str, Any]]:
    """Return the request bodies a server in another process has kept."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a scripted chat server until killed; prints its URL.")
    parser.add_argument("script", nargs="?", default="servers:echo", help="module:attribute; a file of tests/*/")
    parser.add_argument("--log", type=Path, help="file to append request bodies to")
    options = parser.parse_args()
    sys.path[:0] = [str(place) for place in (HERE, *HERE.parent.iterdir()) if place.is_dir()]
    module, _, name = options.script.partition(":")
    with ChatServer(getattr(importlib.import_module(module), name), log=options.log) as running:
        print(running.url, flush=True)
        threading.Event().wait()
