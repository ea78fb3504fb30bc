"""Opening a stage inside a notebook: parameters checked, secrets fetched, the run folder locked, one GPU chosen.

Used by the first cells of all four notebooks.
"""

import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import publish_display_data

from nbutils import judges, params
from nbutils.core import literals, secrets
from nbutils.core.errors import ON_KAGGLE, STOPPED, InputError, Interrupted, on_kaggle
from nbutils.core.markup import Formatter
from nbutils.engines.environment import GPUS_VARIABLE
from nbutils.engines.store import Store
from nbutils.files import hub, leftovers, mounts, rundir, seals
from nbutils.files.sources import CHECKOUT
from nbutils.files.stage import Stage
from nbutils.judges import people

log = logging.getLogger(__name__)


@dataclass
class Session:
    """An open stage: its checked parameters, its folder, the reply store and the time it has left."""

    params: Any
    stage: Stage
    store: Store
    deadline: float  # time.monotonic() after which no further work is started
    replies: int  # in the store when the stage was opened

    @property
    def earned(self) -> bool:
        """Whether this session has made something that another one can go on from."""
        return self.stage.written or len(self.store) > self.replies


_session: list[Session] = []  # the one this kernel has open


def open_stage(stem: str) -> Session:
    """Check the parameters of the notebook this is called in, and open its stage.

    Raises:
        InputError: naming every wrong parameter at once, a missing token, or a run folder or store that cannot be used.
    """
    _log_to_notebook()
    shell = get_ipython()
    shell.set_custom_exc((InputError, Interrupted), _show)
    shell.events.register("post_run_cell", _forgive)
    datasets.disable_progress_bars()  # bars for what takes a second; the long cells have their own
    cells = shell.user_ns["In"]
    injected = any(c.lstrip().startswith("# Parameters") for c in cells)
    values = literals.given(cells) | _kaggle_overrides(injected=injected)
    try:
        checked = params.validate(stem, values)
    except params.TokenError as error:
        if not injected:
            raise
        leftovers.clear()
        raise InputError(
            f"{error}; papermill has written it into its output: delete that unless it shows stars"
        ) from None
    _fetch_secrets({"HF_TOKEN"} | judges.key_variables(getattr(checked, name, "") for name in params.JUDGES))
    hub.check_push(checked.push_to_hub)
    # training refuses to run on several GPUs without a launcher; choose before torch looks, but let vLLM use them all
    os.environ.setdefault(GPUS_VARIABLE, os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if _session:  # the cell is run a second time
        _session.pop().stage.close()
    stage = Stage(stem, run_folder(checked.run_dir))
    try:
        people.bring(stem, stage.run_dir)
        store = _open_store(stage.store_path)
    except BaseException:
        stage.close()  # or the cell, run again, would find the stage locked
        raise
    _session.append(Session(checked, stage, store, _deadline(checked.time_budget_hours), len(store)))
    return _session[0]


def _deadline(hours: float) -> float:
    """Return when the time budget ends; 0 hours are no limit.

    It counts from now. Where Kaggle runs all cells by itself its own limit counts from the start of the session, with
    the installation: there the budget counts from the start of this kernel's process.
    """
    if not hours:
        return float("inf")
    return time.monotonic() - (_age() if on_kaggle() == "Batch" else 0.0) + 3600 * hours


def _age() -> float:
    """Return the seconds since this process started, by a clock that nobody sets (Linux, as on Kaggle)."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _show(
    shell: Any, kind: type[BaseException], error: BaseException, traceback: Any, tb_offset: int | None = None
) -> list[str]:
    """Show an error of ours as its sentence, without a traceback; on Kaggle with what a new session needs to go on.

    The cell fails, so that no further one runs. Where Kaggle runs all cells by itself a failure could cost the output,
    which the next session is to go on from: there the cell ends well (`_forgive`), and those after it do nothing.
    """
    said = str(error)
    if on_kaggle() and _goes_on(error):
        said += f"; {ON_KAGGLE}{'' if seals.key() else f', and name it in {mounts.NAMED} in the setup cell'}"
    if _forgiven(error):
        publish_display_data({"text/plain": f"{said}\nThe cells below were not run."}, metadata={STOPPED: said})
        shell.input_transformers_cleanup.append(lambda lines: [])
    else:
        shell.showtraceback((kind, kind(said), traceback), exception_only=True)
    return []


def _forgive(result: Any) -> None:
    if _forgiven(result.error_in_exec):
        result.error_in_exec = None


def _forgiven(error: BaseException | None) -> bool:
    return on_kaggle() == "Batch" and _goes_on(error)


def _goes_on(error: BaseException | None) -> bool:
    """Return whether a later session can go on where this error stopped: credit that is used up, say, or an upload."""
    earned = any(session.earned for session in _session)
    return isinstance(error, Interrupted) or (isinstance(error, InputError) and earned)


def run_folder(name: str) -> Path:
    """Return run_dir as an absolute path: inside a checkout relative to its root, elsewhere to the working folder.

    So Jupyter, which works in notebooks/, and papermill, which works anywhere, mean the same folder.

    Raises:
        InputError: as `rundir.resolved`.
    """
    inside = Path.cwd().is_relative_to(CHECKOUT) and (CHECKOUT / "notebooks").is_dir()
    return rundir.resolved(name, CHECKOUT if inside else Path.cwd())


def _open_store(path: Path) -> Store:
    """Open the run's store and take over the replies of earlier sessions; say what else the inputs hold."""
    store = Store(path, key=seals.key())
    for other, own in mounts.stores():
        if new := store.take(other, own=own):
            log.info("%d replies taken over from %s", new, other)
    if left := mounts.untaken():
        log.warning("%s", left)
    return store


def _kaggle_overrides(*, injected: bool) -> dict[str, Any]:
    """Kaggle cannot pass parameters: a params.yaml beside the notebook or in an input that the user named does."""
    if injected or not on_kaggle():
        return {}
    files = [p for p in [Path("params.yaml"), *mounts.taken("params.yaml")] if p.is_file()]
    if not files:
        return {}
    path, *others = files
    if others:
        log.warning("of %d files of parameters, %s is not read", len(files), " nor ".join(map(str, others)))
    values = params.read_overrides(path)
    log.info("parameters overridden by %s: %s", path, ", ".join(values) or "none")
    return values


def _fetch_secrets(names: set[str]) -> None:
    """Copy Kaggle's secrets into the environment; they are never printed or stored."""
    if not on_kaggle():
        return
    for name in sorted(names):
        if os.environ.get(name):
            continue
        try:
            from kaggle_secrets import UserSecretsClient

            os.environ[name] = UserSecretsClient().get_secret(name)
        except Exception as error:  # absent, not attached or offline: its own kinds of errors, none of them ours
            log.info("Kaggle has no secret %s for this notebook (%s)", name, type(error).__name__)


def _log_to_notebook() -> None:
    """Show the package's messages in the notebook, once, however often the cell is run; texts in tables stay texts."""
    pd.options.display.html.use_mathjax = False  # a dollar sign in somebody's answer begins no formula
    logger = logging.getLogger("nbutils")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(Formatter("%(message)s"))
        handler.addFilter(secrets.Filter())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
