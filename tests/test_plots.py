import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from builders import scored

from nbutils import plots
from nbutils.core.stats import Interval
from nbutils.judges import bias
from nbutils.judges import figures as judging
from nbutils.proof import figures as proving
from nbutils.training.health import Finding
from tools import plots as tools_plots

ROW = {"scores": [[1.0, 0.5, math.nan], [0.5, 0.5, math.nan]]}
MEASURED = {"answers": 100, "measured": {"answers": 95}}
UNMEASURED = {"answers": 100, "measured": {"answers": 20}}
CHANGE = {"change": 0.1, "low": -0.1, "high": 0.3}
LOG = pd.DataFrame({name: [0.7, 0.6] for name in ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen")})
FULL_LOG = LOG.assign(step=[1, 2], eval_loss=[math.nan, 0.65], **{"rewards/rejected": [-1.0, -2.0]})
# a judge with one order: neither flips nor a taste for a place can be measured
ASKED_ONCE = bias.figures([scored(["aa", "b"], [[1.0, 0.0]], label="first")] * 3 + [scored(["a", "b"], [[0.5, 0.5]])])

ARMS = pd.DataFrame([{"arm": arm, "seed": seed, "change": 0.1 * seed} for arm in ("mix", "off") for seed in (3, 5)])
ARMS = ARMS.assign(low=ARMS.change - 0.1, high=ARMS.change + 0.2)
CONTRASTS = {"mix minus off": Interval(0.1, -0.1, 0.3)}
TRAININGS = pd.DataFrame(
    [{"held_out": "dev", "seed": i, "change": 0.3 + i / 10, "low": 0.2 + i / 10, "high": 0.4 + i / 10} for i in (0, 1)]
)
ROUNDS = pd.DataFrame(
    [CHANGE | {"round": i, "held_out": "a", "before": 0.2 + i / 10, "after": 0.3 + i / 10} for i in (2, 1)]
)
ROUNDS = ROUNDS.assign(headline="all passed")

DRAWN = [
    (tools_plots.plot_ablation, (ARMS, CONTRASTS)),
    (tools_plots.plot_repeat, (TRAININGS, {"dev": Interval(0.35, 0.25, 0.45)})),
    (tools_plots.plot_rounds, (ROUNDS,)),
    (plots.plot_verdicts, ({"kept": 96, "swapped": 8},)),
    (plots.plot_scores, ([ROW],)),
    (plots.plot_scores, ([ROW], ["chosen", "rejected"])),
    (plots.plot_lengths, ([3, 5, 64], 64)),
    (plots.plot_waterfall, ({"on_policy": 3, "tie": 2, "flip": 1},)),
    (plots.plot_margins, ([0.25, 1.0],)),
    (plots.plot_length_gap, ([-10, 20],)),
    (proving.plot_before_after, ({"passed_all": CHANGE, "checks": {"no_comma": CHANGE}} | MEASURED,)),
    (proving.plot_before_after, ({"score": None, "passed_all": None, "checks": {}} | UNMEASURED,)),
    (judging.plot_bias, ({"one": ASKED_ONCE},)),
]
NOTHING = [
    (tools_plots.plot_ablation, (ARMS[:0], {})),
    (tools_plots.plot_repeat, (TRAININGS[:0], {})),
    (tools_plots.plot_rounds, (ROUNDS[:0],)),
    (plots.plot_verdicts, ({},)),
    (plots.plot_scores, ([],)),
    (plots.plot_scores, ([{"scores": []}], ["chosen", "rejected"])),
    (plots.plot_lengths, ([], 64)),
    (plots.plot_waterfall, ({},)),
    (plots.plot_margins, ([],)),
    (plots.plot_length_gap, ([],)),
    (judging.plot_bias, ({"one": bias.figures([])},)),
]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize(("plot", "given"), DRAWN)
def test_a_figure_asks_a_question_and_labels_its_axes(plot, given):
    ax = plot(*given)
    ax.figure.canvas.draw()
    assert ax.get_title()
    assert ax.get_xlabel() or ax.get_ylabel()


@pytest.mark.parametrize(("plot", "given"), NOTHING)
def test_no_data_is_an_empty_figure_not_an_error(plot, given):
    plot(*given).figure.canvas.draw()


@pytest.mark.parametrize(("plot", "given"), [*DRAWN, (proving.plot_training, (FULL_LOG,)), *NOTHING])
def test_a_figure_has_one_short_sentence_as_its_caption(plot, given):
    caption = plot(*given).get_figure(root=True).get_label()
    assert re.fullmatch(r"[A-Z][^\n]{40,125}\.", caption)
    assert "nan" not in caption
    assert caption.count(". ") == 0


def test_a_caption_tells_the_numbers_of_its_figure():
    assert "Where 6 prompts were lost" in plots.plot_waterfall({"on_policy": 3, "tie": 2, "flip": 1}).figure.get_label()
    chances = {0.3: np.array([0.9, 0.1]), 1.2: np.array([0.5, 0.5])}
    first = plots.plot_next_token([" a"], chances, {0.3: 1, 1.2: 2})
    assert "at temperature 0.3, 1.2;" in first.figure.get_label()


def test_the_waterfall_ends_with_the_pairs():
    ax = plots.plot_waterfall({"on_policy": 3, "tie": 2, "flip": 1})
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["prompts", "flip", "tie", "pairs"]
    assert [text.get_text() for text in ax.texts] == ["6", "-1", "-2", "3"]


def test_training_is_drawn_in_four_panels_with_held_out_points():
    figure = proving.plot_training(FULL_LOG).figure
    figure.canvas.draw()
    assert len(figure.axes) == 4
    assert "loss, held-out" in [line.get_label() for line in figure.axes[0].lines]


def test_findings_are_thin_lines_named_in_the_legend_of_the_panel_that_shows_them():
    findings = [
        Finding("falling", 2, "..."), Finding("fleeing", 2, "..."), Finding("trivial", 1, "..."),
        Finding("contradicted", 2, "..."), Finding("no gradient", 1, "..."), Finding("length", None, "..."),
    ]  # fmt: skip
    figure = proving.plot_training(FULL_LOG, findings).figure
    figure.canvas.draw()
    named = [[t.get_text() for t in ax.get_legend().get_texts() if "step" in t.get_text()] for ax in figure.axes]
    assert named == [
        ["no gradient (step 1)"],
        ["contradicted (step 2)"],
        ["trivial (step 1)"],
        ["falling (step 2)", "fleeing (step 2)"],
    ]
    lines = [line for line in figure.axes[3].lines if "step" in line.get_label()]
    assert [list(line.get_xdata()) for line in lines] == [[2, 2], [2, 2]]
    assert len({line.get_linestyle() for line in lines}) == 2
    words = [text.get_window_extent() for text in figure.axes[3].get_legend().get_texts()]
    assert not any(a.overlaps(b) for i, a in enumerate(words) for b in words[:i])


def test_the_next_token_is_drawn_in_a_panel_per_temperature_with_what_is_cut_off_and_the_rest_as_one_bar():
    chances = {0.3: np.array([0.9, 0.06, 0.04]), 1.2: np.array([0.5, 0.3, 0.2])}
    figure = plots.plot_next_token([" a", "$$"], chances, {0.3: 1, 1.2: 2}).figure
    figure.canvas.draw()  # "$$" would be an unfinished formula
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["' a'", "'$$'", "all others"]
    assert [ax.get_title().split("\n") for ax in figure.axes] == [
        ["temperature 0.3:", "1 token can be drawn"],
        ["temperature 1.2:", "2 tokens can be drawn"],
    ]
    # 0.3 keeps the first token alone, under a line; 1.2 keeps both that are shown
    assert [[line.get_ydata()[0] for line in ax.lines] for ax in figure.axes] == [[0.5], []]
    widths = [[bar.get_width() for bar in ax.patches] for ax in figure.axes]
    assert widths[0] == pytest.approx([90, 0, 0, 0, 6, 4])
    assert widths[1] == pytest.approx([50, 30, 0, 0, 0, 20])


def test_the_bar_of_the_other_tokens_is_split_where_the_nucleus_ends():
    ax = plots.plot_next_token(["a"], {1.0: np.array([0.4, 0.3, 0.2, 0.1])}, {1.0: 3})
    drawn, cut = (ax.patches[i] for i in (1, 3))
    assert (drawn.get_width(), cut.get_x(), cut.get_width()) == pytest.approx((50, 50, 10))


def test_the_figures_of_a_judge_are_drawn_in_percent_where_they_were_measured_and_kappa_is_not():
    ax = judging.plot_bias({"one": ASKED_ONCE})
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    drawn = {names[int(line.get_ydata()[0])]: line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2}
    measured = [name for name, ends in drawn.items() if not any(map(math.isnan, ends))]
    assert measured == ["unanswered", "unparsed", "longer wins", "ties", "agreement", "decided agreement"]
    assert "kappa" in ASKED_ONCE.index
    assert "kappa" not in names
    # 1 of 4, by hand: (1/4 + z^2/8 -+ z sqrt(3/64 + z^2/64)) / (1 + z^2/4), z = 1.96
    assert list(drawn["ties"]) == pytest.approx([4.56, 69.94], abs=0.01)
    told = dict(zip(names, [text.get_text() for text in ax.texts], strict=True))
    assert (told["ties"], told["longer wins"], told["flips"]) == ("of 4", "of 3", "not measured")


def test_what_stops_a_run_and_what_is_no_taste_stand_in_the_rows_they_belong_to():
    ax = judging.plot_bias({"one": ASKED_ONCE})
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    bands = {
        names[round(bar.get_y() + bar.get_height() / 2)]: pytest.approx((bar.get_x(), bar.get_x() + bar.get_width()))
        for bar in ax.patches
    }
    stops = {"unanswered": (10, 100), "unparsed": (10, 100), "flips": (40, 100), "decided agreement": (0, 50)}
    assert stops | {"first place gains": (40, 60), "longer wins": (40, 60)} == bands
    assert len(ax.get_legend().get_texts()) == 2


def test_two_judges_have_a_line_each_under_every_figure():
    ax = judging.plot_bias({"key": ASKED_ONCE, "model": ASKED_ONCE.drop(index="ties")})
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names[:4] == ["unanswered: key", "unanswered: model", "unparsed: key", "unparsed: model"]
    assert [name for name in names if name.startswith("ties")] == ["ties: key"]
    # both lines of a figure have its limit behind them
    assert len([bar for bar in ax.patches if bar.get_x() == 10]) == 4


def test_contrasts_stand_below_the_arms_in_points():
    ax = tools_plots.plot_ablation(ARMS, CONTRASTS)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["mix", "off", "mix minus off"]
    [line] = [line for line in ax.lines if list(line.get_ydata()) == [2, 2]]
    assert list(line.get_xdata()) == pytest.approx([-10, 30])


def test_every_training_and_all_together_have_a_line():
    ax = tools_plots.plot_repeat(TRAININGS, {"dev": Interval(0.35, 0.25, 0.45)})
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert labels == ["dev, seed 0", "dev, seed 1", "dev, all together"]
    ends = [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert ends[:3] == [pytest.approx([20, 40]), pytest.approx([30, 50]), pytest.approx([25, 45])]


def test_an_arm_has_a_point_and_an_interval_per_seed_in_points_and_a_bar_for_their_mean():
    ax = tools_plots.plot_ablation(ARMS, CONTRASTS)
    intervals = [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert intervals[:2] == [pytest.approx([20, 50]), pytest.approx([40, 70])]
    points = [line for line in ax.lines if len(line.get_xdata()) == 1][:4]
    assert [float(line.get_xdata()[0]) for line in points] == pytest.approx([30, 50, 30, 50])
    heights = [float(line.get_ydata()[0]) for line in points]
    assert heights == pytest.approx([-0.15, 0.15, 0.85, 1.15])
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([40, 40])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["seed 3", "seed 5", "mean of the seeds"]


def test_rounds_are_a_line_from_the_base_with_the_interval_of_each_change():
    ax = tools_plots.plot_rounds(ROUNDS)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["base", "round 1", "round 2"]
    (line,) = ax.lines
    assert list(line.get_xdata()) == [0, 1, 2]
    assert list(line.get_ydata()) == pytest.approx([30, 40, 50])
    ends = [segment[:, 1] for segment in ax.collections[0].get_segments()]
    assert [list(end) for end in ends] == [pytest.approx([20, 60]), pytest.approx([30, 70])]


def test_a_proof_that_was_measured_in_part_says_so_in_its_title():
    summary = {"score": CHANGE, "passed_all": CHANGE, "checks": {}}
    titles = [proving.plot_before_after(summary | part).get_title() for part in (MEASURED, UNMEASURED)]
    assert titles == [titles[0], f"{titles[0]}\nmeasured: 20 of 100 answers"]


@pytest.mark.parametrize(
    "name",
    [
        "costs $5 or $6",
        "$\\frac{$",
        "$x_{$ and $",
        "$\\undefined{x}$",
        "\\$1$",
        "a" * 5_000,
        "two\nlines\r\tand more",
        "\x00\x1b[31m\u202e",
        "日本 🙂 ελ",
        "_hidden",
        "",
        "%s {0} {x} %(y)s",
    ],
)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_no_name_ends_a_figure_and_each_is_drawn_as_it_is(name, tmp_path):
    drawn = [
        plots.plot_verdicts({name: 3, "kept": 2}),
        plots.plot_waterfall({f"filtered:{name}": 3, "on_policy": 2}),
        proving.plot_before_after(MEASURED | {"passed_all": CHANGE, "checks": {name: CHANGE}}),
        plots.plot_next_token([name, "b"], {1.0: np.array([0.6, 0.3, 0.1])}, {1.0: 2}),
        tools_plots.plot_ablation(ARMS.assign(arm=name), CONTRASTS),
        tools_plots.plot_rounds(ROUNDS.assign(held_out=name)),
    ]
    for number, axes in enumerate(drawn):
        axes.figure.savefig(tmp_path / f"{number}.png", dpi=110, bbox_inches="tight")
        shown = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        assert not any(label.get_parse_math() for label in shown)
        assert max(len(label.get_text()) for label in shown) <= 40


def test_a_label_with_dollar_signs_is_shown_with_them():
    labels = plots.plot_verdicts({"from $1 to $2": 3}).get_yticklabels()
    assert [label.get_text() for label in labels] == ["from $1 to $2"]
