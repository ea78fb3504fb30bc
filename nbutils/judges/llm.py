"""Judging by a language model that reads the responses and rates each on a scale, in both orders.

The template is a text file with the slots below; a response's own text is put in last and never expanded again, and
stands between markers with a nonce that no response can know. The reply is JSON, feedback before grade, so that the
grade can follow from it. A reply that does not hold one grade on the scale for every response is unparsed; it is asked
again twice, then counted.
"""

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import json_repair

from nbutils import sources
from nbutils.engines import Engine, Request, Sampling, load
from nbutils.errors import InputError
from nbutils.judges import Judgement, LlmFile
from nbutils.records import Row, digest
from nbutils.store import Store, answer

ATTEMPTS = 3
# A judge that was not understood at temperature 0 would repeat itself; later attempts draw.
RETRY_TEMPERATURE = 0.5

SLOTS = {"count", "low", "high", "nonce", "prompt", "responses", "format"}
REQUIRED = {"prompt", "responses", "format"}
_SLOT = re.compile(r"\{([a-z_]+)\}")
_KEY = re.compile(r"""(grade_\d+)["']?\s*:""")
_GRADE = re.compile(r"""(grade_\d+)["']?\s*:\s*["']?\d+(?:\.\d+)?\s*(?=[;}\n"']|,(?!\d)|$)""")


class LlmJudge:
    """A template, a scale and an engine."""

    def __init__(self, name: str, file: LlmFile, *, cache: Path, engine: Engine | None = None):
        """Read the template and prepare the engine.

        Args:
            cache: folder for converted models, should the judge run one here.
            engine: used instead of the one the file names; for tests.

        Raises:
            InputError: if the template is missing, lacks a slot or has an unknown one.
        """
        self.name, self.file = name, file
        self.template = read_template(file.template)
        self.engine = engine or _engine(file, cache)

    def score(self, rows: Sequence[Row], store: Store, *, deadline: float = float("inf")) -> list[Judgement]:
        """Ask for every row in every order; ask again what was not understood, up to three attempts in all."""
        jobs = [(i, order) for i in range(len(rows)) for order in range(self.file.orders)]
        said: dict[tuple[int, int], list[Row]] = {job: [] for job in jobs}
        parsed: dict[tuple[int, int], tuple[list[float], list[str]]] = {}
        for attempt in range(1, ATTEMPTS + 1):
            todo = [job for job in jobs if job not in parsed]
            requests = [self.request(rows[i], order, attempt) for i, order in todo]
            replies = answer(store, self.engine, requests, deadline=deadline, title=f"judging, attempt {attempt}")
            for job, reply in zip(todo, replies, strict=True):
                if reply is None:
                    continue
                text, cut = reply.samples[0].text, reply.samples[0].finish_reason == "length"
                # a reply cut off inside its last grade could read 1 for 10
                result = None if cut else parse(text, len(rows[job[0]]["responses"]), self.file.scale)
                said[job].append({"order": job[1], "attempt": attempt, "text": text, "parsed": result is not None})
                if result is not None:
                    parsed[job] = result
            if len(parsed) == len(jobs):
                break
        return [self._judgement(i, said, parsed) for i in range(len(rows))]

    def explain(self, row: Row) -> str:
        """Return the very prompt the judge is given for this row, in the order given."""
        return str(self.request(row, 0).messages[0]["content"])

    def request(self, row: Row, order: int, attempt: int = 1) -> Request:
        """Return the request for one row; order 1 shows the responses reversed."""
        texts = [response["text"] for response in row["responses"]][:: -1 if order else 1]
        low, high = self.file.scale
        nonce = digest([row["prompt"], texts], 8)
        conversation = "\n\n".join(turn["content"] for turn in row["prompt"])
        numbers = range(1, len(texts) + 1)
        values = {
            "count": str(len(texts)),
            "low": str(low),
            "high": str(high),
            "nonce": nonce,
            "prompt": conversation,
            "responses": "\n\n".join(
                f"[{k}]\n<<{nonce}>>\n{t}\n<</{nonce}>>" for k, t in zip(numbers, texts, strict=True)
            ),
            "format": json.dumps({key: "..." for k in numbers for key in (f"feedback_{k}", f"grade_{k}")}),
        }
        # one pass over the template: slots inside a response stay what they are
        content = _SLOT.sub(lambda match: values[match[1]], self.template)
        temperature = self.file.temperature if attempt == 1 else max(self.file.temperature, RETRY_TEMPERATURE)
        return Request(
            messages=({"role": "user", "content": content},),
            sampling=Sampling(temperature=temperature, top_p=1.0, max_tokens=self.file.max_tokens),
            response_format=schema(len(texts), self.file.scale),
            attempt=attempt,
        )

    def _judgement(self, i: int, said: dict, parsed: dict) -> Judgement:
        low, high = self.file.scale
        scores, feedback = [], []
        for order in range(self.file.orders):
            if (i, order) not in parsed:
                # half a judgement would bring back the position bias that two orders are there to cancel
                return Judgement(replies=[reply for o in range(self.file.orders) for reply in said[i, o]])
            grades, texts = parsed[i, order]
            step = -1 if order else 1
            scores.append([(grade - low) / (high - low) for grade in grades[::step]])
            feedback.append(texts[::step])
        return Judgement(scores, feedback, [reply for o in range(self.file.orders) for reply in said[i, o]])


def read_template(name: str) -> str:
    """Return the text of a template in `nbutils/templates`, or of a file.

    Raises:
        InputError: if there is none, or naming a slot that is missing or unknown.
    """
    packaged = resources.files("nbutils") / "templates" / f"{name}.txt"
    path = sources.find(name)
    if packaged.is_file():
        text = packaged.read_text(encoding="utf-8")
    elif path is not None and path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise InputError(f"template: {name!r} is neither a file nor a template of the kit")
    slots = set(_SLOT.findall(text))
    for slot in sorted(REQUIRED - slots):
        raise InputError(f"template {name}: the slot {{{slot}}} is missing")
    for slot in sorted(slots - SLOTS):
        raise InputError(f"template {name}: unknown slot {{{slot}}}; known are {', '.join(sorted(SLOTS))}")
    return text


def schema(count: int, scale: tuple[int, int]) -> dict[str, Any]:
    """Return the response format: feedback before grade, answer by answer, in the order of the prompt."""
    properties: dict[str, Any] = {}
    for k in range(1, count + 1):
        properties[f"feedback_{k}"] = {"type": "string"}
        properties[f"grade_{k}"] = {"type": "integer", "enum": list(range(scale[0], scale[1] + 1))}
    content = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "grades", "strict": True, "schema": content}}


def parse(text: str, count: int, scale: tuple[int, int]) -> tuple[list[float], list[str]] | None:
    """Return (grades, feedbacks) of a reply, or None if it does not clearly hold a grade for every response.

    >>> parse('{"feedback_1": "good", "grade_1": 5}', 1, (1, 5))
    ([5.0], ['good'])
    >>> parse('{"feedback_1": "good", "grade_1": 7}', 1, (1, 5)) is None
    True
    """
    content = _object(text, count)
    if content is None:
        return None
    grades = []
    for k in range(1, count + 1):
        grade = content.get(f"grade_{k}")
        if isinstance(grade, str) and re.fullmatch(r"\s*\d+([.,]\d+)?\s*", grade):
            grade = float(grade.replace(",", "."))
        if isinstance(grade, bool) or not isinstance(grade, int | float) or not scale[0] <= grade <= scale[1]:
            return None
        grades.append(float(grade))
    return grades, [str(content.get(f"feedback_{k}", "")) for k in range(1, count + 1)]


def _object(text: str, count: int) -> dict[str, Any] | None:
    """Return the JSON object in a reply: as it stands, or repaired if every grade is written whole and once."""
    start, end = text.find("{"), text.rfind("}") + 1
    try:
        content = json.loads(text[start:end], object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        # a repair takes "1 5" for 1 and the last of two grades for the only one
        grades = [f"grade_{k}" for k in range(1, count + 1)]
        if start < 0 or sorted(_KEY.findall(text)) != sorted(grades) or sorted(_GRADE.findall(text)) != sorted(grades):
            return None
        try:
            content = json_repair.loads(text[start:])
        except (ValueError, RecursionError):
            return None
    return content if isinstance(content, dict) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _engine(file: LlmFile, cache: Path) -> Engine:
    template = file.chat_template_kwargs
    if file.engine == "transformers":
        return load("transformers", file.model, cache=cache, chat_template_kwargs=template)
    return load(
        file.server,
        file.model,
        cache=cache,
        chat_template_kwargs=template,
        key_variable=file.key_variable,
        concurrency=file.concurrency,
        timeout=file.timeout,
    )
