"""A judge's prompt: a text file whose head declares how the judge replies and on which scale.

    ---
    reply: json            json | rating | verdict
    scale: [1, 5]          lowest and highest score; a verdict has none
    without: rating_en     only where {reference} is shown: the template for rows that have none
    ---
    Grade {count} answers. Between <<{nonce}>> and <</{nonce}>> is material ... {prompt} ... {responses} ... {format}

The slots are filled in one pass, so text that comes out of a slot is never expanded a second time.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from nbutils import params
from nbutils.core.errors import InputError, shown
from nbutils.files import documents, sources

SLOTS = {"count", "nonce", "prompt", "reference", "responses", "format"}
REQUIRED = {"nonce", "prompt", "responses"}
_SLOT = re.compile(r"\{(\w+)\}")
TEXT = '"..."'
_HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


class Head(BaseModel):
    """What a template declares."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    reply: Literal["json", "rating", "verdict"]
    scale: tuple[int, int] | None = None
    without: params.Line = ""

    @field_validator("scale", mode="before")
    @classmethod
    def _pair(cls, scale: Any) -> Any:
        return tuple(scale) if isinstance(scale, list) else scale

    @field_validator("scale")
    @classmethod
    def _rising(cls, scale: tuple[int, int] | None) -> tuple[int, int] | None:
        if scale and scale[0] >= scale[1]:
            raise ValueError("the first number should be below the second")
        if scale and scale[1] - scale[0] > 1000:
            raise ValueError("a scale has at most 1,001 levels")
        return scale

    @model_validator(mode="after")
    def _fits(self) -> "Head":
        if (self.scale is None) != (self.reply == "verdict"):
            wanted = "no scale: its five levels are fixed" if self.reply == "verdict" else "a scale, e.g. [1, 5]"
            raise ValueError(f"reply {self.reply} takes {wanted}")
        return self


@dataclass(frozen=True)
class Template:
    """A template as read: its text and what its head declares."""

    text: str
    reply: Literal["json", "rating", "verdict"]
    low: int
    high: int
    without: str = ""  # the template for rows without a reference

    @property
    def shows_reference(self) -> bool:
        """Whether the judge is shown a good answer beside those it judges."""
        return "{reference}" in self.text

    def fill(self, values: Mapping[str, str]) -> str:
        """Put the values into their slots, each once."""
        return _SLOT.sub(lambda match: values[match[1]], self.text)

    def skeleton(self, count: int) -> str:
        """Return the reply asked for, as an example to show: `{format}` in a template."""
        if self.reply == "json":
            level = f"<{self.low}-{self.high}>"
            parts = (f'"{key}": {level if key.startswith("score") else TEXT}' for key in self._keys(count))
            return "{" + ", ".join(parts) + "}"
        if self.reply == "rating":
            return "\n".join(f"[[{self.low}-{self.high}]]" for _ in range(count))
        return "[[A>>B]], [[A>B]], [[A=B]], [[B>A]] or [[B>>A]]"

    def schema(self, count: int) -> dict[str, Any] | None:
        """Return the JSON schema a server can enforce: feedback before score, answer by answer; None for text."""
        if self.reply != "json":
            return None
        levels = {"type": "integer", "enum": list(range(self.low, self.high + 1))}
        properties = {key: levels if key.startswith("score") else {"type": "string"} for key in self._keys(count)}
        content = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return {"type": "json_schema", "json_schema": {"name": "scores", "strict": True, "schema": content}}

    @staticmethod
    def _keys(count: int) -> list[str]:
        return [key for k in range(1, count + 1) for key in (f"feedback_{k}", f"score_{k}")]


def read_template(name: str) -> Template:
    """Read a template of the kit (`nbutils/templates`) or a file.

    Raises:
        InputError: if there is none, its head is faulty, or naming a slot that is missing or unknown.
    """
    content = sources.read_named(name, resources.files("nbutils") / "templates", ".txt", "template")
    if content is None:
        raise InputError(f"template: {shown(name)} is neither a file nor a template of the kit")
    head, text = _read_head(name, content.replace("\r\n", "\n"))
    slots = set(_SLOT.findall(text))
    required = REQUIRED | ({"format"} if head.reply == "json" else set())
    if missing := sorted(required - slots):
        raise InputError(f"template {name}: missing slot {', '.join(f'{{{slot}}}' for slot in missing)}")
    if unknown := sorted(slots - SLOTS):
        raise InputError(
            f"template {name}: unknown slot {', '.join(f'{{{slot}}}' for slot in unknown)}; "
            f"known are {', '.join(sorted(SLOTS))}"
        )
    if head.without and "reference" not in slots:
        raise InputError(
            f"template {name}: without {shown(head.without)} has no meaning where no {{reference}} is shown"
        )
    return Template(text, head.reply, *(head.scale or (1, 5)), head.without)


def read_both(judge: str, name: str, reference: str | None) -> tuple[Template, Template | None]:
    """Read a judge's template and, where it uses a reference without requiring one, that for rows that have none.

    Args:
        judge: its name, for an error.
        reference: `required`, `used`, `never` or None, as the judge file says.

    Raises:
        InputError: if the template is faulty, or shows or lacks what the judge file says of the reference.
    """
    template = read_template(name)
    if reference in ("required", "used") and not template.shows_reference:
        fault = f"{reference} and template {name} shows none; put {{reference}} into it, or name reference_it"
    elif reference == "never" and template.shows_reference:
        fault = f"never and template {name} shows it; choose one that does not, like {template.without or 'rating_it'}"
    elif reference == "used" and not template.without:
        fault = f"used and the head of template {name} names no template `without` one; name it, or say required"
    else:
        fault = ""
    if fault:
        raise InputError(f"judge {judge}: reference is {fault}")
    if not template.without:
        return template, None
    other = read_template(template.without)
    if other.shows_reference or (other.reply, other.low, other.high) != (template.reply, template.low, template.high):
        raise InputError(
            f"template {name}: without names {template.without}, expected one that shows no {{reference}} and has the "
            "same reply and scale"
        )
    return template, other if reference == "used" else None


def _read_head(name: str, content: str) -> tuple[Head, str]:
    match = _HEAD.match(content)
    if match is None:
        raise InputError(f"template {name}: expected a head between two lines '---' with `reply` and `scale`")
    try:
        head = documents.parse_yaml(match[1], f"template {name}: its head")
        return Head.model_validate(head), content[match.end() :]
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'head'}: {e['msg']}" for e in error.errors())
        raise InputError(f"template {name}: {faults}") from None
