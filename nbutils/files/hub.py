"""Uploading a stage folder to the Hub: private, in one commit, and read back before it is called uploaded.

Only what the stage wrote is sent, by its manifest: regular files whose content is still the same.
Used by `notebook`, which checks the token when a stage opens, by the last cells of all four notebooks, and by `sources`
for what a failed request means. A folder with an adapter becomes a model repository, any other a dataset repository.
A run has data files of other names than the run before, so what an earlier run left is deleted in the same commit, or
there would be two versions of a configuration; a file that no stage writes stays.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from socket import gaierror
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, get_session, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from pyarrow import parquet

from nbutils.core import secrets
from nbutils.core.errors import InputError, first_line
from nbutils.files import disk, owned

TIMEOUT = 120  # seconds until a request without an answer has failed; the client itself would wait for ever
DATA = re.compile(r"([^/]+)/train-[0-9a-f]{12}\.parquet")  # as `stage` names a configuration's rows
MARK = "run.json"  # of `nbutils.run`, for this machine
FIGURES = re.compile(r"figures/[^/]+\.png")
# what an earlier run may have left at the top of a model repository and what would be loaded instead of this run's
WEIGHTS = re.compile(r"[^/]*\.safetensors(\.index\.json)?|adapter_config\.json|config\.json|merged/.*")
STATUS = {
    401: "the Hub does not accept the token in HF_TOKEN",
    403: "the token in HF_TOKEN may not do that",
    404: "there is no such repository, or the token in HF_TOKEN may not see it",
    413: "a file is too large for the Hub",
    429: "the Hub has had too many requests, wait some minutes",
}


def push(folder: Path, repository: str) -> str:
    """Upload a stage folder and return what the Hub then has: address, visibility, files and rows per configuration.

    A repository that does not exist is created private; one that exists keeps its visibility. Repeating an interrupted
    upload sends what is missing. The token comes from HF_TOKEN.

    Raises:
        InputError: if a request failed, or the Hub has something else than the folder.
    """
    kind = "model" if (folder / "adapter").is_dir() else "dataset"
    try:
        get_session().timeout = TIMEOUT
        files = _local(folder, kind)
        api = HfApi()
        address = api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
        there = _remote(api, repository, kind)
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(name) for name in there if name not in files and _ours(name, kind)
        ]
        changes += [CommitOperationAdd(name, path) for name, path in files.items() if not _same(path, there.get(name))]
        if changes:
            api.create_commit(repository, changes, commit_message=folder.name, repo_type=kind)
        info = api.repo_info(repository, repo_type=kind)
        rows = _check(api, repository, kind, str(info.sha), files)
    except InputError:
        raise
    except Exception as error:  # the client raises many kinds, also ValueError and RuntimeError, for a failed request
        raise InputError(
            f"push_to_hub: {folder} could not be uploaded to {repository}: {reason(error)}; the folder is whole on "
            "disk, so run this cell again and it sends what is missing"
        ) from None
    counts = "".join(f", {n} rows in {name}" for name, n in rows.items())
    others = len(set(disk.entries(folder)) - {*(owned.listed(folder) or ()), owned.NAME, MARK})
    left = f"; not sent: {others} files there that the stage did not write" if others else ""
    return f"uploaded to {address} ({'private' if info.private else 'public'}): {len(files)} files{counts}{left}"


def check_push(repository: str) -> None:
    """Raise InputError now, not after hours of work, if the upload at the end would fail; an empty name is no upload.

    Asks the Hub once who the token belongs to; a stage that is to be uploaded does not start without network.
    """
    if not repository:
        return
    try:
        validate_repo_id(repository)
        owner, _ = repository.split("/")
    except (HFValidationError, ValueError):
        raise InputError(f"push_to_hub: expected 'user/name', got {repository!r}") from None
    if not get_token():
        raise InputError(
            "push_to_hub: HF_TOKEN is not set; set it in the environment (on Kaggle: attach it as a secret)"
        )
    try:
        get_session().timeout = TIMEOUT
        me = HfApi().whoami()
    except Exception as error:
        raise InputError(
            f"push_to_hub: the token in HF_TOKEN could not be checked: {reason(error)}; mend that, or leave "
            "push_to_hub empty"
        ) from None
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise InputError("push_to_hub: the token in HF_TOKEN may only read; create one that may write")
    names = [me["name"], *(org["name"] for org in me.get("orgs", []))]
    if owner not in names and role == "write":  # a fine-grained token need not list what it may write to
        raise InputError(
            f"push_to_hub: the token in HF_TOKEN belongs to {names[0]}, who cannot write to {repository}; expected one "
            f"of {', '.join(names)} before the slash"
        )


def reason(error: BaseException) -> str:
    """Return in a few words why a request to the Hub failed, without token and without signed addresses."""
    chain = [error]
    while (link := chain[-1].__cause__ or chain[-1].__context__) is not None and link not in chain:
        chain.append(link)
    secrets.register(get_token() or "")
    text = next(filter(None, map(_words, chain)), "") or first_line(error)
    return secrets.masked(text.rstrip("."))


def _words(error: BaseException) -> str:
    """Return what an answer or a broken connection means; nothing for what only passes it on."""
    if isinstance(error, HfHubHTTPError) and not isinstance(error, EntryNotFoundError):
        status = error.response.status_code
        known = STATUS.get(status, "the Hub is out of order" if status >= 500 else "the Hub refuses")
        if status == 401 and not get_token():
            known = "there is no such repository, or it is private and HF_TOKEN is not set"
        said = (error.server_message or "").strip()
        return f"{known} (HTTP {status}{f': {first_line(said)}' if said else ''})"
    broken = isinstance(error, ConnectionError | TimeoutError | gaierror)
    if broken or type(error).__module__.startswith("http"):  # httpx or httpcore, whichever the client is built on
        return f"no connection to the Hub ({first_line(error)})"
    return "the Hub's answer cannot be read" if isinstance(error, json.JSONDecodeError) else ""


def _local(folder: Path, kind: str) -> dict[str, Path]:
    """Return name in the repository -> file; of 04 the adapter at the top, with the merged weights and the figures.

    Raises:
        InputError: naming a file that is not as the stage wrote it: whoever changed it may not mean it for the public.
    """
    listed = owned.listed(folder)
    if listed is None:
        raise InputError(
            f"push_to_hub: {folder} has no {owned.NAME} of a stage, which says what is to be sent; run the notebook's "
            "last cells again"
        )
    names = {name: name for name in sorted(listed) if name != MARK}
    if kind == "model":
        wanted = re.compile(r"adapter/(.+)|((?:merged|figures)/.+|metrics\.json)")
        names = {found[1] or found[2]: name for name in names if (found := wanted.fullmatch(name))}
    if wrong := [name for name in names.values() if not _as_listed(folder.resolve(), name, listed[name])]:
        raise InputError(
            f"push_to_hub: {folder} is not as the stage wrote it: {owned.some(wrong)}; put that right, or run the "
            "notebook's last cells again, which keep what was changed beside the new files"
        )
    return {there: folder / name for there, name in names.items()}


def _as_listed(folder: Path, name: str, value: str) -> bool:
    """Return whether a file lies in the folder itself, behind no link, with the content that the manifest lists."""
    path = (folder / name).resolve()
    return path.is_relative_to(folder) and path == folder / name and owned.unchanged(path, value)


def _remote(api: HfApi, repository: str, kind: str, revision: str | None = None) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repository, recursive=True, repo_type=kind, revision=revision)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _ours(name: str, kind: str) -> bool:
    """Return whether a file on the Hub was left by an earlier run, by its name."""
    kinds = (FIGURES, DATA if kind == "dataset" else WEIGHTS)
    return any(pattern.fullmatch(name) for pattern in kinds)


def _same(path: Path, remote: RepoFile | None) -> bool:
    if remote is None or remote.size != path.stat().st_size:
        return False
    if remote.lfs:
        with path.open("rb") as stream:
            return remote.lfs.sha256 == hashlib.file_digest(stream, "sha256").hexdigest()
    content = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return remote.blob_id == git.hexdigest()


def _check(api: HfApi, repository: str, kind: str, revision: str, files: Mapping[str, Path]) -> dict[str, int]:
    """Compare every file by size and hash with the Hub's, and rows with the footers there; return the rows.

    Raises:
        InputError: naming what differs.
    """
    there = _remote(api, repository, kind, revision)
    wrong = [name for name, path in files.items() if not _same(path, there.get(name))]
    wrong += [name for name in there if name not in files and _ours(name, kind)]
    hub, rows = HfFileSystem(skip_instance_cache=True), dict[str, int]()
    for name, path in files.items():
        if name in wrong or not (found := DATA.fullmatch(name)):
            continue
        with hub.open(f"datasets/{repository}@{revision}/{name}") as stream:
            rows[found[1]] = _rows(stream)
        if rows[found[1]] != _rows(path):
            wrong.append(name)
    if wrong:
        raise InputError(
            f"push_to_hub: {repository} does not hold what was uploaded, {', '.join(wrong[:5])} differ; see whether "
            "somebody else writes there or its .gitignore keeps files out, and run this cell again"
        )
    return rows


def _rows(source: Any) -> int:
    return int(parquet.read_metadata(source).num_rows)
