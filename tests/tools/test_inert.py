"""inert.py: what a stranger wrote is shown, and nothing in it runs or loads."""

import re

import pytest
from attacks import ALL, LINKS, aimed
from bs4 import BeautifulSoup
from hypothesis import given, settings
from pages import SOUP, assert_inert

from nbutils.core.errors import InputError
from tools import inert


@pytest.mark.parametrize("attack", aimed(ALL, "https://evil.org"))
@pytest.mark.parametrize("door", [inert.printed, inert.page])
def test_what_runs_or_loads_is_not_let_through(door, attack):
    assert_inert(re.sub(r' href="[^":]*"', "", door(attack)))  # what is no address of the web is looked at by lessons


@pytest.mark.parametrize("target", LINKS)
def test_a_link_names_the_web_or_a_file_beside_the_page(target):
    for door in (inert.printed, inert.page):
        (link,) = BeautifulSoup(door(f'<a href="{target}">x</a>'), "html.parser")("a")
        assert re.fullmatch(r"[^:/\\]*", link.get("href", ""))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("<p>1 &lt; 2 &amp; <b>bold</b></p>", "<p>1 &lt; 2 &amp; <b>bold</b></p>"),
        (
            '<div><style scoped>th {color: red}</style><table border="1" class="dataframe"><thead><tr style="x">'
            '<th colspan="2">a</th></tr></thead><tbody><tr><th>0</th><td rowspan="2">&lt;b&gt;</td></tr></tbody>'
            "</table></div>",
            '<div><table><thead><tr><th colspan="2">a</th></tr></thead><tbody><tr><th>0</th>'
            '<td rowspan="2">&lt;b&gt;</td></tr></tbody></table></div>',
        ),
        (
            '<a href="https://a.org/x?y=1&amp;z#w">x</a>',
            '<a href="https://a.org/x?y=1&amp;z#w" rel="noopener noreferrer">x</a>',
        ),
        ('<a href="02_sample.ipynb#More">x</a>', '<a href="02_sample.ipynb#More" rel="noopener noreferrer">x</a>'),
        ("<h2>x</h2><section>y</section>", "xy"),
        ("<ul><li>è 日本 🙂<ol start=3><li>x", '<ul><li>è 日本 🙂<ol start="3"><li>x</li></ol></li></ul>'),
        ("a</div></main><b>c", "a<b>c</b>"),
        ("", ""),
    ],
)
def test_tables_and_marked_text_are_shown_as_they_were(given, shown):
    assert inert.printed(given) == shown


def test_a_pages_own_parts_pass():
    own = (
        '<h2>x</h2><div class="output" role="group" aria-label="Output"><pre class="text stdout">y</pre></div>'
        '<figure><img alt="a &quot;b&quot;" src="data:image/png;base64,AA=="><figcaption>c</figcaption></figure>'
        '<div class="highlight"><pre><span class="k">if</span></pre></div>'
    )
    assert inert.page(own) == own


@pytest.mark.parametrize(
    ("formula", "made"),
    [
        ("a < b", '<math display="inline"><mrow><mi>a</mi><mo>&lt;</mo><mi>b</mi></mrow></math>'),
        (r"\frac{1}{2}", "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>"),
        (r"\log\sigma(\beta)", "<mi>σ</mi>"),
        (r"\text{<b onclick=x>is</b>}", "is"),
    ],
)
def test_a_formula_is_mathml(formula, made):
    found = inert.mathml(formula)
    assert_inert(found)
    assert made in found


@pytest.mark.parametrize("formula", ["a_", "{" * 5000, "\\left( x", "a^b^c"])
def test_a_formula_that_is_none_is_named(formula):
    with pytest.raises(InputError, match=r"the formula .* cannot be shown"):
        inert.mathml(formula)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("plain\ttext\r\n", "plain\ttext\r\n"),
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
        ("\x1b]8;;https://a.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]0;not ended", ""),
        ("\x1bPq\x1b\\x\x1bc\x1b(0", "xc(0"),
        ("a\0b\x08c\x7fd\x9be\x0cf", "abcdef"),
        ("\ud800x", "?x"),
        ("perché 日本 🙂", "perché 日本 🙂"),
    ],
)
def test_what_is_no_text_is_left_out(given, left):
    assert inert.text(given) == left


@pytest.mark.parametrize("image", ["", "AA==", "é", "iVBORw0KGgo", 'x" onerror="y', "R0lGODlhAQABAIAAAP", "A" * 100])
def test_a_figure_that_is_no_png_is_refused(image):
    with pytest.raises(InputError, match="a figure is no PNG image of at most 10000 x 10000"):
        inert.figure(image)


def test_the_policy_allows_one_style_and_figures():
    # printf 'b {}' | openssl dgst -sha256 -binary | base64
    digest = "sha256-zy87ZYlZV4kMyp51wB+3ABJeEclAGRFupKDmlDS9DAw="
    assert inert.policy("b {}") == (
        f"default-src 'none'; img-src data:; style-src '{digest}'; base-uri 'none'; form-action 'none'"
    )


@given(SOUP)
@settings(max_examples=300, deadline=None)
def test_no_mixture_of_pieces_gets_through_and_what_is_clean_stays_as_it_is(html):
    for door in (inert.printed, inert.page):
        clean = door(inert.text(html))
        assert_inert(re.sub(r' href="[^":/\\]*"', "", clean))
        assert door(clean) == clean
