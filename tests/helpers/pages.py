"""What the pages are made of, and what may stand in one: executed notebooks, and HTML that asks nobody for anything."""

import base64
import io
import re
from pathlib import Path

import nbformat
from attacks import ALL
from bs4 import BeautifulSoup, Comment
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from PIL import Image

from nbutils.run import notebook as source_of
from tools import walkthrough

# HTML passes through this reader as it does through the Hub's
READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def names(text):
    return text.split()


MARKED = "a b blockquote br caption code dd del div dl dt em hr i ins kbd li ol p pre s samp small span strong sub sup"
TABLES = "table tbody td tfoot th thead tr u ul h1 h2 h3 h4 h5 h6 figure figcaption img"
MATH = "math mi mo mn ms mtext mspace mrow mfrac msqrt mroot msub msup msubsup munder mover munderover mtable mtr mtd"
ELEMENTS = set(names(f"{MARKED} {TABLES} {MATH} mstyle mpadded mphantom menclose mmultiscripts"))
# none of them names an address, a handler or a style; the last are of formulas
PLAIN = set(names("class id rel alt width height colspan rowspan start role aria-label tabindex"))
PLAIN |= set(
    names(
        "display mathvariant stretchy fence form separator lspace rspace depth minsize maxsize movablelimits accent "
        "linethickness columnalign rowspacing columnspacing columnlines rowlines displaystyle scriptlevel notation"
    )
)
HREF = re.compile(r"https?://[^\s\\]*|(?:\w+\.(?:html|ipynb))?(?:#\S*)?")
SRC = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


def assert_inert(html):
    """Whatever is in this HTML, a browser that shows it asks nobody for anything and runs nothing."""
    page = BeautifulSoup(html, "html.parser")
    assert not page.find_all(string=lambda text: isinstance(text, Comment) or type(text).__name__ == "Doctype")
    for tag in page(True):
        assert tag.name in ELEMENTS, tag
        for name, value in tag.attrs.items():
            known = {"href": HREF, "src": SRC}.get(name)
            assert known.fullmatch(value) if known else name in PLAIN, (tag.name, name, value)
        assert tag.name != "a" or "href" not in tag.attrs or {"noopener", "noreferrer"} <= set(tag["rel"]), tag


PIECES = st.sampled_from(
    [
        *"<>\"'=/ \n\t`&;-!?[](){}\\#\0\x1b",
        *names("</ <!-- --> --!> <![CDATA[ ]]> <? &lt; &gt; &quot; &#60; &colon; /> \x1b[31m \x1b]8;; \u202e \ud800"),
        *names("svg math mtext mi mglyph annotation-xml foreignObject table td tr style script img a p b div form"),
        *names("template noscript title textarea select option xmp iframe base meta link input details plaintext pre"),
        *names("onerror=x onload=x src=https://e.org href=javascript:x style=x:url(https://e.org) srcdoc=x id=main"),
        *names("xlink:href=x http-equiv=refresh encoding=text/html data:image/png;base64,AA== $ $$ ** ![x](y) \\text"),
    ]
)
SOUP = st.lists(PIECES, max_size=30).map("".join) | st.lists(st.sampled_from(ALL), max_size=3).map("".join) | st.text()


ELSEWHERE = "/home/somebody/kit"  # the checkout of the machine that executed the run
CAPTION = 'Shares of "kept" & <swapped>.'
TABLE = '<div><style scoped>th {color: red}</style><table border="1"><tr style="x"><td>1</td></tr></table></div>'


def stream(text, name="stderr"):
    return new_output("stream", name=name, text=text)


def picture(name):
    image = io.BytesIO()
    Image.new("RGB", (200, 100 + len(name))).save(image, format="png")
    return image.getvalue()


def shown(image, caption=CAPTION):
    metadata = {"image/png": {"alt": caption}} if caption else {}
    data = {"image/png": base64.b64encode(image).decode(), "text/plain": "<Image>"}
    return new_output("display_data", data, metadata=metadata)


def executed(stem, run_dir):
    """Write a notebook as papermill would have left it, with its stage folder."""
    book = nbformat.read(source_of(stem), as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    injected = new_code_cell(
        f'# Parameters\nrun_dir = "{ELSEWHERE}/runs/x"', metadata={"tags": ["injected-parameters"]}
    )
    book.cells.insert(book.cells.index(code[0]) + 1, injected)
    book.cells.append(
        new_markdown_cell("## More\n\nSee [the kit](../README.md), [more](#More), [away](https://a.org).")
    )
    figures = run_dir / stem / "figures"
    figures.mkdir(parents=True)
    (figures.parent / "README.md").write_text("card")
    for i, cell in enumerate([*code, injected]):
        cell.execution_count = i
        for name in re.findall(r'stage\.figure\("(\w+)"', cell.source):
            (figures / f"{name}.png").write_bytes(picture(name))
            cell.outputs.append(shown(picture(name)))
    code[1].outputs = [
        stream(f"kept in {ELSEWHERE}, {ELSEWHERE}/runs/x/{stem}, not in {ELSEWHERE}-2\n", "stdout"),
        stream(
            f"{Path.home()}/.cache and {walkthrough.CHECKOUT}/params\n"
            "/opt/env/site-packages/a.py:1: \x1b[31mred\x1b[0m\n"
        ),
        *(stream(f"\rasking: {i}%") for i in range(100)),
        stream("\n"),
        new_output("execute_result", {"text/html": TABLE, "text/plain": "1"}),
        new_output("display_data", {"text/html": "<script src='https://a.org/x.js'></script><b>bold</b>"}),
    ]
    book.metadata["papermill"] = {
        "input_path": f"{ELSEWHERE}/notebooks/{stem}.ipynb", "output_path": f"{ELSEWHERE}/runs/x/{stem}.ipynb",
        "version": "2.7.0", "end_time": "2026-01-02T03:04:05", "duration": 9.6,
    }  # fmt: skip
    nbformat.write(book, run_dir / f"{stem}.ipynb")
