"""Reading rows from wherever they are: a stage folder, a local file or a dataset on the Hub.

Used by all four notebooks. A dataset is named by
    a stage (`02_sample`): this run's folder, else the newest one that may be taken from attached inputs (`mounts`),
    a folder written by a stage, downloaded from the Hub or saved with `save_to_disk`,
    a file (.jsonl, .json, .csv, .parquet),
    or a Hub id, optionally with a revision, a configuration and a split: `org/name#revision:config@train[-300:]`.
Local folders are read file by file: `load_dataset` caches them by name and time, which would mix up two runs.
"""

import hashlib
import itertools
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, ReadInstruction, load_dataset
from huggingface_hub import get_token

from nbutils.core.errors import InputError, shown
from nbutils.core.records import PAIRS, Row, check, complete, dataset
from nbutils.files import documents, folders, hub, identity, mounts, tables, unpacked

log = logging.getLogger(__name__)

FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")
PACKED = tuple(f".{text}{ending}" for text in tables.TEXTS for ending in unpacked.ENDINGS)
# the folder that holds notebooks/ and params/ when the package is used from a checkout
CHECKOUT = Path(__file__).resolve().parents[2]


def find(name: str, *, run_dir: Path | None = None) -> Path | None:
    """Return the local file or folder a name stands for, or None if it can only be a Hub id.

    A relative path is looked up in the working folder, then in the checkout; a bare stage name in the run folder first
    and among attached inputs last.

    Raises:
        InputError: if it lies in an attached input and is a link or holds one.
    """
    places = [Path(name), CHECKOUT / name]
    if run_dir is not None and "/" not in name:
        places.insert(0, run_dir / name)
    found = next(filter(_exists, places), None)
    if found is not None:
        mounts.refuse_links(found.absolute())
    elif mounts.STAGE.fullmatch(name):
        found = _attached_stage(name)
    return found.resolve() if found else None


def located(name: str) -> str:
    """Return the path of what `find` finds for the name of a model or an adapter, else the name itself, a Hub id."""
    path = find(name) if name else None
    return name if path is None or _exists(Path(name)) else str(path)


def _attached_stage(name: str) -> Path | None:
    """Return the folder of a stage in an input: of an old and a new output the one that was written last."""
    marks = [mark for folder in mounts.taken(name) if (mark := folder / "params.json").is_file()]
    if not marks:
        return None
    *others, newest = (p.parent for p in sorted(marks, key=lambda p: (p.stat().st_mtime, p)))
    if others and name not in _told:
        _told.add(name)
        log.warning(
            "%d inputs hold %s: taking %s, which was written last, and not %s; to choose yourself, detach the others "
            "or name the folder",
            len(marks), name, newest, ", ".join(map(str, reversed(others))),
        )  # fmt: skip
    return newest


_told: set[str] = set()  # the stages for which that has been said


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a file's name may be, in a folder that is closed to us, with a NUL
        return False


def read_named(name: str, folder: Traversable, suffix: str, what: str) -> str | None:
    """Return the text of a file that comes with the package under this name, or else of a path; None if neither is.

    Args:
        what: the file is, for the error.

    Raises:
        InputError: if a path's file is not UTF-8, or otherwise no text.
    """
    packaged, path = folder / f"{name}{suffix}", find(name)
    if f"{name}{suffix}" in (p.name for p in folder.iterdir()):
        return packaged.read_text(encoding="utf-8")
    return None if path is None or path.is_dir() else documents.read_text(path, where=f"{what} {name}")


def label(name: str) -> str:
    """Return a short name for a dataset that can stand in a file name: a file's stem, a Hub id without its owner.

    A name without a Latin letter or digit gets one from its hash.

    >>> label("params/held-out.v2.jsonl"), label("org/prompts-3.1:it@train[-300:]")
    ('held-out-v2', 'prompts-3-1-it-train-300')
    """
    last = name.rstrip("/").rpartition("/")[2]
    ending = next((kind for kind in (*FILE_TYPES, *PACKED) if last.endswith(kind)), "")
    stem = last.removesuffix(ending)
    short = re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-")[:80]
    return short or f"set-{hashlib.sha256(stem.encode('utf-8', 'replace')).hexdigest()[:8]}"


def read(
    name: str, config: str = "", *, run_dir: Path | None = None, split: str = "train", limit: int = 0
) -> list[Row]:
    """Return the rows of a dataset as plain dicts.

    Args:
        config: which dataset of a stage folder, e.g. "pairs".
        split: of a folder, or of a Hub dataset that names none itself.
        limit: first rows to return; 0 means all.

    Raises:
        InputError: if nothing is found under the name, or there is not a single row.
    """
    path = find(name, run_dir=run_dir)
    if path is None:
        found: Iterable[Row] = _from_hub(name, split)
    elif path.is_dir():
        found = _from_folder(path, config, split)
    elif path.name.endswith(PACKED):
        found = tables.rows(path)
    elif (kind := next((p.suffix for p in (Path(name), path) if p.suffix in FILE_TYPES), "")) or not path.is_file():
        found = tables.rows(path, kind[1:])  # a name in the Hub's cache is a link to a file without ending
    else:
        raise InputError(
            f"{name}: cannot read {Path(name).suffix or 'a file without ending'}, expected {', '.join(FILE_TYPES)}; "
            "the first three may be packed"
        )
    rows = list(itertools.islice(found, limit or None))
    if not rows:
        hint = "; see the drop report of the stage that wrote it" if path is not None and path.is_dir() else ""
        raise InputError(f"{name} holds no rows{f' in {config!r}' if config else ''}{hint}")
    return rows


def read_checked(name: str, config: str, features: Features, *, run_dir: Path) -> list[Row]:
    """Read a stage's dataset and check every row against its schema.

    Raises:
        InputError: naming column and row id of the first fault.
    """
    rows = [complete(row, features) for row in read(name, config, run_dir=run_dir)]
    for row in rows:
        try:
            check(row, features)
        except InputError as error:
            raise InputError(
                f"{name}/{config}: {error}; if another version of the kit wrote it, run that stage again with this one"
            ) from None
    return rows


def read_pairs(names: Mapping[str, str], *, run_dir: Path) -> dict[str, list[Row]]:
    """Return the checked `pairs` of each named stage, folder or Hub id; none where the name is empty.

    Raises:
        InputError: as `read_checked`.
    """
    return {kind: read_checked(name, "pairs", PAIRS, run_dir=run_dir) if name else [] for kind, name in names.items()}


def judged_prompts(names: Iterable[str], *, run_dir: Path) -> list[Row]:
    """Return the prompts of everything that the named stages judged, also of what became no pair.

    Of names that are no folder of such a stage there are none: the pairs alone are known then.
    """
    result: list[Row] = []
    wanted = {"prompt_id", "prompt"}
    for path in (find(name, run_dir=run_dir) for name in names if name):
        with suppress(InputError):  # no such dataset
            parts = folders.splits(path, "judged").get("train", []) if path and path.is_dir() else []
            whole = (row for row in tables.all_rows(parts) if row.keys() >= wanted)
            result += ({key: row[key] for key in wanted} for row in whole)
    return result


def write_pairs(path: Path, rows: Sequence[Row]) -> None:
    """Write pairs to a parquet file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as stream:  # given a name, the library would take some characters in it for a pattern
        dataset(rows, PAIRS).to_parquet(stream)
    os.replace(draft, path)


def fingerprint(name: str, kind: str = "dataset", *, run_dir: Path | None = None) -> str:
    """Return a text that changes with the content of an input: of a file or folder, or with a Hub id's commit.

    Args:
        kind: `dataset`, `model` or `file`, which says where on the Hub to ask, if it is there.
    """
    if name.startswith(identity.PACKAGE):
        return identity.of_package(name)
    path = find(name, run_dir=run_dir)
    if path is None:
        return name if kind == "file" else identity.of_hub(name, kind=kind)
    return identity.of_folder(path, aside=folders.measured(path)) if path.is_dir() else identity.of_file(path)


def _from_folder(path: Path, config: str, split: str) -> Iterable[Row]:
    """Return the rows of one split of a folder, or of a part of it such as `train[:10%]`."""
    there = folders.splits(path, config)
    there = {split: there[folders.ANY]} if folders.ANY in there and split.isidentifier() else there
    if split in there:
        return tables.all_rows(there[split])
    names = [name for name in there if re.search(rf"(?:^|\+)\s*{re.escape(name)}\s*(?:\[|\+|$)", split)]
    if folders.ANY in there:
        names, there = ["train"], {"train": there[folders.ANY]}
    whole = {name: list(tables.all_rows(there[name])) for name in names}
    try:
        wanted = ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in whole.items()})
    except (ValueError, AssertionError, KeyError):
        raise InputError(f"{path} has no split {shown(split)} (it has: {', '.join(there)})") from None
    return itertools.chain.from_iterable(whole[w.splitname][w.from_ : w.to] for w in wanted)


def _from_hub(name: str, split: str) -> Dataset:
    repository, revision, config, own_split = identity.hub_name(name)
    split = own_split or split
    if (
        repository.count("/") > 1
        or repository.startswith((".", "/", "~"))
        or repository.endswith((*FILE_TYPES, *PACKED))
    ):
        raise InputError(f"there is no file or folder {name}; check the path (relative to {Path.cwd()})")
    if "/" not in repository:
        elsewhere = mounts.untaken(name) if mounts.STAGE.fullmatch(name) else ""
        raise InputError(
            f"there is no stage, file or folder {name!r}; run the stage before, or name a Hub dataset"
            f"{elsewhere and f' ({elsewhere})'}"
        )
    try:
        dataset: Any = load_dataset(repository, config or None, split=split, revision=revision or None)
    except Exception as error:  # the Hub client raises many kinds, all of them mean the dataset is not to be had
        raise InputError(
            f"dataset {name!r} (split {split!r}) cannot be loaded: {hub.reason(error)}; check name, split, network "
            f"and, for a private one, the token in HF_TOKEN{'' if get_token() else ', which is not set'}"
        ) from None
    return dataset
