"""Which files of a folder hold a dataset: a stage's, one downloaded from the Hub, one saved with `save_to_disk`.

Used by `sources`. A card is a stranger's: what it names lies in the folder itself, behind no link. The one exception is
the Hub's own cache, where a snapshot's files are links to the `blobs` beside it.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.utils import glob_translate  # type: ignore[import-untyped]

from nbutils.core.errors import InputError, shown
from nbutils.files import disk, documents, identity, owned, tables, unpacked

log = logging.getLogger(__name__)

# of several kinds in a folder without a card the first is taken
TYPES = (".parquet", ".jsonl", ".csv", ".json", *(f".{t}{e}" for t in tables.TEXTS for e in unpacked.ENDINGS))
ANY = "*"  # the split of a dataset that has none
# JSON that describes a folder, where others hold the data
_ABOUT = {"dataset_info.json", "dataset_infos.json", "params.json", "metrics.json", "run.json", owned.NAME}
_SHARD = re.compile(r"(?:^|.*/)([\w.]+)-\d{5}-of-\d{5}[^/]*")
_WORDS = re.compile(
    r"(?:^|[^a-z])(?:(train(?:ing)?)|(valid(?:ation)?|val|dev)|(test(?:ing)?|eval(?:uation)?))(?=[^a-z]|$)",
    re.IGNORECASE,
)
_NAMES = ("train", "validation", "test")
Configs = dict[str, list[tuple[str, str]]]  # configuration -> split and pattern


def splits(folder: Path, config: str) -> dict[str, list[Path]]:
    """Return split -> its files, each checked to lie in the folder.

    Args:
        config: which of the card's configurations; empty for the default one.

    Raises:
        InputError: if there is no such configuration, or it names what lies elsewhere or is not there.
    """
    if saved := _saved(folder):
        return {split: [inside(folder, name) for name in names] for split, names in saved.items()}
    configs = _configs(folder)
    if configs:
        listing = disk.entries(folder)
        found = dict[str, list[Path]]()
        for split, pattern in configs[_chosen(folder, configs, config)]:
            found.setdefault(split, []).extend(inside(folder, n) for n in _matching(folder, config, listing, pattern))
        return found
    listing = _visible(folder)
    if names := _by_name(folder, config, listing):
        return {split: [inside(folder, name) for name in part] for split, part in names.items()}
    if listing and not config:
        raise InputError(
            f"{folder} holds no data that can be read: it has {owned.some(listing)}; expected files that end in "
            f"{', '.join(TYPES[: len(tables.TEXTS) + 1])}, the last three also packed ({', '.join(unpacked.ENDINGS)})"
        )
    about = [name for name in disk.entries(folder) if name.endswith(TYPES) and not _is_hidden(name)]
    if about and not config:
        raise InputError(
            f"{folder} holds no data beside what describes a folder: {owned.some(about)}; if that is the data, name "
            f"the file, as in {disk.plain(folder / about[0])}"
        )
    raise InputError(f"{folder} is no stage folder with a dataset {config!r} (it has: none); run that stage first")


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file that lies in a folder itself, or is its content in the Hub's cache.

    Raises:
        InputError: if it lies elsewhere, is behind a link, is not there, no regular file or one that fingerprints pass
            over.
    """
    if _is_aside(folder, name):
        raise InputError(
            f"{folder}: {shown(name)} is no place for data: a change of it would not be seen; move the file, and name "
            "its new place"
        )
    path, root = folder / name, folder.resolve()
    try:
        real = path.resolve()
    except (OSError, ValueError, RuntimeError):
        real = Path()
    cached = root.parent.name == "snapshots" and real.parent == root.parent.parent / "blobs"
    if not (real.is_relative_to(root) and real == root / name) and not (cached and path.is_symlink()):
        raise InputError(
            f"{folder} leads out of itself: {shown(name)} is a link or a path to another place; copy what is meant "
            "into the folder, or name it itself"
        )
    if not real.exists():
        raise InputError(
            f"{path} cannot be read as {path.suffix[1:]}: it is not there; if the stage was written anew meanwhile, "
            "run the same cell again, else copy the folder again"
        )
    disk.opened(real, where=str(path), follow=False).close()
    return path


def measured(folder: Path) -> tuple[str, ...]:
    """Return patterns of what a stage measured, its hours for instance, if it wrote the folder.

    That is no data and no input of the next stage. In another's folder files of these names are like any other.
    """
    return ("metrics.json", "figures/*.png") if "metrics.json" in (owned.listed(folder) or {}) else ()


def _is_aside(folder: Path, name: str) -> bool:
    """Tell whether a fingerprint of the folder (`sources.fingerprint`) passes over a file: its rows could change."""
    plain = PurePosixPath(name)
    aside = identity.ASIDE + (measured(folder) if plain.suffix in {".json", ".png"} else ())
    return any(fnmatch(plain.as_posix(), pattern) or fnmatch(plain.name, pattern) for pattern in aside)


def _is_about(folder: Path, name: str) -> bool:
    """Tell whether a file describes the folder, by its name, or may change unseen."""
    return name.rpartition("/")[2] in _ABOUT or _is_aside(folder, name)


def _saved(folder: Path) -> dict[str, list[str]]:
    """Return split -> files of what `save_to_disk` wrote; nothing if it did not."""
    if (folder / "dataset_dict.json").is_file():
        names = _json(folder, "dataset_dict.json", "splits")
        return {name: [f"{name}/{part}" for part in _state(folder, f"{name}/state.json")] for name in names}
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return {ANY: _state(folder, "state.json")}
    return {}


def _state(folder: Path, name: str) -> list[str]:
    parts = [part.get("filename") if isinstance(part, dict) else None for part in _json(folder, name, "_data_files")]
    if not all(isinstance(part, str) for part in parts):
        raise InputError(f"{folder / name} was not written by save_to_disk: its _data_files name no files")
    return [str(part) for part in parts]


def _json(folder: Path, name: str, key: str) -> list[Any]:
    content = documents.read_json(inside(folder, name))
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise InputError(f"{folder / name} was not written by save_to_disk: it has no list {key!r}")
    return list(content[key])


def _configs(folder: Path) -> Configs:
    """Return the configurations of a folder's card, the default one first; none where it has no card, or none in it."""
    if not (folder / "README.md").is_file():
        return {}
    card = inside(folder, "README.md")
    head = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", documents.read_text(card), re.DOTALL)
    try:
        content = documents.parse_yaml(head[1], str(card)) if head else None
    except InputError as error:
        log.warning("%s; its configurations are not known", error)
        return {}
    given = content.get("configs") if isinstance(content, dict) else None
    if not isinstance(given, list) or not all(isinstance(c, Mapping) for c in given):
        return {}
    given = sorted(given, key=lambda c: not (c.get("default") or c.get("config_name") == "default"))
    found = {str(c.get("config_name", "default")): list(_patterns(c)) for c in given}
    return {name: patterns for name, patterns in found.items() if patterns}


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield split and pattern of every file a configuration names, in all the ways of writing that the Hub takes."""
    given = config.get("data_files")
    under = f"{str(config['data_dir']).strip('/')}/" if isinstance(config.get("data_dir"), str) else ""
    if given is None and under:
        yield "", f"{under}**"
    parts = given.items() if isinstance(given, Mapping) else [("train", given)]
    for split, value in parts:
        for part in value if isinstance(value, list) else [value]:
            named = part if isinstance(part, Mapping) else {"split": split, "path": part}
            paths = named.get("path")
            for path in paths if isinstance(paths, list) else [paths]:
                if isinstance(path, str):
                    yield str(named.get("split", "train")), under + path


def _chosen(folder: Path, configs: Configs, config: str) -> str:
    if config in configs:
        return config
    if config:
        has = ", ".join(configs)
        raise InputError(f"{folder} is no stage folder with a dataset {config!r} (it has: {has}); run that stage first")
    first, *others = configs
    if others:
        log.info("%s holds %s: reading %s", folder, ", ".join(configs), first)
    return first


def _matching(folder: Path, config: str, listing: list[str], pattern: str) -> list[str]:
    """Return the names that a card's pattern stands for, sorted; a name that is no pattern is taken as it is."""
    if pattern.startswith(("/", "~")) or ".." in pattern.split("/") or "::" in pattern or "://" in pattern:
        raise InputError(
            f"{folder} leads out of itself: its card names {shown(pattern)}; copy what is meant into the folder, or "
            "name it itself"
        )
    pattern = pattern.removeprefix("./")
    if pattern in listing or not re.search(r"[*?\[]", pattern):
        return [pattern]
    if len(pattern) > 300 or len(re.findall(r"\*+", pattern)) > 6:
        raise InputError(f"{folder}: its card names {shown(pattern)}, a pattern with too many wildcards")
    form = re.compile(glob_translate(pattern))
    if found := [name for name in listing if name.endswith((*TYPES, ".arrow")) and form.match(name)]:
        # a star stands for no file that describes the folder or may change unseen; one that is alone is meant
        return _told(folder, found) or found
    raise InputError(
        f"{folder} is no stage folder with a dataset {config!r}: its card names {pattern}, and no file that can be "
        "read is named so; copy the folder again"
    )


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__")) for part in name.split("/"))


def _told(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the names of those that do not describe the folder, and tell which do, where they could be data."""
    plain = [name for name in names if not _is_about(folder, name)]
    left = [n for n in set(names) - set(plain) if n.endswith(TYPES) and not _is_hidden(n) and "dataset_info" not in n]
    if plain and left:
        log.warning("%s: not read, since by their names they describe the folder: %s", folder, owned.some(left))
    return plain


def _visible(folder: Path) -> list[str]:
    """Return the names in a folder that may be those of data: neither hidden nor about the folder."""
    plain = _told(folder, [name for name in disk.entries(folder) if not _is_hidden(name)])
    return [name for name in plain if not re.match(r"(?i)(readme|licen[cs]e)(\.|$)", name.rpartition("/")[2])]


def _by_name(folder: Path, config: str, listing: Sequence[str]) -> dict[str, list[str]]:
    """Return split -> files of a folder without a card, by the names that people give them."""
    listing = [n for n in listing if n.endswith(TYPES)]
    kind = next((t for t in TYPES if any(n.endswith(t) for n in listing)), "")
    named = [n for n in listing if n.endswith(kind)]
    if config and any(n.startswith(f"{config}/") for n in named):
        named = [n for n in named if n.startswith(f"{config}/")]
    found = dict[str, list[str]]()
    for name in named:
        found.setdefault(_split_of(name), []).append(name)
    if "" in found:
        rest = found.pop("")
        if found:
            log.warning("%s: %d files whose names tell no split are not read: %s", folder, len(rest), owned.some(rest))
        else:
            found["train"] = rest
    return found


def _split_of(name: str) -> str:
    if shard := _SHARD.fullmatch(name):
        return shard[1]
    folders, _, last = name.rpartition("/")
    for text in (last, folders):
        if words := _WORDS.search(text):
            return next(split for split, word in zip(_NAMES, words.groups(), strict=True) if word)
    return ""
