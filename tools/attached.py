"""The package as an input of a notebook on Kaggle: is it the one that this notebook was written with?

`make kaggle` writes this text into a cell of its notebooks, before there is a package to import it from. The name says
where to look and the hash what must lie there: whatever else is attached, none of its code is installed or run.
"""

import hashlib
import os
from pathlib import Path


def digest(folder: Path) -> str:
    """Return a hash of the names and contents of all files in a folder; empty if anything in it is a link.

    Kaggle's client keeps the dataset's metadata to itself, so they do not count.
    """
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            return ""
        if path.is_file() and path.name != "dataset-metadata.json":
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            whole.update(f"{content} {path.relative_to(folder).as_posix()!r}\n".encode())
    return whole.hexdigest()


def attached(dataset: str, sha256: str) -> str:
    """Return where a dataset `owner/name` with this hash is attached, in the new or the old layout of inputs."""
    mounts = Path(os.environ.get("NBUTILS_MOUNTS", "/kaggle/input"))
    for place in (mounts / "datasets" / dataset, mounts / dataset.rpartition("/")[2]):
        if place.is_dir() and digest(place) == sha256:
            return str(place)
    raise ModuleNotFoundError(
        f"the package this notebook was written with is not attached: add the dataset {dataset} in the version that "
        "the same `make kaggle` wrote, or send both again"
    )
