"""What a T4 can train: memory plans for models that are not here, from their published sizes; needs no network, no GPU.

python bench/plan.py     a markdown table, simulated, not yet run on a T4
"""

import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import Gemma3TextConfig, PretrainedConfig, Qwen3Config

from nbutils import memory, trainers, training
from nbutils.errors import InputError

LENGTH, EFFECTIVE = 1024, 16
QWEN3 = {
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
MODELS: dict[str, PretrainedConfig] = {
    "Qwen3-0.6B": Qwen3Config(hidden_size=1024, intermediate_size=3072, **QWEN3),
    "Qwen3-1.7B": Qwen3Config(hidden_size=2048, intermediate_size=6144, **QWEN3),
    "gemma-3-1b-it": Gemma3TextConfig(
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=262144,
        sliding_window=512,
        tie_word_embeddings=True,
    ),
}
RUNS = [("Qwen3-0.6B", "lora"), ("Qwen3-0.6B", "full"), ("Qwen3-1.7B", "lora"), ("gemma-3-1b-it", "lora")]


def main() -> None:
    """Print one row per model and tuning."""
    options = training.read_options("") | {"max_length": LENGTH, "per_device_train_batch_size": 2}
    options["gradient_accumulation_steps"] = EFFECTIVE // 2
    card = memory.CARDS["t4"]
    print(f"LoRA and full tuning on a {card.name}, {LENGTH} tokens, effective batch {EFFECTIVE}, MiB; ", end="")
    print("simulated, not yet run on a T4\n")
    columns = [*memory.KINDS, "headroom", "all"]
    print("| model | tuning | weights in | batch | checkpointing |", " | ".join(columns), "|")
    print("|---" * (5 + len(columns)) + "|")
    for name, tuning in RUNS:
        config = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            dtype, _ = trainers.precision(card.device, config.model_type, tuning)
            try:
                plan = memory.fit(str(Path(folder)), tuning=tuning, options=options, card=card)
            except InputError as error:
                print(f"| {name} | {tuning} | {str(error).replace(folder, name)} |")
                continue
        sizes = plan.frame().set_index("part")["MiB"].to_dict()
        batch = f"{plan.batch} x {plan.accumulation}"
        cells = [name, tuning, str(dtype).removeprefix("torch."), batch, "on" if plan.checkpointing else "off"]
        print("|", " | ".join([*cells, *(str(sizes.get(column, "")) for column in columns)]), "|", flush=True)


if __name__ == "__main__":
    main()
