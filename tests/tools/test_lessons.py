"""lessons.py: a notebook's cells as HTML for a page, whatever stands in them."""

import base64
import io
import time

import pytest
from attacks import ALL, LINKS, MARKDOWN, TEXT, aimed
from bs4 import BeautifulSoup
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nbformat import NotebookNode
from pages import SOUP, assert_inert
from PIL import Image

from nbutils.core.errors import InputError
from tools import lessons

SERVER = "https://evil.org"
ONE = io.BytesIO()
Image.new("RGB", (30, 20)).save(ONE, format="png")
PNG = base64.b64encode(ONE.getvalue()).decode()
MIMES = [
    "text/html", "text/plain", "text/markdown", "text/latex", "image/svg+xml", "image/jpeg", "application/javascript",
    "application/vnd.jupyter.widget-view+json", "application/pdf", "text/vnd.mermaid", "text/html; x=y", "a/b",
    'image/png" onerror="x',
]  # fmt: skip


# by hand, since nbformat's own functions check each part and take longer than what is tested
def rendered(*cells):
    return lessons.render("01_rerank", NotebookNode(cells=[markdown("# Title"), *cells], metadata={}), made())


def made(**facts):
    return lessons.Made(**{"version": "2.7.0"} | facts)


def markdown(source):
    return NotebookNode(cell_type="markdown", source=source, metadata=NotebookNode())


def code(outputs, source="x", **metadata):
    return NotebookNode(cell_type="code", source=source, outputs=list(outputs), metadata=NotebookNode(metadata))


def shown(data, **metadata):
    data = {"text/html": data} if isinstance(data, str) else data
    return NotebookNode(output_type="display_data", data=NotebookNode(data), metadata=NotebookNode(metadata))


def printed(text, name="stdout"):
    return NotebookNode(output_type="stream", name=name, text=text)


def page_of(*outputs):
    return BeautifulSoup(rendered(code(outputs)).body, "html.parser")


def test_no_output_runs_or_loads_and_none_hides_the_next():
    attacks = aimed([*ALL, *TEXT], SERVER)
    cells = [
        code([make(attack) for attack in attacks for make in (shown, printed)]),
        code([shown({"text/plain": attack}) for attack in attacks]),
        code([printed(attack, "stderr") for attack in attacks]),
        markdown("The end."),
    ]
    body = rendered(*cells).body
    assert_inert(body)
    page = BeautifulSoup(body, "html.parser")
    assert len(page("pre", "stdout")) == len(attacks) - 1, "one is a title for a terminal alone"
    assert len(page("pre", "stderr")) == 1
    assert page("p")[-1].get_text() == "The end."
    assert page("p")[-1].parent.name == "[document]"
    assert "<img src='https://evil.org/a.png'>" in page.find("pre", "stderr").get_text()


@pytest.mark.parametrize("attack", aimed([*ALL, *MARKDOWN], SERVER))
def test_no_markdown_runs_or_loads_and_the_next_cell_is_whole(attack):
    lesson = rendered(markdown(attack), markdown("## Next\n\nThe *end*."))
    assert_inert(lesson.body)
    page = BeautifulSoup(lesson.body, "html.parser")
    assert page("h2")[-1].get_text() == "Next"
    assert page("em")[-1].parent.parent.name == "[document]"
    ids = [tag["id"] for tag in page(id=True)]
    assert len({*ids, "main", "contents"}) == len(ids) + 2, "the frame has places of these names"


@pytest.mark.parametrize("kind", MIMES)
@pytest.mark.parametrize(
    "attack", ["<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "alert(1)", "\\href{x}{y}"]
)
def test_no_kind_of_output_runs_or_loads(kind, attack):
    assert_inert(rendered(code([shown({kind: attack, "text/plain": "said"})])).body)
    only = rendered(code([shown({kind: attack})])).body
    assert_inert(only)
    assert "alert" not in only or kind in ("text/html", "text/plain")


def test_what_stands_around_the_outputs_does_not_run_either():
    bad = '"><img src=x onerror=alert(1)>'
    outputs = [printed("x", bad), shown({"image/png": PNG}, **{"image/png": {"alt": bad}})]
    cell = code(outputs, bad, tags=["injected-parameters", bad], magics_language=bad)
    raw = NotebookNode(cell_type="raw", source=bad, metadata=NotebookNode(format="text/html"))
    metadata = {"title": bad, "language_info": {"name": bad, "pygments_lexer": bad}, "widgets": {"a": bad}}
    book = NotebookNode(cells=[markdown(f"# {bad}\n\n{bad}"), cell, raw], metadata=metadata)
    lesson = lessons.render("01_rerank", book, made(version=bad))
    assert_inert(lesson.body)
    page = BeautifulSoup(lesson.body, "html.parser")
    assert page.img["alt"] == page.figcaption.get_text() == bad
    assert page.pre.get_text().strip() == bad
    assert page.find("pre", "stdout")


@pytest.mark.parametrize("target", LINKS)
def test_a_link_to_what_is_not_published_is_plain_text(target):
    for body in (
        rendered(markdown(f"[x](<{target}>)")).body,
        str(page_of(shown(f'<a href="{target}">x</a>'))),
    ):
        assert "<a" not in body


def test_links_to_the_web_and_to_pages_stay():
    page = page_of(shown('<a href="https://a.org/x">1</a><a href="02_sample.ipynb#More">2</a><a href="#nowhere">3</a>'))
    assert [link["href"] for link in page("a")] == ["https://a.org/x", "02_sample.html#More"]


def test_what_is_left_out_is_counted_by_its_element():
    table = "<style scoped>x</style><table><tr><td>1</table>"
    lesson = rendered(code([shown(f"{table}<img src=x><IMG><script></script>"), shown("<img>")]))
    assert lesson.dropped == {"img": 2, "script": 1}


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        (["a\n", "b\n"], "a\nb\n"),
        ([f"\rasking: {i}%" for i in range(100)] + ["\n"], "asking: 99%\n"),
        (["one\r\ntwo\r\n"], "one\ntwo\n"),
        (["50%\r", "100%\r", "\ndone"], "100%\ndone"),
        (["\n\nx"], "\n\nx"),
        (["x" * 99_999 + "y", "z" * 20], "x" * 99_999 + "y"),
    ],
)
def test_a_stream_is_joined_and_a_bar_has_its_last_state(texts, left):
    assert page_of(*map(printed, texts)).find("pre", "stdout").get_text() == left


def test_a_cell_that_prints_without_end_is_cut_and_says_so():
    page = page_of(printed("a" * 60_000), shown("<p>" + "b" * 60_000), *[printed(str(i)) for i in range(1000)])
    assert "b" * 39_947 in str(page)
    assert "b" * 39_948 not in str(page)
    assert page("pre")[-1].get_text() == "[22,943 more characters stand in the notebook]"


@pytest.mark.parametrize(
    "outputs",
    [
        [printed("a" * 5_000_000)],
        [printed("\r" * 3_000_000)],
        [printed("/a" * 1_000_000)],
        [NotebookNode(output_type="stream", name="stdout", text="x")] * 100_000,
        [NotebookNode(output_type="stream", name=f"std{'oe'[i % 2]}", text="x") for i in range(20_000)],
        [shown("<div>" * 1_000_000)],
        [shown("<table><tr><td>" * 100_000)],
        [shown("<b><i>" * 200_000)],
        [printed("\x1b[31m" * 500_000)],
        [shown({"text/plain": "\x1b]" * 500_000})],
    ],
    ids=["line", "returns", "path", "pieces", "turns", "deep", "tables", "misnested", "colours", "orders"],
)
def test_a_large_output_takes_seconds(outputs):
    started = time.monotonic()
    body = rendered(code(outputs)).body
    assert len(body) < 2_000_000
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        (markdown("![a](https://a.org/a.png)"), "the image https://a.org/a.png is not part of the notebook"),
        (markdown("![a][b]\n\n[b]: ../a.png"), "the image ../a.png is not part of the notebook"),
        (markdown("![a](attachment:a.png)"), "the image attachment:a.png is not part of the notebook"),
        (markdown("$a_$"), "the formula 'a_' cannot be shown"),
        (code([shown({"image/png": "AAAA"})]), "a figure is no PNG"),
        (code([shown({"image/png": f'{PNG}" onerror="x'})]), "a figure is no PNG"),
    ],
)
def test_what_a_notebooks_author_can_mend_is_named(cell, fault):
    with pytest.raises(InputError, match=fault):
        rendered(cell)


OUTPUT = st.one_of(
    st.builds(printed, SOUP, st.sampled_from(["stdout", "stderr", '"x'])),
    st.builds(shown, st.dictionaries(st.sampled_from([*MIMES, "image/png"]), SOUP | st.just(PNG), max_size=3)),
)
CELL = st.one_of(
    st.builds(code, st.lists(OUTPUT, max_size=4), SOUP),
    st.builds(markdown, SOUP),
)


@given(st.lists(CELL, max_size=4))
@example([markdown("<svg><p><style><!--"), code([shown("</div></div>-->")])])
@settings(max_examples=80, deadline=None)
def test_whatever_a_notebook_holds_its_page_asks_for_nothing_and_runs_nothing(cells):
    try:
        lesson = rendered(*cells)
    except InputError:
        return
    assert_inert(lesson.body)
