"""A judge file: read strictly, and what it brings along, its template, its server's key and its model."""

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from nbutils import params
from nbutils.core import keys
from nbutils.core.errors import InputError, shown
from nbutils.core.sampling import MOST
from nbutils.files import documents, sources

Price = Annotated[float, Field(ge=0, le=1_000_000)]
GateRows = Annotated[int, Field(ge=0, le=100_000)]
Characters = Annotated[int, Field(ge=100, le=10_000_000)]
BatchSize = Annotated[int, Field(ge=1, le=4096)]


def _server(address: str) -> str:
    try:
        if address:
            keys.read_server(address)
    except InputError as error:
        raise ValueError(str(error).removeprefix("server: ")) from None
    return address


class _File(BaseModel):
    """What all kinds have in common: nothing unknown, no number that is no number."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    gate_rows: GateRows = 40  # rows judged as a trial before all are; 0 for none


class VerifierFile(_File):
    """Rules from `if-verifiable`: the score is the share of a prompt's checks that a response passes."""

    kind: Literal["verifier"]
    language: params.Line = "en"  # of the responses; some rules are right for English only


class LlmFile(_File):
    """A model that rates or compares responses with a template, in one order or two."""

    kind: Literal["llm"]
    engine: Literal["api", "auto", "vllm", "transformers"] = "api"
    model: params.Name
    template: params.Name  # a name in nbutils/templates, or a path
    # of a template with {reference}: rows without one are `filtered:no_reference`, or judged by the template that its
    # head names; by default required
    reference: Literal["required", "used", "never"] | None = None
    orders: Annotated[int, Field(ge=1, le=2)] = 2
    temperature: float = Field(0.0, ge=0, le=5)
    max_tokens: int = Field(800, ge=1, le=MOST)
    max_characters: Characters = 12_000  # of the prompt and of each response; the rest is cut, with a mark
    logprobs: bool = False  # score by the mean over the scale, where the engine tells probabilities
    chat_template_kwargs: dict[str, Any] = {}
    batch_size: BatchSize = 8  # of engine transformers, also where auto takes it: requests answered at once
    # of engine api
    server: Annotated[params.Line, AfterValidator(_server)] = ""  # base URL
    key_variable: params.Line = ""  # environment variable with the server's token; empty where it wants none
    concurrency: int = Field(8, ge=1, le=1024)
    requests_per_minute: int = Field(0, ge=0, le=1_000_000)  # 0 sets no limit
    max_calls: params.Count = 0  # hard stop of a notebook's run, retries counted; 0 sets none
    timeout: float = Field(120.0, gt=0, le=86_400)
    batch: bool = False  # write requests to files for others to answer, see `engines.batch`
    price: tuple[Price, Price] | None = None  # US dollars per million tokens in and out, where known

    @model_validator(mode="after")
    def _sent(self) -> "LlmFile":
        if self.batch and self.engine != "api":
            raise ValueError(f"batch is for a server's model, and engine {self.engine} runs here")
        return self


class AnswerFile(_File):
    """The right answer, which stands in the row as `reference`: see `judges.answer`."""

    kind: Literal["answer"]
    answer: Literal["number", "text"] = "number"
    language: Literal["it", "en"] = "en"  # how numbers are written
    marker: params.Line = ""  # what the answer stands after; empty for anywhere


class AssumeFile(_File):
    """Nobody judges: the source's order stands, as of a larger model's answer over a smaller sibling's."""

    kind: Literal["assume"]
    gate_rows: Literal[0] = 0


class RewardFile(_File):
    """A sequence-classification model trained to score a response; it runs here and costs nothing but time."""

    kind: Literal["reward"]
    model: params.Name
    batch_size: BatchSize = 16
    max_characters: Characters = 12_000


Kind = VerifierFile | LlmFile | RewardFile | AnswerFile | AssumeFile
JudgeFile = Annotated[Kind, Field(discriminator="kind")]


def read_file(name: str) -> tuple[str, Kind]:
    """Read and validate a judge file; return its short name and content.

    Args:
        name: of a file in this folder, or a path (relative to the working folder or the checkout).

    Raises:
        InputError: if there is no such file, or naming every key that is unknown, missing or of the wrong type.
    """
    folder = resources.files(__package__)
    text = sources.read_named(name, folder, ".yaml", "judge file")
    if text is None:
        known = sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))
        raise InputError(f"judge: {shown(name)} is neither a file nor one of {', '.join(known)}")
    name = Path(name).stem
    content = documents.parse_yaml(text, f"judge file {name}")
    params.refuse_tokens(f"judge file {name}", content if isinstance(content, dict) else {})
    try:
        # as JSON text, so that pydantic takes a list for a tuple and stays strict otherwise
        return name, TypeAdapter(JudgeFile).validate_json(json.dumps(content))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc'][1:] or e['loc'])) or 'kind'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise InputError(f"judge file {name}: {faults}") from None


def key_variables(names: Iterable[str]) -> set[str]:
    """Return the environment variables that these judges read their server's token from.

    Args:
        names: as parameters have them, a comma between several, empty for none.

    Raises:
        InputError: if a variable may not go to the judge's server, see `keys.check`.
    """
    given = [read_file(name)[1] for several in names for name in params.names(several)]
    asked = [f for f in given if isinstance(f, LlmFile) and f.engine == "api" and f.key_variable]
    for file in asked:
        keys.check(file.key_variable, file.server)
    return {file.key_variable for file in asked}


def brings(name: str) -> list[tuple[str, str]]:
    """Return kind and name of what a judge is made of beside the package: its `file`s, and the `model` it runs here.

    Those files are its own and its template's, where they are not the kit's.

    Raises:
        InputError: from `read_file`, or if its template is faulty.
    """
    from nbutils.judges.template import read_template

    file = read_file(name)[1]
    packaged = resources.files("nbutils")
    found = [] if (packaged / "judges" / f"{name}.yaml").is_file() else [("file", name)]
    if isinstance(file, LlmFile):
        templates = [file.template, read_template(file.template).without]
        found += [("file", t) for t in templates if t and not (packaged / "templates" / f"{t}.txt").is_file()]
    if isinstance(file, RewardFile) or (isinstance(file, LlmFile) and file.engine != "api"):
        found.append(("model", file.model))
    return found
