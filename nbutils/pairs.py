"""From judged responses to preference pairs, with a report of everything dropped.

01 judges two given responses per prompt (`rerank`), 03 chooses two of k samples (`select`); both return the same
rows with `verdict`, `chosen` and `rejected` filled in. `build` then filters judged rows into pairs. Nothing here
loads a model. `drop_report` counts the verdicts, which tell why each prompt gave no pair:

    kept | swapped | on_policy       a pair
    tie | flip | unparsed            the judge saw no difference, contradicted itself, or was not understood
    filtered:<reason>                the responses were unusable, or the pair missed a threshold
"""

import json
import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from nbutils.conversations import each, is_absent, pair_of, where
from nbutils.errors import InputError, shown
from nbutils.printed import Unusable
from nbutils.records import PROMPTS, Messages, Row, digest, encodable, finish_reason, pair_id, prompt_id
from nbutils.texts import language as language_of
from nbutils.texts import loops
from nbutils.verdicts import decide, mean_scores

log = logging.getLogger(__name__)

Ties = Literal["drop", "shorter", "keep"]
Strategy = Literal["best_worst", "best_random"]
PAIR_VERDICTS = ("kept", "swapped", "on_policy")
# why a response may not enter a pair; the first that holds is its mark
MARKS = ("empty", "control", "looping", "truncated", "language", "identical")
# how a person's choice may be written -> the response meant, in the source's order
LABELS = {"1": "first", "chosen": "first", "2": "second", "rejected": "second", "0": "tie", "tie": "tie"}
LABELS |= {"first": "first", "second": "second", "": "", "none": "", "nan": "", "<na>": ""}


def candidates(
    rows: Iterable[Mapping[str, Any]], *, prompt: str, chosen: str, rejected: str, label: str = "", reference: str = ""
) -> list[Row]:
    """Turn source rows of an off-policy dataset into rows ready to be judged, responses in the source's order.

    Prompt and responses may be of any shape that `conversations` reads; of a conversation the last turn of the
    assistant is the response, and what both stand behind belongs to the prompt. Rows that no pair can come from are
    kept with a `filtered:` verdict, so that the drop report names them. Columns `chosen_model`,
    `chosen_finish_reason` and their twins are used where the source has them.

    Args:
        label: column with a person's choice, empty for none: 1 or `chosen` for the chosen column, 2 or `rejected`,
            0 or `tie`; empty where nobody said anything.
        reference: column with the right answer, or a good one; empty for none.

    Raises:
        InputError: naming row and column of the first, if most rows cannot be read, or most labels are unknown.
    """
    rows = list(rows)
    insist_on(rows, reference)
    labels = _labels(rows, label)

    def read(row: Mapping[str, Any], notes: set[str]) -> Row:
        source, texts = pair_of(row, prompt, chosen, rejected, notes)
        responses = [
            {
                "text": text,
                "n_tokens": -1,
                "finish_reason": plain(row.get(f"{side}_finish_reason"), 200) or "unknown",
                "model": plain(row.get(f"{side}_model"), 200) or side,
            }
            for side, text in zip(("chosen", "rejected"), texts, strict=True)
        ]
        return prompt_columns(row, source, reference) | {"responses": responses}

    result = []
    for found, choice in zip(each(rows, read), labels, strict=True):
        extra = {"chat_template_kwargs": {}, "label": choice}
        if isinstance(found, Unusable):
            result.append(_unusable(found) | extra)
        else:
            # a given answer that loops is the judge's to see: people may have labelled the pair
            result.append(screen(found | extra, looping=False))
    return result


def from_samples(row: Row, *, language: str = "") -> Row:
    """Turn a row of the `samples` schema into one ready to be judged; every response keeps the name of its policy.

    Args:
        language: the responses should be in, as ISO 639-1 code; empty for any. It is one for all prompts: a prompt
            that itself asks for another language, a translation say, loses its right answers.
    """
    model = f"{row['model']} with {row['adapter']}" if row["adapter"] else row["model"]
    kept = {name: row[name] for name in (*PROMPTS, "chat_template_kwargs") if name in row}
    responses = [response | {"model": model} for response in row["responses"]]
    return screen(kept | {"responses": responses, "label": ""}, language=language)


def prompt_columns(row: Mapping[str, Any], source: Messages, reference: str = "") -> Row:
    """Return what the `prompts` schema holds of a source row with this prompt.

    Args:
        reference: column with the right answer, empty for none.
    """
    category = row.get("task_category") if is_absent(row.get("category")) else row["category"]
    return {
        "prompt_id": prompt_id(source),
        "prompt": source,
        "checks": plain(_ifeval(row) if is_absent(row.get("checks")) else row["checks"]),
        "reference": key_text(row.get(reference)) if reference else "",
        "category": plain(category, 200),
    }


def _ifeval(row: Mapping[str, Any]) -> Any:
    """Return the checks as the IFEval datasets have them, in two columns; of a table, empty options are none."""
    names, options = row.get("instruction_id_list"), row.get("kwargs")
    if not (isinstance(names, list) and isinstance(options, list)):
        return None
    filled = [
        {k: v for k, v in one.items() if v is not None} if isinstance(one, Mapping) else one or {} for one in options
    ]
    return {"instruction_id_list": names, "kwargs": filled}


def plain(value: Any, longest: int = 0) -> str:
    """Return a column's value as text: nothing for what is absent, JSON for what is no text.

    Args:
        longest: characters to keep; 0 for all.
    """
    if is_absent(value):
        return ""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        text = shown(value)
    return text[: longest or None]


def insist_on(rows: Sequence[Mapping[str, Any]], reference: str) -> None:
    """Check that the column of right answers is there, where one is named; single rows may lack it.

    Raises:
        InputError: if no row has it.
    """
    if reference and not any(isinstance(row, Mapping) and reference in row for row in rows):
        raise InputError(
            f"reference_column: no row has the column {reference!r}; they have "
            f"{', '.join(map(repr, rows[0] if rows else ()))[:300] or 'none'}"
        )


def key_text(value: Any) -> str:
    """Return a row's right answer as text; empty where it is neither text nor a finite number.

    >>> key_text(" 12,5 "), key_text(3.0), key_text(1.234), key_text(None)
    ('12,5', '3', '1.2340', '')
    """
    if isinstance(value, float) and math.isfinite(value):
        # three decimals could be read as a thousand
        return str(int(value)) if value.is_integer() else f"{value!r}0"
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(encodable(str(value).strip()))
    return ""


def marked(responses: Iterable[Row], *, language: str = "", looping: bool = True) -> list[Row]:
    """Give every response of one prompt a `mark`, one of `MARKS`; it is empty where a pair may contain the response.

    A loop that was cut off is marked as a loop: more tokens would not end it.

    Args:
        language: the responses should be in; empty for any. One whose language cannot be told is let pass.
        looping: whether a loop is a fault.
    """
    result: list[Row] = []
    seen: set[str] = set()
    for response in responses:
        text = response["text"].strip()
        mark = ""
        if not text:
            mark = "empty"
        elif response["finish_reason"] == "control":  # 02 saw that it spells a control token of its policy
            mark = "control"
        elif looping and loops(text):
            mark = "looping"
        elif finish_reason(response["finish_reason"]) in ("length", "filter"):
            mark = "truncated"
        elif language and language_of(text) not in ("", language):
            mark = "language"
        elif text in seen:
            mark = "identical"
        else:
            seen.add(text)
        result.append(response | {"mark": mark})
    return result


def marks(rows: Iterable[Row], *, language: str = "") -> dict[str, int]:
    """Count the marks that the responses of all rows get, those nobody got included, and the `usable` ones."""
    counts = Counter(r["mark"] for row in rows for r in marked(row["responses"], language=language))
    return {"usable": counts[""]} | {mark: counts[mark] for mark in MARKS}


def usable(responses: list[Row]) -> list[int]:
    """Return the indices of the marked responses that a pair may contain.

    These are the ones a judge is shown; the others stay in the row for the record.
    """
    return [i for i, response in enumerate(responses) if not response["mark"]]


def screen(row: Row, *, language: str = "", looping: bool = True) -> Row:
    """Mark the responses of a row; with fewer than two usable ones its verdict is `filtered:<the commonest mark>`."""
    responses = marked(row["responses"], language=language, looping=looping)
    reasons = Counter(r["mark"] for r in responses if r["mark"])
    lost = reasons and len(usable(responses)) < 2
    return row | {"responses": responses, "verdict": f"filtered:{reasons.most_common(1)[0][0]}" if lost else ""}


def rerank(row: Row, *, ties: Ties = "drop", min_margin: float = 0.0, min_chosen: float = 0.0) -> Row:
    """Decide an off-policy pair: response 0 was chosen by assumption, the judge keeps or swaps it.

    Args:
        ties: `drop` them, take the `shorter` response as chosen, or `keep` the source's order.
        min_margin, min_chosen: thresholds on the 0..1 scale.
    """
    if row["verdict"]:
        return row | {"chosen": -1, "rejected": -1}
    verdict = decide([first - second for first, second in row["scores"]], min_margin=min_margin)
    if verdict == "tie" and ties != "drop":
        lengths = [len(r["text"]) for r in row["responses"]]
        # equal lengths leave the source's order, as `keep` does
        verdict = "loss" if ties == "shorter" and lengths[1] < lengths[0] else "win"
        outcome = "tie"
    else:
        outcome = {"win": "kept", "loss": "swapped"}.get(verdict, verdict)
    if verdict not in ("win", "loss"):
        return row | {"verdict": outcome, "chosen": -1, "rejected": -1}
    chosen, rejected = (0, 1) if verdict == "win" else (1, 0)
    if fault := _fault(row, chosen, rejected, min_chosen, 0):
        return row | {"verdict": fault, "chosen": -1, "rejected": -1}
    return row | {"verdict": outcome, "chosen": chosen, "rejected": rejected}


def select(
    row: Row,
    *,
    strategy: Strategy = "best_worst",
    pairs_per_prompt: int = 1,
    min_margin: float = 0.0,
    min_chosen: float = 0.0,
    max_length_gap: int = 0,
    seed: int = 0,
) -> Row:
    """Choose chosen and rejected among k judged samples of one prompt.

    Chosen has the best mean score. Rejected has the worst (`best_worst`), or is drawn among all that score lower
    (`best_random`). Among equal scores the two responses closest in length are taken, so that length does not tell
    them apart (an easy thing to learn instead of quality). With `pairs_per_prompt` the second best stands against the
    second worst, and so on; no response is in two pairs, and each pair has to pass the same thresholds. The first that
    does is the row's `chosen` and `rejected`, the others are its `further`.

    Args:
        min_margin, min_chosen: thresholds on the 0..1 scale.
        max_length_gap: largest difference of length in characters; 0 sets no limit.
        seed: of the draw of `best_random`, together with the prompt's id.
    """
    nothing = {"chosen": -1, "rejected": -1}
    if row["verdict"]:
        return row | nothing
    if not row["scores"]:
        return row | nothing | {"verdict": "unparsed"}
    means = mean_scores(row["scores"])
    scores = {i: means[i] for i in usable(row["responses"]) if math.isfinite(means[i])}
    if len(scores) < 2:
        return row | nothing | {"verdict": "unparsed"}
    rng = random.Random(digest([seed, row["prompt_id"]]))
    verdicts: list[str] = []
    couples: list[tuple[int, int]] = []
    for _ in range(min(pairs_per_prompt, len(scores) // 2)):
        chosen, rejected = _opposites(row, scores, strategy, rng)
        differences = [order[chosen] - order[rejected] for order in row["scores"]]
        # the mean of chosen is never the lower one, so a loss cannot come out
        verdict = decide(differences, min_margin=min_margin) if means[chosen] > means[rejected] else "tie"
        fault = _fault(row, chosen, rejected, min_chosen, max_length_gap) if verdict == "win" else verdict
        verdicts.append(fault)
        couples += [] if fault else [(chosen, rejected)]
        scores = {i: score for i, score in scores.items() if i not in (chosen, rejected)}
    if not couples:
        return row | nothing | {"verdict": verdicts[0]}
    (chosen, rejected), *further = couples
    return row | {
        "verdict": "on_policy",
        "chosen": chosen,
        "rejected": rejected,
        "further": [{"chosen": c, "rejected": r} for c, r in further],
    }


def _opposites(row: Row, scores: Mapping[int, float], strategy: Strategy, rng: random.Random) -> tuple[int, int]:
    """Return the best and the worst of these responses, or one drawn below the best; where all are equal, any two."""
    best, worst = max(scores.values()), min(scores.values())
    tops = [i for i, s in scores.items() if s == best]
    lows = [i for i, s in scores.items() if s == worst]
    if strategy == "best_random" and best > worst:
        lows = [rng.choice([i for i, s in scores.items() if s < best])]
    lengths = [len(r["text"]) for r in row["responses"]]
    return min(
        ((c, r) for c in tops for r in lows if c != r), key=lambda cr: (abs(lengths[cr[0]] - lengths[cr[1]]), cr)
    )


def _fault(row: Row, chosen: int, rejected: int, min_chosen: float, max_length_gap: int) -> str:
    """Return the verdict of a decided pair that misses a threshold, else nothing."""
    if mean_scores(row["scores"])[chosen] < min_chosen - 1e-9:
        return "filtered:min_chosen"
    gap = abs(len(row["responses"][chosen]["text"]) - len(row["responses"][rejected]["text"]))
    return "filtered:max_length_gap" if max_length_gap and gap > max_length_gap else ""


def build(judged: Iterable[Row]) -> list[Row]:
    """Filter judged rows into pairs: one or several per row that has a chosen and a rejected response, each once."""
    pairs: dict[str, Row] = {}
    for row in (source | couple for source in judged for couple in ({}, *source.get("further", ()))):
        if row["chosen"] < 0:
            continue
        means = mean_scores(row["scores"])
        sides = {side: row["responses"][row[side]] for side in ("chosen", "rejected")}
        scores = {side: means[row[side]] for side in sides}
        pair = {
            "id": pair_id(row["prompt"], sides["chosen"]["text"], sides["rejected"]["text"]),
            "prompt_id": row["prompt_id"],
            "prompt": row["prompt"],
            **{side: [{"role": "assistant", "content": r["text"]}] for side, r in sides.items()},
            **{f"{side}_score": score for side, score in scores.items()},
            "margin": scores["chosen"] - scores["rejected"],
            "verdict": row["verdict"],
            "origin": "on_policy" if row["verdict"] == "on_policy" else "off_policy",
            **{f"{side}_model": r["model"] for side, r in sides.items()},
            **{key: row[key] for key in ("judge", "checks", "category", "chat_template_kwargs")},
            "reference": row.get("reference", ""),
        }
        pairs.setdefault(pair["id"], pair)
    return list(pairs.values())


def insist_on_answers(samples: Iterable[Row], pairs_per_prompt: int) -> None:
    """Check that prompts have enough answers for so many pairs, before a judge is asked.

    Raises:
        InputError: if no prompt has two answers for each pair.
    """
    most = max((len(row["responses"]) for row in samples), default=0)
    if 2 * pairs_per_prompt > most:
        raise InputError(
            f"pairs_per_prompt: {pairs_per_prompt} pairs take {2 * pairs_per_prompt} answers to a prompt and there are "
            f"{most}; set it to {max(most // 2, 1)}, or raise n_samples in 02"
        )


def drop_report(judged: Iterable[Row]) -> dict[str, int]:
    """Count the verdicts, those that gave pairs first, then why the others gave none, the most frequent first."""
    counts = Counter(row["verdict"] for row in judged)
    return dict(sorted(counts.items(), key=lambda item: (item[0] not in PAIR_VERDICTS, -item[1], item[0])))


def length_effect(pairs: Iterable[Row]) -> pd.DataFrame:
    """Return one row per pair: characters of both sides and whether the longer one was chosen (None where equal)."""
    frame = pd.DataFrame(
        [{side: len(p[side][0]["content"]) for side in ("chosen", "rejected")} for p in pairs],
        columns=["chosen", "rejected"],
    )
    gap = frame.chosen - frame.rejected
    return frame.assign(gap=gap, longer_chosen=(gap > 0).where(gap != 0))


def mix(off_policy: list[Row], on_policy: list[Row], *, on_policy_share: float, max_pairs: int, seed: int) -> list[Row]:
    """Return off- and on-policy pairs shuffled together.

    Args:
        on_policy_share: wanted share of on-policy pairs, 0 < share <= 1; the side there is too much of is
            subsampled. 0 takes every pair there is.
        max_pairs: upper bound on the total; 0 sets none.
        seed: of the subsample and the order.

    Raises:
        InputError: if there is no pair at all, or the wanted share cannot be met: none on a side, or too few in all.
    """
    missing = "on-policy" if on_policy_share and not on_policy else ""
    if on_policy_share < 1 and not off_policy and (on_policy_share or not on_policy):
        missing = missing or "off-policy"
    if missing:
        raise InputError(f"there are no {missing} pairs to mix; see the drop reports of 01 and 03, or on_policy_share")
    rng = random.Random(seed)
    sides = [rng.sample(off_policy, len(off_policy)), rng.sample(on_policy, len(on_policy))]
    total = sum(map(len, sides))
    if on_policy_share:
        limits = [len(sides[0]) / (1 - on_policy_share) if on_policy_share < 1 else total]
        limits.append(len(sides[1]) / on_policy_share)
        total = int(min(*limits, total) + 1e-9)
    total = min(total, max_pairs or total)
    share = on_policy_share or (len(sides[1]) / max(sum(map(len, sides)), 1))
    n_on = min(round(total * share), len(sides[1]))
    if 0 < on_policy_share < 1 and n_on in (0, total):
        raise InputError(
            f"on_policy_share: {on_policy_share} of {total} pairs would be {n_on} ({len(off_policy)} off-policy and "
            f"{len(on_policy)} on-policy ones are there), so one kind would be missing; choose a share nearer to one "
            "half, a larger max_pairs, or 0 for all pairs"
        )
    chosen = sides[0][: total - n_on] + sides[1][:n_on]
    return rng.sample(chosen, len(chosen))


def _unusable(fault: Unusable) -> Row:
    """Return the judged row of a source row that cannot be read; the reason stands where its texts would."""
    prompt: Messages = [{"role": "user", "content": f"({fault})"}]
    blank = {"text": "", "n_tokens": -1, "finish_reason": "unknown", "mark": fault.reason}
    return prompt_columns({}, prompt) | {
        "responses": [blank | {"model": side} for side in ("chosen", "rejected")],
        "verdict": f"filtered:{fault.reason}",
    }


def _labels(rows: list[Any], column: str) -> list[str]:
    """Return what people chose in each row; what is no choice is nobody's, unless most are none."""
    if not column:
        return [""] * len(rows)
    if rows and not any(isinstance(row, Mapping) and column in row for row in rows):
        has = ", ".join(map(repr, rows[0])) if isinstance(rows[0], Mapping) else shown(rows[0])
        raise InputError(f"{where(rows[0], 0)} has no column {column!r}; it has {has[:300]}")
    values = [row.get(column) if isinstance(row, Mapping) else None for row in rows]
    # a column of numbers with a gap is read as 1.0, 2.0, nan
    names = [(v if isinstance(v, str) else shown(v)).strip().lower().removesuffix(".0") for v in map(_number, values)]
    odd = [i for i, name in enumerate(names) if name not in LABELS]
    if odd:
        said = (
            f"{where(rows[odd[0]], odd[0])}, column {column!r}: expected 1 (chosen), 2 (rejected), 0 (tie) or nothing, "
            f"got {shown(values[odd[0]], 40)}"
        )
        labelled = sum(LABELS.get(name) != "" for name in names)
        if 2 * len(odd) >= labelled:
            raise InputError(said)
        log.warning("%d of %d labels are no choice and count as none; the first: %s", len(odd), labelled, said)
    labels = [LABELS.get(name, "") for name in names]
    counts = Counter(labels)
    if min(counts["first"], counts["tie"]) >= 5 and not counts["second"]:
        log.warning(
            "column %r holds 0 and 1 but never 2; here 0 is a tie, 1 the chosen and 2 the rejected side", column
        )
    return labels


def _number(value: Any) -> Any:
    """Return a number of NumPy, or a number that is missing in its words, as text."""
    return value if isinstance(value, str | bool | list | tuple | dict) else str(value)
