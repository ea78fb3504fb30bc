"""Judging by a language model that reads the responses and rates or compares them, in both orders.

The prompt is a template (`judges.template`); judged text stands in it behind a fence (`judges.fence`). A reply that
does not clearly hold a score for every response (`judges.replies`) is asked again twice, then counted.

A template may show the row's `reference`, a good answer by somebody else.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from nbutils import engines, models
from nbutils.core.errors import InputError
from nbutils.core.records import Row, prompt_text
from nbutils.core.sampling import Sample, Sampling
from nbutils.core.screen import usable
from nbutils.engines.asking import answer
from nbutils.engines.batch import BatchEngine
from nbutils.engines.protocol import Engine, Reply, Request, Tally
from nbutils.engines.store import Store
from nbutils.judges import fence
from nbutils.judges.files import LlmFile
from nbutils.judges.judge import Judgement
from nbutils.judges.references import insist_on_references, reference_of
from nbutils.judges.replies import Reading, quotes, read
from nbutils.judges.template import Template, read_both

ATTEMPTS = 3
# A judge that was not understood at temperature 0 would repeat itself; later attempts draw.
RETRY_TEMPERATURE = 0.5
# Rows asked of a server at a time: the requests of all, each with the whole template, would fill the memory.
PORTION = 5_000


class LlmJudge:
    """A template and an engine."""

    def __init__(self, name: str, file: LlmFile, *, cache: Path, seed: int = 0, engine: Engine | None = None):
        """Read the template and prepare the engine; a local model is loaded when the first question is asked.

        Args:
            cache: folder for converted models, should the judge run one here.
            seed: of the markers around judged text and of the retries.
            engine: used instead of the one the file names; for tests.

        Raises:
            InputError: if the template is faulty, a server's address is, or its token is missing.
        """
        self.name, self.file, self.model, self._seed, self._cache = name, file, file.model, seed, cache
        self.template, self._without = read_both(name, file.template, file.reference)
        self._notes: dict[str, set[tuple[str, int, int, bool]]] = defaultdict(set)
        self._schema = lru_cache(self.template.schema)  # one for all requests, of which a run holds many at once
        if engine is not None:
            self.engine = engine
        elif file.batch:
            self.engine = BatchEngine(
                file.server,
                file.model,
                folder=cache.parent / "batches" / name,
                chat_template_kwargs=file.chat_template_kwargs,
                price=file.price,
            )
        elif file.engine == "api":
            self.engine = engines.load(
                file.server,
                file.model,
                cache=cache,
                chat_template_kwargs=file.chat_template_kwargs,
                neutral=False,
                **file.model_dump(
                    include={"key_variable", "concurrency", "requests_per_minute", "max_calls", "timeout"}
                ),
            )
        else:
            models.context_length(models.resolve(file.model, cache))  # a wrong name is told now, its weights load later

    @cached_property
    def engine(self) -> Engine:
        """The model that runs here; not loaded before it is needed, since a policy may be training beside it."""
        return engines.load(
            self.file.engine,
            self.model,
            cache=self._cache,
            chat_template_kwargs=self.file.chat_template_kwargs,
            batch_size=self.file.batch_size,
        )

    def tally(self) -> Tally:
        """Return what was sent so far; a model that was never needed is not loaded for it."""
        return self.engine.tally if "engine" in vars(self) else Tally()

    def score(
        self, rows: Sequence[Row], store: Store, *, deadline: float = float("inf"), repeat: bool = False
    ) -> list[Judgement]:
        """Ask for every row in every order; ask again what was not understood, up to three attempts in all.

        Raises:
            InputError: if a verdict is asked about more than two responses; before anything is asked.
        """
        faults = [self.fault(row) for row in rows]
        fit = [row for row, fault in zip(rows, faults, strict=True) if not fault]
        if self.template.shows_reference:
            insist_on_references(self.name, rows, required=self._without is None)
        self._check(rows)
        said = iter(self._scored(fit, store, deadline, repeat=repeat))
        return [Judgement(unfit=fault) if fault else next(said) for fault in faults]

    def _scored(self, rows: Sequence[Row], store: Store, deadline: float, *, repeat: bool) -> list[Judgement]:
        size = PORTION if self.file.engine == "api" else max(len(rows), 1)  # a model that runs here draws by chunks
        judgements = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            which = f"judging rows {start + 1} to {start + len(part)} of {len(rows)}"
            title = which if len(part) < len(rows) else "judging"
            judgements += self._score(part, store, deadline, repeat=repeat, title=title)
        return judgements

    def _score(
        self, rows: Sequence[Row], store: Store, deadline: float, *, repeat: bool, title: str
    ) -> list[Judgement]:
        orders = range(1 if repeat else self.file.orders)
        jobs = [(i, order) for i, row in enumerate(rows) for order in orders if self._needed(row)]
        said: dict[tuple[int, int], list[Row]] = {job: [] for job in jobs}
        readings: dict[tuple[int, int], Reading] = {}
        todo = jobs
        for attempt in range(1, ATTEMPTS + 1):
            if not todo:
                break
            requests = [self.request(rows[i], order, attempt, repeat=repeat) for i, order in todo]
            what = f"{title}, attempt {attempt}" if attempt > 1 else title
            replies = answer(store, self.engine, requests, seed=self._seed, deadline=deadline, title=what)
            again = []
            for job, reply in zip(todo, replies, strict=True):
                reading = None
                if reply is not None and not reply.refused:
                    reading = self._read(rows[job[0]], reply.samples[0])
                said[job].append(self._record(rows[job[0]], job[1], attempt, reply, reading))
                if reading is not None:
                    readings[job] = reading
                elif reply is not None and not reply.refused:  # what got no answer at all is for the next run
                    again.append(job)
                for note in reply.notes if reply else ():
                    self._notes[note].add((rows[job[0]]["prompt_id"], job[1], attempt, repeat))
            todo = again
        return [self._judgement(i, row, orders, said, readings) for i, row in enumerate(rows)]

    def notes(self) -> dict[str, int]:
        """Return what is odd about replies, and about how many."""
        return {note: len(replies) for note, replies in self._notes.items()}

    def finish(self) -> None:
        """Stop the run, where requests were only written down.

        Raises:
            Interrupted: if there are any.
        """
        if "engine" in vars(self):
            self.engine.finish()

    def explain(self, row: Row) -> str:
        """Return the very prompt the judge is given for this row, in the order given."""
        shown = row | {"responses": [row["responses"][k] for k in usable(row["responses"])]}
        self._check([shown])
        return str(self.request(shown, 0).messages[0]["content"])

    def request(self, row: Row, order: int, attempt: int = 1, *, repeat: bool = False) -> Request:
        """Return the request for one row; order 1 shows the responses reversed, a repeat has other markers."""
        limit, special = self.file.max_characters, self.engine.special_tokens
        good = [text for text in (reference_of(row),) if text and self.template.shows_reference]
        material = [
            fence.neutral(fence.shorten(text, limit), special)
            for text in (*good, prompt_text(row["prompt"]), *_different(row)[:: -1 if order else 1])
        ]
        mark = fence.nonce(2 * self._seed + repeat, material)
        *good, prompt = material[: len(good) + 1]
        texts = material[len(good) + 1 :]
        letters = "AB" if self.template.reply == "verdict" else range(1, len(texts) + 1)
        values = {
            "count": str(len(texts)),
            "nonce": mark,
            "prompt": fence.enclose(prompt, mark),
            "reference": "".join(fence.enclose(text, mark) for text in good),
            "responses": "\n\n".join(f"[{k}]\n{fence.enclose(t, mark)}" for k, t in zip(letters, texts, strict=True)),
            "format": self.template.skeleton(len(texts)),
        }
        temperature = self.file.temperature if attempt == 1 else max(self.file.temperature, RETRY_TEMPERATURE)
        return Request(
            messages=({"role": "user", "content": self._template_of(row).fill(values)},),
            sampling=Sampling(temperature=temperature, top_p=1.0, max_tokens=self.file.max_tokens),
            response_format=self._schema(len(texts)),
            attempt=attempt,
            logprobs=self.file.logprobs and self.template.reply != "verdict",
        )

    def fault(self, row: Row) -> str:
        """Return why a row cannot be judged, or nothing: it has no reference where one is required."""
        required = self.template.shows_reference and not self._without
        return "no_reference" if required and not reference_of(row) else ""

    def without_reference(self) -> "LlmJudge | None":
        """Return this judge as it is without the reference, to see what that buys; None where it is shown none."""
        if not self.template.without:
            return None
        file = self.file.model_copy(update={"template": self.template.without, "reference": None})
        return LlmJudge(f"{self.name} without", file, cache=self._cache, seed=self._seed, engine=self.engine)

    def lacks_reference(self, row: Row) -> bool:
        """Return whether a row is judged without the reference that others are judged with."""
        return self._without is not None and not reference_of(row)

    def _template_of(self, row: Row) -> Template:
        return self._without if self._without and not reference_of(row) else self.template

    def _check(self, rows: Sequence[Row]) -> None:
        most = max((len(_different(row)) for row in rows), default=0)
        if self.template.reply == "verdict" and most > 2:
            raise InputError(
                f"judge {self.name}: template {self.file.template} compares two responses and there are up to {most}; "
                "use a template that rates (reply: json), or sample two per prompt"
            )

    def _needed(self, row: Row) -> bool:
        """Tell whether there is something to ask: a comparison of a text with itself is a tie."""
        return self.template.reply != "verdict" or len(_different(row)) == 2

    def _read(self, row: Row, sample: Sample) -> Reading | None:
        """Read a reply; one whose verdict stands in what it was shown may be a quotation, and is not understood."""
        texts = _different(row)
        reading = read(sample, len(texts), self.template)
        shown = [turn["content"] for turn in row["prompt"]] + [reference_of(row)] * self.template.shows_reference
        return None if reading is not None and quotes(sample.text, (*shown, *texts), self.template) else reading

    def _record(self, row: Row, order: int, attempt: int, reply: Reply | None, reading: Reading | None) -> Row:
        sample = reply.samples[0] if reply and reply.samples else None
        if reading is not None:
            outcome = "expected" if reading.expected else "parsed"
        elif reply and reply.refused:
            outcome = "refused"
        elif sample is None:
            outcome = "unanswered"
        else:
            outcome = "unparsed" if sample.finish_reason == "stop" else "cut off"
        return {
            "order": order,
            "attempt": attempt,
            "text": sample.text if sample else reply.refused if reply else "",
            "outcome": outcome,
            "prompt_tokens": reply.prompt_tokens if reply and sample else 0,
            "completion_tokens": reply.completion_tokens if reply and sample else 0,
            "shortened": sum(len(text) > self.file.max_characters for text in _different(row)),
        }

    def _judgement(self, i: int, row: Row, orders: range, said: dict, readings: dict) -> Judgement:
        replies = [reply for order in orders for reply in said.get((i, order), [])]
        places = [_different(row).index(response["text"]) for response in row["responses"]]
        scores, feedback = [], []
        for order in orders:
            if not self._needed(row):
                scores.append([0.5] * len(places))
                feedback.append([""] * len(places))
            elif (i, order) in readings:
                reading, step = readings[i, order], -1 if order else 1
                scores.append([reading.scores[::step][place] for place in places])
                feedback.append([reading.feedback[::step][place] for place in places])
            else:  # half a judgement would bring back the position bias that two orders are there to cancel
                return Judgement(replies=replies)
        return Judgement(scores, feedback, replies)


def _different(row: Row) -> list[str]:
    """Return the texts to judge: equal responses are one text, asked about once, with one score."""
    return list(dict.fromkeys(response["text"] for response in row["responses"]))
