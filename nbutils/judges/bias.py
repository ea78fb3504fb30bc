"""Can this judge be trusted? The figures that tell, over any judged rows, and the gate before a run is paid for.

Used by 01, 03 and 04. All figures are shares with 95% intervals (Wilson), counted over rows of which the judge's two
best-parted responses are compared:

    unanswered          rows with a request that the server never answered, of all rows asked
    refused             rows that the server refuses to judge (too long, its content filter); shown if there are any
    unparsed            of the other rows, those without a readable judgement after all attempts
    flips               rows whose two orders contradict each other
    repeat flips        the same for the first order asked twice: the noise that is no matter of place
    first place gains   of the rows where a place changed the difference by more than EPS, those where the first gained
    longer wins         of the decided rows with different lengths, those where the longer response won
    ties                rows without a preference
    source order kept   of the decided rows, those where the response the source calls better won
    agreement           rows with a person's label where the verdict is the same; a flip counts as a tie
    decided agreement   the same, of the rows where both the person and the judge chose one; a second judge is held
                        against the first where there is no label
    kappa               Cohen's kappa of all labelled rows, which chance agreement makes 0 (Cohen 1960)

A judge is held against pairs that people have labelled (1, 2, or 0 for a tie) like this:

    rows = [{"question": "2+2?", "a": "4", "b": "5", "who": 1}, ...]
    labelled = pairs.candidates(rows, prompt="question", chosen="a", rejected="b", label="who")
    qualify(judges.load("rating_en", cache=Path("runs/models")), labelled, Store("runs/store.sqlite"))
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from nbutils.core.errors import InputError
from nbutils.core.records import Row, digest
from nbutils.core.stats import Interval, kappa, wilson
from nbutils.core.verdicts import EPS, best_and_worst, decide, mean_scores
from nbutils.engines import doubts
from nbutils.engines.store import Store
from nbutils.judges.family import kinship, own_answers
from nbutils.judges.judge import Judge, run, screen

# The run stops above these shares, and where the judge agrees with people no more than a coin would.
MOST = {"unanswered": 0.10, "refused": 0.50, "unparsed": 0.10, "flips": 0.40}
LEAST = {"decided agreement": 0.50}
REMEDY = {
    "unanswered": "see to token, credit and limits in the judge file and run again",
    "refused": "read the reasons, and choose a server that takes these rows or leave them out",
    "unparsed": "read the replies, raise max_tokens where they are cut off, or choose another judge",
    "flips": "choose a stronger judge",
    "decided agreement": "choose another judge or other criteria",
}
# Beyond these, with the whole interval, a taste is worth a look: it may be right, and a policy will learn it.
TASTES = {"first place gains": (0.4, 0.6), "longer wins": (0.4, 0.6)}
SEVERAL = {"refused": 0.10}  # above this a look is due, although the rest can be judged
MEANING = {
    "refused": "these rows are lost, and what they have in common with them",
    "first place gains": "the two orders cancel it out, and rows where it decides are lost as flips",
    "longer wins": "a policy will learn this taste",
}


def gate(
    judge: Judge,
    rows: Sequence[Row],
    store: Store,
    *,
    seed: int = 0,
    deadline: float = float("inf"),
    more: bool = False,
) -> list[Row]:
    """Judge a few rows as a trial, the first order of each twice; `figures` and `insist` say what follows.

    The rows with the smallest hashes are taken, so that more rows in the source change little, and what is asked here
    is in the store for the run itself.

    Args:
        more: as in `judges.run`.

    Returns:
        The judged rows, each with `repeat`: the scores of the repeated first order, empty if there are none.
    """
    open_rows = {
        digest([seed, row["prompt"], [r["text"] for r in row["responses"]]]): row for row in rows if not row["verdict"]
    }
    trial = [open_rows[key] for key in sorted(open_rows)[: judge.file.gate_rows]]
    judged = run(judge, trial, store, deadline=deadline, more=True)
    again = run(judge, trial, store, deadline=deadline, repeat=True, more=more)
    return [
        row | {"repeat": other["scores"][0] if other["scores"] else []}
        for row, other in zip(judged, again, strict=True)
    ]


def trial_of(
    judge: Judge,
    rows: Sequence[Row],
    store: Store,
    *,
    seed: int = 0,
    deadline: float = float("inf"),
    more: bool = False,
) -> list[Row]:
    """Let a second judge do the trial that another one did, and hold it against what that one or people chose.

    Args:
        rows: as `gate` returned them for the other judge; where they carry people's labels, those are the truth.
    """
    two = [row for row in rows if len(row["responses"]) == 2]  # of several each judge may part two others
    chosen = {id(row): found["verdict"] for row in two if (found := _comparison(row))}
    open_rows = [
        {name: value for name, value in row.items() if name != "repeat"}
        | {"scores": [], "replies": [], "feedback": [], "label": row.get("label") or chosen.get(id(row), "")}
        for row in rows
    ]
    return gate(judge, screen(judge, open_rows), store, seed=seed, deadline=deadline, more=more)


def figures(rows: Sequence[Row], *, source_order: bool = False) -> pd.DataFrame:
    """Return the figures of judged rows, one per line, with `share`, `low`, `high`, `rows` and what to think of it.

    Args:
        rows: as `judges.run` or `gate` return them; rows no judge was asked about are passed over.
        source_order: whether the first response is the one the source calls better.
    """
    lines: dict[str, tuple[Interval, int]] = {}

    def share(name: str, hits: Sequence[bool]) -> None:
        lines[name] = wilson(sum(hits), len(hits)), len(hits)

    asked = [row for row in rows if row["replies"] or row["scores"]]
    lost = {
        row_outcome: [row for row in asked if _lost(row) == row_outcome] for row_outcome in ("unanswered", "refused")
    }
    answered = [row for row in asked if not _lost(row)]
    compared = [(row, found) for row in answered if (found := _comparison(row))]
    seen = [found for _, found in compared]
    pairs = [c for c in seen if c["second"] is not None]
    gains = [c["first"] - c["second"] for c in pairs]
    decided = [c for c in seen if c["verdict"] in ("first", "second")]
    for name, rows_lost in lost.items():
        if rows_lost or name == "unanswered":
            share(name, [True] * len(rows_lost) + [False] * (len(asked) - len(rows_lost)))
    share("unparsed", [False] * len(seen) + [True] * (len(answered) - len(seen)))
    share("flips", [c["verdict"] == "flip" for c in pairs])
    share("repeat flips", [decide([c["first"], c["again"]]) == "flip" for c in seen if c["again"] is not None])
    share("first place gains", [gain > 0 for gain in gains if abs(gain) > EPS])
    share("longer wins", [c["longer"] == c["verdict"] for c in decided if c["longer"]])
    share("ties", [c["verdict"] == "tie" for c in seen])
    if source_order:
        share("source order kept", [c["verdict"] == "first" for c in decided])
    verdicts = {id(row): "tie" if found["verdict"] == "flip" else found["verdict"] for row, found in compared}
    said = [(row["label"], verdicts.get(id(row), "unparsed")) for row in answered if row.get("label")]
    if said:
        share("agreement", [label == verdict for label, verdict in said])
        share("decided agreement", [a == b for a, b in said if {a, b} <= {"first", "second"}])
        lines["kappa"] = kappa(*map(list, zip(*said, strict=True))), len(said)
    table = pd.DataFrame([line._asdict() for line, _ in lines.values()], index=pd.Index(lines, name="figure"))
    opinions = [_opinion(name, line, n) for name, (line, n) in lines.items()]
    return table.rename(columns={"value": "share"}).assign(rows=[n for _, n in lines.values()], opinion=opinions)


def insist(table: pd.DataFrame) -> None:
    """Raise InputError if the figures of a gate forbid the run."""
    if told := refusal(table):
        raise InputError(told)


def refusal(table: pd.DataFrame) -> str:
    """Return why the figures of a gate forbid the run, or nothing."""
    failed = table[table.opinion == "stop"]
    if failed.empty:
        return ""
    wrong = [f"{name} {row['share']:.1%} of {row['rows']} rows" for name, row in failed.iterrows()]
    limits = [f"{name} above {limit:.0%}" for name, limit in MOST.items()]
    limits += [f"{name} of {limit:.0%} or less" for name, limit in LEAST.items()]
    remedies = ", ".join(dict.fromkeys(REMEDY[str(name)] for name in failed.index))
    return f"the judge failed its trial: {', '.join(wrong)} (the run stops at {', '.join(limits)}); {remedies}"


def report(judge: Judge, rows: Sequence[Row], table: pd.DataFrame) -> dict[str, Any]:
    """Return everything to keep about the judging of a run: the figures, every request's outcome, tokens and cost.

    `replies` and `tokens` count what the rows rest on, whenever it was asked; `sent` what this process sent for it;
    `shortened` the responses that the judge did not read to their end, `uncounted` the replies whose tokens the server
    does not tell (the cost is unknown then), `notes` what was odd about replies, and how many.

    Args:
        table: the `figures` of these rows.
    """
    replies = [reply for row in rows for reply in row["replies"]]
    sides = ("prompt", "completion")
    uncounted = sum(any(reply[f"{side}_tokens"] < 0 for side in sides) for reply in replies)
    tokens = {side: sum(max(reply[f"{side}_tokens"], 0) for reply in replies) for side in sides}
    price = getattr(judge.file, "price", None)
    cost = (
        None if uncounted else sum(n * p / 1e6 for n, p in zip(tokens.values(), price, strict=True)) if price else None
    )
    return {
        "judge": judge.name,
        "kind": getattr(judge.file, "kind", ""),
        "model": judge.model,
        "figures": {str(name): row.drop("opinion").to_dict() for name, row in table.iterrows()},
        "replies": dict(Counter(reply["outcome"] for reply in replies)),
        "shortened": sum(max((reply["shortened"] for reply in row["replies"]), default=0) for row in rows),
        "tokens": tokens,
        "uncounted": uncounted,
        "cost_usd": cost,
        "notes": judge.notes(),
        "sent": asdict(judge.tally()),
        "own_answers": own_answers(judge, rows),
    }


def in_words(report: dict[str, Any]) -> str:
    """Return a report's requests, tokens and cost in one line, for the notebook and the card."""
    if not report["model"]:
        how = "nobody judged, the source's order was kept" if report["kind"] == "assume" else "rules, nothing was asked"
        return f"Judge {report['judge']}: {how}."
    replies = ", ".join(f"{count} {outcome}" for outcome, count in report["replies"].items()) or "nothing asked"
    tokens, sent, cost = report["tokens"], report["sent"], report["cost_usd"]
    price = "price unknown" if cost is None else f"{cost:.2f} US dollars"
    if report["uncounted"]:
        price = f"cost unknown: the server does not count the tokens of {report['uncounted']} replies"
    price += "".join(f"; {sentence}" for sentence in doubts.noted(report["notes"], sum(report["replies"].values())))
    return (
        f"Judge {report['judge']} ({report['model']}): {replies}; {tokens['prompt']:,} tokens in, "
        f"{tokens['completion']:,} out, {price}; this time {sent['calls']} calls (the trial's repeats among them, "
        f"without their tokens), {sent['retries']} of them retries, {sent['failures']} requests given up."
    )


def warnings(judge: Judge, rows: Sequence[Row], table: pd.DataFrame) -> list[str]:
    """Return what a user should know before trusting the verdicts, one sentence each."""
    found = kinship(judge, rows)
    lacks = getattr(judge, "lacks_reference", lambda row: False)
    if lost := sum(lacks(row) for row in rows if row["replies"]):
        found.append(f"{lost} of {len(rows)} rows have no reference and are judged without one")
    found += doubts.noted(judge.notes(), sum(len(row["replies"]) for row in rows))
    found += doubts.cut_prompts(max((reply["prompt_tokens"] for reply in row["replies"]), default=0) for row in rows)
    for name, row in table[table.opinion == "look closer"].iterrows():
        found.append(f"{name}: {row['share']:.0%} [{row.low:.0%}, {row.high:.0%}]; {MEANING[str(name)]}")
    return found


def qualify(judge: Judge, rows: Sequence[Row], store: Store, *, deadline: float = float("inf")) -> pd.DataFrame:
    """Score a judge against pairs that people have labelled: agreement with ties, kappa, flips, tastes.

    Args:
        rows: as `pairs.candidates` makes them with a `label` column.
    """
    return figures(run(judge, rows, store, deadline=deadline))


def _lost(row: Row) -> str:
    """Return which of a row's requests came to nothing for good, if that left it without scores."""
    outcomes = set() if row["scores"] else {reply["outcome"] for reply in row["replies"]}
    return next((outcome for outcome in ("refused", "unanswered") if outcome in outcomes), "")


def _comparison(row: Row) -> Row | None:
    """Compare the best- and the worst-scored response of a row, in its order: differences are first minus second."""
    means = mean_scores(row["scores"])
    if not (places := best_and_worst(means)):
        return None
    a, b = places
    gaps = [order[a] - order[b] for order in row["scores"]]
    lengths = [len(row["responses"][i]["text"]) for i in (a, b)]
    repeat = row.get("repeat")
    return {
        "first": gaps[0],
        "second": gaps[1] if len(gaps) > 1 else None,
        "again": repeat[a] - repeat[b] if repeat else None,
        "longer": "" if lengths[0] == lengths[1] else ("first" if lengths[0] > lengths[1] else "second"),
        "verdict": {"win": "first", "loss": "second"}.get(said := decide(gaps), said),
    }


def _opinion(name: str, line: Interval, rows: int) -> str:
    if not rows:
        return "not measured"
    if line.value > MOST.get(name, 1) or line.value <= LEAST.get(name, -math.inf):
        return "stop"
    if line.value > SEVERAL.get(name, 1):
        return "look closer"
    low, high = TASTES.get(name, (-1, 2))
    if line.low > high or line.high < low:
        return "look closer"
    if name in TASTES:  # within chance: few rows cannot tell a taste
        return "not shown"
    return "fine" if name in MOST.keys() | LEAST.keys() else ""
