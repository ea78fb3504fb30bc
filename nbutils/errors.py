"""The two ways a stage ends early, both with one sentence for the person who reads it, and how to go on afterwards."""

import os

GO_ON = "everything done so far is stored: run the same command or cell again to go on"
STOPPED = "nbutils_stopped"  # where `notebook` leaves the sentence for `run`: in the metadata of a cell's output
ON_KAGGLE = "; in a new session, first add this notebook's output as its input"


class InputError(ValueError):
    """Something the user gave is wrong: the message names it, says what was expected and what to do."""


class Interrupted(RuntimeError):  # noqa: N818 - nothing is wrong
    """The stage stopped before its end on purpose; what was finished is stored and the same command goes on."""


def out_of_time(at: str) -> Interrupted:
    """Return what to raise at a deadline: how far the work got, and how to go on."""
    return Interrupted(f"time budget used up {at}; {GO_ON}{ON_KAGGLE if on_kaggle() else ''}")


def on_kaggle() -> str:
    """Return how Kaggle runs this notebook, `Interactive` or `Batch` (Save & Run All); empty elsewhere."""
    return os.environ.get("KAGGLE_KERNEL_RUN_TYPE", "")
