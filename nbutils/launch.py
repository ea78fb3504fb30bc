"""The training of 04 on two GPUs or more: `accelerate launch --num_processes 2 -m nbutils.launch runs/mine`.

Let 04 begin its training and stop it there (interrupt the cell; headless: Ctrl-C). Give this command in a terminal, or
in a new cell as `!CUDA_VISIBLE_DEVICES=0,1 accelerate launch ...`, since a notebook lets its programs see one GPU only.
Then run the training cell, or all of 04, again: it finds the training finished and goes on to saving and the proof. If
GPU 0 has too little memory for both, shut the notebook's kernel down first.

Every step takes the same pairs as in one process, so either goes on from the other's checkpoints. Held-out losses count
some pairs twice where processes times `per_device_eval_batch_size` does not divide the held-out pairs. Tried with two
processes on a CPU, on no machine with two GPUs yet.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch

from nbutils import params
from nbutils.core.errors import InputError, Interrupted
from nbutils.core.markup import Formatter, say
from nbutils.files import sources
from nbutils.models import preflight
from nbutils.training.job import last_job

log = logging.getLogger("nbutils.launch")  # also where this is __main__


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one process's share and return the exit status: 0, or 1 after printing one sentence."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m nbutils.launch", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run_dir", type=Path, help="folder of a run whose 04 has got to its training, e.g. runs/mine")
    run_dir = parser.parse_args(arguments).run_dir.resolve()
    main_process = os.environ.get("RANK", "0") == "0"  # the others train in silence
    datasets.disable_progress_bars()
    logging.basicConfig(stream=sys.stdout)
    logging.getLogger().handlers[0].setFormatter(Formatter("%(message)s"))
    logging.getLogger("nbutils").setLevel(logging.INFO if main_process else logging.CRITICAL)
    try:
        run_job(last_job(run_dir), int(os.environ.get("WORLD_SIZE", "1")))
    except (InputError, Interrupted) as error:
        if main_process:
            say(f"error: {error}", sys.stderr)
        return 1
    if main_process:
        say("done: run the training cell of 04, or all of 04, again")
    return 0


def run_job(job: Path, processes: int) -> None:
    """Train a job to its end beside the other processes, with the effective batch that one process would have.

    Args:
        job: folder from `write_job`.
        processes: how many train together.

    Raises:
        InputError: if there are too few processes or GPUs, if the processes do not divide a step, or if
            the job no longer fits its name.
        Interrupted: at the run's time budget, counted from here, or at a serious finding.
    """
    if processes == 1:
        raise InputError(
            "only one process was started; use accelerate launch --num_processes 2, with CUDA_VISIBLE_DEVICES=0,1 "
            "before it in a notebook, or train in 04 itself"
        )
    saved = json.loads((job / "job.json").read_text(encoding="utf-8"))
    given, options = params.Dpo.model_construct(**saved["params"]), saved["options"]
    from nbutils.training import loop
    from nbutils.training.trainer import build_trainer, divided

    divided(options, processes)  # refused before anything is loaded
    os.chdir(saved["folder"])  # the model may be named relative to it
    if gpus := torch.cuda.device_count():
        if gpus < processes:
            raise InputError(
                f"{processes} processes but {gpus} GPU(s) visible; set CUDA_VISIBLE_DEVICES or start fewer"
            )
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # what is moved to "cuda" from here on goes there
    pairs = sources.read(str(job / "pairs.parquet"))
    device = preflight.pick_device()
    log.info("%d processes, the main one on %s: %s", processes, device.name, device.reason)
    deadline = time.monotonic() + 3600 * (given.time_budget_hours or float("inf"))
    trainer = build_trainer(
        given, options, pairs[: saved["train"]], pairs[saved["train"] :],
        device=device,
        cache=Path(saved["cache"]),
        scratch=job.parent.parent,
        deadline=deadline,
    )  # fmt: skip
    if Path(str(trainer.args.output_dir)) != job.parent:
        raise InputError(f"the model or the code changed since 04 left {job}; open 04 again up to its training")
    ours = {name: options[name] for name in ("stop_on_warning", "save_minutes")}
    loop.train(trainer, csv=job.parent.parent / "training.csv", deadline=deadline, **ours)


if __name__ == "__main__":
    sys.exit(main())
