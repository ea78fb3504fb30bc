"""What strangers wrote, made fit for a page: nothing in it runs, and nothing is loaded when the page is opened.

Used by `walkthrough`. A notebook's outputs hold what a row, a model or a judge said, so nothing of them is trusted:
whatever is shown passes an allow list (nh3), and the policy in a page's head forbids the rest to the browser. Needs
the extra `dev`.
"""

import base64
import hashlib
import itertools
import re
import struct
from typing import Any, Literal

from latex2mathml.converter import convert

from nbutils.core.errors import InputError, first_line


def _names(text: str) -> set[str]:
    return set(text.split())


# of an output of a cell; no headings, which make a page's contents, and no images: figures come as PNG beside it
PRINTED = _names(
    "a b blockquote br caption code dd del div dl dt em hr i ins kbd li ol p pre s samp small span strong sub sup "
    "table tbody td tfoot th thead tr u ul",
)
PAGE = PRINTED | {"h1", "h2", "h3", "h4", "h5", "h6", "figure", "figcaption", "img"}
SPANS = {"colspan", "rowspan"}
ATTRIBUTES: dict[str, set[str]] = {"*": set(), "a": {"href"}, "td": SPANS, "th": SPANS, "ol": {"start"}}
PAGE_ATTRIBUTES = {
    **ATTRIBUTES,
    **{tag: {"class"} for tag in ("code", "p", "pre", "span")},
    "div": {"class", "role", "aria-label"},
    "img": {"alt", "src"},
}
MATH = _names(
    "math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mroot mrow ms mspace msqrt mstyle msub "
    "msubsup msup mtable mtd mtext mtr munder munderover",
)
MATH_ATTRIBUTES = _names(
    "accent columnalign columnlines columnspacing depth display displaystyle fence form height linethickness "
    "lspace mathvariant maxsize minsize movablelimits notation rowlines rowspacing rspace scriptlevel separator "
    "stretchy width",
)
SHOWN = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
LINK = re.compile(r"https?://[^\s\\]+|[^:/\\\s]*")
# strings that a terminal obeys, e.g. links and titles; a control character that is left is no text either
ORDERS = re.compile(
    r"\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b(?!\[)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]"
)
DEEPEST = 100  # elements in one another
LARGEST = 10_000  # pixels of a figure's side: a small file can decode to more than a browser holds


def printed(html: str) -> str:
    """Return the HTML of a cell's output as a fragment that is whole: tables, lists and marked text, without classes.

    >>> printed('<td onclick="x()">1</td><p style="x">2<script>3</script></div><img src=x onerror=y>4')
    '1<p>24</p>'
    """
    clean = _allowed(html, tags=PRINTED, attributes=ATTRIBUTES, attribute_filter=_kept, url_schemes={"http", "https"})
    return _shallow(clean)


def markdown(html: str) -> str:
    """Return the HTML of a cell's Markdown as a fragment that is whole."""
    return _shallow(_cleaned(html, PAGE - {"img"}))


def page(html: str) -> str:
    """Return a page's content with what our templates make besides: classes and figures."""
    return _cleaned(html, PAGE)


def _cleaned(html: str, tags: set[str]) -> str:
    schemes = {"http", "https", "data"}  # the last for figures alone, see _kept
    return _allowed(html, tags=tags, attributes=PAGE_ATTRIBUTES, attribute_filter=_kept, url_schemes=schemes)


def _shallow(html: str) -> str:
    """Return clean HTML, of a tower of elements only the text: what reads it takes time by the square of the height."""
    steps = (1 if tag == "<" else -1 for tag in re.findall(r"</?(?!br|hr)(?=\w)", html))
    return html if max(itertools.accumulate(steps), default=0) <= DEEPEST else _allowed(html, tags=set())


def _allowed(html: str, **allowed: Any) -> str:
    import nh3

    return str(nh3.clean(html, **allowed))


def _kept(tag: str, name: str, value: str) -> str | None:
    allowed = {"href": LINK, "src": SHOWN}.get(name)
    return value if allowed is None or allowed.fullmatch(value) else None


def mathml(formula: str, display: Literal["block", "inline"] = "inline") -> str:
    """Return a LaTeX formula as MathML, which browsers show without scripts.

    Raises:
        InputError: if it cannot be converted.
    """
    try:
        # the converter sets the name of a function close to what follows
        made = convert(re.sub(r"\\(log|exp)\b", r"\\\1\\,", formula), display=display)
    except Exception as error:  # it has a dozen kinds, and is recursive
        raise InputError(f"the formula {formula[:80]!r} cannot be shown ({first_line(error)}); mend it") from None
    return _allowed(made, tags=MATH, attributes={"*": MATH_ATTRIBUTES})


def text(value: str) -> str:
    """Return a text without what is no text: control characters but line ends, tabs and colours, half characters.

    >>> text("a\\0\\x1b[31mred\\x1b[0m \\x1b]8;;https://a.org\\x07link\\x1b]8;;\\x07\\ud800")
    'a\\x1b[31mred\\x1b[0m link?'
    """
    return ORDERS.sub("", value).encode("utf-8", "replace").decode()


def figure(image: str) -> bytes:
    """Return the content of a figure, which is to be a PNG in base64.

    Raises:
        InputError: if it is none, or larger than a browser shows.
    """
    try:
        content = base64.b64decode("".join(image.split()), validate=True)
        known = content[:8] == b"\x89PNG\r\n\x1a\n" and all(0 < side <= LARGEST for side in size(content))
    except (ValueError, struct.error):
        known = False
    if not known:
        raise InputError(f"a figure is no PNG image of at most {LARGEST} x {LARGEST} pixels; draw it again")
    return content


def size(content: bytes) -> tuple[int, int]:
    """Return width and height of a PNG."""
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def policy(style: str) -> str:
    """Return the Content-Security-Policy of a page whose only style is this one: figures in the page, nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
