"""The form that a sheet of pairs is filled in with, where a notebook has a browser: by buttons, or by typing."""

import os
import sys
from html import escape
from typing import Any

import ipywidgets
from IPython.display import display

from nbutils.core.errors import on_kaggle
from nbutils.core.markup import say
from nbutils.core.records import prompt_text
from nbutils.judges.people import Sheet

CHOICES = {"1": "1 is better", "2": "2 is better", "0": "tie", "skip": "skip"}
STYLE = "white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24em; overflow: auto; margin: 0"


def show(sheet: Sheet) -> None:
    """Say how far the sheet is filled in; where there is a browser, show the form to go on with."""
    asked, done = len(sheet.asked), len(sheet.asked) - len(sheet.waiting)
    say(f"{done} of {asked} pairs have a choice. Without a browser: write 1, 2, 0 (tie) or skip into the column")
    say(f"`label` of {sheet.path}, and run this notebook again.")
    if in_browser() and asked:
        display(form(sheet))


def in_browser() -> bool:
    """Return whether somebody sits before this notebook, as its server or its host tells."""
    return "JPY_SESSION_NAME" in os.environ or on_kaggle() == "Interactive" or "google.colab" in sys.modules


def form(sheet: Sheet) -> ipywidgets.Widget:
    """Return a widget that shows one pair after another and keeps every choice at once.

    Keys go into its field: 1, 2, 0, s to skip, b to go back to the pair before.
    """
    view, field = ipywidgets.HTML(), ipywidgets.Text(placeholder="1  2  0  s  b", layout={"width": "9em"})
    buttons = [ipywidgets.Button(description=name) for name in CHOICES.values()]
    back = ipywidgets.Button(description="back")
    asked: list[str] = []

    def draw() -> None:
        waiting = sheet.waiting
        view.value = _page(sheet, waiting[0]) if waiting else "Every pair has a choice. Run the cell again."
        for button in buttons:
            button.disabled = not waiting
        back.disabled = not asked

    def choose(choice: str) -> None:
        if waiting := sheet.waiting:
            asked.append(waiting[0])
            sheet.choose(waiting[0], choice)
        draw()

    def go_back() -> None:
        if asked:
            sheet.choose(asked.pop(), "")
        draw()

    def typed(change: Any) -> None:
        key = change["new"].strip().lower()
        key = "skip" if key == "s" else key
        field.value = ""
        if key in CHOICES:
            choose(key)
        elif key == "b":
            go_back()

    for button, choice in zip(buttons, CHOICES, strict=True):
        button.on_click(lambda _, choice=choice: choose(choice))
    back.on_click(lambda _: go_back())
    field.observe(typed, "value")
    draw()
    return ipywidgets.VBox([view, ipywidgets.HBox([*buttons, back, field])])


def _page(sheet: Sheet, name: str) -> str:
    """Return one pair as HTML; its texts are strangers' and stay texts."""
    number = sheet.asked.index(name) + 1
    parts = zip(
        ("prompt", "answer 1", "answer 2"), (prompt_text(sheet.rows[name]["prompt"]), *sheet.answers(name)), strict=True
    )
    shown = "".join(f'<h4>{title}</h4><pre style="{STYLE}">{escape(text)}</pre>' for title, text in parts)
    return f"<p>pair {number} of {len(sheet.asked)}</p>{shown}"
