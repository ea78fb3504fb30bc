import re
import time

import pytest

from nbutils.core.bounded import within
from nbutils.core.errors import InputError


def forever():
    while True:
        pass


def test_what_comes_to_an_end_is_returned():
    assert within(lambda: [1, {"due": "x" * 10**6}], "it") == [1, {"due": "x" * 10**6}]


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (forever, "it takes longer than 1 seconds"),
        (lambda: re.match("(a+)+$", "a" * 40 + "b"), "it takes longer than 1 seconds"),
        (lambda: time.sleep(60), "it takes longer than 1 seconds"),
        (lambda: len("a" * 10**10), "it takes too much memory"),
        (lambda: [0] * 10**10, "it takes too much memory"),
        (lambda: 1 / 0, "it fails (division by zero)"),
        (lambda: re.compile("("), "it fails (missing ), unterminated subpattern at position 0)"),
    ],
)
def test_what_does_not_is_refused_in_time(work, said):
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        within(work, "it", seconds=1)
    assert str(caught.value) == said
    assert time.monotonic() - started < 20
