"""The judge that asks nobody: what the source calls better is taken for better.

For pairs of a larger model's answer over a smaller sibling's (delta pairs), which were reported to train an 8B model as
well as judged ones (arXiv 2507.06187). How often the assumption is wrong is what every other judge tells.
"""

from collections.abc import Sequence

from nbutils.core.records import Row
from nbutils.judges.files import AssumeFile
from nbutils.judges.judge import Judgement
from nbutils.judges.rules import RuleJudge


class Assume(RuleJudge):
    """Scores the first of two responses 1 and the other 0."""

    def __init__(self, name: str, file: AssumeFile):
        self.name, self.file = name, file

    def doubt(self, rows: Sequence[Row]) -> str:
        """Return that nobody judged."""
        return f"nobody judges these {len(rows)} pairs: `kept` is the source's word and confirms nothing"

    def fault(self, row: Row) -> str:
        """Return nothing: every pair of a source has an order."""
        return ""

    def hopeless(self, rows: Sequence[Row]) -> str:
        """Return nothing, since no row is without an order."""
        return ""

    def explain(self, row: Row) -> str:
        """Return what is assumed of a row."""
        return "nobody is asked: the first answer is taken for the better one"

    def judge(self, row: Row) -> Judgement:
        """Keep the order."""
        return Judgement([[1.0, 0.0]], [["assumed"] * 2])
