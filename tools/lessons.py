"""The cells of one executed notebook as HTML for a page: what `walkthrough` puts into a frame.

nbconvert renders the cells through `pages/lesson.html.j2`, what came out passes the allow list of `inert` and is then
tidied. Whatever is put in after that is our own. Needs the extra `dev`.
"""

import base64
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

from bs4 import BeautifulSoup, Tag
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pydantic import BaseModel
from traitlets.config import Config

from nbutils.core.errors import InputError
from nbutils.params import STEMS
from tools import inert

TEMPLATE = Path(__file__).parent / "pages" / "lesson.html.j2"
COLUMNS = 80  # wider code than this does not fit a screen, and needs the arrow keys
LONG = 60  # characters of a table's cell that need room
LONGEST = 100_000  # characters that a cell may print; what is more stands in the notebook
LEAST = 50  # that an output counts for
TYPES = ("text/html", "image/png", "text/plain")  # of what a cell shows the first is taken
TAKEN = {"main", "contents"}  # names of places in the frame


class Heading(NamedTuple):
    """A line of a page's table of contents."""

    level: int
    id: str
    text: str


class Made(BaseModel):
    """What papermill noted of an execution."""

    version: str
    end_time: str | None = None
    duration: float | None = None
    input_path: str | None = None
    output_path: str | None = None


@dataclass(frozen=True)
class Lesson:
    """One executed notebook, rendered."""

    stem: str
    title: str
    about: str  # the first paragraph
    body: str
    headings: list[Heading]
    made: str
    widths: set[int]  # of its figures, in pixels
    dropped: Counter[str]  # elements of outputs that are not shown


def render(stem: str, notebook: NotebookNode, made: Made) -> Lesson:
    """Render the cells of a notebook and tidy what came out.

    Raises:
        InputError: naming an image that comes from elsewhere, or a formula that is none.
    """
    dropped: Counter[str] = Counter()

    def printed(html: str) -> str:
        dropped.update(set(re.findall(r"<([a-z][\w:-]*)", html.lower())) - inert.PRINTED - {"style"})  # pandas has one
        return inert.printed(html)

    config = Config()
    config.NbConvertBase.display_data_priority = list(TYPES)
    template = {"template_name": "base", "template_file": str(TEMPLATE)}
    exporter = HTMLExporter(config=config, filters={"markdown2html": _markdown, "printed": printed}, **template)
    shown = new_notebook()
    shown.cells = [_cell(cell) for cell in notebook.cells if cell.cell_type != "raw"]
    page = BeautifulSoup(inert.page(exporter.from_notebook_node(shown)[0]), "html.parser")
    for code in page.select("code.formula"):
        _formula(code)
    widths = {_figure(image) for image in page("img")}
    for table in page("table"):
        for cell in table("td"):
            if len(cell.get_text()) > LONG:
                cell["class"] = "long"
        _box(table, "Table")
    for code in page("pre"):
        if "text" not in (code.get("class") or []):  # printed text breaks its lines instead
            _box(code, "Code" if max(map(len, code.get_text().splitlines()), default=0) > COLUMNS else "")
    headings = _headings(page)
    for link in page("a"):
        _resolve(link, set(headings))
    when = f"{str(made.end_time)[:10]}, in {made.duration or 0:.0f} seconds"
    how = f"{stem} was executed by papermill {made.version} on {when}. What a run has stored is not asked again."
    title, about = (" ".join(tag.get_text().split()) if tag else stem for tag in (page.h1, page.p))
    return Lesson(stem, title, about, str(page).strip(), list(headings.values()), how, widths, dropped)


def caption(output: NotebookNode) -> str:
    """Return the caption of a figure in a notebook, empty if it has none."""
    about = output.metadata.get("image/png")
    return inert.text(str(about.get("alt") or "")) if isinstance(about, dict) else ""


def _cell(cell: NotebookNode) -> NotebookNode:
    """Return a cell with nothing but what is shown of it."""
    source = inert.text(cell.source)
    if cell.cell_type == "markdown":
        return new_markdown_cell(source)
    tags = [tag for tag in cell.metadata.get("tags", []) if tag == "injected-parameters"]
    shown = new_code_cell(source, metadata={"tags": tags})
    shown.outputs = list(_outputs(cell.outputs))
    return shown


def _outputs(outputs: Iterable[NotebookNode]) -> Iterator[NotebookNode]:
    """Yield what a cell left as a reader needs it: streams joined, of a progress bar its last state, not too much."""
    room, lost = LONGEST, 0

    def cut(text: str) -> str:
        nonlocal room, lost
        text = inert.text(text)
        kept = text[: max(room, 0)]
        room, lost = room - len(kept) - LEAST, lost + len(text) - len(kept)
        return kept

    for (kind, name), group in itertools.groupby(outputs, lambda o: (o.output_type, o.get("name"))):
        if kind == "stream":
            lines = "".join(output.text for output in group).split("\n")
            if text := cut("\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)):
                yield _printed(text, "stderr" if name == "stderr" else "stdout")
            continue
        for output in group:
            form = next((form for form in TYPES if form in output.data), "")
            if form == "image/png":
                image = base64.b64encode(inert.figure(output.data[form])).decode()
                yield _shown(form, image, alt=caption(output))
            elif form and (text := cut(output.data[form])):
                yield _shown(form, text)
    if lost:
        yield _printed(f"[{lost:,} more characters stand in the notebook]", "stderr")


# not by nbformat's functions: they check each output, which takes longer than all the rest
def _printed(text: str, name: str) -> NotebookNode:
    return NotebookNode(output_type="stream", name=name, text=text)


def _shown(form: str, data: str, **about: str) -> NotebookNode:
    metadata = NotebookNode({form: NotebookNode(about)})
    return NotebookNode(output_type="display_data", data=NotebookNode({form: data}), metadata=metadata)


class _Renderer(IPythonRenderer):  # type: ignore[misc]
    """Formulas are marked as code, which passes the allow list; `_formula` turns them into MathML."""

    def inline_math(self, body: str) -> str:
        return f'<code class="formula">{escape(body)}</code>'

    def block_math(self, body: str) -> str:
        return f'<code class="formula block">{escape(body)}</code>'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        raise InputError(f"the image {url[:200]} is not part of the notebook; draw it in a cell")


def _markdown(source: str) -> str:
    # through an allow list already here, or an element that is not closed would take in the cells after it
    return inert.markdown(MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source))


def _formula(code: Tag) -> None:
    """Put a formula's MathML in its place."""
    block = "block" in (code.get("class") or [])
    formula = inert.mathml(code.get_text(), "block" if block else "inline")
    code.replace_with(BeautifulSoup(f'<span class="box">{formula}</span>' if block else formula, "html.parser"))


def _figure(image: Tag) -> int:
    """Tell the browser an image's size, put it into a box of its own, and return its width."""
    width, height = inert.size(base64.b64decode(str(image["src"]).partition(",")[2]))
    image["width"], image["height"] = str(width), str(height)
    _box(image, "Figure")
    return width


def _headings(page: BeautifulSoup) -> dict[str, Heading]:
    """Give each heading a name that no other place on the page has, and return them by it."""
    headings: dict[str, Heading] = {}
    for tag in page(["h2", "h3"]):
        name = "-".join(tag.get_text().split())  # as Jupyter names it, for links from elsewhere
        tag["id"] = name = f"{name}-{len(headings)}" if name in headings.keys() | TAKEN else name
        headings[name] = Heading(int(tag.name[1]), name, tag.get_text())
    return headings


def _resolve(link: Tag, headings: set[str]) -> None:
    """Lead a link between notebooks to the page; one to a file that is not published becomes plain text."""
    target, _, fragment = str(link.get("href", "")).partition("#")
    stem = target.removesuffix(".ipynb")
    if stem in STEMS:
        link["href"] = f"{stem}.html" + (f"#{fragment}" if fragment else "")
    elif not re.match(r"https?://", target) and (target or fragment not in headings):
        link.unwrap()


def _box(wide: Tag, label: str) -> None:
    """Let something wide scroll in its own box; one with a label can be reached and scrolled with the keyboard."""
    box = wide.wrap(BeautifulSoup("", "html.parser").new_tag("div"))
    box["class"] = "box"
    if label:
        box.attrs |= {"tabindex": "0", "role": "group", "aria-label": label}
