"""The executed notebooks of a run as static pages: `python -m nbutils.walkthrough runs/demo docs`.

Each page holds everything it shows: no scripts, nothing loaded from anywhere, readable from a disk. nbconvert renders
the cells through `pages/lesson.html.j2`; here its HTML is tidied and put into a frame with links. Needs the extra
`dev`.
"""

import argparse
import base64
import os
import re
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nbformat
from bs4 import BeautifulSoup, Tag
from jinja2 import Environment, FileSystemLoader
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from traitlets.config import Config

from nbutils.errors import InputError
from nbutils.params import STEMS
from nbutils.run import say
from nbutils.sources import CHECKOUT

PAGES = Path(__file__).parent / "pages"
GENERATOR = "nbutils.walkthrough"  # tells our pages from others' in the same folder
COLUMNS = 80  # wider code than this does not fit a screen, and needs the arrow keys
LONG = 60  # characters of a table's cell that need room
TITLE = "nbutils: preference-tune a small language model"


class Heading(NamedTuple):
    """A line of a page's table of contents."""

    level: int
    id: str
    text: str


@dataclass(frozen=True)
class Lesson:
    """One executed notebook, rendered."""

    stem: str
    title: str
    about: str  # the first paragraph
    body: str
    headings: list[Heading]
    made: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish a run and return the exit status: 0, or 1 after printing what is wrong with the run."""
    parser = argparse.ArgumentParser(prog="python -m nbutils.walkthrough", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run_dir", type=Path, help="folder of a finished run, e.g. runs/demo")
    parser.add_argument("docs", type=Path, help="folder for the pages, e.g. docs")
    given = parser.parse_args(arguments)
    try:
        paths = publish(given.run_dir, given.docs)
    except InputError as error:
        say(f"error: {error}", sys.stderr)
        return 1
    say(f"done: {len(paths)} pages, begin with {given.docs / 'index.html'}")
    return 0


def publish(run_dir: Path, docs: Path) -> list[Path]:
    """Write index.html and a page per notebook into `docs`, and return their paths; other files there are left alone.

    Raises:
        InputError: if the run is not whole, or if a page cannot be written or would replace somebody else's file.
            Nothing is written then.
    """
    notebooks = {stem: _read(run_dir, stem) for stem in STEMS}
    lessons = [_lesson(stem, notebook) for stem, notebook in notebooks.items()]
    environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, keep_trailing_newline=True)
    common = {"lessons": lessons, "generator": GENERATOR, "style": (PAGES / "style.css").read_text()}
    index = {"title": TITLE, "run": run_dir.resolve().name, "made": lessons[-1].made}
    pages = {"index.html": environment.get_template("index.html.j2").render(**common, **index)}
    for before, lesson, after in zip([None, *lessons[:-1]], lessons, [*lessons[1:], None], strict=True):
        given = vars(lesson) | {"before": before, "after": after}
        pages[f"{lesson.stem}.html"] = environment.get_template("page.html.j2").render(**common, **given)
    return _write(docs, pages)


def _read(run_dir: Path, stem: str) -> nbformat.NotebookNode:
    """Return an executed notebook, refused where the run or one of its figures is missing."""
    path = run_dir / f"{stem}.ipynb"
    again = f"finish the run {run_dir} first"
    try:
        notebook = nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise InputError(f"there is no {path}; {again}") from None
    except (OSError, ValueError, nbformat.reader.NotJSONError) as error:
        raise InputError(f"{path} is not a notebook ({type(error).__name__}); {again}") from None
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    if "papermill" not in notebook.metadata:
        raise InputError(f"{path} was not executed by papermill; {again}")
    for output in outputs:
        if output.output_type == "error":
            raise InputError(f"{path} stopped with {output.ename}; {again}")
    if any(cell.source.strip() and cell.execution_count is None for cell in cells):
        raise InputError(f"{path} was not executed to its end; {again}")
    if not (run_dir / stem / "README.md").is_file():
        raise InputError(f"there is no stage folder {run_dir / stem}; {again}")
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    images = {base64.b64decode(output.data["image/png"]) for output in shown}
    for figure in sorted((run_dir / stem / "figures").glob("*.png")):
        if figure.read_bytes() not in images:
            raise InputError(f"{path} does not show {figure}, so they are of different runs; {again}")
    if not all(output.metadata.get("image/png", {}).get("alt") for output in shown):
        raise InputError(f"{path} shows a figure without a caption; keep it with stage.figure and run again")
    return _scrubbed(notebook, _places(notebook, run_dir))


def _places(notebook: nbformat.NotebookNode, run_dir: Path) -> dict[str, str]:
    """Return what stands for the folders of the machine that executed a notebook, inner folders first."""
    made = notebook.metadata.papermill
    checkouts = [CHECKOUT, Path(made.get("input_path") or "").parent.parent]
    runs = [run_dir.resolve(), Path(made.get("output_path") or "").parent]
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
    value = re.sub(r"/[^\s:'\"]*/(?=site-packages/)", "", value)  # in warnings of other packages
    for path, name in places.items():
        # what lies in a checkout becomes relative to it
        value = value.replace(f"{path}/", f"{name}/" if name else "")
        value = (name or ".").join(re.split(rf"{re.escape(path)}(?![\w-])", value))
    return value


class _Renderer(IPythonRenderer):  # type: ignore[misc]
    """Formulas as MathML, which browsers show without scripts."""

    def inline_math(self, body: str) -> str:
        return _mathml(body)

    def block_math(self, body: str) -> str:
        return f'<span class="box">{_mathml(body, display="block")}</span>'


def _markdown(source: str) -> str:
    return str(MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source))


def _lesson(stem: str, notebook: nbformat.NotebookNode) -> Lesson:
    """Render the cells of a notebook and tidy what came out.

    Raises:
        InputError: naming an image that comes from elsewhere.
    """
    config = Config()
    config.NbConvertBase.display_data_priority = ["text/html", "image/png", "text/plain"]
    template = {"template_name": "base", "template_file": str(PAGES / "lesson.html.j2")}
    exporter = HTMLExporter(config=config, filters={"markdown2html": _markdown}, **template)
    exporter.register_preprocessor(CoalesceStreamsPreprocessor(), enabled=True)  # of a progress bar its last state
    page = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    for tag in page(["script", "style", "iframe", "object", "link"]):
        tag.decompose()
    for image in page("img"):
        kind, _, data = str(image.get("src", "")).partition(";base64,")
        if kind != "data:image/png":
            raise InputError(f"{stem}: the image {image.get('src')} is not part of the notebook; draw it in a cell")
        width, height = struct.unpack(">II", base64.b64decode(data)[16:24])
        # shrunk further on a narrow screen its words could not be read; it scrolls
        image.attrs |= {"width": width, "height": height, "style": f"min-width: {0.7 * width:.0f}px"}
        _box(image, "Figure")
    for table in page("table"):
        for tag in [table, *table.find_all(True)]:
            del tag["style"], tag["border"]
            if tag.name == "td" and len(tag.get_text()) > LONG:
                tag["class"] = "long"
        _box(table, "Table")
    for code in page("pre"):
        if "text" not in (code.get("class") or []):  # printed text breaks its lines instead
            _box(code, "Code" if max(map(len, code.get_text().splitlines()), default=0) > COLUMNS else "")
    headings: dict[str, Heading] = {}
    for tag in page(["h2", "h3"]):
        name = "-".join(tag.get_text().split())  # as Jupyter names it, for links from elsewhere
        tag["id"] = name = f"{name}-{len(headings)}" if name in headings else name
        headings[name] = Heading(int(tag.name[1]), name, tag.get_text())
    for link in page("a"):
        _resolve(link, set(headings))
    made = notebook.metadata.papermill
    when = f"{str(made.get('end_time'))[:10]}, in {made.get('duration') or 0:.0f} seconds"
    how = f"{stem} was executed by papermill {made.get('version')} on {when}. What a run has stored is not asked again."
    title, about = (" ".join(tag.get_text().split()) for tag in page(["h1", "p"], limit=2))
    return Lesson(stem, title, about, str(page).strip(), list(headings.values()), how)


def _resolve(link: Tag, headings: set[str]) -> None:
    """Lead a link between notebooks to the page; one to a file that is not published becomes plain text."""
    target, _, fragment = str(link.get("href", "")).partition("#")
    stem = target.removesuffix(".ipynb")
    if stem in STEMS:
        link["href"] = f"{stem}.html" + (f"#{fragment}" if fragment else "")
    elif not re.match(r"(https?|mailto):", target) and (target or fragment not in headings):
        link.unwrap()


def _box(wide: Tag, label: str) -> None:
    """Let something wide scroll in its own box; one with a label can be reached and scrolled with the keyboard."""
    box = wide.wrap(BeautifulSoup("", "html.parser").new_tag("div"))
    box["class"] = "box"
    if label:
        box.attrs |= {"tabindex": "0", "role": "group", "aria-label": label}


def _mathml(formula: str, display: Literal["block", "inline"] = "inline") -> str:
    # the converter sets the name of a function close to what follows
    return str(convert(re.sub(r"\\(log|exp)\b", r"\\\1\\,", formula), display=display))


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
