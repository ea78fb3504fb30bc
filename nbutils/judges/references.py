"""The reference of a row, a good answer by somebody else, and what is no such thing."""

from collections import Counter
from collections.abc import Sequence

from nbutils.core.errors import InputError
from nbutils.core.records import Row

# A short right answer may be a response's own words; that of nearly all rows, always in one place, is its column.
OWN, LEAST_OWN = 0.9, 8


def insist_on_references(judge: str, rows: Sequence[Row], *, required: bool) -> None:
    """Refuse rows of which none has a reference where one is required, or of which a response is the reference.

    Args:
        judge: its name, for the error.
    """
    if required and rows and not any(map(reference_of, rows)):
        raise InputError(
            f"judge {judge} goes by a reference and none of {len(rows)} rows has one; name a column with good answers "
            "in reference_column, or another judge"
        )
    if own := _own(rows):
        raise InputError(
            f"judge {judge}: the reference is response {own} itself in nearly all of {len(rows)} rows, so it would be "
            "compared with itself; name in reference_column answers by somebody else, or another judge"
        )


def reference_of(row: Row) -> str:
    """Return a row's reference; nothing where it has none."""
    return (row.get("reference") or "").strip()


def _own(rows: Sequence[Row]) -> int:
    """Return which response (1, 2, ...) alone is the reference itself in nearly all rows that have one; 0 for none."""
    held = [row for row in rows if reference_of(row)]
    same = (
        [k for k, response in enumerate(row["responses"], 1) if response["text"].strip() == reference_of(row)]
        for row in held
    )
    [(place, count)] = Counter(one[0] for one in same if len(one) == 1).most_common(1) or [(0, 0)]
    return place if len(held) >= LEAST_OWN and count > OWN * len(held) else 0
