"""Which models are relatives: judges favour their own answers (Panickssery 2024) and those of their own family, the
more the nearer (arXiv 2502.01534).
"""

import re
from collections import Counter
from collections.abc import Sequence

from nbutils.core.records import Row
from nbutils.judges.judge import Judge

# Series of models, as they stand in names: with what a name holds of another one it was made from.
SERIES = {
    "qwen": r"qwen|qwq|qvq",
    "llama": r"(?<!o)llama(?!\.cpp)|vicuna|alpaca",
    "gemma": r"gemma",
    "gemini": r"gemini",
    "gpt": r"\bgpt(?!q)|chatgpt|^o[134]\b",
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
    name = bare(model).replace("_", "-")  # which is a letter to \b
    return frozenset(family for family, pattern in SERIES.items() if re.search(pattern, name))


def bare(model: str) -> str:
    """Return a model's bare name: without organisation, adapter (`with ...`) and the router's `:provider`."""
    _, organised, name = model.partition(" with ")[0].rstrip("/").rpartition("/")
    return (name.partition(":")[0] if organised else name).lower()


def own_answers(judge: Judge, rows: Sequence[Row]) -> int:
    """Count the responses that the judge's model wrote itself, by name."""
    name = bare(judge.model)
    return sum(bare(r.get("model", "")) == name for row in rows for r in row["responses"]) if name else 0


def kinship(judge: Judge, rows: Sequence[Row]) -> list[str]:
    """Return a sentence where a judge's model, or one of its family, wrote responses that it judges."""
    if own := own_answers(judge, rows):
        return [f"the judge {judge.model} wrote {own} of the responses itself, and judges prefer their own"]
    kin = families(judge.model)
    related = Counter(name for row in rows for r in row["responses"] for name in kin & families(r.get("model", "")))
    return [
        f"the judge {judge.model} is of the family {family}, like the model of {count} of the responses, and judges "
        "favour relatives; one of another family would say more"
        for family, count in related.most_common(1)
    ]
