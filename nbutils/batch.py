"""Bring the results of batch files into a run's store: `python -m nbutils.batch runs results-1.jsonl results-2.jsonl`.

See `engines.batch`: a judge file with `batch: true` makes a notebook write what it would ask.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from nbutils.core import command
from nbutils.core.errors import InputError
from nbutils.core.markup import say
from nbutils.engines import batch
from nbutils.engines.store import Store
from nbutils.files import seals


@command.program
def main(arguments: Sequence[str] | None = None) -> None:
    """Bring results."""
    parser = command.parser("nbutils.batch", __doc__)
    parser.add_argument("runs", type=Path, help="folder with the run folders and their store, e.g. runs")
    parser.add_argument("results", type=Path, nargs="+", help="files as the provider or vllm run-batch wrote them")
    given = parser.parse_args(arguments)
    if not (given.runs / "batches" / batch.ASKED).is_file():
        raise InputError(
            f"no batch files were written in {given.runs}; expected the folder that a run folder stands in"
        )
    counts: Counter[str] = Counter()
    with closing(Store(given.runs / "store.sqlite", key=seals.key())) as store:
        for path in given.results:
            found = batch.take(store, path)
            say(f"{path}: " + (", ".join(f"{n:,} {outcome}" for outcome, n in found.items()) or "no results"))
            counts += found
        say(f"{counts['stored']:,} replies are new, the store has {len(store):,}; run the same command or cell again")


if __name__ == "__main__":
    sys.exit(main())
