"""A judge is a file: `judge: verifier` names `nbutils/judges/verifier.yaml`, or the parameter is a path to one's own.

Used by 01, 03 and 04, so the same file means the same judge everywhere. A judge gives every response of a row one
score per order on its own scale; `run` normalises scores to 0..1 and stores what was said. Kinds: `llm` (a model that
reads and rates), `verifier` (rules that check whether instructions were followed).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from nbutils import sources
from nbutils.errors import InputError
from nbutils.pairs import usable
from nbutils.records import Row
from nbutils.store import Store


class VerifierFile(BaseModel):
    """Rules from `if-verifiable`: the score is the share of a prompt's checks that a response passes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    kind: Literal["verifier"]
    language: str = "en"  # of the responses; some rules are right for English only


class LlmFile(BaseModel):
    """A model that rates responses with a template, in one order or two."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    kind: Literal["llm"]
    engine: Literal["api", "transformers"] = "api"
    model: str
    server: str = ""  # base URL, for engine api
    key_variable: str = ""  # environment variable with the server's token; empty where it wants none
    template: str  # a name in nbutils/templates, or a path
    scale: tuple[int, int] = (1, 5)
    orders: Literal[1, 2] = 2
    temperature: float = 0.0
    max_tokens: int = Field(800, ge=1)
    concurrency: int = Field(8, ge=1)
    timeout: float = Field(120.0, gt=0)
    chat_template_kwargs: dict[str, Any] = {}

    @field_validator("scale")
    @classmethod
    def _rising(cls, scale: tuple[int, int]) -> tuple[int, int]:
        if scale[0] >= scale[1]:
            raise ValueError("the first number should be below the second")
        return scale


JudgeFile = Annotated[VerifierFile | LlmFile, Field(discriminator="kind")]


@dataclass(frozen=True)
class Judgement:
    """What a judge said about one row: per order a score (0..1) and a feedback for each response it was shown."""

    scores: list[list[float]] = field(default_factory=list)
    feedback: list[list[str]] = field(default_factory=list)
    replies: list[Row] = field(default_factory=list)


class Judge(Protocol):
    """A judge ready to score; `name` goes into every judged row."""

    name: str

    def score(self, rows: Sequence[Row], store: Store, *, deadline: float) -> list[Judgement]:
        """Judge the responses of each row. A row holds `prompt`, `checks` and `responses`."""
        ...

    def explain(self, row: Row) -> str:
        """Return what the judge goes by for this row, to show a reader."""
        ...


def read_file(name: str) -> tuple[str, VerifierFile | LlmFile]:
    """Read and validate a judge file; return its short name and content.

    Args:
        name: of a file in this folder, or a path (relative to the working folder or the checkout).

    Raises:
        InputError: if there is no such file, or naming every key that is unknown, missing or of the wrong type.
    """
    packaged = resources.files(__package__)
    known = sorted(p.name.removesuffix(".yaml") for p in packaged.iterdir() if p.name.endswith(".yaml"))
    if name in known:
        text = (packaged / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        path = sources.find(name)
        if path is None or not path.is_file():
            raise InputError(f"judge: {name!r} is neither a file nor one of {', '.join(known)}")
        text, name = path.read_text(encoding="utf-8"), path.stem
    try:
        return name, TypeAdapter(JudgeFile).validate_json(_as_json(text))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc'][1:] or e['loc'])) or 'kind'}: {e['msg']}" for e in error.errors()
        )
        raise InputError(f"judge file {name}: {faults}") from None
    except yaml.YAMLError as error:
        raise InputError(f"judge file {name} is no YAML: {str(error).splitlines()[0]}") from None


def load(name: str, *, cache: Path) -> Judge:
    """Return the judge a parameter names, with its engine ready.

    Args:
        cache: folder for converted models, should the judge run one here.
    """
    short, file = read_file(name)
    if isinstance(file, VerifierFile):
        from nbutils.judges.verifier import Verifier

        return Verifier(short, file)
    from nbutils.judges.llm import LlmJudge

    return LlmJudge(short, file, cache=cache)


def run(judge: Judge, rows: Sequence[Row], store: Store, *, deadline: float = float("inf")) -> list[Row]:
    """Judge all rows that have no verdict yet; return every row with `scores`, `feedback`, `replies` and `judge`.

    Only usable responses are shown to the judge; the others' scores are NaN. A row the judge never answered in a
    readable way has no scores and will be counted as unparsed.
    """
    shown = {i: usable(row["responses"]) for i, row in enumerate(rows) if not row["verdict"]}
    asked = [rows[i] | {"responses": [rows[i]["responses"][k] for k in kept]} for i, kept in shown.items()]
    judgements = dict(zip(shown, judge.score(asked, store, deadline=deadline), strict=True))
    result = []
    for i, row in enumerate(rows):
        said = judgements.get(i, Judgement())
        places = (shown.get(i, []), len(row["responses"]))
        result.append(
            row
            | {
                "scores": [_spread(scores, *places, float("nan")) for scores in said.scores],
                "feedback": [_spread(texts, *places, "") for texts in said.feedback],
                "replies": said.replies,
                "judge": judge.name,
            }
        )
    return result


def _spread(values: Sequence[Any], places: Sequence[int], length: int, gap: Any) -> list[Any]:
    by_place = dict(zip(places, values, strict=True))
    return [by_place.get(i, gap) for i in range(length)]


def _as_json(text: str) -> str:
    """YAML's values as JSON text, so that pydantic takes a list for a tuple and stays strict otherwise."""
    import json

    return json.dumps(yaml.safe_load(text), default=str)
