"""The folder of a model or an adapter: found or fetched, and looked at before a library reads it.

A Hub repository is fetched at one commit into the Hub's own cache: configuration and tokenizer when it is named,
weights when they are loaded, code never. So whatever loads it is given a folder that cannot change meanwhile. What lies
in a folder may be anybody's: sizes, links and numbers are looked at here by plain rules, since the libraries believe
them.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE

from nbutils.core.errors import InputError, first_line, shown
from nbutils.files import disk, documents, identity, sources

MIB = 2**20
# files that change no answer: cards, what a training leaves beside its weights, pictures
ASIDE = (
    "*.md", ".gitattributes", ".gitignore", "LICENSE*", "*.png", "*.jpg", "training_args.bin", "trainer_state.json",
    "optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "*.lock", "checkpoint-*/*",
)  # fmt: skip
SMALL = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]  # of a repository: all but its weights
NESTED = ["*/*.json", "*/*.txt", "*/*.model", "*/*.tiktoken"]  # other formats of the same; templates may lie deeper
MODEL, ADAPTER = "model.safetensors", "adapter_model.safetensors"
INDEX = f"{MODEL}.index.json"
CONFIG, LORA = "config.json", "adapter_config.json"
# Largest sizes in bytes. The largest tokenizers have 35 MiB, the longest templates 30 KiB.
LIMITS = {"*config.json": 4 * MIB, "*.index.json": 16 * MIB, "*.jinja": MIB, "*.json": 96 * MIB, "*.txt": 96 * MIB,
          "*.model": 96 * MIB, "*.tiktoken": 96 * MIB}  # fmt: skip
HEADER = 16 * MIB  # of a file of weights: some hundred bytes for each tensor
# Numbers in a configuration by what their names speak of, the first that fits, and the largest that may stand there.
NUMBERS = {
    r"size|dim|embd|inner|d_model|d_ff|width|rank": 2**24,
    r"layer|block|expert|head|stage|depth": 2048,
    r"label|beam|group": 2**17,
    r"position|ctx|length|window": 2**27,
}


def folder(name: str, what: str = "model") -> Path:
    """Return the folder that a name stands for, a Hub repository's fetched without its weights, after a look into it.

    Args:
        what: it is, `model` or `adapter`, for errors.

    Raises:
        InputError: if there is none, or it holds what no such folder should.
    """
    path = Path(sources.located(name))
    if not path.is_dir():
        path = _fetched(name, what)
    _check(path, what)
    return path


def _fetched(name: str, what: str) -> Path:
    parts = identity.hub_name(name)
    if parts.config or parts.split:
        raise InputError(f"{what}: {shown(name)} is no name of a {what}; a revision is written org/name#revision")
    try:
        return Path(snapshot_download(parts.repository, revision=parts.revision or None,
                                      allow_patterns=SMALL, ignore_patterns=NESTED))  # fmt: skip
    except Exception as error:  # the Hub's client raises many kinds, and all of them mean that it is not to be had
        raise _not_to_be_had(name, what, error) from None


def _not_to_be_had(name: str, what: str, error: Exception) -> InputError:
    return InputError(
        f"{what} {name!r} cannot be loaded ({first_line(error)}); check the name, the network and, for a gated "
        f"{what}, the token in HF_TOKEN"
    )


def pinned(path: Path) -> identity.HubName | None:
    """Return repository and commit of a folder in the Hub's cache; None for any other folder."""
    repository = path.parent.parent
    if not (identity.COMMIT.fullmatch(path.name) and path.parent.name == "snapshots"):
        return None
    if repository.parent.resolve() != Path(HF_HUB_CACHE).resolve():
        return None
    return identity.HubName(repository.name.removeprefix("models--").replace("--", "/"), path.name)


def digest(path: Path) -> str:
    """Return what tells a folder from all others: the commit of a Hub repository, else a hash of its files' content.

    Raises:
        InputError: if there is no file to tell it by.
    """
    found = pinned(path)
    return found.revision if found else identity.of_folder(path, aside=ASIDE)


def plain(name: str) -> str:
    """Return a model's name without its revision, which the digest tells more exactly."""
    if name.startswith(identity.PACKAGE):
        return name.partition("#")[0]
    return name if sources.find(name) or "#" not in name else identity.hub_name(name).repository


def portable(name: str) -> tuple[str, str | None]:
    """Return the name of a base model for others, and its commit: of a folder in this machine's cache its Hub id."""
    found = pinned(Path(name))
    return (found.repository, found.revision) if found else (name, None)


def with_weights(path: Path, single: str = MODEL) -> list[Path]:
    """Return the files of a folder's weights; what is missing of a Hub repository is fetched.

    Args:
        single: name of the file that holds all, where there is no index.

    Raises:
        InputError: if a file is missing, is no safetensors file, or does not lie in the folder.
    """
    names = [single]
    if single == MODEL and not (path / MODEL).exists() and (path / INDEX).exists():
        names = _indexed(path / INDEX)
    missing = [name for name in names if not (path / name).exists()]
    if missing and (hub := pinned(path)):
        try:
            snapshot_download(hub.repository, revision=hub.revision, allow_patterns=missing)
        except Exception as error:
            raise _not_to_be_had(hub.repository, "model", error) from None
        missing = [name for name in names if not (path / name).exists()]
    if missing:
        others = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".h5", ".gguf"))
        found = f", only {', '.join(others[:3])}, which is not loaded" if others else ""
        raise InputError(
            f"{path} holds no {missing[0]}{found}; save the weights as safetensors (save_pretrained does) or copy the "
            "folder again"
        )
    for name in names:
        _refuse_links(path, name)
    return [path / name for name in names]


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a safetensors file, from its header alone.

    Raises:
        InputError: if it is no such file, or says of itself what cannot be.
    """
    with disk.opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(HEADER, size - 8):
            raise InputError(f"{file} is no safetensors file: its header would take {length} of {size} bytes")
        header = stream.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        result = {str(name): tuple(map(int, entry["shape"])) for name, entry in entries.items()}
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is no safetensors file: its header cannot be read ({first_line(error)})") from None
    if any(number < 0 for shape in result.values() for number in shape) or max(ends, default=0) > size - 8 - length:
        raise InputError(
            f"{file} is torn: its header tells of {max(ends, default=0)} bytes and {size - 8 - length} are there"
        )
    return result


def _indexed(index: Path) -> list[str]:
    """Return the files that an index names."""
    try:
        names = sorted(
            {str(name) for name in json.loads(documents.read_text(index, limit=16 * MIB))["weight_map"].values()}
        )
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{index} is no index of weights ({first_line(error)}); copy the folder again") from None
    for name in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise InputError(f"{index} names {shown(name)}, expected safetensors files beside it; take another copy")
    if not names:
        raise InputError(f"{index} names no file of weights; copy the folder again")
    return names


def _check(path: Path, what: str) -> None:
    """Look at everything in a folder that a library would read: regular files of a size that can be, inside of it."""
    for name, file in identity.files_of(path, aside=ASIDE):
        _refuse_links(path, name)
        limit = next((size for pattern, size in LIMITS.items() if Path(name).match(pattern)), None)
        if limit and (size := file.stat().st_size) > limit:
            raise InputError(
                f"{what} {path}: {name} has {size / MIB:,.0f} MiB, more than the {limit // MIB} that such a file may "
                "have; take another copy"
            )
    if (config := path / CONFIG).exists():
        _check_numbers(config, _json(config))


def _refuse_links(path: Path, name: str) -> None:
    """Refuse what is no regular file, or lies elsewhere; in the Hub's cache files are links into the folder beside."""
    file = path / name
    real, root = file.resolve(), path.resolve()
    if not (
        real.is_relative_to(root) or (root.parent.name == "snapshots" and real.parent == root.parent.parent / "blobs")
    ):
        raise InputError(f"{file} is a link to {real}, outside of its folder; copy the file itself there")
    if not stat.S_ISREG(real.stat().st_mode if real.exists() else 0):
        raise InputError(f"{file} is no regular file; take another copy of the folder")


def _json(path: Path) -> Any:
    try:
        # as transformers reads it, with infinities
        content = json.loads(documents.read_text(path, limit=LIMITS["*config.json"]))
    except RecursionError:
        raise InputError(f"{path} is nested too deep; take another copy") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no JSON ({first_line(error)}); take another copy") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, expected names and values; take another copy")
    return content


def _check_numbers(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a configuration whose numbers no model has: libraries make lists of so many layers, or fill the memory."""
    for count, (depth, name, value) in enumerate(_values(content)):
        if count > documents.VALUES or depth > documents.DEPTH:
            raise InputError(f"{path} is larger or deeper than any model's; take another copy")
        if isinstance(value, int) and not isinstance(value, bool):
            most = next((most for words, most in NUMBERS.items() if re.search(words, name)), 2**63)
            if abs(value) > most:
                raise InputError(f"{path}: {shown(name)} is {shown(value)}, more than the {most:,} that can be; take "
                                 "another copy")  # fmt: skip


def _values(content: Any) -> Iterator[tuple[int, str, Any]]:
    """Yield depth, name and value of everything in a JSON text; what stands in a list has the list's name."""
    todo: list[tuple[int, str, Any]] = [(0, "", content)]
    while todo:
        depth, name, value = todo.pop()
        yield depth, name, value
        if isinstance(value, Mapping):
            todo += [(depth + 1, str(key), part) for key, part in value.items()]
        elif isinstance(value, list):
            todo += [(depth + 1, name, part) for part in value]


# adapters
