"""A Hub on this machine: repositories, tokens and faults, over the routes huggingface_hub and datasets really use.

Uploads go through git LFS; Xet, another protocol, is not spoken, so clients need HF_HUB_DISABLE_XET=1. HF_ENDPOINT is
read when huggingface_hub is imported, so clients are processes: `Client` keeps one and runs many calls in it.
"""

import base64
import hashlib
import json
import os
import secrets
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from nbutils.files.sources import CHECKOUT

WRITER, READER, STRANGER = "hf_of_a_writer", "hf_of_a_reader", "hf_of_a_stranger"
TOKENS = {WRITER: ("me", "write"), READER: ("me", "read"), STRANGER: ("stranger", "write")}
LARGE = (".parquet", ".safetensors", ".png")  # stored as LFS objects


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """A repository with every commit it ever had: id, then path -> content."""

    private: bool
    commits: list = field(default_factory=lambda: [("0" * 40, {".gitattributes": b"*.parquet filter=lfs\n"})])

    @property
    def files(self):
        return {path: content for path, content in self.commits[-1][1].items() if path != ".gitattributes"}

    def at(self, revision):
        return next((c for c in reversed(self.commits) if revision in ("main", c[0])), None)

    def commit(self, files):
        self.commits.append((secrets.token_hex(20), files))


class FakeHub:
    """The server; `fail` breaks it from one request on, until `mend`."""

    def __init__(self):
        self.repositories, self.objects, self.requests = {}, {}, []
        self.ignored = ()  # what a .gitignore in the repositories keeps out
        self.mend()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def fail(self, n, how, route=""):
        """Let `n` more requests to the route through; the next is cut off "before" or "after" its effect, or gets a
        status for an answer, and all that follow find no server.
        """
        self._good, self._how, self._route = n, how, route

    def mend(self):
        """Answer again, and remember no request."""
        self._good, self._how, self._route = 0, None, ""
        self.requests.clear()

    def fault(self, request):
        """Remember a request and return what becomes of it."""
        with self._lock:
            self.requests.append(request)
            if self._how is None or self._route not in request:
                return None
            self._good -= 1
            if self._good >= 0:
                return None
            fault, self._route = self._how, ""
            self._how = "before" if fault == "after" else fault
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, or each answer takes 40 ms

    def log_message(self, *_):
        """Not into the tests' output."""

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(urlsplit(self.path).path)
        fault = self.hub.fault(f"{self.command} {path}")
        if fault == "before":
            answer = None
        elif isinstance(fault, int):
            answer = fault, {}, b'{"error": "out of order"}'
        else:
            answer = self._route(path.strip("/").split("/"), body)
        if fault == "after" or answer is None:
            self.close_connection = True
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _route(self, parts, body):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if parts[0] == "objects":  # the storage behind signed addresses, which takes no token
            self.hub.objects[parts[1]] = body
            return _json({})
        if token and token not in TOKENS:
            return _error(401, "", "Invalid credentials in Authorization header")
        user, role = TOKENS.get(token, ("", ""))
        if parts == ["api", "whoami-v2"]:
            answer = {"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": role}}}
            return _json(answer) if user else _error(401, "", "Invalid username or password.")
        if parts == ["api", "validate-yaml"]:
            return _json({"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body), user, role)
        return self._in_repository(parts, body, user, role)

    def _create(self, wanted, user, role):
        kind, name = wanted.get("type", "model"), f"{wanted['organization']}/{wanted['name']}"
        if role != "write" or wanted["organization"] != user:
            return _error(403, "", f"You don't have the rights to create a {kind} under {wanted['organization']}")
        known = (kind, name) in self.hub.repositories
        if not known:
            self.hub.repositories[kind, name] = Repository(wanted.get("visibility") == "private")
        prefix = "datasets/" if kind == "dataset" else ""
        return _json({"url": f"{self.hub.url}/{prefix}{name}", "id": "1"}, 409 if known else 200)

    def _in_repository(self, parts, body, user, role):
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind, parts = (parts[0][:-1], parts[1:]) if parts[0] in ("datasets", "models") else ("model", parts)
        name, route = f"{parts[0]}/{parts[1]}".removesuffix(".git"), parts[2:]
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and user != parts[0]):
            return _error(401 if not user else 404, "RepoNotFound", "Repository not found")
        if self.command in ("POST", "PUT") and route[0] != "paths-info" and (role != "write" or user != parts[0]):
            return _error(403, "", "you have no write access")
        if not route or route[0] == "revision":
            found = repository.at(route[1] if route else "main")
            return _json({"id": name, "sha": found[0], "private": repository.private, "tags": [], "siblings": []})
        if route[0] == "preupload":
            return self._preupload(repository, json.loads(body)["files"])
        if route[:2] == ["info", "lfs"]:
            return self._batch(json.loads(body)["objects"])
        if route[0] == "commit":
            return self._commit(repository, f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}", body)
        commit, files = repository.at(route[1]) or ("", None)
        if files is None:
            return _error(404, "RevisionNotFound", "Invalid rev id")
        if route[0] == "paths-info":
            return _json(_listing(files, only=_paths(body)))
        if route[0] == "tree":
            return _json(_listing(files, under="/".join(route[2:]), recursive="recursive=true" in self.path.lower()))
        return self._resolve(commit, files, "/".join(route[2:]))

    def _preupload(self, repository, asked):
        def one(file):
            content = repository.files.get(file["path"])
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            oid = content and (hashlib.sha256(content).hexdigest() if mode == "lfs" else git_hash(content))
            ignored = file["path"] in self.hub.ignored
            return {"path": file["path"], "shouldIgnore": ignored, "uploadMode": mode, "oid": oid}

        return _json({"files": [one(file) for file in asked]})

    def _batch(self, asked):
        def one(item):
            if item["oid"] in self.hub.objects:
                return item
            return item | {"actions": {"upload": {"href": f"{self.hub.url}/objects/{item['oid']}"}}}

        return _json({"transfer": "basic", "objects": [one(item) for item in asked]})

    def _commit(self, repository, address, body):
        files = dict(repository.commits[-1][1])
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        repository.commit(files)
        oid = repository.commits[-1][0]
        return _json({"success": True, "commitOid": oid, "commitUrl": f"{address}/commit/{oid}"})

    def _resolve(self, commit, files, path):
        if path not in files:
            return _error(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        content = files[path]
        oid = hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else git_hash(content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if not wanted:
            return 200, headers, content
        first, last = wanted.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last) + 1 if last else None]
        return 206, headers | {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"}, part


def _paths(body):
    """The client sends a form or JSON."""
    try:
        paths = json.loads(body)["paths"]
    except ValueError:
        from urllib.parse import parse_qs

        paths = parse_qs(body.decode())["paths"]
    return [paths] if isinstance(paths, str) else paths


def _listing(files, *, under="", recursive=True, only=None):
    """What git would list: files, and the folders they lie in."""
    folders = {"/".join(path.split("/")[:i]) for path in files for i in range(1, path.count("/") + 1)}
    entries = [{"type": "directory", "path": path, "oid": git_hash(path.encode()), "size": 0} for path in folders]
    for path, content in files.items():
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if path.endswith(LARGE):
            oid = hashlib.sha256(content).hexdigest()
            entry |= {"oid": git_hash(oid.encode()), "lfs": {"oid": oid, "size": len(content), "pointerSize": 130}}
        entries.append(entry)
    if only is not None:
        return [entry for entry in entries if entry["path"] in only]
    start = f"{under}/" if under else ""
    inside = [e for e in entries if e["path"].startswith(start)]
    return [e for e in inside if recursive or "/" not in e["path"][len(start) :]]


def _json(value, status=200):
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _error(status, code, message, **headers):
    given = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
    return status, given | headers, json.dumps({"error": message}).encode()


# the clients wait seconds between tries; a test does not
WORKER = """
import json, os, sys, time
import datasets
time.sleep = lambda seconds: None
from nbutils.files import hub, sources
from nbutils.core.errors import InputError
calls = {
    "push": lambda folder, repository: hub.push(hub.Path(folder), repository),
    "check_push": hub.check_push,
    "read": sources.read,
    "load_dataset": lambda *name: datasets.load_dataset(*name, split="train").to_list(),
}
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    name, token, *arguments = json.loads(line)
    os.environ["HF_TOKEN"] = token
    try:
        answer = ["ok", calls[name](*arguments)]
    except InputError as error:
        answer = ["refused", str(error)]
    answers.write(json.dumps(answer) + "\\n")
    answers.flush()
"""


def environment(url, home):
    """What a process needs to take the server for the Hub, with caches of its own."""
    return os.environ | {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(home),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(CHECKOUT),
        "OMP_NUM_THREADS": "1",
    }


class Client:
    """A process that uploads, checks and reads with the kit, one call after another."""

    def __init__(self, url, home):
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER], env=environment(url, home), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __call__(self, name, *arguments, token=WRITER):
        """Return ("ok", result) or ("refused", the sentence)."""
        self._process.stdin.write(json.dumps([name, token, *map(str, arguments)]) + "\n")
        self._process.stdin.flush()
        return tuple(json.loads(self._process.stdout.readline() or '["died", "the client died"]'))

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=20)
