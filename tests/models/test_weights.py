"""weights.py and what models.py does with it: folders of strangers, and the same name with another content."""

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
import torch
from builders import published
from dpo import CPU
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from nbutils import models
from nbutils.core.errors import InputError
from nbutils.models import load as loading
from nbutils.models import weights
from nbutils.models.lora import check_patterns
from nbutils.training.memory import CARDS, plan
from nbutils.training.settings import read_options


@pytest.fixture
def model(tiny_llama, tmp_path):
    """A model folder of one's own to spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    base = models.load_model(str(tiny_llama), CPU)
    get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(trained, tmp_path):
    """An adapter folder of one's own to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "adapter"))


def setting(name, value, file="config.json"):
    """Return what sets a value in a JSON file of a folder."""

    def change(folder):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | {name: value}))

    return change


def written(name, content):
    def change(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def linked(name, to):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return change


def fifo(folder):
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def one_weight_moved(folder):
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


# what changes the identity


@pytest.mark.parametrize(
    "change",
    [
        written("chat_template.jinja", "{{ messages }} anders"),
        written("additional_chat_templates/short.jinja", "{{ messages[-1] }}"),
        written("tokenizer.json", "{}"),
        written("tokenizer.model", "pieces"),
        written("vocab.json", "{}"),
        written("merges.txt", "a b"),
        written("vocab.txt", "a"),
        written("added_tokens.json", "{}"),
        written("special_tokens_map.json", "{}"),
        written("pytorch_model.bin", "a pickle"),
        written("model.gguf", "GGUF"),
        written("spiece.model", "pieces"),
        setting("temperature", 0.1, "generation_config.json"),
        setting("rope_theta", 1000.0),
        setting("clean_up_tokenization_spaces", True, "tokenizer_config.json"),
        one_weight_moved,
    ],
)
def test_whatever_can_change_an_answer_changes_the_identity_of_a_folder(change, model):
    before = models.weights_digest(str(model))
    change(model)
    assert models.weights_digest(str(model)) != before


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE.txt", "training_args.bin", "optimizer.pt", "loss.png", ".git/HEAD"]
)
def test_what_can_change_no_answer_keeps_the_identity(name, model):
    before = models.weights_digest(str(model))
    written(name, "about")(model)
    assert models.weights_digest(str(model)) == before


@pytest.mark.parametrize(
    "change",
    [
        setting("lora_alpha", 64, "adapter_config.json"),
        setting("use_rslora", True, "adapter_config.json"),
        written("adapter_model.bin", "a pickle"),
        written("chat_template.jinja", "{{ messages }}"),
    ],
)
def test_whatever_can_change_an_answer_changes_the_identity_of_an_adapter(change, adapter):
    before = models.weights_digest(str(adapter))
    change(adapter)
    assert models.weights_digest(str(adapter)) != before


# a Hub repository


def test_new_weights_under_an_old_name_are_another_model_and_a_pinned_one_stays(tiny_llama, tmp_path):
    first, second = "a" * 40, "b" * 40
    published(tiny_llama, "me/small", first)
    path = models.resolve("me/small", tmp_path)
    assert (Path(path).name, models.weights_digest(path)) == (first, first)
    published(tiny.make(tmp_path / "other", seed=1), "me/small", second)
    assert models.weights_digest("me/small") == models.weights_digest(models.resolve("me/small", tmp_path)) == second
    assert models.resolve(f"me/small#{first}", tmp_path) == path
    one, other = (models.load_model(models.resolve(f"me/small#{c}", tmp_path), CPU) for c in (first, second))
    assert not torch.equal(one.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_a_tag_is_found_and_an_unknown_one_refused(tiny_llama, tmp_path):
    published(tiny_llama, "me/tagged", "c" * 40, ref="v1")
    assert Path(models.resolve("me/tagged#v1", tmp_path)).name == "c" * 40
    for name in ("me/tagged", "me/tagged#v2", f"me/tagged#{'d' * 40}"):
        with pytest.raises(InputError, match=f"model '{name}' cannot be loaded") as caught:
            models.resolve(name, tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["me/small@v1", "me/small:it", "me/small#v1@train", "me/small#../x", "me/small# v1"])
def test_another_form_of_a_models_name_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"org/name#(revision|v1\.0)"):
        models.resolve(name, tmp_path)


def test_a_folder_that_only_looks_like_the_cache_is_known_by_its_content(tiny_llama, tmp_path):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "models--me--small/snapshots" / ("e" * 40)))
    assert models.weights_digest(str(folder)) == models.weights_digest(str(tiny_llama))


# models of strangers


def deep(n):
    return '{"a":' * n + "1" + "}" * n


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (setting("num_hidden_layers", 10**9), "'num_hidden_layers' is 1000000000"),
        (setting("hidden_size", 2**40), "'hidden_size' is"),
        (setting("intermediate_size", 10**12), "'intermediate_size' is"),
        (setting("vocab_size", 10**10), "'vocab_size' is"),
        (setting("num_attention_heads", 10**6), "'num_attention_heads' is"),
        (setting("num_key_value_heads", -(10**9)), "'num_key_value_heads' is"),
        (setting("num_labels", 10**9), "'num_labels' is"),
        (setting("num_local_experts", 10**8), "'num_local_experts' is"),
        (setting("max_position_embeddings", 10**12), "'max_position_embeddings' is"),
        (setting("text_config", {"n_layer": 10**9}), "'n_layer' is"),
        (setting("anything", 10**30), "'anything' is"),
        (setting("id2label", {str(i): "x" for i in range(60_000)}), "larger or deeper"),
        (written("config.json", b" " * (5 * 2**20)), "has 5 MiB, more than the 4"),
        (written("config.json", deep(100)), "larger or deeper"),
        (written("config.json", deep(200_000)), "nested too deep"),
        (written("config.json", "[]"), "holds a list"),
        (written("config.json", "{"), "is no JSON"),
        (written("config.json", b"\xff\xfe{}"), "is not UTF-8"),
        (written("chat_template.jinja", " " * (2 * 2**20)), "chat_template.jinja has 2 MiB"),
        (written("tokenizer_config.json", " " * (5 * 2**20)), "tokenizer_config.json has 5 MiB"),
        (linked("tokenizer.json", "/etc/passwd"), "is a link to /etc/passwd"),
        (linked("config.json", "/dev/zero"), "is a link to /dev/zero"),
        (linked("merges.txt", "../../secret"), "is a link to"),
        (fifo, "tokenizer.json is no regular file"),
    ],
)
def test_a_models_folder_that_no_model_has_is_refused_before_anything_reads_it(change, said, model, tmp_path):
    change(model)
    started = time.monotonic()
    for load in (lambda: models.resolve(str(model), tmp_path), lambda: models.load_tokenizer(str(model))):
        with pytest.raises(InputError, match=said) as caught:
            load()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "change",
    [
        written("config.json", '{"auto_map": {"AutoConfig": "code.Config"}, "model_type": "made_up"}'),
        written("config.json", '{"auto_map": {"AutoConfig": "a/b--code.C", "AutoModelForCausalLM": "code.M"}}'),
        setting("model_type", "made_up"),
        setting("model_type", ["llama"]),
        setting("hidden_size", "big"),
        setting("num_attention_heads", 0),
        setting("rope_scaling", {"rope_type": "nothing"}),
    ],
)
def test_a_config_of_strange_kinds_runs_no_code_asks_nothing_and_ends_in_one_sentence(change, model, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    written("code.py", f"open({str(model / 'ran')!r}, 'w')")(model)
    change(model)
    with pytest.raises(InputError) as caught:
        models.load_model(str(model), CPU)
    assert "\n" not in str(caught.value)
    assert not (model / "ran").exists()


@pytest.mark.parametrize(
    "code", [{"auto_map": {"AutoTokenizer": ["code.Tok", None]}, "tokenizer_class": "Made"}, {"tokenizer_class": 3}]
)
def test_a_tokenizer_with_code_of_its_own_runs_none_and_asks_nothing(code, model, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    written("code.py", f"open({str(model / 'ran')!r}, 'w')")(model)
    for name, value in code.items():
        setting(name, value, "tokenizer_config.json")(model)
    with suppress(InputError):
        models.load_tokenizer(str(model))
    assert not (model / "ran").exists()


def split(*, index):
    """Return what replaces the one file of weights by an index of others."""

    def change(folder):
        os.rename(folder / "model.safetensors", folder / "part-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def header(length, content=b""):
    return written("model.safetensors", length.to_bytes(8, "little") + content)


def entry(shape=(1,), ends=4, dtype="F32"):
    text = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, ends]}}).encode()
    return header(len(text), text + b"1234")


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (header(2**62), "its header would take"),
        (header(2**63 + 5), "its header would take"),
        (header(10**6, b"{}"), "its header would take"),
        (header(2, b"[]"), "its header cannot be read"),
        (header(5000, b"[" * 5000), "its header cannot be read"),
        (written("model.safetensors", b""), "its header would take"),
        (entry(ends=2**50), "is torn"),
        (entry(shape=(-1,)), "is torn"),
        (entry(shape="big"), "its header cannot be read"),
        (setting("num_hidden_layers", 1500), "do not belong together"),
        (setting("vocab_size", 2**24), "do not belong together"),
        (as_pickle, r"holds no model\.safetensors, only pytorch_model\.bin, which is not loaded"),
        (linked("model.safetensors", "/etc/passwd"), "is a link to /etc/passwd"),
        (split(index={"weight_map": {"w": "../secret.safetensors"}}), "names '../secret.safetensors'"),
        (split(index={"weight_map": {"w": "/etc/passwd"}}), "names '/etc/passwd'"),
        (split(index={"weight_map": {"w": "code.py"}}), "names 'code.py'"),
        (split(index={"weight_map": {"w": "part-2.safetensors"}}), r"holds no part-2\.safetensors"),
        (split(index={"weight_map": {}}), "names no file"),
        (split(index=[1]), "is no index of weights"),
    ],
)
def test_weights_that_cannot_be_loaded_are_refused_before_memory_is_filled(change, said, model, monkeypatch):
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    change(model)
    with pytest.raises(InputError, match=said) as caught:
        models.load_model(str(model), CPU)
    assert "\n" not in str(caught.value)


def test_weights_in_parts_are_loaded(tiny_llama, model):
    tensors = load_file(model / "model.safetensors")
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    for i, half in enumerate(halves):
        save_file(half, model / f"model-{i}.safetensors", {"format": "pt"})
    (model / "model.safetensors").unlink()
    where = {name: f"model-{i}.safetensors" for i, half in enumerate(halves) for name in half}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    loaded, whole = (models.load_model(str(path), CPU).state_dict() for path in (model, tiny_llama))
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        "{% set n = namespace(s='x' * 999999) %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    ],
    ids=["loops", "one long text", "a doubling text"],
)
def test_a_template_that_does_not_end_or_fills_the_memory_is_refused(template, model):
    written("chat_template.jinja", template)(model)
    with pytest.raises(InputError, match=r"its chat template (takes longer than|takes too much memory)"):
        models.load_tokenizer(str(model))


def test_a_memory_plan_reads_a_config_within_the_same_bounds(model):
    setting("num_hidden_layers", 10**9)(model)
    with pytest.raises(InputError, match="'num_hidden_layers' is 1000000000"):
        plan(str(model), tuning="lora", options=read_options(""), card=CARDS["t4"])


# adapters of strangers

SLOW = "(.*.*)*(a+)+$|((x|q_proj|.)*)*z"
EVIL = "((((.*)*)*)*)*[^a-z_.0-9]"
# what matches a part of every name at once, or every name but one, and never comes to an end on the whole of it
PARTLY = r"[a-z0-9_]+|([\w.]+)+!"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer_replication", [[0, 2]] * 1000),
        ("megatron_config", {"a": 1}),
        ("eva_config", {"rho": 2}),
        ("loftq_config", {"loftq_bits": 4}),
        ("corda_config", {"a": 1}),
        ("alora_invocation_tokens", [1]),
        ("use_qalora", True),
        ("arrow_config", {"a": 1}),
        ("something_new", "x"),
        ("r", 10**9),
        ("r", 0),
        ("r", "8"),
        ("r", True),
        ("lora_alpha", "big"),
        ("lora_alpha", 10**12),
        ("lora_dropout", 1.5),
        ("bias", "everything"),
        ("rank_pattern", {f"layer{i}": 4 for i in range(20_000)}),
        ("rank_pattern", {"q_proj": 10**8}),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {EVIL: 4}),
        ("alpha_pattern", {EVIL: 4}),
        ("alpha_pattern", {"q_proj": "x"}),
        ("target_modules", EVIL),
        ("target_modules", "(unclosed"),
        ("target_modules", [f"m{i}" for i in range(5000)]),
        ("target_modules", [{"a": 1}]),
        ("target_modules", 7),
        ("exclude_modules", EVIL),
        ("exclude_modules", [EVIL]),
        ("exclude_modules", PARTLY),
        ("exclude_modules", r"\w*(?<!m)|model\.(?!layers)[\w.]*|((\w|\.)+)+\d!"),
        ("target_modules", PARTLY),
        ("target_modules", r"(?!q_proj)\w+|(\w+\.?)+proj!"),
        ("target_modules", r"(model(\.[\w.]+)?|lm_head)?|(\w+)+!|(?=embed_tokens)((\w|_)+)+!"),
        ("target_modules", "q_proj)|(v_proj"),
        ("rank_pattern", {PARTLY.replace("!", r"\d!"): 4, "(x+x+)+y|(([a-z_.]|\\d)+)+!": 4}),
        ("rank_pattern", {f"layer{i}": 4 for i in range(512)} | {"one_more": 4}),
        ("layers_pattern", EVIL),
        ("layers_pattern", [EVIL]),
        ("layers_pattern", [f"layers{i}" for i in range(100)]),
        ("layers_to_transform", list(range(5000))),
        ("layers_to_transform", "all"),
        ("modules_to_save", ["model"]),
        ("modules_to_save", ["layers"]),
        ("modules_to_save", ["self_attn"]),
        ("modules_to_save", [EVIL]),
        ("modules_to_save", [f"m{i}" for i in range(100)]),
        ("trainable_token_indices", list(range(100_000))),
        ("trainable_token_indices", {"embed_tokens": [10**12]}),
        ("target_parameters", [EVIL]),
        ("peft_type", "ADALORA"),
        ("peft_type", ["LORA"]),
    ],
)
def test_an_adapter_that_asks_for_what_none_needs_is_refused_within_seconds(name, value, adapter, tiny_llama):
    setting(name, value, "adapter_config.json")(adapter)
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        models.check_adapter(str(tiny_llama), str(adapter))
    assert time.monotonic() - started < 15
    assert str(caught.value).startswith(f"adapter: {adapter} ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "change",
    [
        written("adapter_config.json", " " * (2 * 2**20)),
        written("adapter_config.json", deep(500)),
        written("adapter_config.json", deep(200_000)),
        written("adapter_config.json", "[1]"),
        written("adapter_config.json", '{"peft_type": "LORA", "r": 4, "r": 8}'),
        written("adapter_model.safetensors", (2**40).to_bytes(8, "little")),
        linked("adapter_model.safetensors", "/etc/passwd"),
        linked("adapter_config.json", "/dev/zero"),
        lambda folder: os.rename(folder / "adapter_model.safetensors", folder / "adapter_model.bin"),
    ],
)
def test_an_adapters_files_are_looked_at_before_a_library_reads_them(change, adapter, tiny_llama):
    change(adapter)
    with pytest.raises(InputError, match="holds no adapter") as caught:
        models.check_adapter(str(tiny_llama), str(adapter))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_modules", r".*\.(q_proj|v_proj)"),
        ("target_modules", r"(?:.*?layers.*?self_attn.*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.\d+\.(?:q_proj)\b)"),
        ("rank_pattern", {r"^model\.layers\.9\.self_attn\.q_proj": 8}),
        ("base_model_name_or_path", "/somewhere/else"),
        ("base_model_name_or_path", "someone/elses"),
        ("auto_mapping", {"base_model_class": "Made", "parent_library": "os"}),
        ("megatron_core", "os"),
        ("revision", "../x"),
        ("exclude_modules", ["lm_head"]),
        ("exclude_modules", r".*lm_head|.*\.mlp\..*"),
        ("target_modules", r"^(?!.*lm_head).*(?:q|v)_proj$"),
        ("layers_to_transform", [0, 1]),
    ],
)
def test_an_adapter_as_people_save_it_is_taken(name, value, adapter, tiny_llama):
    setting(name, value, "adapter_config.json")(adapter)
    assert models.check_adapter(str(tiny_llama), str(adapter)) == str(adapter)
    tuned = models.load_adapter(models.load_model(str(tiny_llama), CPU), str(adapter))
    assert sum("lora_A" in name for name, _ in tuned.named_parameters()) == 4
    assert tuned.peft_config["default"].base_model_name_or_path == str(tiny_llama)


@pytest.mark.parametrize(
    ("pattern", "modules"),
    [
        (r"(?!.*weight)[\w.]*|([\w.]+)+!", ["", "model.layers.0.mlp", "model.layers.0.mlp.experts"]),
        (r"(?!.*gate_proj)[\w.]*|([\w.]+)+!", ["", "model.layers.0.mlp.experts"]),
        (r"(?!.*w1)[\w.]*|([\w.]+)+!", ["model.layers.0.block_sparse_moe.experts"]),
    ],
)
def test_a_pattern_is_tried_on_names_that_peft_makes_for_a_mixture_of_experts(pattern, modules):
    with pytest.raises(InputError, match="takes longer than 2 seconds"):
        check_patterns([pattern], [], modules)
    check_patterns([pattern], [], ["", "model.layers.0.mlp"])


def test_a_pattern_that_is_slow_nowhere_is_taken_for_a_large_model_and_as_many_ranks():
    modules = [f"model.layers.{i}.{part}" for i in range(126) for part in ("mlp.up_proj", "self_attn.q_proj")]
    ranks = [rf"^model\.layers\.{i}\.self_attn\.q_proj" for i in range(126)]
    check_patterns([r"(?:.*?layers.*?self_attn.*?(?:q_proj|v_proj).*?)"], ranks, modules)


def test_what_an_adapter_says_of_its_base_is_of_use_to_others(tiny_llama):
    published(tiny_llama, "me/based", "f" * 40)
    path = str(weights.folder("me/based"))
    assert weights.portable(path) == ("me/based", "f" * 40)
    assert weights.portable("/somewhere/else") == ("/somewhere/else", None)
    assert (weights.plain("me/based#v1"), weights.plain(f"{tiny_llama}")) == ("me/based", str(tiny_llama))
    assert weights.plain(f"package:a1..3#{'a' * 64}") == "package:a1..3"
