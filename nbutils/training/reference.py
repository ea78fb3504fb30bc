"""The reference model's log-probabilities: computed once, kept in shards, read by every training of the run folder.

They depend on the reference weights and the tokens of a pair and on nothing that is tuned: another
beta, learning rate, loss or number of epochs reads the same numbers, and a training step is spared the reference's
forward pass. TRL can compute them beforehand too, but keeps them for one process and loses all when interrupted.
"""

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from trl import DPOTrainer

from nbutils.core.errors import InputError, out_of_time
from nbutils.core.records import Row, digest
from nbutils.files import seals

log = logging.getLogger(__name__)

SHARD = 32  # pairs in a file, and so what a kill can cost: some seconds' work

Numbers = dict[str, tuple[float, float]]  # key of a pair -> log-probabilities of chosen and rejected, in nats


@dataclass(frozen=True)
class Shards:
    """A folder of a reference's numbers, and the trainer that computes what it lacks.

    `reference` is a hash that changes with the reference's weights and the precision it computes in; trainings with
    other models and data can share the folder.
    """

    trainer: DPOTrainer
    folder: Path
    reference: str
    deadline: float  # `time.monotonic()` at which to stop between two shards

    def fill(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Return the dataset with the columns `ref_chosen_logps` and `ref_rejected_logps`.

        Raises:
            Interrupted: at the deadline; the same call goes on from the last shard.
        """
        # the main process alone reads, so that all of them compute the same pairs
        [known] = broadcast_object_list([_read(self.folder) if self.trainer.accelerator.is_main_process else {}])
        keys: list[str] = []
        missing: dict[str, tuple[int, str, int]] = {}
        for position, row in enumerate(dataset):
            key, length = self._key(row)
            keys.append(key)
            if key not in known:
                missing[key] = (-length, key, position)
        log.info("reference log-probabilities: %d %s pairs, %d to compute", len(keys), name, len(missing))
        # By length, so that little is padded, the longest first: too little memory shows at once. Shards are made of
        # whole batches: what is left after a kill falls into the batches of an unbroken run, to the same numbers.
        order = [position for _, _, position in sorted(missing.values())]
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        size = max(1, SHARD // batch_size) * self.trainer.accelerator.num_processes
        shards = [batches[start : start + size] for start in range(0, len(batches), size)]
        for number, shard in enumerate(shards, 1):
            with self.trainer.accelerator.split_between_processes(shard, apply_padding=True) as mine:
                parts = [self._compute(dataset, keys, batch).items() for batch in mine]
            fresh: Numbers = dict(gather_object([item for part in parts for item in part]))
            if wrong := sum(not math.isfinite(number) for pair in fresh.values() for number in pair):
                raise InputError(
                    f"the reference model gives {wrong} of {2 * len(fresh)} log-probabilities that are not finite: it "
                    "overflows this number format; choose another model or a GPU with bfloat16"
                )
            if self.trainer.accelerator.is_main_process:
                _write(self.folder, fresh)
            known |= fresh
            done = min(number * size * batch_size, len(order))
            if number % max(len(shards) // 10, 1) == 0:
                log.info("reference log-probabilities: %d of %d computed", done, len(order))
            [late] = broadcast_object_list([time.monotonic() > self.deadline])
            if late and number < len(shards):
                raise out_of_time(f"at the reference log-probabilities of {done} of {len(order)} pairs")
        for side, column in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
            dataset = dataset.add_column(column, [known[key][side] for key in keys])
        return dataset

    def _key(self, row: Row) -> tuple[str, int]:
        """Return a hash of all that determines a pair's numbers, and the tokens of its longer side.

        What the collator makes of the pair is hashed, so that cutting to `max_length` counts where it cuts.
        """
        seen = self.trainer.data_collator([row])
        tensors = {name: tensor.tolist() for name, tensor in seen.items()}
        return digest([self.reference, self.trainer.ld_alpha, tensors]), seen["input_ids"].shape[1]

    def _compute(self, dataset: Dataset, keys: Sequence[str], batch: Sequence[int]) -> Numbers:
        inputs = self.trainer._prepare_inputs(self.trainer.data_collator([dataset[position] for position in batch]))
        model = self.trainer.model if self.trainer.ref_model is None else self.trainer.ref_model
        chosen, rejected = self.trainer.compute_ref_log_probs(model, inputs)
        numbers = zip(chosen.tolist(), rejected.tolist(), strict=True)
        return {keys[position]: pair for position, pair in zip(batch, numbers, strict=True)}


def _read(folder: Path) -> Numbers:
    """Return all numbers of a folder; a file that cannot be read is removed, its pairs are computed again."""
    known: Numbers = {}
    for shard in sorted(folder.glob(f"{'[0-9a-f]' * 16}.json")):  # as `_write` names them; others are not ours
        try:
            known |= json.loads(shard.read_text())
        except (OSError, ValueError, TypeError):
            log.warning("removing %s, which cannot be read; its reference log-probabilities are computed again", shard)
            shard.unlink(missing_ok=True)
    return known


def _write(folder: Path, numbers: Mapping[str, Any]) -> None:
    """Write a shard under a temporary name and rename it when whole."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / f"{digest(sorted(numbers))}.json"
    draft = shard.with_suffix(".draft")
    draft.write_text(json.dumps(numbers))
    os.replace(draft, shard)
    seals.seal(shard)
