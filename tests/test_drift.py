"""Every name the kit passes to another library still exists in the one that is installed."""

import dataclasses
import inspect

import openai
import torch
from dpo import CPU, small_trainer, some_pairs
from servers import ChatServer
from trl import DPOConfig

from nbutils.core.sampling import Sampling
from nbutils.engines.api import ApiEngine
from nbutils.engines.local import TransformersEngine
from nbutils.engines.protocol import Request
from nbutils.training import settings

DPO_FIELDS = {f.name for f in dataclasses.fields(DPOConfig)}


class Recorded(Exception):
    pass


def recorder(calls):
    """Stands for a class or function: notes the keywords of the call, then gives up."""

    def record(*_, **keywords):
        calls.append(keywords)
        raise Recorded

    return record


def test_every_default_is_a_field_of_dpo_config():
    lora = {name for name in settings.DEFAULTS if name.startswith("lora_")}
    assert lora == {"lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"}
    assert set(settings.DEFAULTS) - lora - settings.OURS <= DPO_FIELDS


def test_every_reserved_name_is_one_that_would_otherwise_be_taken():
    assert settings.RESERVED <= DPO_FIELDS
    assert not settings.RESERVED & set(settings.DEFAULTS)


def test_what_build_trainer_passes_is_known_and_arrives(tiny_llama, tmp_path):
    trainer = small_trainer(tiny_llama, tmp_path, some_pairs(2), learning_rate=3e-3, beta=0.2, epochs=2.0, seed=5)
    args = trainer.args
    assert (args.learning_rate, args.beta, args.num_train_epochs, args.seed) == (3e-3, 0.2, 2.0, 5)
    assert (args.fp16, args.bf16, args.use_cpu, args.report_to) == (False, False, True, [])
    assert (args.loss_type, args.warmup_steps, args.lr_scheduler_type) == (["sigmoid"], 0.1, "cosine")
    lora = trainer.model.peft_config["default"]
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (16, 32, 0.0)
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 2 * 7  # A and B of seven projections in two layers; neither embeddings nor head


def test_what_the_server_is_asked_for_is_known_to_the_client():
    known = set(inspect.signature(openai.resources.chat.AsyncCompletions.create).parameters)
    schema = {"type": "json_schema", "json_schema": {}}
    request = Request(({"role": "user", "content": "hi"},), 1, Sampling(0.8, top_k=5), schema, logprobs=True)
    with ChatServer() as server:
        list(ApiEngine(server.url, "m", chat_template_kwargs={"a": 1}).generate([request], seed=0))
    [asked] = server.calls
    beyond = {"top_k", "min_p", "repetition_penalty", "chat_template_kwargs"}
    assert set(asked) - known == beyond, "what vLLM takes beyond OpenAI's names"
    assert {"temperature", "top_p", "max_tokens", "seed", "response_format", "logprobs", "top_logprobs"} <= set(asked)


def test_what_the_engine_gives_a_model_is_known_to_it(tiny_llama, tmp_path):
    engine = TransformersEngine(str(tiny_llama), device=CPU, cache=tmp_path)
    assert {"position_ids", "logits_to_keep"} <= set(engine.takes), "both are left out where a model lacks them"
    assert {"input_ids", "attention_mask", "past_key_values", "use_cache"} <= set(engine.takes)
    read = engine._read(torch.tensor([[5, 6]] * 2), torch.ones(2, 2, dtype=torch.long), None)
    assert read.logits.shape[:2] == (2, 1), "logits of the last place alone"
    read.past_key_values.reorder_cache(torch.tensor([0, 0, 1]))  # a prompt's cache for each of its answers
    again = engine._read(torch.tensor([[7]] * 3), torch.ones(3, 3, dtype=torch.long), read.past_key_values)
    assert again.past_key_values.get_seq_length() == 3
    torch.testing.assert_close(again.logits[0], again.logits[1])
