"""engines/local.py with tiny random models: what batching, adapters and interruptions must not change."""

import math

import pytest
import tiny
import torch
from dpo import CPU
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nbutils.engines import Request, Sampling
from nbutils.engines.local import Draw, TransformersEngine, nucleus
from nbutils.errors import InputError
from nbutils.store import Store, answer

PROMPTS = (
    "Bread",
    "Write three sentences about the garden, the train and the winter.",
    "Scrivi una frase sul treno, perché il fiume è già più in là.",
    "Why?",
    "The oven does the rest in half an hour. " * 12,
    "Il fiume scende dalle montagne verso il mare e porta sabbia.",
)
GREEDY = Sampling(temperature=0.0, max_tokens=40)
DRAWN = Sampling(temperature=0.8, top_p=0.95, max_tokens=12)


def ask(*texts: str, n: int = 1, sampling: Sampling = GREEDY) -> list[Request]:
    return [Request(({"role": "user", "content": text},), n, sampling) for text in texts]


def load(folder, tmp_path, **options) -> TransformersEngine:
    return TransformersEngine(str(folder), device=CPU, cache=tmp_path, **options)


def generate(engine, requests, seed=0):
    replies = dict(engine.generate(requests, seed=seed))
    return [replies[i] for i in range(len(requests))]


@pytest.fixture(scope="module")
def engine(tiny_llama, tmp_path_factory):
    return load(tiny_llama, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    """A LoRA adapter that changes a lot, and the same model with it merged in."""
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    get_peft_model(base, config).save_pretrained(folder / "lora")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), folder / "lora")
    merged.merge_and_unload().save_pretrained(folder / "merged")
    tiny.make_tokenizer("llama").save_pretrained(folder / "merged")
    return folder


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_qwen"])
def test_neither_padding_nor_batch_size_changes_greedy_answers(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    together = generate(load(folder, tmp_path, batch_size=64), ask(*PROMPTS))
    by_two = generate(load(folder, tmp_path, batch_size=2), ask(*PROMPTS))
    alone = generate(load(folder, tmp_path, batch_size=1), ask(*PROMPTS))
    assert together == by_two == alone
    assert len({reply.samples[0].text for reply in together}) > 2  # the prompt does matter


def test_an_answer_is_what_plain_generate_gives_up_to_the_first_stop_token(engine):
    ends = engine.tokenizer.convert_tokens_to_ids("<|im_end|>")
    finished = set()
    for text, reply in zip(PROMPTS, generate(engine, ask(*PROMPTS)), strict=True):
        chat = engine.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = engine.model.generate(**chat, do_sample=False, max_new_tokens=40, eos_token_id=ends)
        new = output[0, chat["input_ids"].shape[1] :].tolist()
        [sample] = reply.samples
        assert sample.n_tokens == reply.completion_tokens == len(new)
        assert sample.finish_reason == ("stop" if new[-1] == ends else "length")
        assert sample.text == engine.tokenizer.decode([token for token in new if token != ends])
        assert reply.prompt_tokens == chat["input_ids"].shape[1]
        finished.add(sample.finish_reason)
    assert finished == {"stop", "length"}  # of both kinds, in one batch


def test_gathering_unfinished_answers_into_new_batches_changes_no_greedy_answer(engine, monkeypatch):
    in_one_go = generate(engine, ask(*PROMPTS, n=2))
    monkeypatch.setattr("nbutils.engines.local.STRETCH", 3)
    assert generate(engine, ask(*PROMPTS, n=2)) == in_one_go
    many = generate(engine, ask(*PROMPTS, n=8, sampling=DRAWN))
    assert {len(reply.samples) for reply in many} == {8}
    assert {s.n_tokens for reply in many for s in reply.samples if s.finish_reason == "length"} == {12}


def test_samples_repeat_with_the_same_seed_and_differ_with_another(engine):
    requests = ask(*PROMPTS, n=4, sampling=DRAWN)
    first, again, other = (generate(engine, requests, seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert len({s.text for s in first[0].samples}) > 1


def test_every_sample_says_for_itself_whether_it_was_cut_off(engine):
    [reply] = generate(engine, ask("Bread", n=40, sampling=DRAWN))
    assert len(reply.samples) == 40
    assert {s.finish_reason for s in reply.samples} == {"stop", "length"}
    assert all(s.n_tokens == 12 for s in reply.samples if s.finish_reason == "length")
    assert all(1 <= s.n_tokens <= 12 for s in reply.samples)
    assert min(s.n_tokens for s in reply.samples) < 6
    assert not any("<|im_end|>" in s.text for s in reply.samples)
    assert reply.completion_tokens == sum(s.n_tokens for s in reply.samples)


def test_requests_with_different_options_can_stand_in_one_call(engine):
    mixed = ask("Bread", "Why?") + ask("Bread", n=3, sampling=DRAWN)
    greedy, why, drawn = generate(engine, mixed)
    assert [greedy, why] == generate(engine, ask("Bread", "Why?"))
    assert len(drawn.samples) == 3


def test_top_p_close_to_zero_is_greedy(engine):
    narrow = Sampling(temperature=1.0, top_p=1e-6, max_tokens=40)
    texts = [[r.samples[0].text for r in generate(engine, ask(*PROMPTS, sampling=s))] for s in (narrow, GREEDY)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("vocabulary", [50, 5000], ids=["small vocabulary", "large vocabulary"])
@pytest.mark.parametrize("spread", [0.1, 1.5, 4.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(0.8, 0.95, 0), (1.5, 0.5, 0), (1.0, 1.0, 0), (0.7, 1.0, 20), (0.7, 0.9, 20), (1.0, 0.7, 2000)],
)
def test_the_distribution_drawn_from_is_the_one_transformers_own_options_give(
    temperature, top_p, top_k, spread, vocabulary
):
    scores = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(0)) * spread
    values, tokens = nucleus(scores, Sampling(temperature, top_p, top_k=top_k))
    ours = torch.full_like(scores, -math.inf).scatter(-1, tokens, values)
    warpers = [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k or vocabulary), TopPLogitsWarper(top_p)]
    theirs = scores
    for warper in warpers:
        theirs = warper(None, theirs)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), rtol=1e-4, atol=1e-6)
    assert ((ours > -math.inf) == (theirs > -math.inf)).all()


def test_tokens_are_drawn_as_often_as_their_probability_says():
    scores = torch.tensor([0.5, 0.25, 0.2, 0.05]).log().expand(20_000, 4)
    torch.manual_seed(0)
    drawn = Draw(Sampling(temperature=1.0, top_p=0.9))(None, scores).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.2, 0.0]) / 0.95, atol=0.01, rtol=0)


def test_the_models_own_generation_defaults_do_not_mix_with_the_options_stated(engine, tiny_llama, tmp_path):
    folder = tiny.make(tmp_path / "model")
    defaults = GenerationConfig(eos_token_id=2, repetition_penalty=5.0, do_sample=True, top_k=1, temperature=0.1)
    defaults.save_pretrained(folder)
    opinionated = load(folder, tmp_path)
    for requests in (ask(*PROMPTS), ask(*PROMPTS, n=2, sampling=DRAWN)):
        assert generate(opinionated, requests) == generate(engine, requests)


def test_a_prompt_over_the_context_is_refused_with_its_beginning(engine):
    requests = ask("Bread", "A very long story", sampling=Sampling(max_tokens=2040))
    with pytest.raises(InputError, match=r"context of 2048 tokens.*leave out the prompt that begins 'Bread'") as caught:
        generate(engine, requests)
    assert "\n" not in str(caught.value)


def test_an_unmerged_adapter_answers_as_the_merged_model_does(engine, adapter, tiny_llama, tmp_path):
    unmerged = load(tiny_llama, tmp_path, adapter=str(adapter / "lora"))
    texts = [r.samples[0].text for r in generate(unmerged, ask(*PROMPTS))]
    assert texts == [r.samples[0].text for r in generate(load(adapter / "merged", tmp_path), ask(*PROMPTS))]
    assert texts != [r.samples[0].text for r in generate(engine, ask(*PROMPTS))]
    assert unmerged.identity != engine.identity


@pytest.mark.parametrize("other", [{"hidden_size": 48}, {"num_hidden_layers": 1}], ids=["wider", "less deep"])
def test_an_adapter_of_another_base_is_refused(other, adapter, tmp_path):
    base = tiny.make(tmp_path / "base", "llama", **other)
    with pytest.raises(InputError, match="trained on another base model"):
        load(base, tmp_path, adapter=str(adapter / "lora"))


def test_a_folder_without_an_adapter_is_refused(tiny_llama, tmp_path):
    with pytest.raises(InputError, match="holds no adapter"):
        load(tiny_llama, tmp_path, adapter=str(tmp_path))


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_by_whole_chunks_and_gives_the_samples_of_an_unbroken_one(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(type(engine), "chunk_size", 4)
    requests = ask(*(f"{i} {text}" for i in range(2) for text in PROMPTS[:5]), n=3, sampling=DRAWN)
    unbroken = answer(Store(tmp_path / "unbroken.sqlite"), engine, requests, seed=7)

    draw, chunks = type(engine).generate, []

    def dies_in_the_second_chunk(self, asked, **options):
        chunks.append(len(asked))
        for count, reply in enumerate(draw(self, asked, **options)):
            if len(chunks) == 2 and count == 2:
                raise Killed
            yield reply

    monkeypatch.setattr(type(engine), "generate", dies_in_the_second_chunk)
    with pytest.raises(Killed):
        answer(Store(tmp_path / "killed.sqlite"), engine, requests, seed=7)
    assert len(Store(tmp_path / "killed.sqlite")) == 4  # a chunk is stored whole or not at all
    resumed = answer(Store(tmp_path / "killed.sqlite"), engine, requests, seed=7)
    assert resumed == unbroken
    assert chunks == [4, 4, 4, 2]  # the first chunk was not drawn again
