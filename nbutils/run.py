"""All four notebooks headless, in order: `python -m nbutils.run params/demo runs/demo`.

A stage whose outputs are whole and whose parameters, inputs and code did not change is skipped. The executed notebook
stands beside its stage folder, also when a cell failed.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nbutils import __version__, judges, params
from nbutils.core import command, literals, records, secrets
from nbutils.core.errors import STOPPED, InputError, writing
from nbutils.core.markup import say
from nbutils.files import documents, hub, owned, reach, rundir, seals, sources
from nbutils.judges import people

NOTEBOOKS = sources.CHECKOUT / "notebooks"
LAST_WORDS = 300  # bytes shown of what a process printed that died
PAPERMILL = {"injected-parameters", "papermill-error-cell-tag"}  # on the cells that it puts between ours


@command.program
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages of a profile."""
    parser = command.parser("nbutils.run", __doc__)
    parser.add_argument("profile", type=Path, help="folder with one YAML of parameters per notebook, e.g. params/demo")
    parser.add_argument("run_dir", type=Path, help="folder this run writes to, e.g. runs/demo")
    given = parser.parse_args(arguments)
    plan = read_profile(given.profile, run_folder(given.run_dir))
    for stem, values in plan.items():
        try:
            say(f"{stem}  {finish(stem, values)}")
        except InputError as error:
            again = shlex.join(["python", "-m", "nbutils.run", str(given.profile), str(given.run_dir)])
            raise InputError(f"{error}; to go on: {again}") from None
    say(f"done: {given.run_dir}")


def run_folder(name: Path) -> Path:
    """Return a command's run_dir, links followed, after `rundir.resolved`."""
    return rundir.resolved(str(name), Path.cwd()).resolve()


def read_profile(profile: Path, run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return what to inject into each notebook, all of it checked before the first one starts.

    Raises:
        InputError: if the folder holds no parameters, or naming the wrong ones.
    """
    given = {stem: profile / f"{stem}.yaml" for stem in params.STEMS}
    if not any(path.is_file() for path in given.values()):
        raise InputError(f"{profile} holds no parameters, expected files like {profile / params.STEMS[0]}.yaml")
    plan, pushed = {}, []
    for stem, path in given.items():
        values = params.read_overrides(path) if path.is_file() else {}
        plan[stem] = values | {"run_dir": str(run_dir)}
        checked = params.validate(stem, defaults(stem) | plan[stem])
        if checked.push_to_hub and stem != "04_dpo":  # which uploads a model
            pushed.append(checked.push_to_hub)
    if twice := sorted({name for name in pushed if pushed.count(name) > 1}):
        raise InputError(
            f"push_to_hub: {', '.join(twice)} is the repository of several notebooks, of which each would replace the "
            "one before; name a repository for each"
        )
    return plan


def defaults(stem: str) -> dict[str, Any]:
    """Return the values in a notebook's parameters cell."""
    cells = json.loads(notebook(stem).read_text(encoding="utf-8"))["cells"]
    return literals.given(["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ())])


def notebook(stem: str) -> Path:
    """Return the path of a notebook.

    Raises:
        InputError: if the package is installed without the checkout it belongs to.
    """
    path = NOTEBOOKS / f"{stem}.ipynb"
    if not path.is_file():
        raise InputError(f"there is no notebook {path}; run from a checkout of the kit")
    return path


def execute(stem: str, values: dict[str, Any]) -> None:
    """Run one notebook through papermill and mark its stage folder as done.

    Raises:
        InputError: with the failing cell's error.
    """
    run_dir = Path(values["run_dir"])
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        _keep(run_dir / f"{stem}.ipynb", stem)
    inputs = fingerprint(stem, values)
    with writing(run_dir), warnings.catch_warnings(), _scrubbed(run_dir / f"{stem}.ipynb"):
        warnings.simplefilter("ignore")  # papermill's own deprecations; the notebook's warnings stay in the notebook
        executed = _papermill(stem, values)
    for output in (output for cell in executed.cells for output in cell.get("outputs", ())):
        if said := output.get("metadata", {}).get(STOPPED):  # on Kaggle a stop on purpose is no failure of the cell
            raise InputError(f"{stem} stopped: {said} (the whole notebook: {run_dir / f'{stem}.ipynb'})")
    draft = run_dir / "work" / f"{stem}.{hub.MARK}"
    with writing(run_dir):
        draft.write_text(json.dumps(inputs))
        owned.place(draft, run_dir / stem, hub.MARK)
    seals.seal(run_dir / stem)


def _papermill(stem: str, values: dict[str, Any]) -> Any:
    """Return a notebook as papermill executed it.

    What the kernel's process prints past its messages goes to a file: at its end these are errors that are nobody's.
    """
    import papermill
    from jupyter_client.manager import AsyncKernelManager
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.WARNING)
    path = Path(values["run_dir"]) / f"{stem}.ipynb"
    with tempfile.TemporaryFile() as printed:

        class Kernel(AsyncKernelManager):
            async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]  # awaited
                await super().start_kernel(**options, stderr=printed)

        try:
            return papermill.execute_notebook(
                re.sub(r"[{}]", r"\g<0>\g<0>", str(notebook(stem))),  # papermill fills in what stands in braces
                re.sub(r"[{}]", r"\g<0>\g<0>", str(path)),
                values,
                kernel_name="python3",
                progress_bar=False,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # not its messages between our lines
                kernel_manager_class=Kernel,
                cwd=str(Path.cwd()),
            )
        except PapermillExecutionError as error:
            raise InputError(
                f"{stem} stopped in cell {error.exec_count}: {error.ename}: {error.evalue} (the whole notebook: {path})"
            ) from None
        except RuntimeError as error:
            if "died" not in str(error):  # "Kernel died", with a type of its own where it had begun to run cells
                raise
            printed.seek(max(0, printed.seek(0, os.SEEK_END) - LAST_WORDS))
            words = printed.read().decode(errors="replace").strip() or str(error)
            raise InputError(
                f"{stem} stopped, since the process that ran it died, most often because the machine's memory ran out; "
                f"its last words: {words!r} (the whole notebook: {path})"
            ) from None


def _keep(path: Path, stem: str) -> None:
    """Move a notebook out of the way of the one to be executed, unless its cells are the kit's: those can be had again.

    A link goes as well: the file that it leads to is not to be written over.
    """
    if not os.path.lexists(path) or (not path.is_symlink() and _cells(path) == _cells(notebook(stem))):
        return
    names = (path.with_name(f"{stem}.kept-{n}.ipynb") for n in itertools.count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    os.rename(path, aside)
    say(f"{path} is not as the kit executed it; it is kept as {aside}")


def _cells(path: Path) -> list[str] | None:
    """Return the text of a notebook's cells but papermill's own; None for what is no notebook."""
    try:
        cells = json.loads(documents.read_text(path, limit=2**28))["cells"]
        own = [c for c in cells if not PAPERMILL.intersection(c["metadata"].get("tags", ()))]
        return ["".join(c["source"]) for c in own]
    except (InputError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


@contextmanager
def _scrubbed(path: Path) -> Iterator[None]:
    """Mask what a notebook that is executed meanwhile shows of this machine's secrets, in whatever it prints."""
    try:
        yield
    finally:
        if path.is_file() and (clean := secrets.masked(text := path.read_text(encoding="utf-8"))) != text:
            path.write_text(clean, encoding="utf-8")


def finish(stem: str, values: dict[str, Any]) -> str:
    """Run one notebook unless its stage is done, and return what became of it in words.

    Raises:
        InputError: from `execute`.
    """
    started, changed = time.monotonic(), changes(stem, values)
    if changed == []:
        return "unchanged, skipped"
    execute(stem, values)
    return f"{time.monotonic() - started:.0f} s" + (f", since {' and '.join(changed)} changed" if changed else "")


def is_done(stem: str, values: dict[str, Any]) -> bool:
    """Return whether the stage's folder is whole and came from the same parameters, inputs and code."""
    return changes(stem, values) == []


def changes(stem: str, values: dict[str, Any]) -> list[str] | None:
    """Return what is not as it was when the stage ran: params, inputs, code; None where it has not run to its end."""
    run_dir = Path(values["run_dir"])
    try:
        mark = json.loads((run_dir / stem / hub.MARK).read_text())
        then = {name: mark[name] for name in ("params", "inputs", "code")}
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not (run_dir / f"{stem}.ipynb").is_file():
        return None
    now = json.loads(json.dumps(fingerprint(stem, values)))
    return [name for name in then if then[name] != now[name]]


def fingerprint(stem: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return everything that decides a stage's result: its parameters, the content of its inputs, and the code."""
    complete = defaults(stem) | values
    run_dir = Path(values["run_dir"])
    inputs = [
        [name, sources.fingerprint(thing, kind, run_dir=run_dir)]
        for name, part in params.inputs(stem, complete)
        for kind, thing in _read(name, part)
    ]
    if choices := people.chosen(people.path_of(stem, run_dir)):
        inputs.append(["labels", records.digest(choices)])
    return {"params": complete, "inputs": inputs, "code": _code(stem)}


def _read(name: str, part: str) -> list[tuple[str, str]]:
    """Return kind and name of all that stands behind one name in a parameter."""
    if name in params.JUDGES:
        return judges.brings(part)
    return [("model" if name in ("model", "adapter") else "file" if name == "training" else "dataset", part)]


def _code(stem: str) -> str:
    """Return a hash of a notebook and of all code of the package that it can reach."""
    cells = json.loads(notebook(stem).read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    result = hashlib.sha256(__version__.encode())
    for path in [notebook(stem), *reach.reached(text)]:
        result.update(path.read_bytes())
    return result.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
