"""Experiments without their notebooks: a stand-in for `run.execute` writes what the real stages write."""

import json
import math

import pandas as pd
import pytest
import yaml
from builders import prompt_row, scored
from matplotlib import pyplot as plt

from nbutils import params, run
from nbutils.core import pairs, records
from nbutils.core.errors import InputError
from nbutils.files import sources
from nbutils.files.stage import Stage
from nbutils.proof.summary import summarise
from nbutils.training.held_out import split
from nbutils.training.trainer import updates
from tools import experiments, outcomes
from tools.experiments import ARMS, ORIGINAL, RERANKED

BATCH_OF_8 = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
OFF, OWN = 20, 30  # prompts with pairs in 01 and 03


def off_policy_row(i):
    """Every third pair's label is the judge's own: it swapped the sides."""
    scores = [[0.25, 1.0]] if i % 3 == 0 else [[1.0, 0.5]]
    return pairs.rerank(scored(["The river runs.", "Bread."], scores, text=f"Name {i} rivers."))


def on_policy_row(i):
    return pairs.select(scored(["A cat.", "A dog runs."], [[1.0, 0.0]], text=f"Name {i} cats."))


def compared(change, before=None, after=None):
    """Rows of an evaluation in which `change` of ten answers, one to a topic, rise from 0 to 1."""
    texts = {"before": before or ["an old river an old river"] * 10, "after": after or ["a new and wide river"] * 10}
    return [
        prompt_row(f"Topic {i}?", category=str(i))
        | {f"{side}_text": text[i] for side, text in texts.items()}
        | {"before_score": 0.0, "after_score": float(i < change), "before_tokens": 10, "after_tokens": 12}
        | {"before_finish_reason": "stop", "after_finish_reason": "stop", "scores": [], "replies": []}
        | {"verdict": "win" if i < change else "tie", "judge": "scripted"}
        for i in range(10)
    ]


class Notebooks:
    """Stands in for papermill: writes each stage's real files and remembers what it was asked to run."""

    def __init__(self):
        self.asked, self.changes, self.answers = [], {}, {}

    def __call__(self, stem, values):
        name = values["run_dir"].rpartition("/")[2]
        self.asked.append((name, stem, values))
        run_dir = sources.Path(values["run_dir"])
        stage, extra, metrics = Stage(stem, run_dir), {}, {}
        if stem == "02_sample":
            data = {"samples": records.dataset([], records.SAMPLES)}
        elif stem != "04_dpo":
            rows = (
                [off_policy_row(i) for i in range(OFF)]
                if stem == "01_rerank"
                else [on_policy_row(i) for i in range(OWN)]
            )
            data = {
                "judged": records.dataset(rows, records.JUDGED),
                "pairs": records.dataset(pairs.build(rows), records.PAIRS),
            }
        else:
            rows = compared(self.changes.get(name, 4), *self.answers.get(name, ()))
            data = {"evaluation_heldout": records.dataset(rows, records.EVALUATION)}
            given = [
                pair
                for kind in ("off_policy", "on_policy")
                if (source := (run.defaults(stem) | values)[kind])
                for pair in sources.read_checked(source, "pairs", records.PAIRS, run_dir=run_dir)
            ]
            train, curves = split(given, held_out=0.1, seed=values.get("seed", 0))
            steps = math.ceil(math.ceil(math.ceil(len(train) / 4) / 2) * values.get("epochs", 1))
            metrics = {
                "pairs": {"train": len(train), "curves": len(curves)},
                "training": {"step": steps, "rewards/margins": 0.5},
                "proof": {"heldout": summarise(rows)},
            }
            adapter = stage.scratch("04_dpo") / "adapter"
            adapter.mkdir(exist_ok=True)
            (adapter / "adapter_config.json").write_text(json.dumps({"from": name}))
            extra = {"adapter": adapter}
        stage.write(data, params=values, metrics=metrics, summary="", extra=extra)
        (run_dir / f"{stem}.ipynb").write_text("{}")
        (run_dir / stem / "run.json").write_text(json.dumps(run.fingerprint(stem, values)))

    def ran(self, stem="04_dpo"):
        return [name for name, what, _ in self.asked if what == stem]


@pytest.fixture
def notebooks(monkeypatch):
    fake = Notebooks()
    monkeypatch.setattr(run, "execute", fake)
    return fake


@pytest.fixture
def profile(tmp_path, tiny_llama):
    """A profile of the tiny model: batches of 8 and three passes over the 50 pairs there are."""
    folder = tmp_path / "profile"
    folder.mkdir()
    (folder / "training.yaml").write_text(yaml.safe_dump(BATCH_OF_8 | {"max_length": 256}))
    for stem, values in {
        "01_rerank": {"dataset": "somewhere"},
        "02_sample": {"model": str(tiny_llama)},
        "03_judge": {"language": "en"},
        "04_dpo": {
            "model": str(tiny_llama),
            "training": str(folder / "training.yaml"),
            "epochs": 3.0,
            "max_pairs": 0,
            "eval_prompts": "first.jsonl,second.jsonl",
            "eval_judge": "answer_en,verifier",
            "chat_template_kwargs": "",
            "push_to_hub": "",
        },
    }.items():
        (folder / f"{stem}.yaml").write_text(yaml.safe_dump(values))
    return folder


def pairs_of(values):
    return {kind: sources.read(values[kind], "pairs") if values[kind] else [] for kind in ("off_policy", "on_policy")}


def test_original_labels_are_the_same_pairs_with_the_swapped_ones_turned_back():
    judge, source = experiments.relabelled([off_policy_row(i) for i in range(4)])
    assert [pair["verdict"] for pair in judge] == ["swapped", "kept", "kept", "swapped"]
    assert source[1:3] == judge[1:3]
    for mine, theirs in ((judge[0], source[0]), (judge[3], source[3])):
        other = {"chosen": "rejected", "rejected": "chosen"}
        for side in other:
            for column in ("", "_score", "_model"):
                assert theirs[f"{side}{column}"] == mine[f"{other[side]}{column}"]
        assert (mine["margin"], theirs["margin"]) == (0.75, -0.75)
        assert theirs["chosen"][0]["content"] == "The river runs."
        assert theirs["id"] == records.pair_id(theirs["prompt"], "The river runs.", "Bread.") != mine["id"]
        same = ("prompt_id", "prompt", "judge", "checks", "category", "origin", "verdict", "chat_template_kwargs")
        assert [theirs[column] for column in same] == [mine[column] for column in same]


def test_every_arm_gets_equal_pairs_with_different_prompts_and_the_mix_half_of_each():
    off, own = [off_policy_row(i) for i in range(9)], pairs.build(on_policy_row(i) for i in range(12))
    # two prompts of the on-policy side are off-policy prompts, too
    own = [pair | {"prompt_id": off[i]["prompt_id"]} if i < 2 else pair for i, pair in enumerate(own)]
    for seed in range(20):
        drawn = experiments.draw(off, own, n=9, seed=seed)
        assert tuple(drawn) == ARMS
        for sides in drawn.values():
            assert len({pair["prompt_id"] for rows in sides.values() for pair in rows}) == 9
        assert [(len(s["off_policy"]), len(s["on_policy"])) for s in drawn.values()] == [(9, 0), (9, 0), (0, 9), (4, 5)]
        prompts = [[pair["prompt_id"] for pair in drawn[arm]["off_policy"]] for arm in (ORIGINAL, RERANKED)]
        assert prompts[0] == prompts[1]
    assert experiments.draw(off, own, n=9, seed=1) == experiments.draw(off, own, n=9, seed=1)
    assert experiments.draw(off, own, n=5, seed=1) != experiments.draw(off, own, n=5, seed=2)


@pytest.mark.parametrize(("count", "steps"), [(104, 13), (18, 3), (8, 1), (1, 1), (9, 2)])
def test_the_steps_of_a_pass_are_those_the_trainer_makes(count, steps):
    # 104 pairs of the demo in three passes are the 39 steps its log shows
    assert updates(count, BATCH_OF_8) == steps


def test_an_arm_with_fewer_pairs_than_a_batch_is_named_with_its_count():
    rows = [off_policy_row(i) for i in range(20)]
    assert experiments.equal_size(rows, rows[:9], BATCH_OF_8) == 9  # one is held out, eight fill a batch
    assert experiments.equal_size(rows, rows, BATCH_OF_8, most=12) == 12
    with pytest.raises(InputError, match=r"arm 'on-policy' can have 8 pairs .* 7 of them to train on, .* batch of 8"):
        experiments.equal_size(rows, rows[:8], BATCH_OF_8)
    with pytest.raises(InputError, match=r"arm 're-ranked' can have 3 pairs"):
        experiments.equal_size(rows[:3], rows, BATCH_OF_8)


def test_the_arms_train_on_equal_pairs_for_equal_steps_and_differ_in_nothing_else(notebooks, profile, tmp_path):
    frame = experiments.ablation(profile, tmp_path / "runs" / "demo")
    assert [stem for _, stem, _ in notebooks.asked[:3]] == ["01_rerank", "02_sample", "03_judge"]
    slugs = ["original-labels", "re-ranked", "on-policy", "mix"]
    assert notebooks.ran() == [f"demo-ablation-{slug}-seed{seed}" for seed in (0, 1, 2) for slug in slugs]
    # of an arm's 20 pairs 18 are trained on: 3 steps, three times
    assert set(frame.pairs) == {18}
    assert set(frame.steps) == {9}
    arms = [values for _, stem, values in notebooks.asked if stem == "04_dpo"]
    for values in arms:
        assert values["epochs"] == 3.0
        assert (values["eval_prompts"], values["eval_judge"]) == ("first.jsonl", "answer_en")
        assert params.validate("04_dpo", run.defaults("04_dpo") | values)
    names = ("run_dir", "seed", "off_policy", "on_policy")
    assert len({json.dumps({k: v for k, v in values.items() if k not in names}) for values in arms}) == 1
    original, judge, own, mix = (pairs_of(values) for values in arms[:4])
    assert [len(own["off_policy"]), len(own["on_policy"])] == [0, 20]
    assert [len(mix["off_policy"]), len(mix["on_policy"])] == [10, 10]
    swapped = [a["verdict"] == "swapped" for a in judge["off_policy"]]
    assert sum(swapped) == 7
    for a, b, turned in zip(judge["off_policy"], original["off_policy"], swapped, strict=True):
        assert (a["chosen"], a["rejected"]) == (
            (b["rejected"], b["chosen"]) if turned else (b["chosen"], b["rejected"])
        )


def test_an_ablation_goes_on_where_it_was(notebooks, profile, tmp_path):
    run_dir = tmp_path / "runs" / "demo"
    stop = "demo-ablation-on-policy-seed0"

    def until_killed(stem, values, real=run.execute):
        if values["run_dir"].endswith(stop):
            raise InputError("04_dpo stopped in cell 9: Interrupted: time budget used up")
        real(stem, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "execute", until_killed)
        with pytest.raises(InputError, match=f"{stop}: .*the same command goes on"):
            experiments.ablation(profile, run_dir, seeds=2)
    assert len(notebooks.ran()) == 2
    notebooks.asked.clear()
    experiments.ablation(profile, run_dir, seeds=2)
    assert notebooks.ran()[0] == stop
    assert len(notebooks.asked) == 6
    notebooks.asked.clear()
    experiments.ablation(profile, run_dir, seeds=2)
    assert notebooks.asked == []


def test_table_numbers_and_figure_of_an_ablation_agree_with_the_metrics(notebooks, profile, tmp_path, capsys):
    # of ten topics so many rise; a rise of nine cannot be chance, none is no change
    notebooks.changes = {"demo-ablation-on-policy-seed0": 9, "demo-ablation-on-policy-seed1": 8}
    notebooks.changes |= {f"demo-ablation-mix-seed{seed}": 0 for seed in (0, 1)}
    assert experiments.main(["ablation", str(profile), str(tmp_path / "runs" / "demo"), "--seeds", "2"]) == 0
    folder = tmp_path / "runs" / "demo-ablation"
    text = (folder / "ablation.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| on-policy"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1].startswith("+90.0 [+")
    assert cells[2].startswith("+80.0 [+")
    assert cells[3:] == ["+85.0", "0.0% to 85.0%", "1.20", "0.06 to 0.10", "100%", "0.50", "18", "9"]
    assert "| +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] | +0.0 | 0.0% to 0.0% | 1.20 | 0.06 to 0.10 | none |" in text
    assert "20 pairs per arm, 18 of them to train on, 9 steps in 3 passes." in text
    assert "excludes zero are 3 of 4: original labels (above, 2 of 2 seeds); " in text
    assert "mix (" not in text
    assert "2 points, not a distribution" in text
    assert text.split("\n\n", 1)[1].split("\n\n![")[0] in capsys.readouterr().out
    table = pd.read_csv(folder / "ablation.csv")
    assert list(table.arm) == [*ARMS, *ARMS]
    assert table[table.arm == "on-policy"].change.tolist() == pytest.approx([0.9, 0.8])
    assert table[table.arm == "mix"].change.tolist() == [0, 0]
    assert (folder / "ablation.png").read_bytes().startswith(b"\x89PNG")
    # on-policy rises in topics 0 to 8 and 0 to 7, re-ranked in 0 to 3: five and four of ten topics between them
    compared = next(line for line in text.splitlines() if line.startswith("| on-policy minus re-ranked"))
    assert compared.startswith("| on-policy minus re-ranked | +45.0 [+")
    assert compared.endswith("| shown |")
    assert "| re-ranked minus original labels | +0.0 [+0.0, +0.0] | not shown |" in text
    assert "| mix minus re-ranked | -40.0 [-" in text
    assert "] | refuted |" in text


def test_trainings_on_the_same_pairs_differ_in_their_seed_alone(notebooks, profile, tmp_path, capsys):
    notebooks.changes = {"demo": 4, "demo-repeat-seed1": 6, "demo-repeat-seed2": 5}
    run_dir = tmp_path / "runs" / "demo"
    assert experiments.main(["repeat", str(profile), str(run_dir), "--trainings", "3"]) == 0
    assert notebooks.ran() == ["demo", "demo-repeat-seed1", "demo-repeat-seed2"]
    first, second, third = (values for _, stem, values in notebooks.asked if stem == "04_dpo")
    assert (second["seed"], third["seed"]) == (1, 2)
    same = {"seed", "run_dir", "off_policy", "on_policy"}
    assert {k: v for k, v in first.items() if k not in same} == {k: v for k, v in second.items() if k not in same}
    assert pairs_of(second) == {
        kind: sources.read(str(run_dir / stem), "pairs")
        for kind, stem in (("off_policy", "01_rerank"), ("on_policy", "03_judge"))
    }
    text = (tmp_path / "runs" / "demo-repeat" / "repeat.md").read_text()
    assert [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| heldout")] == ["0", "1", "2"]
    # between four and six of ten topics rise: five on average
    assert "**heldout: better**, mean score +50.0 [+" in text
    assert "over 3 trainings; single ones +40.0 to +60.0" in text
    assert text.split("\n\n", 1)[1].split("\n\n![")[0] in capsys.readouterr().out
    assert (tmp_path / "runs" / "demo-repeat" / "repeat.png").read_bytes().startswith(b"\x89PNG")
    notebooks.asked.clear()
    experiments.repeat(profile, run_dir, count=3)
    assert notebooks.asked == []


def test_a_repeat_after_other_pairs_trains_anew(notebooks, profile, tmp_path, monkeypatch):
    run_dir = tmp_path / "runs" / "demo"
    experiments.repeat(profile, run_dir, count=2)
    notebooks.asked.clear()
    (profile / "03_judge.yaml").write_text(yaml.safe_dump({"language": "it"}))
    monkeypatch.setitem(globals(), "OWN", 20)
    experiments.repeat(profile, run_dir, count=2)
    assert [(name, stem) for name, stem, _ in notebooks.asked] == [
        ("demo", "03_judge"),
        ("demo", "04_dpo"),
        ("demo-repeat-seed1", "04_dpo"),
    ]


def test_an_answer_that_was_not_measured_counts_on_neither_side(notebooks, tmp_path):
    rows = compared(4)
    rows[0]["after_score"], rows[9]["category"] = math.nan, ""
    stage = Stage("04_dpo", tmp_path)
    data = {"evaluation_heldout": records.dataset(rows, records.EVALUATION)}
    stage.write(data, params={}, metrics={}, summary="")
    frame = outcomes.by_prompt(tmp_path, "heldout", "mean score")
    assert (len(frame), frame.after.sum(), frame.before.sum()) == (9, 3, 0)
    assert rows[9]["prompt_id"] in set(frame.category)
    assert outcomes.pooled([frame, frame]).value == pytest.approx(3 / 9)


def test_a_later_round_starts_from_the_adapter_of_the_one_before_and_takes_fresh_pairs_only(
    notebooks, profile, tmp_path, tiny_llama, capsys
):
    run_dir = tmp_path / "runs" / "demo"
    old, new, newer = ([word] * 10 for word in ("old", "new", "newer"))
    notebooks.answers = {"demo": (old, new), "demo-round2": (new, newer), "demo-round3": (newer, ["newest"] * 10)}
    notebooks.changes = {"demo": 4, "demo-round2": 5}
    frame = experiments.rounds(profile, run_dir, count=3)
    assert [(name, stem) for name, stem, _ in notebooks.asked] == [("demo", stem) for stem in params.STEMS] + [
        (f"demo-round{i}", stem) for i in (2, 3) for stem in params.STEMS[1:]
    ]
    asked = {(name, stem): values for name, stem, values in notebooks.asked}
    for number, before in ((2, "demo"), (3, "demo-round2")):
        adapter = str(tmp_path / "runs" / before / "04_dpo" / "adapter")
        for stem in ("02_sample", "04_dpo"):
            values = asked[f"demo-round{number}", stem]
            assert (values["model"], values["adapter"]) == (str(tiny_llama), adapter)
        last = asked[f"demo-round{number}", "04_dpo"]
        assert (last["off_policy"], last["on_policy"], last["on_policy_share"]) == ("", "03_judge", 0.0)
        assert last["eval_prompts"] == "first.jsonl,second.jsonl"
    assert frame["round"].tolist() == [1, 2, 3]
    assert frame.change.tolist() == pytest.approx([0.4, 0.5, 0.4])
    assert "very answers" in capsys.readouterr().out
    folder = tmp_path / "runs" / "demo-rounds"
    assert "| heldout, round 2 | +50.0 [" in (folder / "rounds.md").read_text()
    assert pd.read_csv(folder / "rounds.csv").change.tolist() == pytest.approx([0.4, 0.5, 0.4])
    assert (folder / "rounds.png").read_bytes().startswith(b"\x89PNG")
    notebooks.asked.clear()
    experiments.rounds(profile, run_dir, count=3)
    assert notebooks.asked == []


def test_a_round_that_did_not_start_where_the_one_before_ended_is_told(notebooks, profile, tmp_path, capsys):
    other = ["new"] * 7 + ["other"] * 3
    notebooks.answers = {"demo": (["old"] * 10, ["new"] * 10), "demo-round2": (other, ["newer"] * 10)}
    assert experiments.main(["rounds", str(profile), str(tmp_path / "runs" / "demo"), "--rounds", "2"]) == 0
    said = capsys.readouterr().out
    assert "Round 2: on heldout only 7 of 10 answers before are among the 10" in said
    assert "very answers" not in said


def test_after_full_tuning_the_whole_model_takes_the_place_of_model_and_adapter(tmp_path):
    saved = tmp_path / "04_dpo" / "adapter"
    saved.mkdir(parents=True)
    (saved / "config.json").write_text("{}")
    assert experiments.start_from(tmp_path, "org/base") == {"model": str(saved), "adapter": ""}
    (saved / "adapter_config.json").write_text("{}")
    assert experiments.start_from(tmp_path, "org/base") == {"model": "org/base", "adapter": str(saved)}


def test_an_interval_without_ends_and_a_share_of_nothing_are_not_numbers(tmp_path):
    (tmp_path / "04_dpo").mkdir()
    change = {"before": 0.5, "after": 0.5, "change": 0.0, "low": None, "high": None}
    summary = {"checks": {}, "score": change, "prompts": 3, "tokens_ratio": 1.0, "win_rate": {"all": {"share": None}}}
    summary["distinct_2"] = {"before": 0.5, "after": 0.5}
    training_log = {"step": 4.0, "rewards/margins": 0.1}
    metrics = {"pairs": {"train": 8}, "training": training_log, "proof": {"heldout": summary}}
    (tmp_path / "04_dpo/metrics.json").write_text(json.dumps(metrics))
    (row,) = outcomes.measured(tmp_path)
    assert (row["headline"], row["steps"], row["prompts"]) == ("mean score", 4, 3)
    assert all(math.isnan(row[name]) for name in ("low", "high", "win_share"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ablation", "--seeds", "1"], "--seeds is 1"),
        (["rounds", "--rounds", "1"], "--rounds is 1"),
        (["repeat", "--trainings", "1"], "--trainings is 1"),
        (["rounds"], ""),
    ],
)
def test_what_cannot_be_an_experiment_is_said_in_one_sentence(arguments, told, tmp_path, capsys):
    name, *rest = arguments
    assert experiments.main([name, str(tmp_path / "nothing"), str(tmp_path / "runs"), *rest]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {told}")
    assert error.count("\n") == 1


def test_what_a_user_wrote_into_a_report_is_kept_beside_the_next_one(tmp_path, capsys):
    frame = pd.DataFrame({"a": [1]})
    stem = tmp_path / "demo-repeat" / "repeat"
    for text in ("one", "two"):
        outcomes.save(stem, text, frame, plt.subplots()[1])
    assert "two" in stem.with_suffix(".md").read_text()
    assert not (stem.parent / "kept-1").exists(), "nothing of ours is kept"
    stem.with_suffix(".md").write_text("MY NOTES")
    stem.with_suffix(".csv").write_text("mine")
    outcomes.save(stem, "three", frame, plt.subplots()[1])
    plt.close("all")
    assert "three" in stem.with_suffix(".md").read_text()
    kept = {path.name: path.read_text() for place in stem.parent.glob("kept-*") for path in place.iterdir()}
    assert kept == {"repeat.md": "MY NOTES", "repeat.csv": "mine"}
    assert {p.suffix for p in stem.parent.iterdir() if p.is_file()} == {".md", ".csv", ".png", ".json"}
