"""Which models are relatives: judges favour answers of their own family, the more the nearer (arXiv 2502.01534)."""

import re

# Series of models, as they stand in names: with what a name holds of another one it was made from.
SERIES = {
    "qwen": r"qwen|qwq|qvq",
    "llama": r"llama|vicuna|alpaca",
    "gemma": r"gemma",
    "gemini": r"gemini",
    "gpt": r"\bgpt|chatgpt|\bo[134]\b",
    "claude": r"claude",
    "mistral": r"mistral|mixtral|ministral|magistral|codestral|zephyr",
    "phi": r"\bphi(?=[\W\d])",
    "deepseek": r"deepseek",
    "smollm": r"smollm",
    "olmo": r"olmo",
    "glm": r"\b(?:chat)?glm",
    "granite": r"granite",
    "falcon": r"falcon",
    "command": r"\bcommand\b|\baya\b|c4ai",
    "nemotron": r"nemotron",
    "exaone": r"exaone",
    "minimax": r"minimax",
    "kimi": r"kimi",
    "grok": r"grok",
    "minerva": r"minerva",
    "eurollm": r"eurollm",
    "velvet": r"velvet",
    "nesso": r"nesso",
}


def families(model: str) -> frozenset[str]:
    """Return the families that a model's name tells of; a distilled one has two, an unknown one none.

    >>> sorted(families("DeepSeek-R1-Distill-Qwen-7B")), families("openai/gpt-oss-120b"), families("me/ours")
    (['deepseek', 'qwen'], frozenset({'gpt'}), frozenset())
    """
    # what was said of an adapter does not count; `_` is a letter to \b
    name = model.partition(" with ")[0].lower().replace("_", "-")
    return frozenset(family for family, pattern in SERIES.items() if re.search(pattern, name))
