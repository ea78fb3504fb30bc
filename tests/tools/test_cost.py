import pytest

from nbutils.files.sources import CHECKOUT
from tools import cost


@pytest.fixture
def table(capsys):
    """The cells of the table that `make cost` prints for a profile, by stage."""

    def run(name):
        assert cost.main([str(CHECKOUT / "params" / name)]) == 0
        lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| 0")]
        return {cells[0].removeprefix("| "): [cell.strip(" |") for cell in cells[1:]] for cells in lines}

    return run


def test_requests_and_hours_of_the_italian_run_are_those_counted_by_hand(table):
    rows = table("kaggle-t4")
    # 8,000 rows in two orders and 40 repeats; at 4.8 and 0.7 a second 0.93 and 6.37 hours, and 0.1 and 0.5 to set up
    assert rows["01_rerank"][1] == "16,040"
    assert rows["01_rerank"][4:] == ["1.0 to 6.9", "no", "fits"]
    # 8,000 prompts, 4 answers of 200 or 400 tokens; at 2,000 and 300 tokens a second 0.89 and 11.85 hours
    assert rows["02_sample"][0] == "32,000 answers"
    assert rows["02_sample"][4:] == ["1.0 to 12.4", "yes", "fits in the low case"]
    # half or 86% of 8,000 rows and 30% or 70% of 8,000 prompts; 300 prompts, 3 answers, before and after, 2 orders
    assert rows["04_dpo"][:2] == ["6,400 to 12,480 pairs, 1,800 answers", "1,800"]


def test_rules_ask_nothing_and_a_judge_on_the_gpu_takes_its_time(table):
    assert table("english")["01_rerank"] == ["", "0", "", "", "0.1 to 0.5", "no", "fits"]
    assert table("kaggle-t4-free")["01_rerank"][1::4] == ["3,040", "yes"]


def test_a_profile_that_is_none_ends_in_one_sentence(tmp_path, capsys):
    assert cost.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no parameters, expected files like ")
