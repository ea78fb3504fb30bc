"""A judge is a file: `judge: verifier` names `nbutils/judges/verifier.yaml`, or the parameter is a path to one's own.

Used by 01, 03 and 04, so the same file means the same judge everywhere. A judge gives every response of a row one
score per order, normalised to 0..1; `run` keeps all that was said. Kinds: `llm` (a model that reads and rates or
compares), `reward` (a model trained to score), `verifier` (rules that check whether instructions were followed),
`answer` (the right answer, which the row holds), `assume` (nobody: the source's order stands).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nbutils.core.records import Row
from nbutils.core.screen import usable
from nbutils.engines.protocol import Tally
from nbutils.engines.store import Store
from nbutils.judges.files import Kind


@dataclass(frozen=True)
class Judgement:
    """What a judge said about one row: per order a score (0..1) and a feedback for each response it was shown."""

    scores: list[list[float]] = field(default_factory=list)
    feedback: list[list[str]] = field(default_factory=list)
    replies: list[Row] = field(default_factory=list)
    unfit: str = ""  # why the row cannot be judged at all; its verdict is then `filtered:<unfit>`


class Judge(Protocol):
    """A judge ready to score; `name` goes into every judged row, `model` is empty for rules."""

    name: str
    model: str

    @property
    def file(self) -> Kind:
        """What the judge was made from."""
        ...

    def score(
        self, rows: Sequence[Row], store: Store, *, deadline: float = float("inf"), repeat: bool = False
    ) -> list[Judgement]:
        """Judge the responses of each row. A row holds `prompt`, `checks` and `responses`.

        Args:
            repeat: ask in the first order only and afresh, to see what the same question answered twice gives; a
                judge that cannot differ from itself returns empty judgements.
        """
        ...

    def tally(self) -> Tally:
        """Return what was sent to the judge's model so far."""
        ...

    def notes(self) -> dict[str, int]:
        """Return what was odd about the replies of the judge's model (note -> replies), e.g. asked without a schema."""
        ...

    def explain(self, row: Row) -> str:
        """Return what the judge goes by for this row, to show a reader."""
        ...


def sees_reference(judge: Judge) -> bool:
    """Return whether a judge goes by the row's reference: as a key, or as a good answer shown beside the others."""
    return judge.file.kind == "answer" or bool(getattr(getattr(judge, "template", None), "shows_reference", False))


def fault(judge: Judge, row: Row) -> str:
    """Return why a judge cannot judge a row, where that is told from the row alone; most can judge any."""
    told = getattr(judge, "fault", None)
    return str(told(row)) if told else ""


def screen(judge: Judge, rows: Sequence[Row]) -> list[Row]:
    """Give every open row that this judge has no way to judge its verdict `filtered:<why>`, before anything is asked.

    If that is all of them the rows stay open, and the judge says what is wrong with them when it is asked.
    """
    faults = ["" if row["verdict"] else fault(judge, row) for row in rows]
    if all(row["verdict"] or reason for row, reason in zip(rows, faults, strict=True)):
        return list(rows)
    return [row | {"verdict": f"filtered:{why}"} if why else row for row, why in zip(rows, faults, strict=True)]


def finish(*judges: Judge) -> None:
    """Let judges that only write their requests down put them in place and stop the run, if they have written any."""
    for judge in judges:
        getattr(judge, "finish", lambda: None)()


def run(
    judge: Judge,
    rows: Sequence[Row],
    store: Store,
    *,
    deadline: float = float("inf"),
    repeat: bool = False,
    more: bool = False,
) -> list[Row]:
    """Judge all rows that have no verdict yet; return every row with `scores`, `feedback`, `replies` and `judge`.

    Only usable responses are shown to the judge. One that repeats another shares its score; the scores of the others
    are NaN. A row the judge never answered in a readable way has no scores and will be counted as unparsed; one that
    the judge's server refused is `filtered:refused`, one that it has no way to judge is `filtered:<why>`.

    Args:
        more: whether more will be asked before `finish`; a judge that only writes its requests down goes on till then.
    """
    shown = {i: usable(row["responses"]) for i, row in enumerate(rows) if not row["verdict"]}
    asked = [rows[i] | {"responses": [rows[i]["responses"][k] for k in kept]} for i, kept in shown.items()]
    judgements = dict(zip(shown, judge.score(asked, store, deadline=deadline, repeat=repeat), strict=True))
    if not more:
        finish(judge)
    result = []
    for i, row in enumerate(rows):
        said = judgements.get(i, Judgement())
        texts = [response["text"].strip() for response in row["responses"]]
        kept = [texts[k] for k in shown.get(i, [])]
        refused = not said.scores and any(reply["outcome"] == "refused" for reply in said.replies)
        lost = said.unfit or ("refused" if refused else "")
        result.append(
            row
            | ({"verdict": f"filtered:{lost}"} if lost else {})
            | {
                "scores": [_spread(scores, kept, texts, float("nan")) for scores in said.scores],
                "feedback": [_spread(feedback, kept, texts, "") for feedback in said.feedback],
                "replies": said.replies,
                "judge": judge.name,
            }
        )
    return result


def _spread(values: Sequence[Any], kept: Sequence[str], texts: Sequence[str], gap: Any) -> list[Any]:
    by_text = dict(zip(kept, values, strict=True))
    return [by_text.get(text, gap) for text in texts]
