"""Judged pairs of answers before and after, as the proof has them."""

import math


def row(before, after, topic="A", verdict="win", prompt_id="p", **columns):
    """One judged pair of answers; a side is (text, score) or (text, score, tokens, finish reason)."""
    record = {"prompt_id": prompt_id, "prompt": [], "category": topic, "checks": "", "verdict": verdict, "judge": "j"}
    for side, (text, score, *rest) in {"before": before, "after": after}.items():
        tokens, finish = rest or (4, "stop")
        record |= {
            f"{side}_text": text,
            f"{side}_score": score,
            f"{side}_tokens": tokens,
            f"{side}_finish_reason": finish,
        }
    return record | columns


ROWS = [
    row(("a b a b", 0.5, 10, "stop"), ("a b c", 1.0, 4, "stop"), "A", "win", "p1"),
    row(("the river", 1.0, 10, "stop"), ("the sea", 1.0, 4, "stop"), "A", "tie", "p2"),
    row(("no", 0.0, 10, "length"), ("yes it is", 1.0, 4, "stop"), "B", "win", "p3"),
    row(("one", math.nan, 10, "stop"), ("two", math.nan, 8, "stop"), "B", "unparsed", "p3"),
]
