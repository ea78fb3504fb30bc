"""What is secret, and how it is kept out of all that is shown, stored or sent.

A secret is known, as the value of an environment variable whose name says so or as a key that this process uses, or
recognised by the form its maker gives it. Known ones are masked wherever text leaves the process: in every sentence of
`errors`, in messages, replies, files of a stage and executed notebooks. Both kinds are refused as parameters.
"""

import base64
import binascii
import html
import itertools
import logging
import os
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

WINDOW = 10  # letters and digits of a secret that are masked also when they stand alone: a part of it
MOST_LAYERED = 600  # letters of a secret that is looked for in base64 of base64 and the like
_registered: set[str] = set()
# the name of a variable that holds a secret; TOKENIZERS_PARALLELISM does not
_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIAL|AUTH|COOKIE)S?(?![A-Z])", re.I)
_SIGN = (
    r"(?:signature|sig|secret|password|passwd|pass|pwd|credential|jwt|tok|auth"
    r"|(?:api|access|auth|private)?[_-]?(?:key|token))"
)
_MAKERS = re.compile(
    # GitHub, GitLab, PyPI, Docker, Twilio, Alibaba, Square, Supabase
    r"(?<![A-Za-z0-9])(?:github_pat_\w{30,}|SK[0-9a-f]{32}(?![A-Za-z0-9])|LTAI\d\w{13,}"
    r"|sq0[a-z]{3}-[\w-]{20,}|sb_(?:secret|publishable)_[\w-]{20,}|gl(?:pat|dt|rt|ptt|cbt|soat|ft|imt|agent|oas|ffct|wt)-[\w-]{20,}|GR1348941[\w-]{20,}|pypi-AgE[\w-]{16,}|dckr_(?:pat|oat)_[\w-]{20,}"
    # NVIDIA, Anthropic, OpenAI, OpenRouter, Langfuse; sk is also Slovak: a model's name has an owner before it
    r"|nvapi-[\w-]{30,}|[sp]k-(?:ant|proj|or|svcacct|admin|lf)-[\w-]{16,}"
    # Google, Amazon, Slack, Stripe, SendGrid, Databricks, HashiCorp, DigitalOcean, Atlassian, Notion, Telegram
    r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}|(?:AKIA|ASIA|AGPA|AIDA|AROA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|xox[a-z]-[\w.-]{10,}|xapp-\d-[\w-]{10,}|[srp]k_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/]{20,}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|dapi[0-9a-f]{32}|hv[sbr]\.[\w-]{20,}|do[opr]_v1_[0-9a-f]{40,}"
    r"|ATATT3[\w=-]{20,}|secret_[A-Za-z0-9]{40,}|\d{8,10}:AA[\w-]{32,}"
    # LangSmith, Pulumi, ElevenLabs, Modal, Zhipu, Discord
    r"|lsv2_(?:pt|sk)_[0-9a-f]{32}\w*|pul-[0-9a-f]{40}|sk_[0-9a-f]{40,}|a[ks]-[A-Za-z0-9]{22}(?![\w-])"
    r"|[0-9a-f]{32}\.(?=[A-Za-z]*\d)[A-Za-z0-9]{16}(?![\w.])|[MNO][A-Za-z\d]{23,27}\.[\w-]{6}\.[\w-]{27,})"
    r"|(?<![A-Za-z0-9/])sk-[\w-]{0,60}?[A-Za-z0-9]{20,}"
    r"|(?<![\w-])eyJ[\w-]{12,4000}\.[\w-]{16,}(?:\.[\w-]*){0,3}"  # a JSON web token
    r"|-----BEGIN[A-Z ]{0,40} PRIVATE KEY|PuTTY-User-Key-File|AGE-SECRET-KEY-1"
    r"|\b(?:(?i:bearer|authorization:|x-api-key:)\s+){1,2}(?=[^\s\"']{0,200}\d)[\w.~+/=-]{12,}"
    r"|(?i:aws_?secret_?access_?key)\W{1,4}[A-Za-z0-9/+]{30,}|(?:Account|SharedAccess)Key=[A-Za-z0-9/+=]{20,}"
    # in an address: a user, a password, a signature
    r"|(?i:https?)://[^/?#\s,;@]{1,300}@|://[^/\s,;@]{0,200}:[^/\s,;@]{0,200}@"
    rf"|[?&#;](?i:[\w-]{{0,40}}[_-])?(?i:{_SIGN})=[^\s&#]{{0,300}}|hooks\.slack\.com/services/\w"
)
# of makers whose tokens are a word and letters and digits that were drawn, of one case too
_WORDS = (
    "hf|api_org|gsk|gh[oprsu]|r8|fw|jina|shp(?:at|ss|ca|pa)|sbp|npm|pplx|csk|tvly(?:-[a-z]{2,5})?|xai|KGAT|ntn"
    "|gl(?:sa|c)|napi|rubygems|fc|key|NRA[KL]|PMA[KT]"
)
_WORDED = re.compile(rf"(?<![A-Za-z0-9])(?:{_WORDS})[_-]([A-Za-z0-9]{{20,}})")
# of any maker; below a folder or an owner it would be a name
_PREFIXED = re.compile(r"(?<![\w/.-])(?:[A-Za-z][A-Za-z0-9]{1,11}[_-]){1,3}([A-Za-z0-9]{20,})(?![A-Za-z0-9])")
_BASIC = re.compile(r"\b(?i:basic)\s+([A-Za-z0-9+/]{8,})={0,2}(?![\w.-])")
_RUN = re.compile(r"[A-Za-z0-9/+]{32,}")


def register(value: str) -> None:
    """Let a key that this process uses be masked, whatever variable or file it came from."""
    if len(value) >= 8:
        _registered.add(value)


def found(text: str) -> bool:
    """Return whether a text holds a secret: a known one, or what its maker's form gives away.

    >>> found("ghp_" + "a1B2" * 9), found("org/model-7B@3f2a9c1d")
    (True, False)
    """
    return next(_signs(text), None) is not None or masked(text) != text


def hidden(text: str) -> str:
    """Return a text for people to read, without known secrets and without what looks like one."""
    result = list(masked(text))
    for sign in _signs(text):
        result[sign.start() : sign.end()] = "*" * len(sign[0])
    return "".join(result)


def masked(text: str) -> str:
    """Return a text of the same length in which stars stand for every known secret.

    Found are whole secrets, and of long ones any ten letters and digits in a row, whatever stands between them (ends
    of lines, quotes, markup) and however they are spelt (escapes of every kind, entities, numbers), also in base64,
    base32, hexadecimal or UTF-16, or two of these.
    """
    whole, parts = _known()
    for secret in whole:
        text = text.replace(secret, "*" * len(secret))
    places = {place for reading in _readings(text) for place in _places(reading, parts)} if parts else ()
    if not places:
        return text
    result = list(text)
    for place in places:
        result[place] = "*"
    return "".join(result)


def holds(content: bytes) -> bool:
    """Return whether bytes hold a whole known secret as it is; quick enough for whole datasets."""
    return any(secret.encode(errors="replace") in content for secret in _known()[0])


def masked_values(value: Any) -> Any:
    """Return nested dicts, lists and tuples with every text in them `masked`."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {masked_values(name): masked_values(part) for name, part in value.items()}
    return type(value)(map(masked_values, value)) if isinstance(value, list | tuple) else value


def texts(value: Any) -> Iterator[str]:
    """Yield every text in nested dicts and lists, names included."""
    if isinstance(value, dict):
        yield from (text for pair in value.items() for part in pair for text in texts(part))
    elif isinstance(value, list | tuple | set):
        yield from (text for part in value for text in texts(part))
    elif isinstance(value, str):
        yield value


class Filter(logging.Filter):
    """Masks the messages that a handler writes."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = masked(record.getMessage()), None
        return True


# what may stand between letters and digits; ends of lines in JSON, too
_LETTERS = re.compile(r"\\[bfnrt]|[^A-Za-z0-9\\]+|\\")
_HEX = "[0-9A-Fa-f]"
# what spells one character: in JSON, Python, JavaScript, an address, CSS, mail, HTML, Unicode's tables
_ESCAPED = re.compile(
    rf"(?:\\u|%u|U\+|\\U0000){_HEX}{{4}}|(?:\\x|%|=|0x(?:00){{0,3}}){_HEX}{{2}}|\\[ux]\{{{_HEX}{{1,6}}\}}"
    rf"|\\0{{0,4}}[2-7]{_HEX}(?!{_HEX})|&(?:#[xX]?{_HEX}{{1,8}}|[A-Za-z]\w{{1,30}});"
)
# tags, colours of a terminal, commands of a forum or LaTeX, calls like chr(
_MARKUP = re.compile(
    r"<[A-Za-z/!?][^<>]{0,300}>|\x1b\[[\d;:?]{0,30}[A-Za-z]|\x1b\][^\a\x1b]{0,200}(?:\a|\x1b\\)"
    r"|\[/?\w{1,10}(?:=[^\[\]\s]{1,50})?\]|\\?\b[A-Za-z]{2,12}[({]"
)


def _signs(text: str) -> Iterator[re.Match[str]]:
    """Yield what looks like a secret in a text, not in its order."""
    yield from _MAKERS.finditer(text)
    yield from (sign for sign in _WORDED.finditer(text) if _drawn(sign[1]))
    yield from (sign for sign in _PREFIXED.finditer(text) if _mixed(sign[1], 1, 0.4))
    yield from (sign for sign in _BASIC.finditer(text) if _is_login(sign[1]))
    yield from (sign for sign in _RUN.finditer(text) if _random(sign[0]))


def _readings(text: str) -> set[str]:
    """Return a text as it is, with what is spelt in it, and then without markup; each letter ends where it ended."""
    spelt = _ESCAPED.sub(_letter, _ESCAPED.sub(_letter, text))
    return {text, spelt, _MARKUP.sub(lambda mark: " " * len(mark[0]), spelt)}


def _letter(match: re.Match[str]) -> str:
    code = match[0]
    digits = code.lstrip("\\uUxX%=+{0").rstrip("}") or "0"
    letter = html.unescape(code) if code[0] == "&" else chr(min(int(digits, 16), sys.maxunicode))
    return letter.rjust(len(code), "\0")


def _places(reading: str, parts: frozenset[str]) -> Iterator[int]:
    """Yield where the letters of known secrets stand in a reading, with what spells them."""
    letters = _LETTERS.sub("", reading).lower()
    hits = [i for i in range(len(letters) - WINDOW + 1) if letters[i : i + WINDOW] in parts]
    if not hits:
        return
    places = [one.start(1) for one in re.finditer(rf"{_LETTERS.pattern}|([A-Za-z0-9])", reading) if one[1]]
    for place in {places[i + k] for i in hits for k in range(WINDOW)}:
        start = place
        while start and reading[start - 1] == "\0":
            start -= 1
        yield from range(start, place + 1)


def _known() -> tuple[tuple[str, ...], frozenset[str]]:
    return _forms(tuple(os.environ.items()), tuple(sorted(_registered)))


@lru_cache(maxsize=1)
def _forms(environment: tuple[tuple[str, str], ...], registered: tuple[str, ...]) -> tuple[tuple[str, ...], frozenset]:
    """Return known secrets, longest first, and the parts of them that give them away."""
    secrets = set(registered)
    for name, given in environment:
        value = given.strip()
        if _telling(value) and (_NAME.search(name) or next(_signs(value), None)):
            secrets.add(value)
            secrets |= {part for part in re.split(r"://|[\s\"'{},;@:]+", value) if len(part) >= 12 and _telling(part)}
    return tuple(sorted(secrets, key=len, reverse=True)), frozenset[str]().union(*map(_parts, secrets))


def _telling(value: str) -> bool:
    """Return whether a value can be a secret: no word, number, path or name of a variable."""
    if len(value) < 8 or value.startswith(("/", "~/", "./")):
        return False
    kinds = [bool(re.search(kind, value)) for kind in ("[a-z]", "[A-Z]", "[0-9]", r"[^A-Za-z0-9\s_.-]")]
    return sum(kinds) > 1 or len(value) >= 20


@lru_cache(maxsize=64)
def _parts(secret: str) -> frozenset[str]:
    """Return windows of a secret in every form it may be written; no window of plain words."""
    if len(secret) > 4096 or " " in secret:
        return frozenset()
    opaque = re.sub(r"^(?:[A-Za-z]{2,8}[_-])+", "", secret)  # what all tokens of its maker begin with
    raw, result = opaque.encode(errors="surrogateescape"), set[str]()
    inner = [raw, bytes(byte for letter in raw for byte in (letter, 0))]  # the latter UTF-16
    if len(raw) <= MOST_LAYERED:
        inner += [code.encode() for code in (raw.hex(), raw.hex().upper(), *_base64(raw))]
    for form in itertools.chain.from_iterable(map(_forms_of, inner)):
        letters = _LETTERS.sub("", form)
        if len(letters) >= 16:
            windows = (letters[i : i + WINDOW] for i in range(len(letters) - WINDOW + 1))
            result |= {w.lower() for w in windows if re.search("[0-9]", w) or _changes(w) > 2}
    return frozenset(result)


def _forms_of(raw: bytes) -> Iterator[str]:
    """Yield a text as it is and in every form of one layer."""
    yield raw.decode("latin-1")
    yield raw.hex()
    yield from ("".join(map(form.format, raw)) for form in ("{:d}", "{:o}", "{:03o}"))
    yield from _base64(raw)
    for shift in range(5):
        code = base64.b32encode(b"\0" * shift + raw).decode().rstrip("=")
        yield code[-(-8 * shift // 5) : len(code) - ((shift + len(raw)) % 5 > 0)]


def _base64(raw: bytes) -> Iterator[str]:
    """Yield what is certain of a text in base64, wherever it stands in a longer one that was encoded."""
    for shift in range(3):
        code = base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")
        yield code[(0, 2, 3)[shift] : len(code) - ((shift + len(raw)) % 3 > 0)]


def _changes(text: str) -> int:
    """Count where small letters, capitals and digits follow each other."""
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" for c in text]
    return sum(a != b for a, b in itertools.pairwise(kinds))


def _mixed(text: str, least: int, changing: float) -> bool:
    """Return whether letters of both cases and digits stand among each other: how many of each, and how often."""
    counts = [len(re.findall(kind, text)) for kind in ("[a-z]", "[A-Z]", "[0-9]")]
    return min(counts) >= least and _changes(text) >= changing * len(text)


def _random(run: str) -> bool:
    """Return whether a long run of letters and digits is no word, path or hexadecimal hash but drawn by a machine."""
    text, amazon = re.sub("[/+]", "", run), len(run) == 40 and run.count("/") < 4
    return len(text) >= 32 and (_mixed(text, 1, 0.33) if amazon else _mixed(text, 3, 0.45))


def _drawn(tail: str) -> bool:
    """Return whether what follows a maker's word is no name; letters alone are one up to the length of a token."""
    least = 0.2 if re.search("[0-9]", tail) else 0.25 if len(tail) >= 30 else 1
    return _changes(tail) >= least * len(tail)


def _is_login(code: str) -> bool:
    """Return whether base64 holds a user and a password, as `Basic` in a header does."""
    try:
        user, colon, password = base64.b64decode(code + "=" * (-len(code) % 4)).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    return bool(colon) and (user + password).isprintable()
