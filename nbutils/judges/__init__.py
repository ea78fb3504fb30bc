"""Judges: which of several answers is better, and whether whoever says so can be trusted (`bias`)."""

from nbutils.judges.files import LlmFile, RewardFile, brings, key_variables, read_file
from nbutils.judges.judge import Judge, Judgement, fault, finish, run, screen, sees_reference
from nbutils.judges.loading import beside, load

__all__ = [
    "Judge", "Judgement", "LlmFile", "RewardFile", "beside", "brings", "fault", "finish", "key_variables", "load",
    "read_file", "run", "screen", "sees_reference",
]  # fmt: skip
