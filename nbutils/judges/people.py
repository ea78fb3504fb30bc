"""People as judges: which of two answers is better, asked without telling whose they are.

Used by 03 and 04. A `Sheet` is a table (CSV) beside the run, of pairs that wait for a choice in its last column: 1 or 2
for the better answer, 0 for a tie, `skip`. It is filled in with the notebook's form (`form`) or with any program for
tables, and read again when the notebook runs. Pairs and sides stand in an order drawn by their content, so whoever
stops early has labelled a random sample.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nbutils.core import verdicts
from nbutils.core.columns import LABELS
from nbutils.core.errors import InputError, shown
from nbutils.core.records import Row, digest, prompt_text
from nbutils.core.verdicts import mean_scores
from nbutils.files import documents, mounts, seals

log = logging.getLogger(__name__)

COLUMNS = ["id", "prompt", "answer_1", "answer_2", "label"]
MOST = 100  # pairs of a sheet
LARGEST = 2**26  # bytes of a sheet
CELL = 32_000  # characters: programs for tables hold few more in one
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
TURNED = {"first": "second", "second": "first"}


class Sheet:
    """Pairs of a run that people choose from, and what they chose so far."""

    def __init__(self, path: Path, rows: Iterable[Row], *, seed: int = 0):
        """Read the choices in `path`, and write the pairs that wait for one.

        Args:
            rows: with two responses each; of several of one prompt, one is asked.
            seed: of the draw.

        Raises:
            InputError: if there is another file, it holds two choices for one pair, or most choices are none.
        """
        self.path = path
        drawn: dict[str, tuple[str, Row]] = {}
        for row in rows:
            # a letter first: programs for tables make numbers of 12345 and 1234e5
            name = "p" + digest([seed, row["prompt"], [response["text"] for response in row["responses"]]])
            drawn[row["prompt_id"]] = min(drawn.get(row["prompt_id"], (name, row)), (name, row), key=lambda two: two[0])
        self.rows = dict(sorted(drawn.values(), key=lambda pair: pair[0])[:MOST])
        self._same = {name for name, row in self.rows.items() if len({r["text"] for r in row["responses"]}) == 1}
        lines = _read(path)
        self.choices = {name: _choice(line) for name, line in lines.items() if name in self.rows}
        self._others = [line for name, line in lines.items() if name not in self.rows and line["label"].strip()]
        if self._others:
            log.warning(
                "%s: %d choices are of pairs that this run does not hold; they are kept", path, len(self._others)
            )
        self._write()

    @property
    def labelled(self) -> list[Row]:
        """The rows that somebody chose in, with `label`: which of their responses is better, or tie.

        Pairs of the same text, which nobody is asked about, are ties up to the last pair with a choice and not beyond:
        so what is labelled stays a random part of the sheet.
        """
        labels = {name: LABELS.get(self.choices.get(name, ""), "") for name in self.rows}
        last = max((i for i, label in enumerate(labels.values(), 1) if label), default=0)
        labels = {name: "tie" if name in self._same else label for name, label in list(labels.items())[:last]}
        return [self.rows[name] | {"label": self._meant(name, label)} for name, label in labels.items() if label]

    @property
    def asked(self) -> list[str]:
        """The ids of the pairs that people are asked about, in their order."""
        return [name for name in self.rows if name not in self._same]

    @property
    def waiting(self) -> list[str]:
        """The ids of those without a choice."""
        return [name for name in self.asked if not self.choices.get(name)]

    def answers(self, name: str) -> list[str]:
        """Return the two answers of a pair in the order they are shown in."""
        texts = [response["text"] for response in self.rows[name]["responses"]]
        return texts[::-1] if _turned(name) else texts

    def choose(self, name: str, choice: str) -> None:
        """Keep the choice in a pair: 1, 2, 0, skip, or nothing to ask again."""
        self.choices[name] = choice
        self._write()

    def _meant(self, name: str, label: str) -> str:
        return TURNED.get(label, label) if _turned(name) else label

    def _write(self) -> None:
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        for name in self.asked:
            texts = map(_harmless, [prompt_text(self.rows[name]["prompt"]), *self.answers(name)])
            table.writerow(dict(zip(COLUMNS, [name, *texts, self.choices.get(name, "")], strict=True)))
        table.writerows(self._others)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.draft")
        draft.write_text(text.getvalue(), encoding="utf-8-sig")  # as programs for tables expect it
        os.replace(draft, self.path)
        seals.seal(self.path)


def path_of(stem: str, run_dir: Path) -> Path:
    """Return where the sheet of a stage lies: not in its folder, which is written anew with every run."""
    return run_dir / "labels" / f"{stem}.csv"


def chosen(path: Path) -> dict[str, str]:
    """Return id -> choice of a sheet; empty if there is no sheet yet.

    Raises:
        InputError: as `Sheet`.
    """
    return {name: choice for name, line in _read(path).items() if (choice := _choice(line))}


def bring(stem: str, run_dir: Path) -> None:
    """Copy the sheet of an earlier session from the inputs, unless there is one, and look whether it can be read.

    Raises:
        InputError: as `Sheet`, before anything is asked or trained.
    """
    path = path_of(stem, run_dir)
    if not os.path.lexists(path) and (there := mounts.taken(f"{path.parent.name}/{path.name}")):
        if others := there[1:]:
            log.warning("of %d sheets, %s is not read", len(there), " nor ".join(map(str, others)))
        mounts.bring(there[:1], path.parent)
    chosen(path)


def best_and_worst(rows: Sequence[Row]) -> list[Row]:
    """Return judged rows with two responses each, those that the judge's figures compare; without two, none."""
    result = []
    for row in rows:
        two = verdicts.best_and_worst(mean_scores(row["scores"]))
        if len(set(two)) == 2:
            scores = [[order[i] for i in two] for order in row["scores"]]
            result.append(row | {"responses": [row["responses"][i] for i in two], "scores": scores})
    return result


def _turned(name: str) -> bool:
    return int(name[-1], 16) % 2 == 1


def _harmless(text: str) -> str:
    """Return a text as a table can hold it: no formula, whoever wrote it, no control signs, no longer than a cell."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.encode("utf-8", "replace").decode())
    text = text if len(text) <= CELL else f"{text[:CELL]} [...]"
    return f" {text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _choice(line: Mapping[str, str]) -> str:
    """Return what stands in the last column; a column of numbers with gaps may be saved as 1.0, 2.0."""
    return line["label"].strip().lower().removesuffix(".0")


def _read(path: Path) -> dict[str, Mapping[str, str]]:
    """Return id -> line of a sheet, as any program for tables may have saved it."""
    if not os.path.lexists(path):
        return {}
    text = documents.read_text(path, limit=LARGEST)
    head = text.partition("\n")[0].strip().replace('"', "")
    mark = next((mark for mark in ",;\t" if head.split(mark) == COLUMNS), "")
    if not mark:
        raise InputError(
            f"{path} is no sheet of this kit: its first line is {shown(head, 80)}, expected {','.join(COLUMNS)}; move "
            "it elsewhere, and the sheet is written anew"
        )
    lines: dict[str, Mapping[str, str]] = {}
    odd = []
    try:
        for line in csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, restval="", restkey="more"):
            name, label = line["id"].strip(), _choice(line)
            if label not in LABELS:
                odd.append(f"{shown(line['label'], 40)} for pair {shown(name, 40)}")
                line["label"] = ""
            given = lines.setdefault(name, line)
            if line["label"] and given["label"] and label != _choice(given):
                raise InputError(
                    f"{path}: pair {shown(name, 40)} has two choices, {_choice(given)} and {label}; keep one"
                )
            lines[name] = line if line["label"] else given
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as a table: {error}; save it as CSV") from None
    labelled = sum(bool(line["label"].strip()) for line in lines.values())
    if odd and len(odd) >= labelled:
        raise InputError(f"{path}: {odd[0]}; expected 1, 2, 0 (tie) or skip in the column label")
    if odd:
        log.warning("%s: %d choices are none and wait for one; the first: %s", path, len(odd), odd[0])
    return lines
