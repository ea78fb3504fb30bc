"""What strangers wrote, in places where it could become something else: Markdown, code, an order to a terminal.

Used by cards and outcomes, and by whatever prints; HTML of strangers is for `inert`. Names of models, datasets, kinds
and judges, what servers say, and parameters of others are all strangers' words.
"""

import logging
import re
import sys
from typing import Any

# what a terminal obeys, what turns the order of letters round, and half characters; line ends and tabs stay
ORDERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
# brackets that hold an interval and belong to no link
INTERVAL = re.compile(r"\[[-+.,%\d\s]+\](?![(\[:])")
ACTIVE = re.compile(r"[\\`*~|\[\]$]")
# what makes a heading, a list, a rule or a quotation of a line by its beginning; a backslash goes after the digits
BLOCK = re.compile(r"^(\d*)(?=(?<=\d)[.)](?:\s|$)|(?<!\d)(?:(?:#{1,6}|[-+=_]+)(?:\s|$)|[-=_]{2,}|>))")


def printable(text: str) -> str:
    r"""Return a text that can be printed anywhere: a terminal's orders are written out.

    >>> printable("two\nlines \x1b]0;title\x07")
    'two\nlines \\x1b]0;title\\x07'
    """
    return ORDERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain(text: str) -> str:
    r"""Return a text as Markdown that shows it on one line and makes nothing of it: no HTML, no link, no block.

    >>> plain("a <b> ![x](y) | -30 points [-40, -10]")
    'a &lt;b> !\\[x\\](y) \\| -30 points [-40, -10]'
    """
    parts = re.split(f"({INTERVAL.pattern})", " ".join(printable(text).split()))
    parts[::2] = [ACTIVE.sub(r"\\\g<0>", part).replace("&", "&amp;").replace("<", "&lt;") for part in parts[::2]]
    return BLOCK.sub(r"\1\\", "".join(parts))


def code(value: object) -> str:
    r"""Return a value as a code span that nothing in it ends, also in a table's cell; nothing for an empty text.

    >>> code("a|b"), code("`x`\n")
    ('`a\\|b`', '`` `x`\\n ``')
    """
    # a backslash before a bar: some read it as one that is escaped, and end the cell at the bar
    text = printable(str(value)).replace("\n", "\\n").replace("\\|", "\\ |").replace("|", "\\|")
    if not text:
        return ""
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in (text[0], text[-1]) or not text.strip() else ""
    return f"{ticks}{space}{text}{space}{ticks}"


class Formatter(logging.Formatter):
    """Log lines of which nothing is an order to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(super().format(record))


def say(text: str, stream: Any = None) -> None:
    """Write a line at once, also into a pipe; nothing in it is an order to the terminal."""
    (stream or sys.stdout).write(printable(text) + "\n")
    (stream or sys.stdout).flush()
