"""settings.py: whatever a training file holds, it is accepted by TRL or one sentence before a weight is loaded."""

import dataclasses
import math
import os

import pytest
import torch
from accelerate.state import PartialState
from dpo import CPU, dpo_params, pair, small_trainer, some_pairs
from trl import DPOConfig

from nbutils.core.errors import InputError, Interrupted, telling
from nbutils.training import loop, memory, settings
from nbutils.training import trainer as building
from nbutils.training.held_out import split
from nbutils.training.settings import DEFAULTS, OURS, RESERVED, UNSAFE, checked

FIELDS = [field.name for field in dataclasses.fields(DPOConfig)]
LORA = [name for name in DEFAULTS if name.startswith("lora_")]
HOSTILE = (
    *(None, True, False, 0, 1, -1, 0.5, -0.5, 2**33, 10**400, math.nan, math.inf, -math.inf),
    *("8", "", "no", "nosuch" * 50, b"x", [], ["x"], [[1]], [None], {}, {"a": 1}, {1: 2}, ("a",), "(a+)+$"),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*FIELDS, *LORA, *sorted(OURS), "nosuch", "hub_tokens"])
def test_any_value_of_any_setting_is_accepted_or_one_sentence_that_names_it(name):
    for value in HOSTILE:
        said = ""
        try:
            assert checked({name: value}).keys() == DEFAULTS.keys() | {name}
        except InputError as error:
            said = str(error)
        assert not said or (name in said and "\n" not in said and len(said) < 1500)


def test_every_setting_that_is_refused_or_ruled_on_is_one_of_trls_or_ours():
    assert set(FIELDS) >= RESERVED | UNSAFE
    assert settings.RULES.keys() <= {*FIELDS, *LORA, *OURS}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"per_device_train_batch_size": "8"}, "per_device_train_batch_size is '8': .* integer; leave out the quotes"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0: .*greater than or equal to 1"),
        ({"per_device_train_batch_size": -1}, "per_device_train_batch_size is -1: .*greater than or equal to 1"),
        ({"per_device_train_batch_size": True}, "per_device_train_batch_size is True: .*valid integer"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size is 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"gradient_accumulation_steps": 2.5}, "gradient_accumulation_steps is 2.5: .*integer"),
        ({"max_length": 0}, "max_length is 0: .*greater than or equal to 2"),
        ({"max_length": 1.0e30}, "max_length is 1e.30"),
        ({"lora_r": 0}, "lora_r is 0: .*greater than or equal to 1"),
        ({"lora_r": "16"}, "lora_r is '16'"),
        ({"lora_alpha": 0}, "lora_alpha is 0: .*greater than 0"),
        ({"lora_dropout": 2, "disable_dropout": False}, "lora_dropout is 2: .*less than 1"),
        ({"lora_dropout": -0.1}, "lora_dropout is -0.1"),
        ({"lora_target_modules": ".*proj"}, "lora_target_modules is '.*proj': expected all-linear, or a list"),
        ({"lora_target_modules": "(a+)+$"}, "lora_target_modules is .*: expected all-linear"),
        ({"lora_target_modules": ["q_proj", "(x|x)*"]}, "lora_target_modules is .*: expected all-linear"),
        ({"lora_target_modules": []}, "lora_target_modules is .*: expected all-linear"),
        ({"lora_target_modules": [1]}, "lora_target_modules is "),
        ({"optim": "adamw"}, "optim is 'adamw': Input should be 'adamw_torch'"),
        ({"optim": "paged_adamw_8bit"}, "reading the training file .*: .*bitsandbytes"),
        ({"optim": "adamw_bnb_8bit"}, "reading the training file .*: .*bitsandbytes"),
        ({"optim": "galore_adamw"}, "reading the training file .*: .*galore"),
        ({"optim_args": "nothing"}, "reading the training file .*: ValueError"),
        ({"logging_steps": 0}, "logging_steps is 0: .*greater than 0"),
        ({"logging_steps": 1.5}, "logging_steps must be an integer if bigger than 1"),
        ({"logging_strategy": "no"}, "logging_strategy is 'no': Input should be 'steps'"),
        ({"save_steps": -5}, "save_steps is -5"),
        ({"save_total_limit": 0}, "save_total_limit is 0"),
        ({"eval_strategy": "sometimes"}, "eval_strategy is 'sometimes'"),
        ({"eval_strategy": False}, "eval_strategy is False: Input should be 'no', .*; put yes and no into quotes"),
        ({"data_seed": 2**32}, "data_seed is 4294967296: .*less than 4294967296"),
        ({"data_seed": -1}, "data_seed is -1"),
        ({"lr_scheduler_type": "cosinus"}, "lr_scheduler_type is 'cosinus': Input should be 'linear'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "reading the training file .*: .*min_lr"),
        ({"lr_scheduler_kwargs": {"wrong": 1}}, "reading the training file .*: TypeError"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no"}, "requires an eval strategy"),
        ({"loss_type": "dpop"}, r"loss_type is \['dpop'\], expected sigmoid"),
        ({"loss_type": {"sigmoid": 1}}, "loss_type is {'sigmoid': 1}"),
        ({"loss_type": []}, r"loss_type is \[\], expected"),
        ({"loss_type": ["sigmoid", "sigmoid"], "loss_weights": [1, 1]}, r"loss_type is \['sigmoid', 'sigmoid'\]"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [0, 0]}, "needs loss_weights with 2 numbers, one above 0"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1, math.nan]}, "loss_weights is .*finite"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"warmup_steps": math.nan}, "warmup_steps is nan: .*finite number"),
        ({"max_grad_norm": -1}, "max_grad_norm is -1"),
        ({"max_grad_norm": math.inf}, "max_grad_norm is inf"),
        ({"weight_decay": "1e-2"}, "weight_decay is '1e-2': .*write 5.0e-7"),
        ({"adam_beta1": 1}, "adam_beta1 is 1: .*less than 1"),
        ({"adam_epsilon": 0}, "adam_epsilon is 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"bf16": True, "fp16": True}, "bf16 is set by"),
        ({"num_train_epochs": 0}, "num_train_epochs is set by"),
        ({"seed": 2**40}, "seed is set by"),
        ({"report_to": "wandb"}, "report_to is set by"),
        ({"push_to_hub": True}, "push_to_hub is set by"),
        ({"hub_model_id": "a/b"}, "hub_model_id is set by"),
        ({"deepspeed": "ds.json"}, "deepspeed is set by"),
        ({"fsdp": "full_shard"}, "fsdp is set by"),
        ({"resume_from_checkpoint": "x"}, "resume_from_checkpoint is set by"),
        ({"disable_tqdm": True}, "disable_tqdm is set by"),
        ({"pad_token": "<new>"}, "pad_token is set by"),
        ({"save_only_model": True}, "save_only_model would leave checkpoints that cannot be gone on from"),
        ({"ignore_data_skip": True}, "ignore_data_skip would leave checkpoints"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers is -1"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers needs workers"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor needs workers"),
        ({"dataset_num_proc": 0}, "dataset_num_proc is 0"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "no"},
            "reading the training file .*: ValueError.*load_best",
        ),
        ({"metric_for_best_model": "accuracy"}, "metric_for_best_model is 'accuracy'"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5: .*less than 0.5"),
        ({"f_divergence_type": "kl"}, "f_divergence_type is 'kl'"),
        ({"ld_alpha": 2}, "ld_alpha is 2"),
        ({"gradient_checkpointing": "yes"}, "gradient_checkpointing is 'yes': .*boolean"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing is 1: .*boolean"),
        ({"gradient_checkpointing_kwargs": {"reentrant": True}}, "gradient_checkpointing_kwargs is "),
        ({"precompute_ref_log_probs": "false"}, "precompute_ref_log_probs is 'false'"),
        ({"lr_scheduler_kwargs": {"num_cycles": "x"}}, "reading the training file .*lr_scheduler_kwargs.*ValueError"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "2"}}, "reading the .*: TypeError"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": -1}}, "reading the .*: ZeroDivision"),
        ({"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}}, "reading .*: ZeroDivision"),
        ({"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": "molto"}}, "reading .*: TypeError"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": "x"}}, "reading .*: Type"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": -5}},
            "with lr_scheduler_kwargs {'lr_end': -5} the learning rate becomes -0.0.* at step 2. of 100; expected",
        ),
        ({"torch_compile_mode": "bar"}, "reading the training file .*: Unrecognized mode=bar, should be one of"),
        ({"torch_compile_backend": "foo"}, "reading the training file .*: Invalid backend: 'foo'"),
        ({"save_strategy": "best"}, "save_strategy best needs a metric to go by; add metric_for_best_model: loss"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_named_with_what_was_expected(given, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        checked(given)
    assert str(caught.value).startswith(("training file: ", "while reading the training file ("))


@pytest.mark.parametrize(
    "given",
    [
        *({"lr_scheduler_type": kind} for kind in ("linear", "constant", "inverse_sqrt", "greedy", "polynomial")),
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 5000}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 0.5, "patience": 2}},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-5, "power": 2.0}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4}},
        {"save_strategy": "best", "metric_for_best_model": "rewards/margins"},
        {"save_strategy": "best", "load_best_model_at_end": True},
        {"torch_compile_backend": "eager"},
        {"torch_compile_mode": "reduce-overhead"},
    ],
    ids=str,
)
def test_what_trl_can_do_is_accepted_and_leaves_nothing_in_the_environment(given):
    before = dict(os.environ)
    assert checked(given) == DEFAULTS | given
    assert dict(os.environ) == before


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(InputError) as caught:
        checked({"lora_r": 0, "logging_steps": "often", "data_seed": -1})
    assert all(name in str(caught.value) for name in ("lora_r is 0", "logging_steps is 'often'", "data_seed is -1"))


def test_what_was_fine_stays_as_it_was_written():
    given = {"warmup_steps": 5, "lora_target_modules": ["q_proj", "v_proj"], "weight_decay": 0, "max_grad_norm": 0.5}
    given |= {"load_best_model_at_end": True, "eval_steps": 0.5, "save_steps": 0.5, "lr_scheduler_type": "constant"}
    options = checked(given | {"loss_type": "sigmoid_norm"})
    assert options == DEFAULTS | given | {"loss_type": ["sigmoid_norm"]}
    assert isinstance(options["warmup_steps"], int)
    assert checked({"lora_target_modules": "q_proj"})["lora_target_modules"] == ["q_proj"]  # not a pattern to peft
    assert checked({}) == DEFAULTS


def test_looking_at_settings_leaves_no_trace(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, state = torch.get_rng_state(), dict(PartialState._shared_state)
    options = checked({"optim": "sgd", "data_seed": 3})
    building.check(dpo_params(tiny_llama), options, str(tiny_llama), 100, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert PartialState._shared_state == state
    assert not list(tmp_path.iterdir())


# --- what only shows beside the pairs and the model


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"warmup_steps": 6}, "warmup_steps is 6 and this training has 5 steps"),
        ({"logging_steps": 100}, "logging_steps is 100 and this training has 5 steps"),
        ({"max_steps": 3, "logging_steps": 4}, "logging_steps is 4 and this training has 3 steps"),
        ({"per_device_train_batch_size": 11}, "10 training pairs are fewer than one batch of 11"),
        ({"load_best_model_at_end": True, "save_steps": 0.25}, "need held-out pairs, and there are none"),
        ({"save_strategy": "best", "metric_for_best_model": "loss"}, "need held-out pairs, and there are none"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "need held-out pairs, and there are none"),
        ({"router_aux_loss_coef": 0.001}, "router_aux_loss_coef is for models with experts, and this has none"),
        ({"lora_target_modules": ["nosuch"]}, "the model has no 'nosuch'; its linear layers are down_proj, gate_proj"),
        ({"lora_target_modules": ["q_proj", "w_pack"]}, "the model has no 'w_pack'"),
        ({"lora_target_modules": ["proj"]}, "the model has no 'proj'"),
        ({"lora_target_modules": ["input_layernorm"]}, "looking for lora_target_modules in .*: ValueError"),
    ],
    ids=str,
)
def test_what_does_not_go_with_pairs_or_model_is_told_before_weights_are_loaded(
    given, sentence, tiny_llama, tmp_path, monkeypatch
):
    monkeypatch.setattr(building.models, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1} | given
    with pytest.raises(InputError, match=sentence):
        building.check(dpo_params(tiny_llama), checked(options), str(tiny_llama), 10, 0)
    with pytest.raises(InputError, match=sentence):
        small_trainer(tiny_llama, tmp_path, some_pairs(10), [], options=checked(options))


@pytest.mark.parametrize(
    ("rate", "kind", "rules", "sentence"),
    [
        (1e-5, "polynomial", {"lr_end": 5e-6}, ""),
        (2e-4, "polynomial", {"lr_end": 1e-4}, ""),
        (1e-5, "polynomial", None, ""),  # ends at 1e-7
        (5e-8, "polynomial", None, "lr_end .1e-07. must be smaller than initial lr .5e-08."),
        (5e-7, "polynomial", {"lr_end": 6e-7}, "lr_end .6e-07. must be smaller than initial lr .5e-07."),
        (1e-5, "cosine_with_min_lr", {"min_lr": 1e-6}, ""),
    ],
)
def test_a_schedule_is_tried_at_the_rate_of_the_notebook_and_not_at_trls(rate, kind, rules, sentence, tiny_llama):
    options = checked({"lr_scheduler_type": kind, "lr_scheduler_kwargs": rules})
    given = dpo_params(tiny_llama, learning_rate=rate)
    if not sentence:
        return building.check(given, options, str(tiny_llama), 100, 10)
    with pytest.raises(InputError, match=f"while trying the training file with learning_rate {rate}: .*{sentence}"):
        building.check(given, options, str(tiny_llama), 100, 10)


def test_what_a_cpu_cannot_do_is_told_before_weights_are_loaded(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(building.models, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(InputError, match="activation_offloading moves tensors off a GPU, and here is none"):
        small_trainer(
            tiny_llama,
            tmp_path,
            some_pairs(10),
            [],
            options=checked(
                {"activation_offloading": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
            ),
        )


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_modules_are_looked_for_where_an_adapter_is_made(tuning, tiny_llama):
    options = checked({"lora_target_modules": ["layers.0.self_attn.q_proj", "lm_head"]} | {"logging_steps": 1})
    building.check(dpo_params(tiny_llama, tuning=tuning), options, str(tiny_llama), 100, 10)


def test_a_failure_of_a_library_says_what_was_being_done_and_hangs_on_the_sentence(tiny_llama, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUDA error: device-side assert\nand more lines")

    monkeypatch.setattr(memory.simulate, "peak", fails)
    with pytest.raises(
        InputError, match=r"while planning a training step of .*: RuntimeError: CUDA error: .*assert; look"
    ):
        memory.plan(str(tiny_llama), tuning="lora", options=DEFAULTS, card=memory.detected(CPU))
    monkeypatch.setattr(building, "Trainer", fails)
    with pytest.raises(InputError, match=r"while building the trainer of .*tiny.*: RuntimeError: CUDA error") as caught:
        small_trainer(tiny_llama, tmp_path, some_pairs(4))
    assert isinstance(caught.value.__cause__, RuntimeError)
    monkeypatch.undo()
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(4))
    trainer.training_step = fails
    with pytest.raises(InputError, match=r"while training: RuntimeError: CUDA error: .* run the same command or cell"):
        loop.train(trainer, csv=tmp_path / "log.csv")


@pytest.mark.parametrize("passes", [InputError("mine"), Interrupted("later"), KeyboardInterrupt(), SystemExit(1)])
def test_sentences_and_interruptions_pass(passes):
    with pytest.raises(type(passes)) as caught, telling("x", "y"):
        raise passes
    assert caught.value is passes


def test_a_training_of_one_prompt_goes_on_without_held_out_pairs(tiny_llama, tmp_path):
    rows = [pair("One prompt.", f"Answer {i}.", "Bread.") for i in range(4)]
    train_pairs, curves = split(rows, seed=0)
    assert curves == []
    log = loop.train(small_trainer(tiny_llama, tmp_path, train_pairs, curves), csv=tmp_path / "log.csv")
    assert list(log.step) == [1, 2]
