"""Weights that come in Python packages, as GGUF: converted to a folder of safetensors once."""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from nbutils.core.errors import InputError, writing
from nbutils.files import disk, documents, identity, owned

log = logging.getLogger(__name__)

ORIGIN = "origin.json"


def convert(name: str, cache: Path) -> Path:
    """Write a package's GGUF weights as safetensors; a half-written folder never gets the final name."""
    packaged = identity.packaged(name)
    target, sha256 = cache / packaged.label, identity.of_package(name)
    origin = {"package": target.name, "file": packaged.files[0].name, "sha256": sha256}
    if _converted(target) == origin:
        return target
    if os.path.lexists(target) and _converted(target) is None:
        raise InputError(f"{target} was not made by the kit, which keeps converted models there; move it away")
    for left in {path.name.rpartition(".draft-")[0] for path in cache.glob("*.draft-*")}:  # killed, of whichever model
        owned.clear(cache / left, cache)
    log.info("converting %s to safetensors in %s", packaged.files[0].name, target)
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        made = owned.draft(target, cache)
        try:
            with tempfile.TemporaryDirectory(dir=made.parent) as folder:
                _unpack(_joined(packaged, Path(folder)), made)
            (made / ORIGIN).write_text(json.dumps(origin))
            # in place of another version's, of a faster process's, or of what a kit that kept no list wrote
            owned.finish(made, target)
        except BaseException:
            owned.abandon(made)
            raise
    return target


def _joined(packaged: identity.Packaged, folder: Path) -> Path:
    """Return the whole GGUF file, its parts joined in a folder, if its content is what the name says.

    Raises:
        InputError: if it is not.
    """
    if len(packaged.files) == 1:
        [whole] = packaged.files
    else:
        whole = folder / "joined.gguf"
        with whole.open("wb") as stream:
            for file in packaged.files:
                with disk.opened(file) as part:
                    shutil.copyfileobj(part, stream, 2**20)
    if packaged.sha256 and (found := identity.of_file(whole)) != packaged.sha256:
        raise InputError(
            f"model: the weights in {packaged.label} have the SHA-256 {found} and not {packaged.sha256}; install the "
            "packages anew, or name what they hold now"
        )
    return whole


def _unpack(file: Path, folder: Path) -> None:
    """Save the weights and the tokenizer of a GGUF file in a folder."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    # a GGUF-loaded model refuses to be saved: its config still says it is quantised
    settings = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = type(loaded)(type(loaded.config)(**settings))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _converted(target: Path) -> Any:
    """Return what a converted model was made from; None for a folder, or anything else, that this kit did not make."""
    try:
        origin = documents.read_json(target / ORIGIN)
    except InputError:
        return None
    known = isinstance(origin, dict) and origin.keys() == {"package", "file", "sha256"} and not target.is_symlink()
    return origin if known and origin["package"] == target.name else None
