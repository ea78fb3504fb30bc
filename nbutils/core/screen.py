"""Which answers may enter a pair: not empty, not looping, whole, in the language, no two alike."""

from collections import Counter
from collections.abc import Iterable

from nbutils.core.records import PROMPTS, Row, finish_reason
from nbutils.core.texts import language as language_of
from nbutils.core.texts import loops

# why a response may not enter a pair; the first that holds is its mark
MARKS = ("empty", "control", "looping", "truncated", "language", "identical")


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
        elif finish_reason(response["finish_reason"]) not in ("stop", "unknown"):
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
