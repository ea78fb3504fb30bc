"""How close asking a server comes to the server's own speed, at what price in CPU, and whether memory stays flat.

600 requests to a local server in its own process that takes 200 ms for each, 32 in flight: through `store.answer` and
`ApiEngine`, as a notebook asks, and through a bare `openai.AsyncOpenAI` with a semaphore, which keeps nothing, counts
nothing and tries nothing again. Both in turn, three rounds, medians. Ideal is ceil(600 / 32) waves of 200 ms.

Memory: peak resident size of a process that asks, less that of one that only makes the same requests and replies and
holds them, as every caller must. What is left is compared between 2,000 and 20,000 requests: what asking adds per
request. With prompts of 2,000 characters a request and its reply are about 3 KiB.

    python bench/judge.py     name <tab> value <tab> limit <tab> ok|short; exit status 1 if one is short
"""

import asyncio
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

from nbutils.core.sampling import Sample, Sampling
from nbutils.engines.api import ApiEngine
from nbutils.engines.asking import answer
from nbutils.engines.protocol import Reply, Request
from nbutils.engines.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/helpers"))
from servers import quick, serving, slow

REQUESTS, IN_FLIGHT, DELAY, ROUNDS = 600, 32, 0.2, 3
FEW, MANY = 2_000, 20_000
IDEAL = math.ceil(REQUESTS / IN_FLIGHT) * DELAY
LIMITS = {"time over ideal": 1.15, "CPU ms per request": 3.0, "memory KiB per request": 1.0}


def main() -> int:
    """Measure, print, and tell whether every limit was kept."""
    with serving("servers:slow") as url:
        ours, bare = [], []
        for _ in range(ROUNDS):
            ours.append(measured(lambda: ask(url, REQUESTS)))
            bare.append(measured(lambda: asyncio.run(ask_bare(url, REQUESTS))))
    with serving("servers:quick") as url:
        extra = [peak("ask", n, url) - peak("hold", n, url) for n in (FEW, MANY)]
    lines: list[tuple[str, float, str]] = []
    for whose, rounds in (("", ours), ("bare client: ", bare)):
        for name, values in zip(("time over ideal", "CPU ms per request"), zip(*rounds, strict=True), strict=True):
            lines.append((whose + name, statistics.median(values), name if not whose else ""))
    lines.append(("memory KiB per request", (extra[1] - extra[0]) / (MANY - FEW), "memory KiB per request"))
    short = False
    for name, value, limit in lines:
        kept = not limit or value <= LIMITS[limit]
        short |= not kept
        print(f"{name}\t{value:.2f}\t{LIMITS[limit] if limit else '-'}\t{'ok' if kept else 'short'}")
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    return int(short)


def requests_of(count: int) -> list[Request]:
    """Return requests of 2,000 characters, as one judge asks them."""
    schema = {"type": "json_schema", "json_schema": {"name": "scores", "schema": {"type": "object"}}}
    sampling = Sampling(0.0, 1.0, 800)
    return [
        Request(({"role": "user", "content": f"{i:06} ".ljust(2_000, "x")},), 1, sampling, schema) for i in range(count)
    ]


def ask(url: str, count: int) -> None:
    """Ask as a notebook does, into a new store."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store.sqlite")
        replies = answer(store, ApiEngine(url, "judge", concurrency=IN_FLIGHT), requests_of(count))
        store.close()
    assert None not in replies


def hold(count: int) -> None:
    """Make what `ask` is given and what it returns, and nothing else."""
    text = quick({})
    held = [(request, Reply((Sample(f"{text} "[:-1], 9, "stop", {}),), 7, 9)) for request in requests_of(count)]
    assert len(held) == count


async def ask_bare(url: str, count: int) -> None:
    """Ask the same with the client alone."""
    in_flight = asyncio.Semaphore(IN_FLIGHT)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def one(request: Request) -> str:
            options: Any = {"messages": list(request.messages), "response_format": request.response_format}
            async with in_flight:
                reply = await client.chat.completions.create(model="judge", temperature=0.0, max_tokens=800, **options)
            return str(reply.choices[0].message.content)

        texts = await asyncio.gather(*map(one, requests_of(count)))
    assert set(texts) == {slow({}).text}


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Return the wall time as a multiple of the ideal, and milliseconds of CPU per request."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - wall) / IDEAL, (time.process_time() - cpu) * 1000 / REQUESTS


def peak(what: str, count: int, url: str) -> float:
    """Return the peak resident size in KiB of a process that does this."""
    done = subprocess.run(
        [sys.executable, __file__, what, str(count), url], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    what, number, address = sys.argv[1:]
    if what == "ask":
        ask(address, int(number))
    else:
        hold(int(number))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
