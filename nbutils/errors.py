"""The two ways a stage ends early; both carry one sentence written for the person who reads it."""


class InputError(ValueError):
    """Something the user gave is wrong: the message names it, says what was expected and what to do."""


class Interrupted(RuntimeError):  # noqa: N818 - nothing is wrong
    """The stage stopped before its end on purpose; what was finished is stored and the same command goes on."""


def first_line(error: BaseException) -> str:
    """Return what another library's error says, short enough for one sentence of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].encode("utf-8", "backslashreplace").decode()


def shown(value: object) -> str:
    """Return a value as Python writes it, on one line and short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
