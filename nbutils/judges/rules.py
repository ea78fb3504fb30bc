"""What the judges that ask nothing have in common: by rules (`verifier`) and by key (`answer`)."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence

from nbutils.core.errors import InputError
from nbutils.core.records import Row
from nbutils.engines.protocol import Tally
from nbutils.engines.store import Store
from nbutils.judges.judge import Judgement

log = logging.getLogger(__name__)


class RuleJudge(ABC):
    """Scores each response by itself: order has no meaning, and the same response always gets the same score.

    Nothing is stored: judging again is cheaper than looking up.
    """

    model = ""

    def tally(self) -> Tally:
        """Return zeros: nothing is ever asked."""
        return Tally()

    def notes(self) -> dict[str, int]:
        """Return nothing: no server stands between."""
        return {}

    def score(
        self, rows: Sequence[Row], store: Store, *, deadline: float = float("inf"), repeat: bool = False
    ) -> list[Judgement]:
        """Judge every response; a row with a fault is unfit, and so is one that a rule cannot be tried on.

        Raises:
            InputError: if no row can be judged.
        """
        faults = [self.fault(row) for row in rows]
        if rows and all(faults):
            raise InputError(self.hopeless(rows))
        if doubt := self.doubt([row for row, fault in zip(rows, faults, strict=True) if not fault]):
            log.warning("%s", doubt)
        return [
            Judgement(unfit=fault) if fault else Judgement() if repeat else self._judged(row)
            for row, fault in zip(rows, faults, strict=True)
        ]

    def _judged(self, row: Row) -> Judgement:
        try:
            return self.judge(row)
        except Exception:  # a rule that met an answer it cannot read, or that would never end
            return Judgement(unfit="checks" if row["checks"] else "reference")

    def doubt(self, rows: Sequence[Row]) -> str:
        """Return a sentence about what is odd in the rows that are judged, or nothing."""
        return ""

    @abstractmethod
    def fault(self, row: Row) -> str:
        """Return why a row cannot be judged, or nothing."""

    @abstractmethod
    def hopeless(self, rows: Sequence[Row]) -> str:
        """Return a sentence for rows of which none can be judged."""

    @abstractmethod
    def judge(self, row: Row) -> Judgement:
        """Score the responses of a row without a fault."""
