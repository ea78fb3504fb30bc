"""loop.py with a tiny model: the loss is the formula's, and no interruption changes the result."""

import fcntl
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import types
from pathlib import Path

import pandas as pd
import peft.peft_model
import pytest
import torch
import transformers.trainer_utils
from builders import published
from dpo import CPU, dpo_params, pair, small_trainer, some_pairs, templated
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState
from trl import DPOConfig, DPOTrainer

from nbutils import models
from nbutils.core.errors import InputError, Interrupted
from nbutils.core.records import PAIRS, dataset
from nbutils.files import owned
from nbutils.models.preflight import Device
from nbutils.training import loop
from nbutils.training.checkpoints import last_complete, only_one, take_checkpoints
from nbutils.training.held_out import split
from nbutils.training.loop import save, table, train
from nbutils.training.settings import read_options
from nbutils.training.trainer import build_trainer

LOG2 = math.log(2)
T4, L4 = Device("cuda", (7, 5), "a test"), Device("cuda", (8, 9), "a test")


def weights(trainer, folder) -> dict[str, torch.Tensor]:
    return load_file(save(trainer, folder) / "adapter_model.safetensors")


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def unbroken(tiny_llama, tmp_path_factory):
    """The adapter, the log and the held-out loss of twelve steps in one go."""
    folder = tmp_path_factory.mktemp("unbroken")
    trainer = small_trainer(tiny_llama, folder, some_pairs(24), some_pairs(30)[24:])
    log = train(trainer, csv=folder / "log.csv")
    return weights(trainer, folder / "adapter"), log, trainer.evaluate()["eval_loss"]


# --- the training file


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gradient_acumulation_steps: 4", "unknown key 'gradient_acumulation_steps'"),
        ("warmup_ratio: 0.1", "unknown key 'warmup_ratio'"),  # gone from the installed TRL
        ("learning_rate: 1.0e-4", "learning_rate is set by a parameter of the notebook"),
        ("output_dir: here", "output_dir is set by"),
        ("trust_remote_code: true", "trust_remote_code is set by"),
        ("save_minutes: -1", "save_minutes is -1: Input should be greater than or equal to 0"),
        ("save_minutes: .inf", "is no finite number"),
        ("save_minutes: true", "save_minutes is True: Input should be a valid number"),
        ("save_minutes: often", "save_minutes is 'often': Input should be a valid number"),
        ("loss_type: ipo", r"loss_type is \['ipo'\], expected sigmoid, sigmoid_norm or \[sigmoid, sft\]"),
        ("loss_type: [sigmoid, sft]", "needs loss_weights with 2 numbers"),
        ("loss_type: [sigmoid, sft]\nloss_weights: [1.0]", "needs loss_weights with 2 numbers"),
        ("loss_type: [sigmoid, sft]\nloss_weights: 1", "loss_weights is 1: Input should be a valid list"),
        ("loss_type: [[sigmoid]]", r"loss_type is \[\['sigmoid'\]\]: Input should be"),
        ("- max_length", "expected 'name: value' lines"),
    ],
)
def test_a_fault_in_the_training_file_is_named(text, sentence, tmp_path):
    (tmp_path / "training.yaml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_options(str(tmp_path / "training.yaml"))


def test_a_training_file_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"there is no file 'no/training.yaml'"):
        read_options("no/training.yaml")


def test_a_training_file_overrides_the_defaults_it_names_and_no_others(tmp_path):
    (tmp_path / "training.yaml").write_text("loss_type: sigmoid_norm\nlora_r: 4\nmax_grad_norm: 0.5")
    options = read_options(str(tmp_path / "training.yaml"))
    changed = {name for name, value in options.items() if value != read_options("").get(name)}
    assert changed == {"loss_type", "lora_r", "max_grad_norm"}
    assert options["loss_type"] == ["sigmoid_norm"]


# --- pairs


def test_a_prompt_stands_on_one_side_of_the_split_only():
    rows = [pair(f"Prompt {i % 10}", f"Answer {i}") for i in range(30)]
    training, held_out = split(rows, held_out=0.2, seed=0)
    assert (len(training), len(held_out)) == (24, 6)
    assert not {p["prompt_id"] for p in training} & {p["prompt_id"] for p in held_out}
    ids = {p["prompt_id"] for p in held_out}
    assert {p["prompt_id"] for p in split(rows[::-1], held_out=0.2, seed=0)[1]} == ids  # whatever the order
    assert any({p["prompt_id"] for p in split(rows, held_out=0.2, seed=s)[1]} != ids for s in (1, 2, 3))


def test_a_small_share_still_holds_out_one_prompt_and_a_single_prompt_none():
    assert [len(side) for side in split(some_pairs(5), held_out=0.01, seed=0)] == [4, 1]
    assert [len(side) for side in split([pair(), pair(chosen="Po.")], held_out=0.5, seed=0)] == [2, 0]


def test_fewer_pairs_than_one_batch_are_refused(tiny_llama, tmp_path):
    with pytest.raises(InputError, match=r"3 training pairs are fewer than one batch of 4; lower"):
        small_trainer(tiny_llama, tmp_path, some_pairs(3), options={"gradient_accumulation_steps": 2})


# --- the loss


def test_dpo_trainer_takes_pairs_as_they_come_and_starts_at_log_2(tiny_qwen, tmp_path):
    rows = [pair(), pair("Perché?", "Perché sì.", "No.", chat_template_kwargs={"enable_thinking": False})]
    trainer = DPOTrainer(
        model=str(tiny_qwen),
        args=DPOConfig(str(tmp_path), use_cpu=True, bf16=False, max_steps=1, logging_steps=1, report_to="none"),
        train_dataset=dataset(rows, PAIRS),
        processing_class=models.load_tokenizer(str(tiny_qwen)),
    )
    trainer.train()
    assert len(trainer.train_dataset) == 2
    assert trainer.state.log_history[0]["loss"] == pytest.approx(LOG2, abs=1e-4)


LOSSES = {
    "sigmoid": {"loss_type": ["sigmoid"]},
    "sigmoid_norm": {"loss_type": ["sigmoid_norm"]},
    "sigmoid+sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
}


def log_probabilities(model, tokenizer, row, side) -> torch.Tensor:
    """Of every token of an answer, the closing ones included; shape (tokens,), float64."""
    start = len(models.render(tokenizer, row["prompt"], {}))
    ids = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=True, return_dict=False)
    logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None])[:, 0]


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_starts_at_log_2_falls_and_is_the_formulas(name, tiny_llama, tmp_path):
    beta, rows, held_out = 0.3, some_pairs(16), [pair("Held out.", "The sea carries sand.", "Bread, salt and flour")]
    options = LOSSES[name] | {"logging_steps": 1, "per_device_eval_batch_size": 1, "lr_scheduler_type": "constant"}
    trainer = small_trainer(tiny_llama, tmp_path, rows, held_out, options=options, beta=beta, epochs=2.0)
    log = train(trainer, csv=tmp_path / "log.csv")
    if name != "sigmoid+sft":  # its first loss also holds the likelihood of the chosen answers
        assert log.loss[0] == pytest.approx(LOG2, abs=1e-4)
    assert log.loss.iloc[-3:].mean() < log.loss.iloc[:3].mean() - 0.05

    tokenizer, model = models.load_tokenizer(str(tiny_llama)), trainer.model.eval()
    with torch.no_grad():
        policy = {side: log_probabilities(model, tokenizer, held_out[0], side) for side in ("chosen", "rejected")}
        with model.disable_adapter():
            base = {side: log_probabilities(model, tokenizer, held_out[0], side) for side in ("chosen", "rejected")}
    ratio = {side: policy[side] - base[side] for side in policy}
    gain = {side: r.mean() if name == "sigmoid_norm" else r.sum() for side, r in ratio.items()}
    expected = -torch.nn.functional.logsigmoid(beta * (gain["chosen"] - gain["rejected"]))
    if name == "sigmoid+sft":
        expected -= 0.5 * policy["chosen"].mean()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected.item(), abs=1e-4)
    assert abs(expected.item() - LOG2) > 0.01
    assert metrics["eval_logps/chosen"] == pytest.approx(policy["chosen"].sum().item(), abs=1e-3)


# --- log and result


def test_the_log_has_one_row_per_step_in_csv(unbroken, tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(8), some_pairs(10)[8:], options={"eval_steps": 2})
    log = train(trainer, csv=tmp_path / "log.csv")
    written = pd.read_csv(tmp_path / "log.csv")
    assert list(written.step) == list(log.step) == [1, 2, 3, 4]
    assert {"loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"} <= set(written)
    assert list(written.eval_loss.notna()) == [False, True, False, True]
    assert not [c for c in written if "runtime" in c or "per_second" in c]  # two runs give the same file
    assert list(unbroken[1].step) == list(range(1, 13))


def test_training_goes_without_held_out_pairs(tiny_llama, tmp_path):
    log = train(small_trainer(tiny_llama, tmp_path, some_pairs(4), []), csv=tmp_path / "log.csv")
    assert list(log.step) == [1, 2]


def test_what_lies_where_an_adapter_is_saved_is_kept_and_is_no_part_of_it(tiny_llama, tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "notes.txt").write_text("mine")
    folder = save(small_trainer(tiny_llama, tmp_path, some_pairs(4)), tmp_path / "result")
    assert (folder / "notes.txt").read_text() == "mine"
    assert "adapter_model.safetensors" in owned.listed(folder)
    assert "notes.txt" not in owned.listed(folder)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_what_is_saved_is_safetensors_and_can_be_sampled(tuning, tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(4), tuning=tuning)
    train(trainer, csv=tmp_path / "log.csv")
    folder = save(trainer, tmp_path / "result")
    names = {p.name for p in folder.rglob("*") if p.is_file()}
    assert ("adapter_model.safetensors" if tuning == "lora" else "model.safetensors") in names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle"))]
    if tuning == "lora":
        models.load_adapter(models.load_model(str(tiny_llama), CPU), str(folder))
    else:
        models.load_model(str(folder), CPU)
    models.load_tokenizer(str(folder))


def test_checkpoints_stand_under_a_name_that_changes_with_data_and_settings(tiny_llama, tmp_path):
    rows = some_pairs(8)
    variants = [
        small_trainer(tiny_llama, tmp_path, rows),
        small_trainer(tiny_llama, tmp_path, rows[:-1]),
        small_trainer(tiny_llama, tmp_path, rows, beta=0.2),
        small_trainer(tiny_llama, tmp_path, rows, options={"lora_r": 4}),
    ]
    assert len({t.args.output_dir for t in variants}) == 4
    for options in ({}, {"save_minutes": 5, "stop_on_warning": True}):  # these change no weight
        assert small_trainer(tiny_llama, tmp_path, rows, options=options).args.output_dir == variants[0].args.output_dir


# --- interruptions


def test_the_newest_checkpoint_that_was_written_whole_counts(tmp_path):
    for step, state in {6: "{}", 20: "{}", 100: '{"half', 101: None}.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_complete(tmp_path).name == "checkpoint-20"
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-6", "checkpoint-20"}
    assert last_complete(tmp_path / "nothing") is None


class DiesAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            die()


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def tear(write, step):
    """Make a writer die when its file in this step's checkpoint is half written."""

    def torn(data, path, *args, **kwargs):
        write(data, path, *args, **kwargs)
        if Path(path).parent.name == f"checkpoint-{step}":
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

    return torn


def tear_named(name, step):
    """torch.save writes several files of a checkpoint; only this one is torn."""
    write, torn = torch.save, tear(torch.save, step)
    torch.save = lambda data, path, *args, **kw: (torn if Path(path).name == name else write)(data, path, *args, **kw)


def tear_deletion(step):
    """Leave of the checkpoint before just what says that it is whole."""

    def delete(path, **_):
        if Path(path).name != f"checkpoint-{step - 2}":
            return shutil.rmtree(path)
        for file in Path(path).iterdir():
            if file.name != "trainer_state.json":
                file.unlink()
        die()

    transformers.trainer_utils.shutil = types.SimpleNamespace(rmtree=delete)


def tear_adapter(step):
    peft.peft_model.safe_save_file = tear(peft.peft_model.safe_save_file, step)


def tear_state(step):
    TrainerState.save_to_json = tear(TrainerState.save_to_json, step)


POINTS = {
    "adapter": tear_adapter,
    "optimizer": lambda step: tear_named("optimizer.pt", step),
    "scheduler": lambda step: tear_named("scheduler.pt", step),
    "random state": lambda step: tear_named("rng_state.pth", step),
    "trainer state": tear_state,
    "deletion": tear_deletion,
}


def train_and_die(model, folder, step, point, options):
    """Train until killed at the end of a step, or at a point of writing its checkpoint."""
    trainer = small_trainer(model, folder, some_pairs(24), options=options)
    if point:
        POINTS[point](step)
    else:
        trainer.add_callback(DiesAt(step))
    train(trainer, csv=folder / "log.csv")


@pytest.fixture(scope="module")
def killed():
    """Train in a process of its own, which is killed as `train_and_die` says."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["nbutils.training.loop"]
    )  # what takes long is imported once for all that are killed

    def run(model, folder, step, point="", options=None):
        process = context.Process(target=train_and_die, args=(model, folder, step, point, options))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL

    return run


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [0])
def test_after_three_kills_training_ends_with_the_weights_of_an_unbroken_run(
    seed, unbroken, killed, tiny_llama, tmp_path
):
    steps = sorted(random.Random(seed).sample(range(1, 12), 3))
    print("killed at steps", steps)
    for step in steps:
        killed(tiny_llama, tmp_path, step)
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(24), some_pairs(30)[24:])
    # the checkpoint of the very step is not written yet when its end is announced
    assert last_complete(Path(trainer.args.output_dir)).name == f"checkpoint-{(steps[-1] - 1) // 2 * 2}"
    log = train(trainer, csv=tmp_path / "log.csv")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(unbroken[2], abs=1e-3)
    assert same(weights(trainer, tmp_path / "adapter"), unbroken[0])
    assert list(log.step) == list(range(1, 13))
    pd.testing.assert_series_equal(log.loss, unbroken[1].loss)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_while_a_checkpoint_is_written_or_deleted_leaves_a_whole_one(
    point, unbroken, killed, tiny_llama, tmp_path
):
    only_one = {"save_total_limit": 1}  # the hardest: the one before is deleted as soon as the new one is whole
    killed(tiny_llama, tmp_path, 6, point, only_one)
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(24), options=only_one)
    folder = Path(trainer.args.output_dir)
    assert {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    assert last_complete(folder).name == ("checkpoint-6" if point == "deletion" else "checkpoint-4")
    if point == "deletion":  # what was left of the older one must not be taken for whole after the next kill
        killed(tiny_llama, tmp_path, 8, "optimizer", only_one)
        assert last_complete(folder).name == "checkpoint-6"
    train(trainer, csv=tmp_path / "log.csv")
    assert same(weights(trainer, tmp_path / "adapter"), unbroken[0])
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-12"]


class Clock(TrainerCallback):
    """A step takes a minute."""

    now = 0.0

    def __init__(self):
        self.saved = []

    def monotonic(self):
        return self.now

    def on_step_begin(self, *_, **__):
        self.now += 60

    def on_save(self, args, state, control, **_):
        self.saved.append(state.global_step)


@pytest.mark.parametrize(
    ("minutes", "steps"), [(3, [3, 4, 7, 8, 11, 12]), (2.5, [3, 4, 7, 8, 11, 12]), (0, [4, 8, 12]), (20, [4, 8, 12])]
)
def test_checkpoints_are_written_by_steps_and_when_the_last_is_some_minutes_old(
    minutes, steps, tiny_llama, tmp_path, monkeypatch
):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(24), options={"save_steps": 4})
    clock = Clock()
    trainer.add_callback(clock)
    monkeypatch.setattr(loop, "time", clock)
    train(trainer, csv=tmp_path / "log.csv", save_minutes=minutes)
    assert clock.saved == steps


def test_a_finished_training_has_a_checkpoint_whatever_the_file_says(tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(4), options={"save_strategy": "no"})
    train(trainer, csv=tmp_path / "log.csv")
    assert last_complete(Path(trainer.args.output_dir)).name == "checkpoint-2"


def test_two_trainings_do_not_share_a_folder(tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(4))
    with (Path(trainer.args.output_dir) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is training in"):
            train(trainer, csv=tmp_path / "log.csv")
    assert len(train(trainer, csv=tmp_path / "log.csv")) == 2


@pytest.mark.parametrize("make", [Path.write_text, Path.symlink_to])
def test_the_lock_of_a_training_empties_no_file_and_follows_no_link(tmp_path, make):
    (tmp_path / "thesis.tex").write_text("years")
    make(tmp_path / "lock", str(tmp_path / "thesis.tex"))
    if make is Path.symlink_to:
        with pytest.raises(InputError, match=r"cannot lock .* see what .*lock is"), only_one(tmp_path):
            pass
    else:
        with only_one(tmp_path):
            pass
    assert (tmp_path / "thesis.tex").read_text() == "years"
    assert (tmp_path / "lock").read_text() in ("years", str(tmp_path / "thesis.tex"))


def test_an_adapter_has_one_hash_whatever_order_a_process_has_for_its_modules(tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(4))
    folders = []
    for order in (["q_proj", "v_proj"], ["v_proj", "q_proj"]):
        trainer.model.peft_config["default"].target_modules = order
        folders.append(loop.save(trainer, tmp_path / order[0]))
    assert models.weights_digest(str(folders[0])) == models.weights_digest(str(folders[1]))
    assert json.loads((folders[1] / "adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]


def test_an_adapter_names_its_base_as_others_find_it_and_at_its_commit(tiny_llama, tmp_path):
    published(tiny_llama, "me/base", "5" * 40)
    trainer = small_trainer("me/base", tmp_path, some_pairs(4))
    config = json.loads((loop.save(trainer, tmp_path / "adapter") / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/base", "5" * 40)
    assert str(tmp_path) not in json.dumps(config)


def test_a_checkpoint_torn_while_being_written_is_passed_over(unbroken, tiny_llama, tmp_path, monkeypatch, caplog):
    write = TrainerState.save_to_json

    def full_disk(state, path):
        if state.global_step == 4:
            Path(path).write_text('{"global_st')
            raise OSError(28, "No space left on device")
        write(state, path)

    monkeypatch.setattr(TrainerState, "save_to_json", full_disk)
    with pytest.raises(InputError, match=r"cannot write to .*No space left on device\); make room there"):
        train(small_trainer(tiny_llama, tmp_path, some_pairs(24)), csv=tmp_path / "log.csv")
    monkeypatch.undo()
    caplog.set_level("INFO", logger="nbutils")
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(24))
    train(trainer, csv=tmp_path / "log.csv")
    assert "removing checkpoint-4" in caplog.text
    assert "resuming from checkpoint-2" in caplog.text
    assert same(weights(trainer, tmp_path / "adapter"), unbroken[0])


@pytest.mark.parametrize("rebuilt", [True, False], ids=["new kernel", "same kernel"])
def test_the_time_budget_stops_with_a_checkpoint_and_the_next_call_goes_on(rebuilt, unbroken, tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(24))
    with pytest.raises(Interrupted, match="at step 1 of 12"):
        train(trainer, csv=tmp_path / "log.csv", deadline=1.0)
    assert last_complete(Path(trainer.args.output_dir)).name == "checkpoint-1"
    if rebuilt:
        trainer = small_trainer(tiny_llama, tmp_path, some_pairs(24))
    log = train(trainer, csv=tmp_path / "log.csv")
    assert list(log.step) == list(range(1, 13))
    assert same(weights(trainer, tmp_path / "adapter"), unbroken[0])


def test_an_earlier_sessions_training_goes_on_from_its_mounted_output(
    unbroken, tiny_llama, tmp_path, inputs, with_key, caplog
):
    first = small_trainer(tiny_llama, tmp_path / "one", some_pairs(24))
    with pytest.raises(Interrupted, match="at step 1 of 12"):
        train(first, csv=tmp_path / "log.csv", deadline=1.0)
    shutil.copytree(tmp_path / "one", inputs / "notebooks" / "me" / "dpo" / "runs")
    # a stranger's, further on: its state would be loaded
    strange = shutil.copytree(tmp_path / "one", inputs / "stranger" / "runs")
    furthest = next(strange.rglob("checkpoint-1"))
    furthest.rename(furthest.with_name("checkpoint-5"))
    for shard in strange.rglob("reference/*.json"):
        shard.write_text(re.sub(r"-\d+\.", "-9.", shard.read_text()))
    folder = next((inputs / "notebooks").rglob("checkpoint-1")).parent
    (folder / "checkpoint-9").mkdir()  # torn: it has no state yet
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    caplog.set_level("INFO", logger="nbutils")
    trainer = small_trainer(tiny_llama, tmp_path / "two", some_pairs(24))
    assert "reference log-probabilities: 24 train pairs, 0 to compute" in caplog.text
    log = train(trainer, csv=tmp_path / "log.csv")
    assert "resuming from checkpoint-1" in caplog.text
    assert list(log.step) == list(range(1, 13))
    assert same(weights(trainer, tmp_path / "adapter"), unbroken[0])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    # this folder is further on now: nothing is copied again
    checkpoints = sorted(Path(trainer.args.output_dir).glob("checkpoint-*"))
    take_checkpoints(Path(trainer.args.output_dir))
    assert sorted(Path(trainer.args.output_dir).glob("checkpoint-*")) == checkpoints
    # another training finds nothing of its own there
    other = small_trainer(tiny_llama, tmp_path / "three", some_pairs(24), beta=0.3)
    assert last_complete(Path(other.args.output_dir)) is None


def test_a_finished_training_is_not_repeated(tiny_llama, tmp_path):
    first = train(small_trainer(tiny_llama, tmp_path, some_pairs(4)), csv=tmp_path / "log.csv")
    again = train(small_trainer(tiny_llama, tmp_path, some_pairs(4)), csv=tmp_path / "again.csv", deadline=1.0)
    pd.testing.assert_series_equal(again.loss, first.loss)


@pytest.mark.parametrize("ends", [{"epochs": 1.5}, {"options": {"max_steps": 3}}], ids=str)
def test_a_training_that_ended_in_the_middle_of_a_pass_is_not_gone_on_with(ends, tiny_llama, tmp_path):
    first, again = (small_trainer(tiny_llama, tmp_path, some_pairs(8), **ends) for _ in range(2))
    log = train(first, csv=tmp_path / "log.csv")
    taken = train(again, csv=tmp_path / "again.csv")
    pd.testing.assert_frame_equal(taken, log, check_like=True)  # its columns come in the order of the alphabet
    assert same(weights(again, tmp_path / "again"), weights(first, tmp_path / "first"))
    assert list(pd.read_csv(tmp_path / "again.csv").loss) == list(pd.read_csv(tmp_path / "log.csv").loss)


def test_another_way_to_divide_a_step_goes_on_from_the_same_checkpoints(tiny_llama, tmp_path):
    one, other = (
        small_trainer(tiny_llama, tmp_path, some_pairs(8), options=options)
        for options in (
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "gradient_checkpointing": False},
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 1},
        )
    )
    assert one.args.output_dir == other.args.output_dir
    with pytest.raises(Interrupted):
        train(one, csv=tmp_path / "log.csv", deadline=1.0)
    assert list(train(other, csv=tmp_path / "log.csv").step) == [1, 2]


def test_another_chat_template_is_another_training(tiny_llama, tmp_path):
    folders = {
        small_trainer(tiny_llama, tmp_path, templated(some_pairs(4), template)).args.output_dir
        for template in ({}, {"enable_thinking": False}, {"enable_thinking": True})
    }
    assert len(folders) == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max_length: null", "max_length is None: Input should be a valid integer"),
        ("lora_dropout: 0.1", "lora_dropout 0.1 has no effect .*; add disable_dropout: false"),
    ],
)
def test_a_training_file_that_cannot_be_meant_so_is_refused(text, sentence, tmp_path):
    (tmp_path / "training.yaml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_options(str(tmp_path / "training.yaml"))


def test_a_tiny_step_with_the_defaults_works(tiny_llama, tmp_path):
    trainer = build_trainer(
        dpo_params(tiny_llama),
        read_options(""),
        some_pairs(32),
        some_pairs(34)[32:],
        device=CPU,
        cache=tmp_path,
        scratch=tmp_path,
    )
    log = train(trainer, csv=tmp_path / "log.csv")
    assert list(log.step) == [1, 2]
    assert log.loss[0] == pytest.approx(LOG2, abs=1e-4)


def test_leaving_prompts_out_of_the_head_on_a_cpu_changes_no_number(tiny_llama, tmp_path):
    logs = []
    for name, run in (("ours", lambda t: train(t, csv=tmp_path / "log.csv")), ("plain", lambda t: t.train())):
        trainer = small_trainer(tiny_llama, tmp_path / name, some_pairs(6))
        run(trainer)
        logs.append(table(trainer.state.log_history)[["loss", "logps/chosen", "logps/rejected", "rewards/margins"]])
    pd.testing.assert_frame_equal(*logs, rtol=1e-4, atol=1e-5)


NO_CHECKPOINTS = ["checkpoint-thesis", "checkpoint-", "checkpoint-1-mine", "checkpoint-v2", "checkpoint--3"]


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_a_folder_that_is_only_named_like_a_checkpoint_stays(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-9").mkdir()
    assert loop.last_complete(tmp_path) is None
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "notes.txt").read_text() == "mine"
