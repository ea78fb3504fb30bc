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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch

from nbutils import params, preflight, run, sources
from nbutils.errors import InputError, Interrupted
from nbutils.markup import Formatter
from nbutils.records import Row

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
            run.say(f"error: {error}", sys.stderr)
        return 1
    if main_process:
        run.say("done: run the training cell of 04, or all of 04, again")
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
    from nbutils import trainers, training  # the first imports this module

    trainers.divided(options, processes)  # refused before anything is loaded
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
    hours = given.time_budget_hours
    deadline = time.monotonic() + hours * 3600 if hours else float("inf")
    trainer = trainers.build_trainer(
        given,
        options,
        pairs[: saved["train"]],
        pairs[saved["train"] :],
        device=device,
        cache=Path(saved["cache"]),
        scratch=job.parent.parent,
        deadline=deadline,
    )
    if Path(str(trainer.args.output_dir)) != job.parent:
        raise InputError(f"the model or the code changed since 04 left {job}; open 04 again up to its training")
    training.train(
        trainer,
        csv=job.parent.parent / "training.csv",
        deadline=deadline,
        stop_on_warning=options["stop_on_warning"],
        save_minutes=options["save_minutes"],
    )


def write_job(
    folder: Path,
    given: params.Dpo,
    options: Mapping[str, Any],
    pairs: Sequence[Row],
    held_out: Sequence[Row],
    cache: Path,
) -> None:
    """Write what a training needs: its pairs, held-out ones last, then job.json; each file appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    sources.write_pairs(folder / "pairs.parquet", [*pairs, *held_out])
    job = {
        "train": len(pairs),
        "params": given.model_dump(mode="json"),
        "options": dict(options),
        "cache": str(cache.resolve()),
        "folder": str(Path.cwd()),
    }
    (folder / "job.tmp").write_text(json.dumps(job, indent=2), encoding="utf-8")
    os.replace(folder / "job.tmp", folder / "job.json")


def last_job(run_dir: Path) -> Path:
    """Return the folder of the newest job of a run.

    Raises:
        InputError: if there is none.
    """
    jobs = (run_dir / "work" / "04_dpo").glob("*/job/job.json")
    newest = max(jobs, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise InputError(f"{run_dir} holds no training to launch; open 04 first, with this run_dir, up to its training")
    return newest.parent


if __name__ == "__main__":
    sys.exit(main())
