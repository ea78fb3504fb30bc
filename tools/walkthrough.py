"""The executed notebooks of a run as static pages: `python -m tools.walkthrough runs/demo docs`.

Each page holds everything it shows: no scripts, nothing loaded from anywhere, readable from a disk. `lessons` renders
the cells, here they are put into a frame with links and a policy that forbids the browser everything else. Needs the
extra `dev`.
"""

import base64
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, FileSystemLoader
from pydantic import ValidationError

from nbutils.core import command, secrets
from nbutils.core.errors import InputError, first_line
from nbutils.core.markup import say
from nbutils.files.sources import CHECKOUT
from nbutils.params import STEMS
from tools import inert, lessons

PAGES = Path(__file__).parent / "pages"
GENERATOR = "nbutils.walkthrough"  # tells our pages from others' in the same folder
LARGEST = 50 * 2**20  # bytes of a notebook; its pages would not open
TITLE = "nbutils: preference-tune a small language model"


@command.program
def main(arguments: Sequence[str] | None = None) -> None:
    """Publish a run."""
    parser = command.parser("tools.walkthrough", __doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a finished run, e.g. runs/demo")
    parser.add_argument("docs", type=Path, help="folder for the pages, e.g. docs")
    given = parser.parse_args(arguments)
    paths = publish(given.run_dir, given.docs)
    say(f"done: {len(paths)} pages, begin with {given.docs / 'index.html'}")


def publish(run_dir: Path, docs: Path) -> list[Path]:
    """Write index.html and a page per notebook into `docs`, and return their paths; other files there are left alone.

    Raises:
        InputError: if the run is not whole, or if a page cannot be written or would replace somebody else's file.
            Nothing is written then.
    """
    made = [_lesson(run_dir, stem) for stem in STEMS]
    environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, keep_trailing_newline=True)
    style = _style({width for lesson in made for width in lesson.widths})
    common = {"lessons": made, "generator": GENERATOR, "style": style, "policy": inert.policy(style)}
    index = {"title": TITLE, "run": run_dir.resolve().name, "made": made[-1].made}
    pages = {"index.html": environment.get_template("index.html.j2").render(**common, **index)}
    for before, lesson, after in zip([None, *made[:-1]], made, [*made[1:], None], strict=True):
        given = vars(lesson) | {"before": before, "after": after}
        pages[f"{lesson.stem}.html"] = environment.get_template("page.html.j2").render(**common, **given)
        if lesson.dropped:
            names = ", ".join(f"{name[:20]} ({n})" for name, n in lesson.dropped.most_common(9))
            say(f"{lesson.stem}: outputs hold elements that no page of ours has, left out: {names}", sys.stderr)
    return _write(docs, pages)


def _style(widths: set[int]) -> str:
    """Return the style of all pages. A figure shrunk further on a narrow screen could not be read; it scrolls."""
    rules = (f'figure img[width="{width}"] {{ min-width: {0.7 * width:.0f}px; }}\n' for width in sorted(widths))
    return "\n" + (PAGES / "style.css").read_text(encoding="utf-8") + "".join(rules)


def _lesson(run_dir: Path, stem: str) -> lessons.Lesson:
    notebook, made = _read(run_dir, stem)
    try:
        return lessons.render(stem, notebook, made)
    except InputError as error:
        raise InputError(f"{stem}: {error}") from None
    except Exception as error:  # nbconvert and what it calls fail in many ways on a notebook that no kernel wrote
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{stem}: the notebook cannot be shown ({reason}); finish the run {run_dir} first") from None


def _read(run_dir: Path, stem: str) -> tuple[nbformat.NotebookNode, lessons.Made]:
    """Return an executed notebook and what papermill says of it, refused where the run or a figure of it is missing."""
    path = run_dir / f"{stem}.ipynb"
    again = f"finish the run {run_dir} first"
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than {LARGEST // 2**20} MiB, which no browser shows; print less")
        notebook = nbformat.reads(secrets.masked(path.read_text(encoding="utf-8")), as_version=4)
        nbformat.validate(notebook)
    except FileNotFoundError:
        raise InputError(f"there is no {path}; {again}") from None
    except InputError:
        raise
    except Exception as error:  # of a dozen kinds, for what is no JSON, no notebook, or of a version to come
        raise InputError(f"{path} is not a notebook ({type(error).__name__}); {again}") from None
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    try:
        made = lessons.Made.model_validate(notebook.metadata["papermill"])
    except (KeyError, ValidationError):
        raise InputError(f"{path} was not executed by papermill; {again}") from None
    for output in outputs:
        if output.output_type == "error":
            raise InputError(f"{path} stopped with {output.ename}; {again}")
    if any(cell.source.strip() and cell.execution_count is None for cell in cells):
        raise InputError(f"{path} was not executed to its end; {again}")
    if not (run_dir / stem / "README.md").is_file():
        raise InputError(f"there is no stage folder {run_dir / stem}; {again}")
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    images = {"".join(output.data["image/png"].split()) for output in shown}
    for figure in sorted((run_dir / stem / "figures").glob("*.png")):
        if base64.b64encode(figure.read_bytes()).decode() not in images:
            raise InputError(f"{path} does not show {figure}, so they are of different runs; {again}")
    if not all(lessons.caption(output) for output in shown):
        raise InputError(f"{path} shows a figure without a caption; keep it with stage.figure and run again")
    return _scrubbed(notebook, _places(made, run_dir)), made


def _places(made: lessons.Made, run_dir: Path) -> dict[str, str]:
    """Return what stands for the folders of the machine that executed a notebook, inner folders first."""
    checkouts = [CHECKOUT, Path(made.input_path or "").parent.parent]
    runs = [run_dir.resolve(), Path(made.output_path or "").parent]
    places = {Path.home(): "~"} | dict.fromkeys(checkouts, "")
    places |= {run: f"runs/{run.name}" for run in runs if not any(root in run.parents for root in checkouts)}
    known = {str(path): name for path, name in places.items() if len(path.parts) > 1 and path.is_absolute()}
    return dict(sorted(known.items(), key=lambda item: -len(item[0])))


def _scrubbed(value: Any, places: dict[str, str]) -> Any:
    """Return a notebook, or a part of it, without the folders of the machine that executed it."""
    if isinstance(value, dict):
        return type(value)({k: v if k == "image/png" else _scrubbed(v, places) for k, v in value.items()})
    if isinstance(value, list):
        return [_scrubbed(v, places) for v in value]
    if not isinstance(value, str):
        return value
    value = re.sub(r"/[^\s:'\"]+", _package, value)
    for path, name in places.items():
        # what lies in a checkout becomes relative to it
        value = value.replace(f"{path}/", f"{name}/" if name else "")
        value = (name or ".").join(re.split(rf"{re.escape(path)}(?![\w-])", value))
    return value


def _package(path: re.Match[str]) -> str:
    """Return a path in a warning of another package from `site-packages/` on."""
    return path[0][max(path[0].rfind("/site-packages/") + 1, 0) :]


def _write(docs: Path, pages: dict[str, str]) -> list[Path]:
    """Write all pages under other names first and rename them when all are whole."""
    paths = {docs / name: text for name, text in pages.items()}
    for path in paths:
        if path.exists() and f'content="{GENERATOR}"' not in path.read_text(encoding="utf-8", errors="replace"):
            raise InputError(f"{path} is not a page of the walkthrough; move it away or choose another folder")
    drafts = {path.with_name(f".{path.name}.draft"): path for path in paths}
    try:
        docs.mkdir(parents=True, exist_ok=True)
        for draft, path in drafts.items():
            draft.write_text(paths[path], encoding="utf-8")
        for draft, path in drafts.items():
            os.replace(draft, path)
    except OSError as error:
        raise InputError(f"cannot write to {docs} ({error.strerror or error}); choose a writable folder") from None
    finally:
        for draft in drafts:
            if draft.exists():
                draft.unlink()
    return list(paths)


if __name__ == "__main__":
    sys.exit(main())
