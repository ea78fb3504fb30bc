"""From judged responses to preference pairs, with a report of everything dropped.

01 judges two given responses per prompt (`rerank`), 03 chooses two of k samples (`select`); both return the same
rows with `verdict`, `chosen` and `rejected` filled in. `build` then filters judged rows into pairs. Nothing here
loads a model. `drop_report` counts the verdicts, which tell why each prompt gave no pair:

    kept | swapped | on_policy       a pair
    tie | flip | unparsed            the judge saw no difference, contradicted itself, or was not understood
    filtered:<reason>                the responses were unusable, or the pair missed a threshold
"""

import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import pandas as pd

from nbutils.core.errors import InputError
from nbutils.core.records import Row, digest, pair_id
from nbutils.core.screen import usable
from nbutils.core.verdicts import decide, mean_scores

log = logging.getLogger(__name__)

Ties = Literal["drop", "shorter", "keep"]
Strategy = Literal["best_worst", "best_random"]
PAIR_VERDICTS = ("kept", "swapped", "on_policy")


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
    means = mean_scores(row["scores"])
    scores = {i: means[i] for i in usable(row["responses"]) if means and math.isfinite(means[i])}
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
    more = [{"chosen": c, "rejected": r} for c, r in further]
    return row | {"verdict": "on_policy", "chosen": chosen, "rejected": rejected, "further": more}


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
