import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from nbutils import plots

ROW = {"scores": [[1.0, 0.5, math.nan], [0.5, 0.5, math.nan]]}
CHANGE = {"change": 0.1, "low": -0.1, "high": 0.3}
LOG = pd.DataFrame({name: [0.7, 0.6] for name in ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen")})
FULL_LOG = LOG.assign(step=[1, 2], eval_loss=[math.nan, 0.65], **{"rewards/rejected": [-1.0, -2.0]})

DRAWN = [
    (plots.plot_verdicts, ({"kept": 96, "swapped": 8},)),
    (plots.plot_scores, ([ROW],)),
    (plots.plot_scores, ([ROW], ["chosen", "rejected"])),
    (plots.plot_lengths, ([3, 5, 64], 64)),
    (plots.plot_waterfall, ({"on_policy": 3, "tie": 2, "flip": 1},)),
    (plots.plot_margins, ([0.25, 1.0],)),
    (plots.plot_length_gap, ([-10, 20],)),
    (plots.plot_before_after, ({"passed_all": CHANGE, "checks": {"no_comma": CHANGE}},)),
]
NOTHING = [
    (plots.plot_verdicts, ({},)),
    (plots.plot_scores, ([],)),
    (plots.plot_scores, ([{"scores": []}], ["chosen", "rejected"])),
    (plots.plot_lengths, ([], 64)),
    (plots.plot_waterfall, ({},)),
    (plots.plot_margins, ([],)),
    (plots.plot_length_gap, ([],)),
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


@pytest.mark.parametrize(("plot", "given"), DRAWN)
def test_a_figure_can_be_drawn_into_given_axes(plot, given):
    ax = plt.subplots()[1]
    assert plot(*given, ax=ax) is ax


@pytest.mark.parametrize(("plot", "given"), NOTHING)
def test_no_data_is_an_empty_figure_not_an_error(plot, given):
    plot(*given).figure.canvas.draw()


def test_the_waterfall_ends_with_the_pairs():
    ax = plots.plot_waterfall({"on_policy": 3, "tie": 2, "flip": 1})
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["prompts", "flip", "tie", "pairs"]
    assert [text.get_text() for text in ax.texts] == ["6", "-1", "-2", "3"]


def test_training_is_drawn_in_four_panels_with_held_out_points():
    figure = plots.plot_training(FULL_LOG).figure
    figure.canvas.draw()
    assert len(figure.axes) == 4
    assert "loss, held-out" in [line.get_label() for line in figure.axes[0].lines]
