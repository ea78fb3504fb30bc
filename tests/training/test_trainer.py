"""trainer.py: number formats on cards that are not here, 4-bit bases, adapters to go on from."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from dpo import CPU, pair, small_trainer, some_pairs
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import DPOConfig, DPOTrainer

from nbutils import models
from nbutils.core.errors import InputError
from nbutils.core.records import PAIRS, dataset
from nbutils.models import load
from nbutils.models.preflight import Device
from nbutils.training import trainer as building
from nbutils.training.checkpoints import last_complete
from nbutils.training.loop import save, train
from nbutils.training.trainer import precision

P100, T4, L4 = (Device("cuda", capability, "a test") for capability in ((6, 0), (7, 5), (8, 9)))
A100, H100 = Device("cuda", (8, 0), "a test"), Device("cuda", (9, 0), "a test")
CPU_BF16 = Device("cpu", (0, 0), "a test", fast_bfloat16=True)
FORMATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
DEVICES = {"cpu": CPU, "cpu-bf16": CPU_BF16, "p100": P100, "t4": T4, "a100": A100, "l4": L4, "h100": H100}

# The format of a frozen base and the autocast over it, by device and model.
TABLE = """
            llama      qwen3      gemma3_text  gemma2
cpu         f32/none   f32/none   f32/none     f32/none
cpu-bf16    bf16/bf16  bf16/bf16  bf16/bf16    bf16/bf16
p100        f16/fp16   f16/fp16   f32/none     f32/none
t4          f16/fp16   f16/fp16   f32/none     f32/none
a100        bf16/bf16  bf16/bf16  bf16/bf16    bf16/bf16
l4          bf16/bf16  bf16/bf16  bf16/bf16    bf16/bf16
h100        bf16/bf16  bf16/bf16  bf16/bf16    bf16/bf16
"""
KINDS, *ROWS = [line.split() for line in TABLE.strip().splitlines()]
CASES = [(row[0], kind, *cell.split("/")) for row in ROWS for kind, cell in zip(KINDS, row[1:], strict=True)]


@pytest.mark.parametrize(("device", "kind", "base", "autocast"), CASES)
def test_base_and_autocast_fit_device_model_and_tuning(device, kind, base, autocast):
    flags = {"fp16": autocast == "fp16", "bf16": autocast == "bf16"}  # both are said, since TRL's own default is bf16
    assert precision(DEVICES[device], kind, "lora") == (FORMATS[base], flags)
    assert precision(DEVICES[device], kind, "full") == (torch.float32, flags)  # trained float16 cannot be unscaled
    if DEVICES[device].name == "cpu":
        with pytest.raises(InputError, match="tuning: qlora needs a GPU"):
            precision(DEVICES[device], kind, "qlora")
    else:
        assert precision(DEVICES[device], kind, "qlora") == (FORMATS[base], flags)


def test_four_bit_training_is_refused_where_bitsandbytes_has_no_kernels():
    with pytest.raises(InputError) as caught:
        precision(Device("cpu", (0, 0), "no GPU is visible to torch"), "llama", "qlora")
    assert str(caught.value) == (
        "tuning: qlora needs a GPU of compute capability 6.0 or higher, this run is on a cpu (no GPU is visible to "
        "torch); choose such a GPU, or set tuning to lora"
    )
    with pytest.raises(InputError, match=r"on a cuda \(a GTX 980\)"):
        precision(Device("cuda", (5, 2), "a GTX 980"), "llama", "qlora")


# --- a base in 4 bits


def test_missing_bitsandbytes_is_told_how_to_install_before_any_weight_is_read(monkeypatch):
    monkeypatch.setattr(load, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(InputError, match="run `pip install -U bitsandbytes` and restart the kernel, or set tuning"):
        models.load_model("no/such-model", T4, torch.float16, four_bit=True)


@pytest.mark.parametrize(
    ("device", "kind", "dtype"),
    [(T4, "qwen3", torch.float16), (T4, "gemma2", torch.float32), (L4, "gemma2", torch.bfloat16)],
)
def test_four_bit_layers_are_nf4_and_compute_in_the_format_of_the_rest(device, kind, dtype, tiny_llama, monkeypatch):
    asked = {}

    def from_pretrained(path, **options):
        asked.update(options)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(load, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    models.load_model(str(tiny_llama), device, precision(device, kind, "qlora")[0], four_bit=True)
    config = asked["quantization_config"]
    assert asked["dtype"] == config.bnb_4bit_compute_dtype == dtype
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)


@pytest.fixture
def in_4_bits(monkeypatch):
    """Build trainers of models that load whole and say that they are in 4 bits, which is all that TRL looks at.

    Without a GPU there are no 4-bit layers to train. Once built they say so no more: transformers would ask
    bitsandbytes for their size.
    """
    load = models.load_model

    def flagged(path, device, dtype=None, *, four_bit=False):
        model = load(path, device, dtype)
        model.is_loaded_in_4bit = four_bit
        return model

    monkeypatch.setattr(models, "load_model", flagged)
    monkeypatch.setattr(building, "precision", lambda *_: (torch.float32, {"fp16": False, "bf16": False}))

    def build(*args, **given):
        trainer = small_trainer(*args, tuning="qlora", **given)
        base = trainer.model.get_base_model()
        assert base.is_loaded_in_4bit
        base.is_loaded_in_4bit = False
        return trainer

    return build


@pytest.fixture(params=["lora", "qlora"])
def build(request):
    """Builds a small trainer, with a base in 4 bits or not."""
    return small_trainer if request.param == "lora" else request.getfixturevalue("in_4_bits")


def trained(trainer) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_trl_still_casts_the_adapter_of_a_quantised_model_to_bfloat16(in_4_bits, tiny_llama, tmp_path):
    """Otherwise this kit need not cast it back."""
    adapted = small_trainer(tiny_llama, tmp_path, some_pairs(2)).model.peft_config["default"]
    trainer = DPOTrainer(
        model=models.load_model(str(tiny_llama), CPU, four_bit=True),
        args=DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=dataset(some_pairs(2), PAIRS),
        processing_class=models.load_tokenizer(str(tiny_llama)),
        peft_config=adapted,
    )
    assert {p.dtype for p in trained(trainer).values()} == {torch.bfloat16}


@pytest.mark.parametrize("go_on", [False, True], ids=["new adapter", "given adapter"])
def test_the_adapter_of_a_quantised_model_is_trained_in_float32_under_a_gradient_scaler(
    go_on, start, in_4_bits, tiny_llama, tmp_path
):
    adapter = str(start) if go_on else ""
    trainer = in_4_bits(tiny_llama, tmp_path, some_pairs(2), adapter=adapter)
    parameters = trained(trainer)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert not [name for name in parameters if "lora_" not in name or ".ref." in name]

    optimizer, scaler = torch.optim.SGD(parameters.values(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    batch = next(iter(trainer.get_train_dataloader()))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    scaler.scale(trainer.compute_loss(trainer.model, batch)).backward()
    # the GPU's kernel that unscales takes these and no bfloat16, the CPU's takes both
    assert {p.grad.dtype for p in parameters.values()} == {torch.float32}
    scaler.step(optimizer)
    assert any(not torch.equal(p, before[name]) for name, p in parameters.items())


# --- going on from an adapter


@pytest.fixture(scope="module")
def start(tiny_llama, tmp_path_factory) -> Path:
    """An adapter of rank 4 on some of the layers, trained for four steps."""
    folder = tmp_path_factory.mktemp("start")
    options = {"lora_r": 4, "lora_target_modules": ["q_proj", "down_proj"]}
    trainer = small_trainer(tiny_llama, folder, some_pairs(8), options=options)
    train(trainer, csv=folder / "log.csv")
    return save(trainer, folder / "adapter")


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def log_probability(model, tokenizer, row, side) -> float:
    """Of an answer, the closing tokens included, in nats."""
    begin = len(models.render(tokenizer, row["prompt"], {}))
    ids = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=True, return_dict=False)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, begin - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[begin:])[:, None]).sum().item()


def test_policy_and_reference_both_start_as_the_given_adapter(build, start, tiny_llama, tmp_path):
    held_out = [pair("Held out.", "The sea carries sand.", "Bread, salt and flour")]
    trainer = build(tiny_llama, tmp_path, some_pairs(12), held_out, adapter=str(start))
    given = weights(start)
    for copy in (".default.", ".ref."):
        parts = {n.replace(copy, "."): p for n, p in trainer.model.named_parameters() if copy in n}
        assert same(parts, given)
    metrics = trainer.evaluate()
    assert metrics["eval_rewards/margins"] == 0.0
    assert metrics["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)

    base, tokenizer = models.load_model(str(tiny_llama), CPU), models.load_tokenizer(str(tiny_llama))
    without = log_probability(base, tokenizer, held_out[0], "chosen")
    adapted = log_probability(models.load_adapter(base, str(start)), tokenizer, held_out[0], "chosen")
    assert metrics["eval_logps/chosen"] == pytest.approx(adapted, abs=1e-3)
    assert abs(adapted - without) > 0.1

    train(trainer, csv=tmp_path / "log.csv")
    frozen = {n.replace(".ref.", "."): p for n, p in trainer.model.named_parameters() if ".ref." in n}
    assert same(frozen, given)
    assert not same(weights(save(trainer, tmp_path / "adapter")), given)


class Breaks(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_an_interrupted_training_from_an_adapter_goes_on_to_the_weights_of_an_unbroken_one(
    build, start, tiny_llama, tmp_path
):
    results, columns = {}, ["step", "loss", "rewards/chosen", "rewards/margins", "logps/rejected"]
    for name in ("unbroken", "broken"):
        folder, rows = tmp_path / name, some_pairs(16)
        trainer = build(tiny_llama, folder, rows, adapter=str(start))
        if name == "broken":
            trainer.add_callback(Breaks())
            with pytest.raises(KeyboardInterrupt):
                train(trainer, csv=tmp_path / "log.csv")
            trainer = build(tiny_llama, folder, rows, adapter=str(start))
            assert last_complete(Path(trainer.args.output_dir)).name == "checkpoint-4"
        log = train(trainer, csv=tmp_path / "log.csv")[columns]
        results[name] = log, weights(save(trainer, folder / "adapter"))
    pd.testing.assert_frame_equal(results["broken"][0], results["unbroken"][0])
    assert same(results["broken"][1], results["unbroken"][1])


def test_what_is_saved_is_one_adapter_of_the_given_shape(start, tiny_llama, tmp_path, caplog):
    caplog.set_level("INFO", logger="nbutils")
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(4), adapter=str(start), options={"lora_r": 64})
    assert f"going on from {start} as it is, rank 4: lora_* options do not apply" in caplog.text
    train(trainer, csv=tmp_path / "log.csv")
    folder = save(trainer, tmp_path / "adapter")
    for place in (folder, Path(trainer.args.output_dir) / "checkpoint-2"):
        assert [p.parent for p in place.rglob("adapter_model.safetensors")] == [place]
        assert not [p for p in place.iterdir() if p.is_dir()]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], sorted(config["target_modules"])) == (4, ["down_proj", "q_proj"])
    assert weights(folder).keys() == weights(start).keys()
    models.check_adapter(str(tiny_llama), str(folder))


def test_an_adapter_of_another_base_or_under_full_tuning_is_refused_before_weights_are_loaded(start, tmp_path):
    base = tiny.make(tmp_path / "wider", hidden_size=48)
    (base / "model.safetensors").unlink()
    with pytest.raises(InputError, match=f"{start} was trained on another base model"):
        small_trainer(base, tmp_path, some_pairs(2), adapter=str(start))
    with pytest.raises(InputError, match=r"trained further with tuning full, .*; set tuning to lora or qlora"):
        small_trainer(base, tmp_path, some_pairs(2), adapter=str(start), tuning="full")


def test_checkpoints_of_another_starting_adapter_are_not_gone_on_from(start, tiny_llama, tmp_path):
    runs = [small_trainer(tiny_llama, tmp_path, some_pairs(4), adapter=a).args.output_dir for a in ("", str(start))]
    other = small_trainer(tiny_llama, tmp_path, some_pairs(4), adapter=str(start))
    train(other, csv=tmp_path / "log.csv")
    moved = save(other, tmp_path / "adapter")
    runs.append(small_trainer(tiny_llama, tmp_path, some_pairs(4), adapter=str(moved)).args.output_dir)
    assert len(set(runs)) == 3
    assert other.args.output_dir == runs[1]


def test_a_model_of_which_no_weight_would_be_trained_is_refused(tiny_llama, tmp_path, monkeypatch):
    build = DPOTrainer.__init__

    def frozen(self, **given):
        build(self, **given)
        self.model.requires_grad_(False)

    monkeypatch.setattr(DPOTrainer, "__init__", frozen)
    with pytest.raises(InputError, match="no weight of this model would be trained"):
        small_trainer(tiny_llama, tmp_path, some_pairs(4))
