"""The parameters of the four notebooks: one strict model each, so that a mistake stops a run in its first second.

What papermill lets pass in silence is refused here: a misspelt name, `5e-7` (a string in YAML), a value out of range.
The help text of each parameter stands beside its default in the notebook.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from nbutils.core import secrets
from nbutils.core.errors import InputError, shown
from nbutils.core.sampling import Sampling, check_name, parse_sampling
from nbutils.files import documents

STEMS = ("01_rerank", "02_sample", "03_judge", "04_dpo")


def _valid(check: Callable[[str], Any]) -> AfterValidator:
    """Refuse text that `check` cannot read, and keep the text: parameters are flat literals."""

    def validate(text: str) -> str:
        check(text)
        return text

    return AfterValidator(validate)


def _one_line(text: str) -> None:
    if found := _CONTROL.search(text):
        raise ValueError(f"it holds {found[0]!a}, which no name does; write it on one line, without such characters")


def _encodable(text: str) -> None:
    if found := re.search("[\0\ud800-\udfff]", text):
        raise ValueError(f"it holds {found[0]!a}, which is no character of a text; leave it out")


# not part of any name: control characters, ends of lines, halves of characters, what turns the direction of writing
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Line = Annotated[str, Field(max_length=4096), _valid(_one_line)]
Name = Annotated[Line, Field(min_length=1)]
Text = Annotated[str, Field(max_length=100_000), _valid(_encodable)]
Language = Annotated[str, Field(pattern="^([a-z]{2})?$")]  # ISO 639-1; empty for any


def template_kwargs(text: str) -> dict[str, Any]:
    """Read arguments of a chat template from text like 'enable_thinking: false'.

    >>> template_kwargs("enable_thinking: false")
    {'enable_thinking': False}
    """
    parts = [part.partition(":") for part in text.split(",") if part.strip()]
    with suppress(InputError):
        values = {
            name.strip(): documents.parse_yaml(value, name) for name, sign, value in parts if name.strip() and sign
        }
        if len(values) == len(parts):  # else a name is missing, or stands there twice
            return values
    raise InputError(f"chat_template_kwargs: expected 'name: value, name: value', got {shown(text)}")


def drawn(text: str) -> None:
    """Check sampling options for drawing several answers to one prompt.

    Raises:
        InputError: if they would all be the same.
    """
    options = parse_sampling(text)
    for name, value in (("temperature", 0), ("top_k", 1)):
        if getattr(options, name) == value:
            raise InputError(f"sampling: {name} is {value}, so all answers to a prompt would be the same; raise it")


def names(text: str) -> list[str]:
    """Split a comma-separated parameter.

    >>> names("a/b, c")
    ['a/b', 'c']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


SamplingText = Annotated[Line, _valid(parse_sampling)]
DrawnText = Annotated[Line, _valid(drawn)]
EngineName = Annotated[Line, _valid(check_name)]
TemplateText = Annotated[Line, _valid(template_kwargs)]
_REFUSED = (
    "looks like an access token or a password, which would be published with the results; put it into an environment "
    "variable, which `key_variable` in a judge file names, and revoke it if others could read this"
)
# marks a parameter whose content, not only its name, decides whether a stage has to run again
Input = Annotated[Line, "input"]


JUDGES = ("judge", "second_judge", "eval_judge")  # parameters that name judges, the last one several


class TokenError(InputError):
    """A token stands where it would be published."""


class Common(BaseModel):
    """What every stage takes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    run_dir: Name
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes
    time_budget_hours: Annotated[float, Field(ge=0, le=10_000)]
    push_to_hub: Line


class Rerank(Common):
    """Parameters of 01_rerank."""

    dataset: Annotated[Name, "input"]
    split: Name
    prompt_column: Name
    chosen_column: Name
    rejected_column: Name
    reference_column: Line
    max_rows: Count
    judge: Annotated[Name, "input"]
    second_judge: Input
    ties: Literal["drop", "shorter", "keep"]
    min_margin: Share
    min_chosen: Share
    gate_labels: Line


class Sample(Common):
    """Parameters of 02_sample."""

    prompts: Annotated[Name, "input"]
    prompt_column: Name
    reference_column: Line
    max_prompts: Count
    exclude: Input
    model: Annotated[Name, "input"]
    adapter: Input
    engine: EngineName
    n_samples: Annotated[int, Field(ge=2, le=64)]
    sampling: DrawnText
    system_prompt: Text
    prompt_suffix: Text
    chat_template_kwargs: TemplateText

    @property
    def options(self) -> Sampling:
        return parse_sampling(self.sampling)


class Judge(Common):
    """Parameters of 03_judge."""

    samples: Annotated[Name, "input"]
    judge: Annotated[Name, "input"]
    pair_strategy: Literal["best_worst", "best_random"]
    pairs_per_prompt: Annotated[int, Field(ge=1, le=32)]
    min_margin: Share
    min_chosen: Share
    max_length_gap: Count
    language: Language


class Dpo(Common):
    """Parameters of 04_dpo."""

    model: Annotated[Name, "input"]
    adapter: Input
    off_policy: Input
    on_policy: Input
    on_policy_share: Share
    max_pairs: Count
    tuning: Literal["lora", "qlora", "full"]
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    epochs: Annotated[float, Field(gt=0, le=10_000)]
    beta: Annotated[float, Field(gt=0, le=10_000)]
    training: Input
    eval_prompts: Annotated[Name, "input"]
    prompt_column: Name
    reference_column: Line
    sampling: SamplingText
    eval_samples: Annotated[int, Field(ge=1, le=100)]
    chat_template_kwargs: TemplateText
    judge: Annotated[Name, "input"]
    eval_judge: Input
    language: Language
    knowledge: Input
    merge: bool

    @field_validator("eval_judge")
    @classmethod
    def _one_for_each_set(cls, eval_judge: str, others: ValidationInfo) -> str:
        given, sets = names(eval_judge), names(others.data.get("eval_prompts", ""))
        if len(given) > 1 and len(given) != len(sets):
            raise ValueError(f"it names {len(given)} judges for {len(sets)} held-out sets; name one, or one for each")
        return eval_judge

    @property
    def proof_judges(self) -> list[str]:
        """The judge of each held-out set."""
        given, sets = names(self.eval_judge) or [self.judge], names(self.eval_prompts)
        return given if len(given) > 1 else given * len(sets)

    @field_validator("merge")
    @classmethod
    def _has_adapter(cls, merge: bool, others: ValidationInfo) -> bool:
        if merge and others.data.get("tuning") == "full":
            raise ValueError("full tuning saves whole weights anyway, leave it False")
        return merge

    @property
    def options(self) -> Sampling:
        return parse_sampling(self.sampling)


MODELS: dict[str, type[Common]] = dict(zip(STEMS, (Rerank, Sample, Judge, Dpo), strict=True))


def validate(stem: str, values: Mapping[str, Any]) -> Any:
    """Return the stage's parameters, or raise one InputError that names every fault at once, or a token among them."""
    refuse_tokens(stem, values)
    try:
        return MODELS[stem].model_validate(dict(values))
    except ValidationError as error:
        faults = [fault(e, MODELS[stem]) for e in error.errors()]
        raise InputError(f"{stem}, {len(faults)} wrong parameter(s): {'; '.join(faults)}") from None


def inputs(stem: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield parameter and name of everything that a stage reads; a parameter with several names comes several times."""
    for name, field in MODELS[stem].model_fields.items():
        if "input" in field.metadata:
            yield from ((name, part) for part in names(str(values[name])))


def read_overrides(path: Path) -> dict[str, Any]:
    """Read a YAML file of parameters.

    Raises:
        InputError: if it is not a mapping of names to values.
    """
    content = documents.read_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected 'name: value' lines, got a {type(content).__name__}")
    refuse_tokens(str(path), content)
    return content


def refuse_tokens(where: str, values: Mapping[str, Any]) -> None:
    """Refuse values that hold an access token: parameters are saved, shown and published with the results.

    Raises:
        TokenError: naming the parameter and not its value.
    """
    for name, value in values.items():
        if secrets.found(str(name)):
            raise TokenError(f"{where}: a name {_REFUSED}")
        if any(map(secrets.found, secrets.texts(value))):
            raise TokenError(f"{where}: {name if str(name).isprintable() else shown(name)} {_REFUSED}")


def fault(error: Any, model: type[BaseModel]) -> str:
    """Return one of pydantic's errors as part of a sentence: the name, its value, what was expected."""
    name = ".".join(map(str, error["loc"]))
    name = name if name.isprintable() else shown(name)
    if error["type"] == "extra_forbidden":
        return f"{name} is unknown (known: {', '.join(sorted(model.model_fields))})"
    if error["type"] == "missing":
        return f"{name} is missing"
    hint = ""
    if isinstance(error["input"], bool) and error["type"] == "literal_error":
        hint = "; put yes and no into quotes, which YAML takes for true and false"
    if isinstance(error["input"], str) and error["type"] in ("float_type", "int_type"):
        hint = "; write 5.0e-7, not 5e-7, in YAML" if "e" in error["input"].lower() else "; leave out the quotes"
    return f"{name} is {shown(error['input'])}: {error['msg'].removeprefix('Value error, ')}{hint}"
