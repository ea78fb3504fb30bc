"""command.py: a program's exit status, and its one sentence."""

import pytest

from nbutils.core.command import parser, program
from nbutils.core.errors import InputError, Interrupted


@pytest.mark.parametrize("stop", [InputError("no \x1b[31mfile"), Interrupted("no \x1b[31mfile")])
def test_what_stops_a_program_is_one_line_that_orders_nothing_and_a_status(stop, capsys):
    @program
    def main(arguments):
        raise stop

    assert main(["x"]) == 1
    assert capsys.readouterr() == ("", "error: no \\x1b[31mfile\n")


def test_a_program_that_ends_has_status_zero_and_one_that_breaks_shows_where():
    seen = []
    assert program(seen.append)(["x"]) == 0
    assert seen == [["x"]]

    def broken(arguments):
        raise KeyError(arguments)

    with pytest.raises(KeyError):
        program(broken)(["x"])


def test_help_is_the_first_paragraph_of_the_module():
    text = parser("tools.x", "Does one thing\nwell.\n\nAnd more.").format_help()
    assert "usage: python -m tools.x" in text
    assert "Does one thing well." in text
    assert "And more" not in text
