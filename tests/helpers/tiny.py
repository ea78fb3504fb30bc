"""Tiny random chat models with a real tokenizer, made in a second without a download.

    folder = tiny.make(tmp_path / "tiny", "llama")     # or "qwen3", "gemma2"; the same seed gives the same weights

Their answers are made-up words of the sentences below. An answer ends after about a dozen tokens, as a trained model's
would, so samples differ in length and few are cut off. In another process: `python tests/tiny.py FOLDER qwen3`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

SENTENCES = (
    "The river runs from the mountains to the sea and carries sand, leaves and small stones.",
    "A good answer names the topic, keeps to the question and ends when everything is said.",
    "Bread needs flour, water, salt and time; the oven does the rest in half an hour.",
    "Il fiume scende dalle montagne verso il mare e porta sabbia, foglie e piccole pietre.",
    "Una buona risposta nomina l'argomento, resta sulla domanda e finisce quando ha detto tutto.",
    "Write three sentences about the garden, the train and the winter. Scrivi una frase sul treno.",
    "system user assistant You are a helpful AI assistant named SmolLM, trained by Hugging Face",
)

# SmolLM2's template: it puts a system turn before a conversation that has none.
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3's template without tools: the last assistant turn always carries a think block, the generation prompt carries
# an empty one with enable_thinking=False.
QWEN3_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' and loop.last %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message['content'].lstrip('\n') + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)

# Gemma's template in short: it begins with BOS, calls the assistant "model" and takes no system turn.
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
TEMPLATES = {"llama": SMOLLM2_TEMPLATE, "qwen3": QWEN3_TEMPLATE, "gemma2": GEMMA_TEMPLATE}
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPECIAL = {
    "llama": CHATML,
    "qwen3": CHATML,
    "gemma2": ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
}
NAMED = {
    "llama": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gemma2": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
}

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,  # enough for the whole prompt to matter
}


def make(folder: Path, kind: str = "llama", *, seed: int = 0, **sizes: int) -> Path:
    """Save a random model with its tokenizer and chat template; return the folder.

    Args:
        kind: `llama`, `qwen3` or `gemma2`.
        sizes: in place of those in SIZES.
    """
    tokenizer = make_tokenizer(kind)
    model_class = {"llama": LlamaForCausalLM, "qwen3": Qwen3ForCausalLM, "gemma2": Gemma2ForCausalLM}[kind]
    return _save(folder, model_class, tokenizer, seed, end_of_turn=SPECIAL[kind][-1], **sizes)


def make_reward(folder: Path, kind: str = "llama", *, seed: int = 0, labels: int = 1, **sizes: int) -> Path:
    """Save a random sequence classifier of this kind with its tokenizer; its raw scores are a few units apart.

    Its padding token is its end-of-turn token, as in many a checkpoint, so it occurs inside every conversation.

    Args:
        sizes: in place of those in SIZES.
    """
    tokenizer = make_tokenizer(kind)
    tokenizer.pad_token = tokenizer.eos_token
    model_class = {"llama": LlamaForSequenceClassification, "qwen3": Qwen3ForSequenceClassification}[kind]
    return _save(folder, model_class, tokenizer, seed, num_labels=labels, **sizes)


def _save(
    folder: Path,
    model_class: Any,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    *,
    end_of_turn: str = "",
    **sizes: int,
) -> Path:
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(model_class.config_class(vocab_size=len(tokenizer), **SIZES | sizes, **ends))
        if end_of_turn:
            end = tokenizer.convert_tokens_to_ids(end_of_turn)
            _speak(model, tokenizer, end)
            if end != tokenizer.eos_token_id:  # only the generation config of such a model says that turns end there
                model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def make_tokenizer(kind: str = "llama") -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the sentences: any text can be encoded, common words are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(SPECIAL[kind]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    if kind == "gemma2":  # its tokenizer puts BOS before every text, whether or not the text begins with one
        bos = ("<bos>", tokenizer.token_to_id("<bos>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMED[kind])
    fast.chat_template = TEMPLATES[kind]
    return fast


@torch.no_grad()
def _speak(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, end: int) -> None:
    """Give the model words to say: one hidden unit is always on and carries each token's base rate."""
    words, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    words.normal_()
    words[:, 0] = 4.0
    head.normal_(std=0.4)
    texts = [tokenizer.decode(token) for token in range(len(head))]
    head[:, 0] = torch.tensor([0.0 if t.startswith(" ") and t.isascii() and t[1:].isalpha() else -8.0 for t in texts])
    head[end] = 0.0
    head[end, 0] = 1.2 if model.config.model_type == "gemma2" else 2.6  # Gemma's layers add less to the words


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), *sys.argv[2:]))
