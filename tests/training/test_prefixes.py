"""prefixes.py: two rows computed as one have the hidden states and gradients of two."""

import pytest
import tiny
import torch
from dpo import small_trainer, some_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
)

from nbutils.training import prefixes

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
TEXT = st.lists(st.integers(1, 31), max_size=6)
PAIR = st.tuples(TEXT, TEXT, TEXT).filter(lambda parts: (parts[0] or parts[1]) and (parts[0] or parts[2]))


def decoder_of(config) -> torch.nn.Module:
    """A small random one, in float64."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().double()


def batch(pairs) -> dict[str, torch.Tensor]:
    """All first texts, then all second ones, padded on the right, as TRL's collator has them."""
    rows = [prompt + first for prompt, first, _ in pairs] + [prompt + second for prompt, _, second in pairs]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def states(model, inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states of the real tokens, and the gradient of the embeddings of a sum over them."""
    model.zero_grad()
    out = model.base_model(**inputs, use_cache=False).last_hidden_state[inputs["attention_mask"].bool()]
    (out * torch.arange(1, 1 + out.shape[1])).sin().sum().backward()
    return out.detach(), model.get_input_embeddings().weight.grad.clone()


def assert_alike(expected, got) -> None:
    """As near as a float32 norm lets them come, on the scale of the largest."""
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other / one.abs().max(), one / one.abs().max(), rtol=1e-5, atol=1e-5)


def seen(model) -> list[torch.Size]:
    """The shapes that the embeddings are asked for from now on."""
    shapes, embed = [], model.get_input_embeddings()
    embed.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    return shapes


# --- the batch


def test_a_pair_is_one_row_and_its_second_answer_counts_on_from_the_prompt():
    # the prompt 5 6 7, answers 8 9 and 4; beside it two texts with nothing in common
    packed = prefixes.pack(**batch([([5, 6, 7], [8, 9], [4]), ([], [2], [3, 1])]))
    assert packed.input_ids[0].tolist() == [5, 6, 7, 8, 9, 4]
    assert packed.position_ids[0].tolist() == [0, 1, 2, 3, 4, 3]
    assert packed.sees[0, 0, 5].tolist() == [True, True, True, False, False, True]
    assert packed.sees[0, 0, 4].tolist() == [True, True, True, True, True, False]
    assert packed.places[0].tolist() == [0, 1, 2, 3, 4]
    assert packed.places[2].tolist()[:4] == [0, 1, 2, 5]
    assert packed.input_ids[1].tolist()[:3] == [2, 3, 1]
    assert packed.position_ids[1].tolist()[:3] == [0, 0, 1]
    assert packed.places[3].tolist()[:2] == [6 + 1, 6 + 2]


@pytest.mark.parametrize(
    "inputs",
    [
        batch([([], [1, 2, 3, 4], [5, 6, 7, 8])]),
        {name: tensor.flip(1) for name, tensor in batch([([1, 2, 3], [4], [5, 6])]).items()},
        {name: tensor[:3] for name, tensor in batch([([1, 2], [3], [4]), ([1, 2], [3], [4])]).items()},
    ],
    ids=["nothing in common", "padded on the left", "an odd number of rows"],
)
def test_what_would_save_nothing_or_is_no_batch_of_pairs_is_left_alone(inputs):
    assert prefixes.pack(**inputs) is None


# --- the decoder


@settings(max_examples=60, deadline=None)
@given(st.lists(PAIR, min_size=1, max_size=4), st.sampled_from(["sdpa", "eager"]))
def test_hidden_states_and_gradients_are_those_of_two_rows(pairs, attention):
    config = Qwen2Config(**SMALL, attn_implementation=attention)
    plain, shared = decoder_of(config), decoder_of(config)
    assert prefixes.share(shared)
    assert_alike(states(plain, batch(pairs)), states(shared, batch(pairs)))


def test_the_prompt_is_computed_once():
    model = decoder_of(LlamaConfig(**SMALL))
    assert prefixes.share(model)
    shapes = seen(model)
    states(model, batch([([5] * 10, [8, 9], [4])]))
    assert shapes == [(1, 13)]


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SMALL, head_dim=8, sliding_window=4),
        MistralConfig(**SMALL, sliding_window=4),
        MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2),
        OPTConfig(vocab_size=32, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
                  max_position_embeddings=64, word_embed_proj_dim=16),
    ],
    ids=["windows", "a window", "a state", "no such arguments"],
)  # fmt: skip
def test_a_decoder_that_looks_otherwise_computes_what_it_did(config):
    plain, model = decoder_of(config), decoder_of(config)
    shared = prefixes.share(model)
    inputs = batch([([5] * 10, [8, 9], [4]), ([7, 3, 1, 2, 6, 4], [8], [9, 9])])
    assert_alike(states(plain, inputs), states(model, inputs))
    if shared:
        assert isinstance(config, OPTConfig)


def test_other_calls_of_the_model_pass_through(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny.make(tmp_path / "tiny", "llama"))
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert prefixes.share(model)
    assert model.generate(ids, max_new_tokens=4, do_sample=False).equal(expected)


def test_our_trainer_computes_every_pairs_prompt_once(tmp_path):
    trainer = small_trainer(tiny.make(tmp_path / "tiny", "llama"), tmp_path, some_pairs(4))
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    shapes = seen(trainer.model)
    trainer.compute_loss(trainer.model, inputs)
    rows, width = inputs["input_ids"].shape
    assert len(shapes) == 1
    assert shapes[0][0] == rows // 2
    assert width < shapes[0][1] < 2 * width
