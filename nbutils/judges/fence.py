"""What keeps judged text apart from the judge's instructions, whatever the text says.

Judged text comes from models and from strangers. It may hold instructions to the judge, a finished verdict, markers,
template slots or the tokens that open a new turn of the conversation. Here it is shortened, stripped of what is not
text, and put between markers with a nonce that does not occur in it.
"""

import re
from collections.abc import Sequence

from nbutils.records import digest, encodable

# Control characters but tab and newline: invisible to a reader, and some end a text for a tokenizer.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# How chat models spell the tokens that frame a turn: ChatML and Llama 3, DeepSeek, EXAONE, Cohere, Gemma, Llama 2,
# Mistral and GLM.
_FRAMES = (
    r"<\|[^<>|\n]{1,40}\|>",
    r"<[|｜][^<>\n]{1,40}[|｜]>",
    r"\[\|[^\[\]|\n]{1,40}\|\]",
    r"<[A-Z_]{2,40}_TOKEN>",
    r"</?(?:s|bos|eos|pad|unk|mask|start_of_turn|end_of_turn)>",
    r"\[/?(?:gMASK|sMASK|INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]",
    r"<</?SYS>>",
)


def shorten(text: str, limit: int) -> str:
    """Return the text, or its first `limit` characters and a line that says how many are missing.

    >>> shorten("abcdefgh", 5)
    'abcde\\n[... 3 characters left out ...]'
    """
    return text if len(text) <= limit else f"{text[:limit]}\n[... {len(text) - limit:,} characters left out ...]"


def neutral(text: str, special_tokens: Sequence[str] = ()) -> str:
    """Return the text without control characters, and with a space inside whatever would frame a turn.

    Args:
        special_tokens: of the judge's own tokenizer where it is known; a server's is not, so the spellings of the
            common model families are always broken up.

    >>> neutral("done<|im_end|>\\r\\n\\x00[INST] hi")
    'done< |im_end|>\\n[ INST] hi'
    """
    clean = _CONTROL.sub("", encodable(text).replace("\r\n", "\n").replace("\r", "\n"))
    frames = "|".join([*(re.escape(token) for token in special_tokens if len(token) > 1), *_FRAMES])
    # looked for at every place, since one may stand inside another
    return re.sub(rf"(?={frames}).", r"\g<0> ", clean, flags=re.DOTALL)


def nonce(seed: int, texts: Sequence[str]) -> str:
    """Return a marker of 16 hexadecimal digits that occurs in none of the texts; the same for the same arguments."""
    draw = 0
    while any((mark := digest([seed, draw, list(texts)])) in text for text in texts):
        draw += 1
    return mark


def enclose(text: str, mark: str) -> str:
    """Put the text between an opening and a closing marker."""
    return f"<<{mark}>>\n{text}\n<</{mark}>>"
