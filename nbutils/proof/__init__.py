"""Did the training help? Base and tuned model answer the same held-out prompts, and the same judge compares them."""

from nbutils.proof import card, figures, knowledge, people, winrates
from nbutils.proof.answers import compare, examples, held_out, judge_report, load_judges, sample, shown_to
from nbutils.proof.doubts import drift, relatives, same_judge_warnings, side_effects
from nbutils.proof.summary import findings, got_worse, headline, in_words, summarise

__all__ = [
    "card", "compare", "drift", "examples", "figures", "findings", "got_worse", "headline", "held_out", "in_words",
    "judge_report", "knowledge", "load_judges", "people", "relatives", "same_judge_warnings", "sample", "shown_to",
    "side_effects", "summarise", "winrates",
]  # fmt: skip
