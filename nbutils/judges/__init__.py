"""Judges: which of several answers is better, and whether whoever says so can be trusted (`bias`)."""

from nbutils.judges.files import LlmFile, RewardFile, brings, key_variables, read_file
from nbutils.judges.judge import Judge, Judgement, fault, run, screen
from nbutils.judges.loading import load

__all__ = [
    "Judge", "Judgement", "LlmFile", "RewardFile", "brings", "fault", "key_variables", "load", "read_file", "run",
    "screen",
]  # fmt: skip
