"""The trainer of 04: TRL 1.16's, where it needs a hand. Every private name of it that is touched stands here."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trl.trainer.utils
from datasets import Dataset
from peft import PeftModel
from trl import DPOTrainer
from trl.trainer import dpo_trainer

from nbutils.core.errors import InputError
from nbutils.training import prefixes, reference


class Trainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer with trainable parameters in float32, and an adapter alone in what it saves.

    With `precompute_ref_log_probs` the reference's numbers are kept in a folder; without, that part is TRL's own.
    """

    def __init__(self, *, folder: Path, reference: str, deadline: float = float("inf"), **given: Any):
        """Compute what the folder does not hold of the given datasets.

        Args:
            folder: of the shards; trainings with other models and data can share it.
            reference: a hash that changes with the reference's weights and the precision it computes in.
            deadline: `time.monotonic()` at which to stop between two shards.
            given: what DPOTrainer takes.

        Raises:
            InputError: if no weight would be trained.
            Interrupted: at the deadline; the same call goes on from the last shard.
        """
        self._shards, self._reference, self._deadline = folder, reference, deadline
        if given["args"].use_cpu:  # elsewhere an attention without a mask may be worth more; not measured
            model = given["model"]
            prefixes.share(model.get_base_model() if isinstance(model, PeftModel) else model)
        original = dpo_trainer.hash_module
        dpo_trainer.hash_module = lambda module: reference  # TRL reads all weights for what is known here
        try:
            super().__init__(**given)
        finally:
            dpo_trainer.hash_module = original
        for name, parameter in self.model.named_parameters():
            # TRL 1.16 casts the adapter of a quantised model to bfloat16, which a gradient scaler cannot handle ...
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
            # ... and rounds it on the way: an adapter to go on from has an exact copy in the reference
            if ".ref." in name:
                self.model.get_parameter(name.replace(".ref.", ".default.")).data = parameter.data.clone()
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise InputError("no weight of this model would be trained; leave adapter empty, or choose another model")

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Return the dataset with the columns `ref_chosen_logps` and `ref_rejected_logps`; called by TRL 1.16."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # TRL knows how to place a model in pieces
            return super()._precompute_ref_logps(dataset, name, batch_size)
        shards = reference.Shards(self, self._shards, self._reference, self._deadline)
        return shards.fill(dataset, name, batch_size)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Leave the reference's adapter out; a resumed run would load it in place of the trained one."""
        super()._save(output_dir, state_dict)
        shutil.rmtree(Path(output_dir or str(self.args.output_dir)) / "ref", ignore_errors=True)

    def _save_rng_state(self, output_dir: str) -> None:
        """Wait for what the other processes write, so that trainer_state.json is the last file of a checkpoint."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()


@contextmanager
def answers_only(on_cpu: bool) -> Iterator[None]:
    """Let TRL 1.16 project only the answers' positions onto the vocabulary on a CPU, as it does on a GPU.

    Without Triton it scores prompts and padding as well, for the sake of compilers that a CPU does not use; for short
    answers that is most of a step. The numbers are the same (tested).
    """
    original = trl.trainer.utils._use_triton
    if on_cpu:
        trl.trainer.utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl.trainer.utils._use_triton = original
