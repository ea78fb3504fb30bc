"""What a profile costs in hours, requests and tokens, by a stated model: `python -m tools.cost params/kaggle-t4`.

Requests, answers and steps follow from the parameters; hours from throughputs that nobody has measured for this kit on
a T4, hence a low and a high case for each. Prints a Markdown table and every constant with its grade and source.
Retries are not counted, nor what a second run finds in the store.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbutils import judges, params, run
from nbutils.core import command
from nbutils.files import sources
from tools import kaggle


@dataclass(frozen=True)
class Range:
    """A quantity in the cheap and in the dear case; a speed's `low`, which belongs to the cheap case, is the larger."""

    low: float
    high: float
    what: str = ""  # for the constants: quantity, grade and source

    def __mul__(self, other: "Range | float") -> "Range":
        low, high = (other.low, other.high) if isinstance(other, Range) else (other, other)
        return Range(self.low * low, self.high * high)

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def __truediv__(self, other: "Range") -> "Range":
        return Range(self.low / other.low, self.high / other.high)

    def show(self, unit: float = 1, digits: int = 1) -> str:
        low, high = (f"{value / unit:,.{digits}f}" for value in (self.low, self.high))
        return low if low == high else f"{low} to {high}"


ASKING = Range(4.8, 0.7, "requests a second to a server's judge (reported, alpaca_eval: a 70B model, one that reasons)")
# 3,460 is 820 times 7.2 over 1.7, the parameters
TRAINING = Range(3460, 820, "pairs trained an hour (a 7B model in 4 bits, reported; scaled to 1.7B, assumed)")
SAMPLING = Range(2000, 300, "tokens a second, 02 with vLLM on two T4, 1.7B (assumed)")
PLAIN = Range(250, 50, "tokens a second with transformers, 1.7B: 04's proof, 02 where told so (assumed)")
LOCAL = Range(800, 100, "tokens a second that a judge of 4B writes on two T4, reading included (assumed)")
REWARD = Range(15, 3, "answers a second scored by a reward model of 0.6B (assumed)")
ANSWER = Range(200, 400, "tokens per answer, of at most 512 (assumed)")
QUESTION = Range(80, 500, "tokens per prompt (assumed: prompts have 20 to 2,000 characters)")
TEMPLATE = Range(400, 500, "tokens of the judge's template (1,284 characters, about 3 per token)")
FEEDBACK = Range(60, 120, "tokens written per answer shown (the local judges' files say about 100)")
REASONING = Range(100, 1000, "more tokens per request, for a server's judge that reasons first (assumed)")
OFF_POLICY, ON_POLICY = (
    Range(0.5, 0.86, "pairs per row of 01 (86% confirmed by the original's judge: recipe; half: assumed)"),
    Range(0.3, 0.7, "pairs per prompt of 03 (assumed)"),
)
SETUP = Range(0.1, 0.5, "hours per stage to install and download (assumed)")
SESSION, WEEK = 12, 30  # hours; reported, secondary
PROOF = 3  # answers per held-out prompt, in 04
SIZES = {"efederici/evol-dpo-ita": 19_769, "sapienzanlp/it-Magpie-Llama-3.1-Pro-300K-Filtered-easy": 59_100}


def rows(names: str, limit: int = 0) -> int:
    """Return how many rows a data parameter stands for: a slice [-n:], a known dataset, or a file's rows."""
    total = 0
    for name in params.names(names):
        cut = re.search(r"\[-(\d+):\]$", name)
        total += int(cut[1]) if cut else SIZES.get(name) or len(sources.read(name))
    return min(total, limit or total)


def judging(name: str, asked: int, shown: int, *, trial: bool = True) -> tuple[float, Range, Range, Range, Any]:
    """Return requests, tokens read and written, hours and the price, for `asked` rows with `shown` answers each."""
    file: Any = judges.read_file(name)[1]
    if file.kind in ("verifier", "answer", "assume"):
        return 0, Range(0, 0), Range(0, 0), Range(0, 0), None
    if file.kind == "reward":
        return asked * shown, Range(0, 0), Range(0, 0), Range(1, 1) * (asked * shown / 3600) / REWARD, None
    # a trial row's two orders are found in the store by the run; only the repeated first order comes on top
    requests = asked * file.orders + (file.gate_rows if trial else 0)
    read = (TEMPLATE + QUESTION + ANSWER * shown) * requests
    wrote = FEEDBACK * (shown * requests)
    if file.engine == "api":
        wrote += REASONING * requests
    seconds = Range(requests, requests) / ASKING if file.engine == "api" else wrote / LOCAL
    return requests, read, wrote, seconds * (1 / 3600), file.price


def together(parts: list[tuple[float, Range, Range, Range, Any]]) -> tuple[float, Range, Range, Range, Any]:
    """Return what several judges come to, at the price of the dearest."""
    requests, read, wrote, hours, prices = zip(*parts, strict=True)
    dearest = max((price for price in prices if price), default=None)
    return sum(requests), sum(read, Range(0, 0)), sum(wrote, Range(0, 0)), sum(hours, Range(0, 0)), dearest


@command.program
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and what it rests on."""
    parser = command.parser("tools.cost", __doc__)
    parser.add_argument("profile", type=Path, help="folder with one YAML of parameters per notebook")
    profile = parser.parse_args(arguments).profile
    plan = run.read_profile(profile, Path("runs/kaggle"))
    p = {stem: run.defaults(stem) | values for stem, values in plan.items()}
    n_rows = rows(p["01_rerank"]["dataset"], p["01_rerank"]["max_rows"])
    n_prompts = rows(p["02_sample"]["prompts"], p["02_sample"]["max_prompts"])
    n_answers = n_prompts * p["02_sample"]["n_samples"]
    n_proof = rows(p["04_dpo"]["eval_prompts"]) * PROOF
    pairs = OFF_POLICY * n_rows + ON_POLICY * n_prompts
    drawing = PLAIN if p["02_sample"]["engine"] == "transformers" else SAMPLING
    proof = params.validate("04_dpo", p["04_dpo"])
    sets = zip(params.names(proof.eval_prompts), proof.proof_judges, strict=True)
    judged = {
        "01_rerank": judging(p["01_rerank"]["judge"], n_rows, 2),
        "03_judge": judging(p["03_judge"]["judge"], n_prompts, p["02_sample"]["n_samples"]),
        "04_dpo": together([judging(judge, rows(name) * PROOF, 2, trial=False) for name, judge in sets]),
    }
    own = {
        "02_sample": ANSWER / drawing * (n_answers / 3600),
        "04_dpo": pairs * p["04_dpo"]["epochs"] / TRAINING + ANSWER / PLAIN * (2 * n_proof / 3600),
    }
    did = {"02_sample": f"{n_answers:,} answers", "04_dpo": f"{pairs.show(digits=0)} pairs, {2 * n_proof:,} answers"}
    print(f"{profile.name}, **a model, not yet run on a GPU**, low to high case:\n")
    print("| stage | makes | judge's requests | it reads, M tokens | it writes, M tokens | hours | GPU | a session |")
    print("|---|---|---|---|---|---|---|---|")
    week = Range(0, 0)
    for stem in params.STEMS:
        requests, read, wrote, hours, price = judged.get(stem, (0, Range(0, 0), Range(0, 0), Range(0, 0), None))
        hours = hours + own.get(stem, Range(0, 0)) + SETUP
        gpu = kaggle.needs_gpu(stem, p[stem])
        week = week + hours if gpu else week
        fits = "fits" if hours.high <= SESSION else "fits in the low case" if hours.low <= SESSION else "takes several"
        tokens = [size.show(1e6) if size.high else "" for size in (read, wrote)]
        if price:
            tokens[1] += f" (${(read * (price[0] / 1e6) + wrote * (price[1] / 1e6)).show()})"
        cells = [stem, did.get(stem, ""), f"{requests:,.0f}", *tokens, hours.show(), "yes" if gpu else "no", fits]
        print("|", " | ".join(cells), "|")
    print(f"\nGPU hours: {week.show()} of the {WEEK} a week; a session ends after {SESSION}. (reported, secondary)")
    print("Money: tokens times your provider's price; a `price` in the judge file puts it into the table.\n")
    for value in list(globals().values()):
        if isinstance(value, Range):
            print(f"- {value.low:g} to {value.high:g} {value.what}")


if __name__ == "__main__":
    sys.exit(main())
