"""The frame of a program of ours: `python -m <name> ...`, a sentence where it stops, and its exit status."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import wraps

from nbutils.core.errors import InputError, Interrupted
from nbutils.core.markup import say


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Return a parser for `python -m <name>`, described by the first paragraph of its module's docstring."""
    return argparse.ArgumentParser(prog=f"python -m {name}", description=(about or "").split("\n\n")[0])


def program(main: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """Make `main` return the exit status: 0, or 1 after printing the sentence that it stopped with."""

    @wraps(main)
    def status(arguments: Sequence[str] | None = None) -> int:
        try:
            main(arguments)
        except (InputError, Interrupted) as error:
            say(f"error: {error}", sys.stderr)
            return 1
        return 0

    return status
