"""Training with TRL's DPOTrainer: few parameters, checkpoints that survive a kill, a log in CSV.

`settings` reads the `training` file.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from trl import DPOTrainer

from nbutils.core.errors import GO_ON, Interrupted, out_of_time, telling, writing
from nbutils.files import owned, seals
from nbutils.models import weights
from nbutils.training import health
from nbutils.training.checkpoints import last_complete, only_one
from nbutils.training.patches import answers_only
from nbutils.training.settings import CHANGE, DEFAULTS

log = logging.getLogger(__name__)


def train(
    trainer: DPOTrainer,
    *,
    csv: Path,
    deadline: float = float("inf"),
    stop_on_warning: bool = False,
    save_minutes: float = DEFAULTS["save_minutes"],
) -> pd.DataFrame:
    """Train from the last complete checkpoint, or from the start, and return the log, one row per step.

    What `health.check` finds on the way is logged as a warning, once each. With several processes all call this; the
    main one writes the log and decides for all.

    Args:
        csv: where the log is kept up to date.
        deadline: `time.monotonic()` at which to save a checkpoint and stop.
        stop_on_warning: whether to save a checkpoint and stop at a serious finding.
        save_minutes: a checkpoint is also saved when the last one is this old; 0 for never.

    Raises:
        InputError: if another process trains in the same folder, or a library raises.
        Interrupted: at the deadline; the same call goes on from the checkpoint. At a serious finding, too; there the
            same call goes on only with `stop_on_warning=False`.
    """
    watch = _Watch(csv, deadline, stop_on_warning, save_minutes)
    trainer.remove_callback(PrinterCallback)  # a page of figures per step; the watch keeps them in a file
    trainer.add_callback(watch)
    folder, main = Path(str(trainer.args.output_dir)), trainer.is_world_process_zero()
    try:
        with (
            telling("training", f"{GO_ON}; if it comes back, {CHANGE}"),
            writing(folder),
            only_one(folder) if main else nullcontext(),
            answers_only(trainer.args.use_cpu),
        ):
            checkpoint = _as_main(last_complete(folder) if main else None)
            if checkpoint and _take_over(trainer, checkpoint):
                table(trainer.state.log_history).to_csv(csv, index=False)
            else:
                if checkpoint:
                    log.info("resuming from %s", checkpoint.name)
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        trainer.remove_callback(watch)  # or its deadline would stop the next call in the same kernel
    if watch.stopped:
        raise watch.interruption(trainer.state)
    return table(trainer.state.log_history)


def _take_over(trainer: DPOTrainer, checkpoint: Path) -> bool:
    """Load a finished training and return whether it is one; the trainer would add a step if it ended in mid-epoch."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < state.max_steps:
        return False
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or str(checkpoint))
    trainer.state = state
    log.info("the training is finished: %s is taken over", checkpoint.name)
    return True


def _as_main(value: Any) -> Any:
    """Return the main process's value in every process: two clocks or two looks into a folder may differ."""
    return broadcast_object_list([value])[0]


def table(history: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """Return the trainer's log as one row per step, training and held-out metrics side by side."""
    frame = pd.DataFrame(history).groupby("step", as_index=False).first()
    # what the trainer adds at the very end is no curve, and a training that is taken over has none of it
    ends = ("runtime", "per_second", "train_loss", "total_flos")
    return frame.drop(columns=[c for c in frame if str(c).endswith(ends)])


def save(trainer: DPOTrainer, folder: Path) -> Path:
    """Save the adapter, or the whole model after full tuning, with its tokenizer as safetensors; return the folder."""
    with writing(folder), owned.renewed(folder) as made:
        trainer.save_model(str(made))
        (made / "training_args.bin").unlink(missing_ok=True)  # a pickle of this machine's paths
        config = made / "adapter_config.json"
        if config.is_file():
            content = json.loads(config.read_text(encoding="utf-8"))
            base, commit = weights.portable(content["base_model_name_or_path"] or "")
            content |= {"base_model_name_or_path": base, "revision": commit}  # not where this machine keeps it
            if isinstance(modules := content["target_modules"], list):
                content["target_modules"] = sorted(modules)  # a set, and one adapter is to have one hash
            config.write_text(json.dumps(content, indent=2) + "\n")
    return folder


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Writes the log after every step, warns of what is wrong in it, saves by the clock and ends at the deadline."""

    def __init__(self, csv: Path, deadline: float, stop_on_warning: bool, save_minutes: float):
        self.csv, self.deadline, self.stop_on_warning = csv, deadline, stop_on_warning
        self.interval, self.saved = save_minutes * 60 or float("inf"), time.monotonic()  # seconds
        self.stopped, self.ill = False, ""
        self.warned: set[str] = set()

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Mapping[str, float], **_: Any
    ) -> None:
        frame = table(state.log_history)
        if state.is_world_process_zero:
            frame.to_csv(self.csv, index=False)
        if "loss" in logs and state.global_step % max(state.max_steps // 10, 1) == 0:
            margin = logs["rewards/margins"]
            log.info("step %d of %d: loss %.3f, margin %.3f", state.global_step, state.max_steps, logs["loss"], margin)
        for finding in _as_main(health.check(frame, beta=args.beta, steps=state.max_steps)):
            if finding.name not in self.warned:
                log.warning("%s: %s", finding.name, finding.sentence)
                self.warned.add(finding.name)
            if finding.serious and self.stop_on_warning and state.global_step < state.max_steps:
                self.ill = self.ill or finding.sentence
                self._stop(control)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # all save or none: processes that disagree would wait for each other forever
        late, due = _as_main((time.monotonic() > self.deadline, time.monotonic() - self.saved >= self.interval))
        if late and state.global_step < state.max_steps:
            self._stop(control)
        if due or state.global_step >= state.max_steps:  # a finished training without a checkpoint would be repeated
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.saved = time.monotonic()
        PartialState().wait_for_everyone()  # each process writes a file of its own into a checkpoint
        if state.is_world_process_zero:
            seals.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def interruption(self, state: TrainerState) -> Interrupted:
        """Return why the training was stopped, and how it goes on."""
        place = f"at step {state.global_step} of {state.max_steps}"
        if not self.ill:
            return out_of_time(place)
        return Interrupted(
            f"stop_on_warning: training stopped {place} with a checkpoint: {self.ill} (or set stop_on_warning to false "
            "to go on)"
        )

    def _stop(self, control: TrainerControl) -> None:
        self.stopped = control.should_save = control.should_training_stop = True
