"""What a training on several GPUs needs of 04: its pairs and settings, as files."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbutils import params
from nbutils.core.errors import InputError
from nbutils.core.records import Row
from nbutils.files import sources


def write_job(
    folder: Path,
    given: params.Dpo,
    options: Mapping[str, Any],
    pairs: Sequence[Row],
    held_out: Sequence[Row],
    cache: Path,
) -> None:
    """Write what a training needs: its pairs, held-out ones last, then job.json; each file appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    sources.write_pairs(folder / "pairs.parquet", [*pairs, *held_out])
    job = {
        "train": len(pairs),
        "params": given.model_dump(mode="json"),
        "options": dict(options),
        "cache": str(cache.resolve()),
        "folder": str(Path.cwd()),
    }
    (folder / "job.tmp").write_text(json.dumps(job, indent=2), encoding="utf-8")
    os.replace(folder / "job.tmp", folder / "job.json")


def last_job(run_dir: Path) -> Path:
    """Return the folder of the newest job of a run.

    Raises:
        InputError: if there is none.
    """
    jobs = (run_dir / "work" / "04_dpo").glob("*/job/job.json")
    newest = max(jobs, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise InputError(f"{run_dir} holds no training to launch; open 04 first, with this run_dir, up to its training")
    return newest.parent
