"""launch.py: what 04 leaves for it, and two real processes that train what one would have trained."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dpo import CPU, dpo_params, some_pairs

from nbutils import launch
from nbutils.core.errors import InputError
from nbutils.training import job
from nbutils.training.checkpoints import last_complete
from nbutils.training.loop import train
from nbutils.training.settings import read_options
from nbutils.training.trainer import build_trainer, divided

HELD_OUT = 4  # pairs: two processes take them in one round of two each
OPTIONS = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_steps": 2,
    "eval_steps": 3,
    "max_length": 128,
}

# launch as a script of one's own: a device that rounds alike everywhere, and a second process whose clock runs away and
# which is late with its part of a checkpoint
SCRIPT = """
import os, pathlib, sys, time, types
import transformers, trl
from nbutils import launch
from nbutils.models import preflight
from nbutils.training import loop

preflight.pick_device = lambda: preflight.Device("cpu", (0, 0), "a test")
write_random_state = trl.DPOTrainer._save_rng_state
write_state = transformers.TrainerState.save_to_json

def late(trainer, folder):
    time.sleep(0.5)
    write_random_state(trainer, folder)

def last(state, path):
    assert (pathlib.Path(path).parent / "rng_state_1.pth").exists()
    write_state(state, path)

transformers.TrainerState.save_to_json = last
if os.environ["RANK"] == "1":
    loop.time = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 1e6)
    trl.DPOTrainer._save_rng_state = late
sys.exit(launch.main())
"""


def open_04(model, run_dir, *, hours=0.0, options=None):
    """What the cell of 04 before its training does."""
    return build_trainer(
        dpo_params(model, time_budget_hours=hours),
        read_options("") | OPTIONS | (options or {}),
        some_pairs(24),
        some_pairs(24 + HELD_OUT)[24:],
        device=CPU,
        cache=run_dir,
        scratch=run_dir / "work" / "04_dpo",
    )


def launched(run_dir, script):
    """Launch two processes; `--multi_gpu` is how accelerate starts several without asking what machine this is."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", str(script), str(run_dir)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters() if "lora_" in name}


def distance(first, second) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.nightly
def test_two_processes_train_what_one_would_and_04_takes_it_over(tiny_llama, tmp_path):
    one = open_04(tiny_llama, tmp_path / "one")
    start = weights(one)
    log = train(one, csv=tmp_path / "one.csv")
    assert distance(weights(one), start) > 0.01
    script, run_dir = tmp_path / "script.py", tmp_path / "two"
    script.write_text(SCRIPT)

    open_04(tiny_llama, run_dir, hours=1e-9)
    stopped = launched(run_dir, script)
    assert stopped.returncode == 1
    assert "time budget used up at step 1 of 6" in stopped.stderr
    trainer = open_04(tiny_llama, run_dir)  # no budget now; the same training
    folder = Path(trainer.args.output_dir)
    assert last_complete(folder).name == "checkpoint-1"
    finished = launched(run_dir, script)
    assert finished.returncode == 0, finished.stderr
    assert "2 processes" in finished.stdout
    assert stopped.stderr.count("error: time budget") == finished.stdout.count("done: run the training cell") == 1
    assert finished.stdout.count("resuming from checkpoint-1") == finished.stdout.count("step 6 of 6") == 1
    assert {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}  # none by the wrong clock

    unfinished = tmp_path / "unfinished"
    shutil.copytree(run_dir, unfinished)
    taken = train(trainer, csv=tmp_path / "two.csv", deadline=1.0)  # a step would stop it
    assert list(taken.step) == list(log.step) == [1, 2, 3, 4, 5, 6]
    # The same pairs are summed in another order, and Adam divides by their size: rounding, about 1e-6 of a weight.
    assert distance(weights(trainer), weights(one)) < 1e-4
    assert taken.loss.to_list() == pytest.approx(log.loss.to_list(), abs=1e-4)
    assert taken.eval_loss.dropna().to_list() == pytest.approx(log.eval_loss.dropna().to_list(), abs=1e-3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(one.evaluate()["eval_loss"], abs=1e-3)

    # one process goes on from a checkpoint of two
    shutil.rmtree(unfinished / folder.relative_to(run_dir) / "checkpoint-6")
    trainer = open_04(tiny_llama, unfinished)
    assert list(train(trainer, csv=tmp_path / "unfinished.csv").step) == list(log.step)
    assert distance(weights(trainer), weights(one)) < 1e-4


def test_04_leaves_a_job_with_all_that_decides_the_training(tiny_llama, tmp_path):
    trainer = open_04(tiny_llama, tmp_path, hours=2.0)
    job = launch.last_job(tmp_path)
    assert job == Path(trainer.args.output_dir) / "job"
    assert {p.name for p in job.iterdir()} == {"job.json", "pairs.parquet"}
    saved = json.loads((job / "job.json").read_text())
    assert saved["params"] == {
        "model": str(tiny_llama), "tuning": "lora", "learning_rate": 1e-2, "epochs": 1.0, "beta": 0.1, "seed": 0,
        "time_budget_hours": 2.0, "adapter": "",
    }  # fmt: skip
    assert saved["options"] == read_options("") | OPTIONS
    assert saved["train"] == 24


def test_the_newest_job_is_launched(tiny_llama, tmp_path):
    first, second = (open_04(tiny_llama, tmp_path, options={"lora_r": r}) for r in (4, 8))
    os.utime(Path(first.args.output_dir) / "job" / "job.json", (1, 1))
    assert launch.last_job(tmp_path).parent == Path(second.args.output_dir)
    os.utime(Path(second.args.output_dir) / "job" / "job.json", (0, 0))
    assert launch.last_job(tmp_path).parent == Path(first.args.output_dir)


def test_a_job_that_was_not_written_whole_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    folder = tmp_path / "work" / "04_dpo" / "abc" / "job"
    with pytest.raises(OSError, match="No space left"):
        job.write_job(folder, dpo_params("m"), {}, some_pairs(2), [], tmp_path)
    with pytest.raises(InputError, match="open 04 first"):
        launch.last_job(tmp_path)


def test_without_a_job_the_user_is_sent_to_04(tmp_path, capsys):
    assert launch.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path} holds no training to launch; open 04 first, with this run_dir, up to its training\n"
    )


def test_a_single_process_is_refused(tmp_path):
    with pytest.raises(InputError, match="only one process was started; use accelerate launch --num_processes 2"):
        launch.run_job(tmp_path, 1)


def test_a_step_that_the_processes_cannot_divide_is_refused(tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    job.write_job(tmp_path, dpo_params("m"), options, some_pairs(2), [], tmp_path)
    with pytest.raises(InputError, match=r"takes 2 x 4 pairs .*, which 3 processes cannot divide; set --num_processes"):
        launch.run_job(tmp_path, 3)


@pytest.mark.parametrize(
    ("batch", "steps", "processes", "own"),
    [(2, 8, 2, (2, 4)), (16, 1, 2, (8, 1)), (2, 2, 4, (1, 1)), (4, 3, 2, (2, 3)), (1, 6, 3, (1, 2))],
)
def test_processes_share_the_pairs_of_a_step(batch, steps, processes, own):
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
    assert divided(options, processes) == own
    assert own[0] * own[1] * processes == batch * steps
