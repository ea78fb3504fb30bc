"""What keeps judged text apart from the judge's instructions, whatever the text says.

Judged text comes from models and from strangers. It may hold instructions to the judge, a finished verdict, markers,
template slots or the tokens that open a new turn of the conversation. Here it is shortened, stripped of what is not
text, and put between markers with a nonce that does not occur in it.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

from nbutils.core.records import digest, encodable

# Control characters but tab and newline: invisible to a reader, and some end a text for a tokenizer.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What a reader does not see: zero width, soft hyphen, direction, fillers, variation selectors, tags.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_UNSEEN = re.compile(rf"[{INVISIBLE}]")
# Between letters single ones belong to the text: joiners of Persian and of emoji, the flag of Scotland (group 1). A
# run of five, a tag, and one selector after another spell something that only a machine reads.
_HIDDEN = re.compile(
    "(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f)|[\U000e0000-\U000e007f]"
    rf"|[{INVISIBLE}]{{5,}}|(?<=[\ufe00-\ufe0f\U000e0100-\U000e01ef])[\ufe00-\ufe0f\U000e0100-\U000e01ef]+"
)
# How models frame what they think before they answer: the beginning and the end, as patterns.
_THINKING = r"(?:think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratch_?pad|seed:think|longcat_think)"
THOUGHTS = (
    (rf"<{_THINKING}>", rf"</{_THINKING}>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"\u25c1think\u25b7", r"\u25c1/think\u25b7"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    (r"<\|channel>thought", r"<channel\|>"),
    (r"<unused94>thought", r"<unused95>"),
    (r"<\|channel\|>analysis", r"<\|channel\|>final<\|message\|>"),
    (r"analysis(?=[A-Z])", r"assistantfinal"),
)
# How chat models spell the tokens that frame a turn, a thought or a tool's answer.
_FRAMES = (
    # ChatML and Qwen, Llama 3 and 4, Phi, Granite, GLM, Kimi, gpt-oss, DeepSeek (folded to plain bars); Gemma 4 has
    # one bar only
    r"<\|[^<>|\n]{1,60}\|>",
    r"<\|[\w/\"'][^<>|\n]{0,40}>",
    r"<[\w/\"'][^<>|\n]{0,40}\|>",
    # EXAONE; Cohere; Falcon; MiniMax; Kimi's thoughts
    r"\[\|[^\[\]|\n]{1,40}\|\]",
    r"<[A-Z_]{2,40}_TOKEN>",
    r">>[A-Z_]{3,20}<<",
    r"\]~!?b[\[\]]|\[e~\[",
    r"\u25c1/?\w{1,20}\u25b7",
    # Llama 2, Mistral, T5, BERT, Gemma 1 to 3, MiniMax, GLM, Reka, CodeLlama, Velvet
    r"</?(?:s|bos|eos|pad|unk|mask|cls|sep|sop|eop|eod|eot|instruction|role|escape|PRE|SUF|MID|EOT)>",
    r"</?(?:start|end|begin|beginning|stop)_[a-z_]{2,40}>",
    r"<(?:unused|extra_id_|reserved_?|SPECIAL_|special_|mask:|fim[-_]|file_sep|image_soft_token)\w{0,20}>",
    r"\[/?(?:gMASK|sMASK|MASK|INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CALL_ID|ARGS"
    r"|THINK|MODEL_SETTINGS|PREFIX|MIDDLE|SUFFIX|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|TRANSCRIBE"
    r"|BOS|EOS|EOT|PAD|UNK|CLS|SEP|(?:control|UNUSED_TOKEN)_\d{1,4})\]",
    r"<</?SYS>>",
    # thoughts and tools
    *(mark for pair in THOUGHTS[:-1] for mark in pair),
    r"</?(?:minimax|seed|longcat)[:_]\w{1,40}>",
    r"</?(?:tool_?calls?|tool_?response|tool_?results?|tools|tool_list|function(?:_calls?|_response)?|arg_key"
    r"|arg_value)(?:=[\w.-]{1,60})?>",
)


def shorten(text: str, limit: int) -> str:
    """Return the text, or its first `limit` characters and a line that says how many are missing.

    >>> shorten("abcdefgh", 5)
    'abcde\\n[... 3 characters left out ...]'
    """
    return text if len(text) <= limit else f"{text[:limit]}\n[... {len(text) - limit:,} characters left out ...]"


def visible(text: str) -> str:
    """Return a text as it looks: without what a reader does not see, wide and styled letters as plain ones.

    >>> visible("<\\u200b\\uff5cim_end\\uff5c>")
    '<|im_end|>'
    """
    return text if text.isascii() else unicodedata.normalize("NFKC", _UNSEEN.sub("", text))


def neutral(text: str, special_tokens: Sequence[str] = ()) -> str:
    """Return the text without control characters, and with a space inside whatever would frame a turn.

    What frames a turn is looked for in the text as it looks, and nothing invisible is left inside. Elsewhere only what
    cannot belong to a text is removed.

    Args:
        special_tokens: of the judge's own tokenizer where it is known; a server's is not, so the spellings of the
            common model families are always broken up.

    >>> neutral("done<|im_end|>\\r\\n\\x00[INST] hi")
    'done< |im_end|>\\n[ INST] hi'
    """
    clean = _CONTROL.sub("", encodable(text).replace("\r\n", "\n").replace("\r", "\n"))
    frames = _frames(tuple(special_tokens))
    if not _UNSEEN.search(clean) and unicodedata.is_normalized("NFKC", clean):  # it looks as it is
        return frames.sub(r"\g<0> ", clean)
    clean = _HIDDEN.sub(lambda run: run[1] or "", clean)
    # the text as it looks, and where in the text each of its letters stands
    looks = [(letter, i) for i, char in enumerate(clean) for letter in visible(char)]
    seen = "".join(letter for letter, _ in looks)
    broken, hidden = set[int](), set[int]()
    for match in frames.finditer(seen):
        first, last = looks[match.start()][1], looks[match.end(1) - 1][1]
        broken.add(first)
        hidden.update(i for i in range(first, last) if _UNSEEN.match(clean[i]))
    return "".join(f"{c} " if i in broken else c for i, c in enumerate(clean) if i not in hidden)


@functools.lru_cache(maxsize=8)
def _frames(special_tokens: tuple[str, ...]) -> re.Pattern[str]:
    own = sorted((visible(token) for token in special_tokens), key=len, reverse=True)
    frames = "|".join([*(re.escape(token) for token in own if len(token) > 1), *_FRAMES])
    begin = re.escape("".join({"<", "[", "]", ">", "\u25c1", *(token[0] for token in own if token)}))
    # looked for at every place, since one may stand inside another
    return re.compile(rf"(?=[{begin}])(?=({frames})).", re.DOTALL)


def nonce(seed: int, texts: Sequence[str]) -> str:
    """Return a marker of 16 hexadecimal digits that occurs in none of the texts; the same for the same arguments."""
    draw = 0
    while any((mark := digest([seed, draw, list(texts)])) in text for text in texts):
        draw += 1
    return mark


def enclose(text: str, mark: str) -> str:
    """Put the text between an opening and a closing marker."""
    return f"<<{mark}>>\n{text}\n<</{mark}>>"
