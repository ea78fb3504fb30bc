"""Experiments that take several runs of 04: what luck a training has (`repeat`), which pairs help (`ablation`), and
whether a further round does (`rounds`).

    python -m tools.experiments repeat params/demo runs/demo --trainings 5
    python -m tools.experiments ablation params/italian runs/italian --seeds 3 --pairs 240 --answers 1
    python -m tools.experiments rounds params/demo runs/demo --rounds 2

All start from the profile's own run and skip what is done. The runs they need stand beside it
(`runs/demo-ablation-mix-seed0`, `runs/demo-round2`), so that all share one store, and a killed experiment goes on;
text, numbers and figure go to `runs/demo-repeat`, `runs/demo-ablation` or `runs/demo-rounds`. Only the profile's own
run is pushed.
"""

import math
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from nbutils import models, params, run
from nbutils.core import command, pairs, records
from nbutils.core.errors import InputError
from nbutils.core.markup import say
from nbutils.core.records import Row
from nbutils.files import sources
from nbutils.models import fitting
from nbutils.training import settings
from nbutils.training.held_out import held_out_count
from nbutils.training.trainer import updates
from tools import outcomes, plots

ARMS = ORIGINAL, RERANKED, ON_POLICY, MIX = ("original labels", "re-ranked", "on-policy", "mix")
# what the recipe claims: re-ranking repairs a dataset, on-policy pairs help, the mix most
CONTRASTS = ((RERANKED, ORIGINAL), (ON_POLICY, RERANKED), (MIX, RERANKED), (MIX, ON_POLICY))


@command.program
def main(arguments: Sequence[str] | None = None) -> None:
    """Run one experiment."""
    parser = command.parser("tools.experiments", __doc__)
    parser.add_argument("experiment", choices=("repeat", "ablation", "rounds"))
    parser.add_argument("profile", type=Path, help="folder with one YAML of parameters per notebook, e.g. params/demo")
    parser.add_argument("run_dir", type=Path, help="folder of the profile's own run, e.g. runs/demo")
    parser.add_argument("--trainings", type=int, default=5, help="on the same pairs, 2 or more")
    parser.add_argument("--seeds", type=int, default=3, help="of the ablation: trainings of each arm, 2 or more")
    parser.add_argument("--pairs", type=int, default=0, help="of each arm at most, 0 for as many as all can have")
    parser.add_argument("--answers", type=int, default=0, help="to each held-out prompt, 0 for the profile's number")
    parser.add_argument("--rounds", type=int, default=2, help="of sampling, judging and training, 2 or more")
    given = parser.parse_args(arguments)
    datasets.disable_progress_bars()
    where = (given.profile, run.run_folder(given.run_dir))
    if given.experiment == "repeat":
        repeat(*where, count=given.trainings)
    elif given.experiment == "ablation":
        ablation(*where, seeds=given.seeds, most=given.pairs, answers=given.answers)
    else:
        rounds(*where, count=given.rounds)


def repeat(profile: Path, run_dir: Path, *, count: int = 5) -> pd.DataFrame:
    """Train on the same pairs several times, each with its own seed, and compare each with the base model.

    The first is the profile's own run. A seed decides the pairs' order, which of them are held out for the curves, the
    training and the samples of the proof.

    Returns:
        One row per training and held-out set with the columns of `outcomes.measured`.

    Raises:
        InputError: if there are fewer than two trainings, or a notebook stopped.
    """
    if count < 2:
        raise InputError(f"--trainings is {count}, expected 2 or more; one training is python -m nbutils.run")
    plan = run.read_profile(profile, run_dir)
    for stem, values in plan.items():
        finish(stem, values)
    dpo = params.validate("04_dpo", run.defaults("04_dpo") | plan["04_dpo"])
    given = {"off_policy": dpo.off_policy, "on_policy": dpo.on_policy}
    stages = {side: str(run_dir / name) for side, name in given.items() if name in params.STEMS}
    folders = {dpo.seed: run_dir}
    for seed in range(dpo.seed + 1, dpo.seed + count):
        folders[seed] = run_dir.with_name(f"{run_dir.name}-repeat-seed{seed}")
        own = {"run_dir": str(folders[seed]), "seed": seed, "push_to_hub": ""}
        finish("04_dpo", plan["04_dpo"] | stages | own)
    frame = pd.DataFrame([{"seed": s} | row for s, folder in folders.items() for row in outcomes.measured(folder)])
    changes = {
        name: outcomes.pooled([outcomes.by_prompt(folder, name, headline) for folder in folders.values()])
        for name, headline in frame.drop_duplicates("held_out")[["held_out", "headline"]].itertuples(index=False)
    }
    where = run_dir.with_name(f"{run_dir.name}-repeat") / "repeat"
    outcomes.save(where, outcomes.repeat_text(frame, changes), frame, plots.plot_repeat(frame, changes))
    return frame


def ablation(profile: Path, run_dir: Path, *, seeds: int = 3, most: int = 0, answers: int = 0) -> pd.DataFrame:
    """Train on each of four kinds of pairs, with equal pairs and steps, and compare each with the base model.

    A seed decides which pairs are drawn, their order, the training and the samples of the proof, which is on the
    profile's first held-out set.

    Args:
        most: pairs of an arm, 0 for as many as all can have.
        answers: to each held-out prompt, 0 for the profile's number.

    Returns:
        One row per arm and seed with the columns of `outcomes.measured`.

    Raises:
        InputError: if there are fewer than two seeds, an arm has too few pairs for one batch, or a notebook stopped.
    """
    if seeds < 2:
        raise InputError(f"--seeds is {seeds}, expected 2 or more: one training does not show how far chance goes")
    plan = run.read_profile(profile, run_dir)
    for stem in params.STEMS[:3]:
        finish(stem, plan[stem])
    dpo = params.validate("04_dpo", run.defaults("04_dpo") | plan["04_dpo"])
    if (dpo.off_policy, dpo.on_policy) != ("01_rerank", "03_judge"):
        raise InputError(
            f"the ablation compares the pairs of 01_rerank and 03_judge, and 04 is to train on {dpo.off_policy!r} and "
            f"{dpo.on_policy!r}; leave off_policy and on_policy at their defaults"
        )
    options = settings.read_options(dpo.training)
    off, own = candidates(dpo, options, run_dir)
    n = equal_size(off, own, options, most=min(filter(None, (most, dpo.max_pairs)), default=0))
    folder = run_dir.with_name(f"{run_dir.name}-ablation")
    steps = math.ceil(dpo.epochs * updates(trained_of(n), options))
    about = f"{n} pairs per arm, {trained_of(n)} of them to train on, {steps} steps in {dpo.epochs:g} passes."
    say(about)
    rows: list[Row] = []
    tried: dict[str, list[pd.DataFrame]] = {arm: [] for arm in ARMS}
    for seed in range(dpo.seed, dpo.seed + seeds):
        for arm, sides in draw(off, own, n=n, seed=seed).items():
            values = plan["04_dpo"] | arm_of(dpo, folder, f"{sources.label(arm)}-seed{seed}", sides)
            values |= {"seed": seed, "eval_samples": answers or dpo.eval_samples}
            finish("04_dpo", values)
            (row,) = outcomes.measured(Path(values["run_dir"]))
            rows.append({"arm": arm, "seed": seed} | row)
            tried[arm].append(outcomes.by_prompt(Path(values["run_dir"]), row["held_out"], row["headline"]))
    frame = pd.DataFrame(rows)
    contrasts = {f"{one} minus {other}": outcomes.pooled(tried[one], tried[other]) for one, other in CONTRASTS}
    text = f"{about}\n\n{outcomes.ablation_text(frame, contrasts)}"
    outcomes.save(folder / "ablation", text, frame, plots.plot_ablation(frame, contrasts))
    return frame


def candidates(dpo: params.Dpo, options: Mapping[str, Any], run_dir: Path) -> tuple[list[Row], list[Row]]:
    """Return judged rows of 01 and pairs of 03 that an arm can be drawn from, one of each prompt."""
    template = params.template_kwargs(dpo.chat_template_kwargs)
    model_path = models.resolve(dpo.model, run_dir.parent / "models")
    tokenizer, limits = models.load_tokenizer(model_path), models.limits(model_path, options["max_length"])

    def fit(rows: Sequence[Row]) -> list[Row]:
        return fitting.fit(rows, tokenizer, template, **limits)[0]

    judged = sources.read_checked("01_rerank", "judged", records.JUDGED, run_dir=run_dir)
    judged = one_each(row for row in judged if row["chosen"] >= 0)
    fits = {pair["prompt_id"] for pair in fit(pairs.build(judged))}
    own = fit(sources.read_checked("03_judge", "pairs", records.PAIRS, run_dir=run_dir))
    return [row for row in judged if row["prompt_id"] in fits], one_each(own)


def arm_of(dpo: params.Dpo, folder: Path, name: str, sides: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Write the pairs of an arm and return what 04 takes to train on them and on nothing else."""
    files = {side: folder / "pairs" / f"{name}-{side}.parquet" for side in sides if sides[side]}
    for side, path in files.items():
        sources.write_pairs(path, sides[side])
    return {
        "run_dir": f"{folder}-{name}",
        **{side: str(files.get(side, "")) for side in sides},
        "on_policy_share": 0.0,
        "max_pairs": 0,
        "eval_prompts": params.names(dpo.eval_prompts)[0],
        "eval_judge": dpo.proof_judges[0],
        "push_to_hub": "",
    }


def rounds(profile: Path, run_dir: Path, *, count: int = 2) -> pd.DataFrame:
    """Sample, judge and train again, each time from where the round before ended.

    Round 1 is the profile's own run. A later one trains on fresh pairs of the policy as it then is and on nothing
    else: the off-policy pairs have been learned from, and Llama 3 too used its most recent, near-on-policy batches.
    Its reference model is the policy it starts from. Prompts and seed stay.

    Returns:
        One row per round and held-out set with the columns of `outcomes.measured`; `before` is the round's own start.

    Raises:
        InputError: if there are fewer than two rounds, or a notebook stopped.
    """
    if count < 2:
        raise InputError(f"--rounds is {count}, expected 2 or more; one round is python -m nbutils.run")
    plan = run.read_profile(profile, run_dir)
    for stem, values in plan.items():
        finish(stem, values)
    model = str((run.defaults("04_dpo") | plan["04_dpo"])["model"])
    fresh = {"off_policy": "", "on_policy": "03_judge", "on_policy_share": 0.0}
    folders = [run_dir]
    for number in range(2, count + 1):
        start = start_from(folders[-1], model)
        folders.append(run_dir.with_name(f"{run_dir.name}-round{number}"))
        own = {"run_dir": str(folders[-1]), "push_to_hub": ""}
        finish("02_sample", plan["02_sample"] | own | start)
        finish("03_judge", plan["03_judge"] | own | {"samples": "02_sample"})
        finish("04_dpo", plan["04_dpo"] | own | start | fresh)
    frame = pd.DataFrame(
        [{"round": i} | row for i, folder in enumerate(folders, 1) for row in outcomes.measured(folder)]
    )
    gaps = [f"Round {i}: {gap}" for i, two in enumerate(pairwise(folders), 2) for gap in outcomes.gaps_between(*two)]
    gaps = gaps or ["Every round starts from the very answers that the round before it ended with."]
    where = run_dir.with_name(f"{run_dir.name}-rounds") / "rounds"
    outcomes.save(where, "\n\n".join([outcomes.rounds_text(frame), *gaps]), frame, plots.plot_rounds(frame))
    return frame


def finish(stem: str, values: dict[str, Any]) -> None:
    """Run one notebook unless its stage is done, and say which of the two."""
    name = Path(values["run_dir"]).name
    try:
        say(f"{name}  {stem}  {run.finish(stem, values)}")
    except InputError as error:
        raise InputError(f"{name}: {error}; the same command goes on from here") from None


def relabelled(judged: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the pairs of 01 as the judge labelled them and as the source did, in all else alike.

    What the judge threw out (ties, contradictions, poor answers) is in neither. In a pair that is turned back the
    margin is negative and `verdict` still says `swapped`.
    """
    return pairs.build(judged), pairs.build(row | {"chosen": 0, "rejected": 1} for row in judged)


def one_each(rows: Iterable[Row]) -> list[Row]:
    """Return the first row of each prompt; so the pairs that 04 holds out for its curves are as many in every arm."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["prompt_id"], row)
    return list(first.values())


def draw(off: Sequence[Row], own: Sequence[Row], *, n: int, seed: int) -> dict[str, dict[str, list[Row]]]:
    """Return n pairs for each arm, no prompt twice, of judged rows of 01 and pairs of 03, by the parameter of 04."""
    rng = random.Random(seed)
    judge, source = relabelled(rng.sample(off, n))
    own = rng.sample(own, len(own))
    half = judge[: n // 2]
    taken = {pair["prompt_id"] for pair in half}
    rest = [pair for pair in own if pair["prompt_id"] not in taken][: n - len(half)]
    none: list[Row] = []
    sides = zip(ARMS, (source, judge, none, half), (none, none, own[:n], rest), strict=True)
    return {arm: {"off_policy": given, "on_policy": drawn} for arm, given, drawn in sides}


def trained_of(n: int) -> int:
    """Return how many of n pairs with different prompts 04 trains on; the others are kept for its curves."""
    return n - held_out_count(n)


def equal_size(off: Sequence[Row], own: Sequence[Row], options: Mapping[str, int], *, most: int = 0) -> int:
    """Return the largest number of pairs that every arm can have, `most` at most (0 sets no bound).

    Raises:
        InputError: naming the arm that has the fewest, if they do not fill one batch.
    """
    batch = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
    n, arm = min((len(off), RERANKED), (len(own), ON_POLICY))
    n = min(n, most or n)
    if trained_of(n) < batch:
        raise InputError(
            f"arm {arm!r} can have {n} pairs with different prompts, {trained_of(n)} of them to train on, expected "
            f"one batch of {batch}; lower gradient_accumulation_steps, or see max_pairs and the reports of 01 and 03"
        )
    return n


def start_from(run_dir: Path, model: str) -> dict[str, str]:
    """Return what 02 and 04 take to go on from a finished 04: its adapter on `model`, or the model it tuned whole."""
    saved = run_dir / "04_dpo" / "adapter"
    lora = (saved / "adapter_config.json").is_file()
    return {"model": model, "adapter": str(saved)} if lora else {"model": str(saved), "adapter": ""}


if __name__ == "__main__":
    sys.exit(main())
