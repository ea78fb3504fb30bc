"""What lies on the disk under a name: regular files alone are opened, and nothing is followed that leads elsewhere.

Used wherever a name from outside leads to a file or a folder. A pipe may answer never, a device without end.
"""

import fcntl
import hashlib
import io
import os
import stat
from pathlib import Path

from nbutils.core.errors import InputError, first_line, shown

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}


def opened(path: Path, *, where: str = "", follow: bool = True) -> io.BufferedReader:
    """Open a regular file for reading.

    Args:
        where: what to call the file in an error; by default its path.
        follow: a link to the file it stands for.

    Raises:
        InputError: if there is none, or it is a folder, a pipe, a socket or a device.
    """
    where = where or plain(path)
    try:
        _insist(where, Path(path).stat(follow_symlinks=follow).st_mode)
        # what takes the file's place meanwhile can neither make this wait nor pass for the file
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a name with NUL is a ValueError
        raise InputError(f"{where} cannot be read: {getattr(error, 'strerror', None) or first_line(error)}") from None
    try:
        _insist(where, os.fstat(handle).st_mode)
    except InputError:
        os.close(handle)
        raise
    return open(handle, "rb")


def _insist(where: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "of another kind")
        raise InputError(f"{where} is no regular file, it is {kind}; name a file")


def locked(path: Path) -> io.TextIOWrapper:
    """Open a file, which is made if there is none and never emptied, and hold its lock until it is closed.

    Raises:
        BlockingIOError: if another process holds it.
        OSError: if it cannot be opened, or is a link.
    """
    lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock


def plain(path: Path | str) -> str:
    """Return a path as a sentence can hold it."""
    return str(path) if str(path).isprintable() else shown(str(path))


def is_regular(path: Path) -> bool:
    """Return whether a regular file, no link, is there under this name."""
    return path.is_file() and not path.is_symlink()


def sha256(path: Path) -> str:
    """Return the hash of a regular file's content.

    Raises:
        InputError: as `opened`, and for a link.
    """
    with opened(path, follow=False) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def entries(folder: Path) -> list[str]:
    """Return the relative names of all that lies in a folder and its folders, links as they are, sorted.

    A folder is an entry itself where its content cannot be listed.
    """
    closed: list[str] = []
    found: list[str] = []
    for place, folders, names in os.walk(folder, onerror=lambda error: closed.append(str(error.filename))):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]  # noqa: PTH114, PTH118
        found += [os.path.join(place, name) for name in names + links]  # noqa: PTH118 - Path takes ten times as long
    return sorted(os.path.relpath(name, folder) for name in found + closed)
