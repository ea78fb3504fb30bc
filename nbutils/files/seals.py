"""Seals: how a session on Kaggle knows what an earlier one of the same user left, among whatever else is attached.

`make kaggle` draws a key and puts it into the private package that all its notebooks run with. A run that finds the
key seals what it leaves at once, so that one that is killed has left all but its last piece sealed: a stage folder, a
checkpoint or a shard `x` by a file `x.seal` beside it, a reply by a column of its row (`store`). `mounts` and
`Store.take` accept nothing else from an input that the user did not name. Without a key nothing is sealed.
"""

import hashlib
import hmac
import json
import os
import re
from pathlib import Path
from typing import Any

from nbutils.core.errors import writing
from nbutils.files import disk
from nbutils.files.documents import read_text

KEY_FILE = Path(__file__).resolve().parents[2] / "kaggle.key"  # beside the package's folder
ENDING = ".seal"
LARGEST = 2**22  # bytes of a seal that is read: that of some 40,000 files


def key() -> bytes:
    """Return the user's key, or nothing where the package came without one."""
    return read_key(KEY_FILE)


def read_key(path: Path) -> bytes:
    """Return the key in a file, or nothing if there is none."""
    text = path.read_text(encoding="ascii", errors="replace").strip() if path.is_file() else ""
    return text.encode() if re.fullmatch(r"[0-9a-f]{64}", text) else b""


def mac(secret: bytes, content: Any) -> str:
    """Return a code for JSON-like content that only who has the secret can make; empty without one."""
    return hmac.new(secret, json.dumps(content).encode(), hashlib.sha256).hexdigest() if secret else ""


def same(one: str, other: object) -> bool:
    """Compare two codes; an empty one equals none."""
    return bool(one) and isinstance(other, str) and hmac.compare_digest(one.encode(), other.encode("utf-8", "replace"))


def seal(path: Path) -> None:
    """Write a file's or folder's seal beside it, if there is a key.

    Raises:
        InputError: if there is no room for it.
    """
    if not (secret := key()):
        return
    content = _content(path)
    text = json.dumps({"files": content, "mac": mac(secret, [_name(path), content])})
    draft = path.with_name(f"{path.name}{ENDING}.tmp")
    with writing(path.parent):
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path.with_name(path.name + ENDING))


def is_sealed(path: Path, *, whole: bool = True) -> bool:
    """Return whether a run with this key left a file or folder just as it is.

    Args:
        whole: look at the content too, not at the seal alone.
    """
    mark = path.with_name(path.name + ENDING)
    try:
        if not (secret := key()) or mark.is_symlink():
            return False
        said = json.loads(read_text(mark, limit=LARGEST))
        if not same(mac(secret, [_name(path), said["files"]]), said["mac"]):
            return False
        return not whole or bool(_content(path) == said["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not of ours, or not readable
        return False


def _content(path: Path) -> dict[str, str]:
    """Return name -> hash of each file.

    Raises:
        InputError: if anything there is a link, a pipe or a device.
    """
    names = disk.entries(path) if path.is_dir() and not path.is_symlink() else ["."]
    return {name: disk.sha256(path / name) for name in names}


def _name(path: Path) -> str:
    """A seal holds for a name in a folder of a name: another training's checkpoint cannot stand in for this one's."""
    return f"{path.absolute().parent.name}/{path.name}"
