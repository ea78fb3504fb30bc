"""A stage folder: one notebook's output, written whole or not at all, ready to be a dataset repository on the Hub.

    runs/<run>/01_rerank/README.md                   card: configurations with their files, provenance, counts, figures
    runs/<run>/01_rerank/pairs/train-<hash>.parquet  one folder per configuration
    runs/<run>/01_rerank/params.json metrics.json figures/*.png
    runs/<run>/01_rerank/manifest.json               hash of every file above: what may be replaced, and uploaded

The hash of the content in the file name is needed: `load_dataset` caches a local folder by its name and card, and would
return another run's rows for a second run with the same stage name.
"""

import io
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from IPython.display import Image, display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nbutils.core import secrets
from nbutils.core.errors import InputError
from nbutils.files import card, disk, documents, owned, seals
from nbutils.files.hub import DATA

log = logging.getLogger(__name__)


class Stage:
    """One stage of one run, locked against a second writer from its opening until `write` or `close`."""

    def __init__(self, stem: str, run_dir: Path):
        """Take the lock.

        Raises:
            InputError: if another process is writing this stage, the folder is not writable, or holds files that no
                stage wrote.
        """
        self.stem, self.run_dir = stem, run_dir
        self.folder = run_dir / stem
        self._work = run_dir / "work"
        self._figures: dict[str, bytes] = {}
        self.written = False  # by `write`, in this session
        self._acquire()
        try:
            owned.clear(self.folder, self._work)
            self._insist()
        except BaseException:
            self.close()
            raise

    def _acquire(self) -> None:
        try:
            self._work.mkdir(parents=True, exist_ok=True)
            self._lock = disk.locked(self._work / f"{self.stem}.lock")
        except BlockingIOError:
            raise InputError(
                f"another process is writing {self.folder}; wait for it or choose another run_dir"
            ) from None
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"run_dir: cannot write to {self.run_dir} ({reason}); choose a writable folder") from None

    def _insist(self) -> None:
        """Refuse now, not after hours, a folder that no stage wrote."""
        folder = self.folder
        if not os.path.lexists(folder):
            return
        if folder.is_symlink() or not folder.is_dir():
            kind = "a link" if folder.is_symlink() else "a file"
            raise InputError(f"run_dir: {folder} is {kind}, expected a folder; move it away or choose another run_dir")
        found = disk.entries(folder)
        if found and owned.listed(folder) is None and _of_earlier_version(folder, self.stem) is None:
            raise InputError(
                f"run_dir: {folder} holds files that no stage wrote ({owned.some(found)}); move them away or choose "
                "another run_dir"
            )

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    @property
    def store_path(self) -> Path:
        """The reply store, shared by all runs beside this one."""
        return self.run_dir.parent / "store.sqlite"

    @property
    def model_cache(self) -> Path:
        """Where converted models are kept, shared likewise."""
        return self.run_dir.parent / "models"

    def scratch(self, name: str) -> Path:
        """Return a folder for unfinished work (checkpoints) that survives a killed run."""
        path = self._work / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def figure(self, name: str, axes: Axes) -> None:
        """Show a figure in the notebook and keep it for the stage folder, in both with its caption.

        The caption is the figure's label, which `plots` gives it, else the name. It stands as alternative text beside
        the notebook's output and as the PNG's description.
        """
        figure = cast(Figure, axes.get_figure(root=True))
        caption = str(figure.get_label()) or name.replace("_", " ")
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=110, bbox_inches="tight", metadata={"Description": caption})
        plt.close(figure)  # or Jupyter would show it again, without its caption
        display(Image(image.getvalue(), alt=caption))
        self._figures[name] = image.getvalue()

    def write(
        self,
        datasets: Mapping[str, Dataset],
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, Any],
        summary: str,
        extra: Mapping[str, Path] | None = None,
    ) -> Path:
        """Write the stage folder under a temporary name and rename it when whole: nobody sees half of one.

        Args:
            datasets: configuration name -> rows.
            params, metrics: saved as JSON; numbers that are not finite become null.
            summary: a few sentences for the card.
            extra: name -> file or folder to copy in, e.g. the adapter.
        """
        if self._lock.closed:  # the cell is run a second time
            self._acquire()
        draft: Path | None = None
        try:
            self._insist()
            draft = owned.draft(self.folder, self._work)
            self._fill(draft, datasets, params=params, metrics=metrics, summary=summary, extra=extra or {})
            if self.folder.exists() and owned.listed(self.folder) is None:
                owned.record(self.folder, _of_earlier_version(self.folder, self.stem))
            owned.finish(draft, self.folder)
        except BaseException as error:
            if draft is not None:
                owned.abandon(draft)
            if isinstance(error, OSError):
                reason = error.strerror or error
                raise InputError(
                    f"cannot write {self.folder} ({reason}); make room there and run the cell again"
                ) from None
            raise
        seals.seal(self.folder)
        self.written = True
        self.close()
        return self.folder

    def _fill(
        self,
        draft: Path,
        datasets: Mapping[str, Dataset],
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, Any],
        summary: str,
        extra: Mapping[str, Path],
    ) -> None:
        (draft / "figures").mkdir()
        for name, image in self._figures.items():
            (draft / "figures" / f"{name}.png").write_bytes(image)
        tables = {name: _write_parquet(draft / name, dataset) for name, dataset in datasets.items()}
        for name, path in extra.items():
            _copy_own(path, draft / name)
        for name, content in secrets.masked_values((("params", dict(params)), ("metrics", dict(metrics)))):
            (draft / f"{name}.json").write_text(json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n")
        counts = {name: len(dataset) for name, dataset in datasets.items()}
        card.of_stage(self.stem, draft, tables, counts, params, summary).save(draft / "README.md")


def _copy_own(path: Path, to: Path) -> None:
    """Copy a file or folder into a draft: of a folder what its manifest lists, with the card written since.

    Without a manifest all of it; never a link or what it leads to.
    """
    if not path.is_dir():
        _copy_file(path, to)
        return
    known = owned.listed(path)
    names = [name for name in disk.entries(path) if name != owned.NAME]
    wanted = [name for name in names if known is None or name in known or name == "README.md"]
    regular = [name for name in wanted if (path / name).is_file() and not (path / name).is_symlink()]
    if left := set(names) - set(regular):
        log.warning("%s: not taken into %s, since no stage wrote it: %s", path, to.parent.name, owned.some(left))
    to.mkdir()
    for name in regular:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        _copy_file(path / name, to / name)


def _copy_file(path: Path, to: Path) -> None:
    with disk.opened(path, follow=False) as source, to.open("wb") as copy:
        shutil.copyfileobj(source, copy, 2**20)


def _of_earlier_version(folder: Path, stem: str) -> dict[str, str] | None:
    """Return name -> hash of what an earlier version, which kept no manifest, surely wrote into a stage folder.

    Its card says that the stage did, and the rows' files carry their hash in their names. The rest could be another's.
    """
    with suppress(InputError):
        card = documents.read_text(folder / "README.md", limit=2**26)
        if f"By the notebook `{stem}` of nbutils " in card and (folder / "params.json").is_file():
            found = {n: disk.sha256(folder / n) for n in disk.entries(folder) if DATA.fullmatch(n)}
            return {name: value for name, value in found.items() if f"-{value[:12]}." in name}
    return None


def _write_parquet(folder: Path, dataset: Dataset) -> str:
    folder.mkdir()
    path = folder / "train.parquet"
    chunks = (chunk for column in dataset.data.columns for chunk in column.chunks)
    if any(secrets.holds(bytes(buffer)) for chunk in chunks for buffer in chunk.buffers() if buffer):
        dataset = dataset.map(lambda row: secrets.masked_values(dict(row)), features=dataset.features)
    with path.open("wb") as stream:  # given a name, the library would take some characters in it for a pattern
        dataset.to_parquet(stream)
    content = disk.sha256(path)[:12]
    return str(path.rename(folder / f"train-{content}.parquet").relative_to(folder.parent))


def _finite(value: Any) -> Any:
    """JSON knows no NaN or infinity; they become null."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
