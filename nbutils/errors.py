"""The two ways a stage ends early; both carry one sentence written for the person who reads it."""


class InputError(ValueError):
    """Something the user gave is wrong: the message names it, says what was expected and what to do."""


class Interrupted(RuntimeError):  # noqa: N818 - nothing is wrong
    """The stage stopped before its end on purpose; what was finished is stored and the same command goes on."""
