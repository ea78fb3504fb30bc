"""markup.py: what strangers wrote becomes no Markdown, no code and no order to a terminal."""

import io
import logging

import pytest
from attacks import ALL, MARKDOWN, aimed
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import READER, SOUP

from nbutils.core.markup import Formatter, code, plain, printable

STRUCTURE = [
    "---",
    "--- ",
    "===",
    "***",
    "___",
    "- - -",
    "# a heading",
    "###### x",
    "#",
    "> said",
    "- one",
    "+ one",
    "* one",
    "1. one",
    "12) one",
    "```python",
    "~~~",
    "    indented",
    "\tindented",
    "a\n---\nyaml: x\n---",
    "a\n\n# b",
    "a\r\n\r\n> b",
    "a\u2028# b",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "[x]: https://a.org",
    "[^1]: note",
    "[1]: https://a.org 'title'",
    "[1](https://a.org)",
    "[1][2]",
    "![](https://a.org/pixel.png)",
    "![a][b]",
    "\\![a](https://a.org)",
    "\\\\[a](https://a.org)",
    "[a\\](https://a.org)",
    "[-40, -10](https://a.org)",
    "<https://a.org>",
    "<a@b.org>",
    "`x` ``y``",
    "*a* **b** ~~c~~",
    "a | b",
    "a \\| b",
    "a \\",
    "&lt;b&gt; &#60; &amp;",
    "$$x$$ $y$",
    "<!-- x",
    "<?php x ?>",
    "<![CDATA[x]]>",
    "Perché *no*? Così [è](https://a.org): `x`",
]


def words(text):
    return " ".join(printable(text).split())


def read(markdown):
    return BeautifulSoup(READER.render(markdown), "html.parser")


@pytest.mark.parametrize("text", [*STRUCTURE, *MARKDOWN, *aimed(ALL, "https://evil.org")])
def test_a_text_is_shown_as_it_is_and_is_nothing_else(text):
    page = read(plain(text))
    assert {tag.name for tag in page(True)} == {"p"}
    assert page.get_text().strip() == words(text)
    cells = read(f"| a | b |\n|---|---|\n| {plain(text)} | {code(text)} |\n")
    assert {tag.name for tag in cells(True)} == {"table", "thead", "tbody", "tr", "th", "td", "code"}
    first, second = cells("td")
    assert first.get_text() == words(text)
    assert second.code.get_text().strip() == printable(text).replace("\n", "\\n").replace("\\|", "\\ |").strip()
    item = read(f"- {plain(text)}\n- {plain(text)}")
    assert {tag.name for tag in item(True)} == {"ul", "li"}
    assert {tag.name for tag in read(f"# For {plain(text)}, trained")(True)} == {"h1"}
    image = read(f"![{plain(text)}](figures/a.png)")
    assert [tag.name for tag in image(True)] == ["p", "img"]
    assert image.img.attrs == {"src": "figures/a.png", "alt": words(text)}


@given(
    SOUP | st.lists(st.sampled_from([*"\\`*_~|[]()<>!#&-=+:. \n1a", "](", "```", "[-1, 2]"]), max_size=12).map("".join)
)
@settings(max_examples=300, deadline=None)
def test_no_mixture_of_marks_is_read_as_one(text):
    cells = read(f"| a | b |\n|---|---|\n| x{plain(text)} | {code(text)} |\n")
    assert {tag.name for tag in cells(True)} <= {"table", "thead", "tbody", "tr", "th", "td", "code", "em", "strong"}
    assert len(cells("td")) == 2
    assert {tag.name for tag in read(plain(text))(True)} <= {"p", "em", "strong"}


@pytest.mark.parametrize(
    "text",
    [
        "held: 28.6% to 34.5%, change +6.0 [-0.4, +12.3]",
        "min_chosen, kept -- no",
        "R-squared: 0.5 (n = 3)",
        "a.b/c_d",
        "2026",
    ],
)
def test_a_sentence_of_ours_needs_no_mark(text):
    assert plain(text) == text


@pytest.mark.parametrize(
    ("value", "span"),
    [
        ("org/small", "`org/small`"),
        (0.1, "`0.1`"),
        ("", ""),
        ("a|b", "`a\\|b`"),
        ("a`b", "``a`b``"),
        ("`", "`` ` ``"),
        ("a\nb", "`a\\nb`"),
        (" ", "`   `"),
        ("\x1b[0m", "`\\x1b[0m`"),
        ({"a": None}, "`{'a': None}`"),
    ],
)
def test_a_value_is_a_code_span(value, span):
    assert code(value) == span


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("plain\ttext\nè 日本 🙂", "plain\ttext\nè 日本 🙂"),
        ("\x1b[2J\x1b]0;t\x07", "\\x1b[2J\\x1b]0;t\\x07"),
        ("50%\r100%\x08", "50%\\r100%\\x08"),
        ("\x9b31m\x85\x7f\0", "\\x9b31m\\x85\\x7f\\x00"),
        ("a\u202eb\u2066c\u2028", "a\\u202eb\\u2066c\\u2028"),
        ("\ud800", "\\ud800"),
    ],
)
def test_orders_to_a_terminal_are_written_out(text, left):
    assert printable(text) == left
    assert printable(printable(text)) == left


def test_a_log_line_holds_no_orders():
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setFormatter(Formatter("%(message)s"))
    handler.handle(logging.makeLogRecord({"msg": "%s says %s", "args": ("a\x1b[31m", "b\rc")}))
    assert said.getvalue() == "a\\x1b[31m says b\\rc\n"
