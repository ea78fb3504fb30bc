"""What is secret, and how it is kept out of all that is shown, stored or sent.

A secret is known, as the value of an environment variable whose name says so or as a key that this process uses, or
recognised by the form its maker gives it. Known ones are masked wherever text leaves the process: in every sentence of
`errors`, in messages, replies, files of a stage and executed notebooks. Both kinds are refused as parameters.
"""

import base64
import itertools
import logging
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote

WINDOW = 10  # letters and digits of a secret that are masked also when they stand alone: a part of it
_registered: set[str] = set()
# the name of a variable that holds a secret; TOKENIZERS_PARALLELISM does not
_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIAL|AUTH|COOKIE)S?(?![A-Z])", re.I)
_SIGN = (
    r"(?:signature|sig|secret|password|passwd|pass|pwd|credential|jwt|tok|auth"
    r"|(?:api|access|auth|private)?[_-]?(?:key|token))"
)
_MAKERS = re.compile(
    # Hugging Face, Groq, GitHub, GitLab, npm, PyPI, Docker, Replicate, Perplexity, Fireworks, Cerebras, Jina, Tavily
    r"(?<![A-Za-z0-9])(?:(?:hf|api_org|gsk|gh[oprsu]|r8|fw|jina|shp(?:at|ss|ca|pa)|sbp)_[A-Za-z0-9]{20,}|github_pat_\w{30,}|npm_[A-Za-z0-9]{30,}"
    r"|gl(?:pat|dt|rt|ptt|cbt|soat|ft|imt|agent|oas|ffct|wt)-[\w-]{20,}|GR1348941[\w-]{20,}|pypi-AgE[\w-]{16,}|dckr_(?:pat|oat)_[\w-]{20,}"
    r"|(?:pplx|csk|tvly)-[A-Za-z0-9-]{30,}"
    # NVIDIA, xAI, Anthropic, OpenAI, OpenRouter, Langfuse; sk is also Slovak: a model's name has an owner before it
    r"|nvapi-[\w-]{30,}|xai-[A-Za-z0-9]{30,}|[sp]k-(?:ant|proj|or|svcacct|admin|lf)-[\w-]{16,}"
    # Google, Amazon, Slack, Stripe, SendGrid, Databricks, HashiCorp, DigitalOcean, Kaggle, Atlassian, Notion, Telegram
    r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}|(?:AKIA|ASIA|AGPA|AIDA|AROA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|xox[a-z]-[\w.-]{10,}|xapp-\d-[\w-]{10,}|[srp]k_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/]{20,}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|dapi[0-9a-f]{32}|hv[sbr]\.[\w-]{20,}|do[opr]_v1_[0-9a-f]{40,}|KGAT_[A-Za-z0-9]{20,}"
    r"|ATATT3[\w=-]{20,}|ntn_[A-Za-z0-9]{30,}|secret_[A-Za-z0-9]{40,}|\d{8,10}:AA[\w-]{32,}"
    # LangSmith, Pulumi, ElevenLabs, Modal, Zhipu, Discord
    r"|lsv2_(?:pt|sk)_[0-9a-f]{32}\w*|pul-[0-9a-f]{40}|sk_[0-9a-f]{40,}|a[ks]-[A-Za-z0-9]{22}(?![\w-])"
    r"|[0-9a-f]{32}\.(?=[A-Za-z]*\d)[A-Za-z0-9]{16}(?![\w.])|[MNO][A-Za-z\d]{23,27}\.[\w-]{6}\.[\w-]{27,})"
    r"|(?<![A-Za-z0-9/])sk-[\w-]{0,60}?[A-Za-z0-9]{20,}"
    r"|(?<![\w-])eyJ[\w-]{12,4000}\.[\w-]{16,}(?:\.[\w-]*){0,3}"  # a JSON web token
    r"|-----BEGIN[A-Z ]{0,40} PRIVATE KEY|PuTTY-User-Key-File|AGE-SECRET-KEY-1"
    r"|\b(?:(?i:bearer|authorization:|x-api-key:)\s+){1,2}(?=[^\s\"']{0,200}\d)[\w.~+/=-]{12,}"
    r"|\b(?i:basic)\s+(?=[A-Za-z]{0,40}\d)[A-Za-z0-9+/]{16,}={0,2}(?![\w.-])"
    r"|(?i:aws_?secret_?access_?key)\W{1,4}[A-Za-z0-9/+]{30,}|(?:Account|SharedAccess)Key=[A-Za-z0-9/+=]{20,}"
    # in an address: a user, a password, a signature
    r"|(?i:https?)://[^/?#\s,;@]{1,300}@|://[^/\s,;@]{0,200}:[^/\s,;@]{0,200}@"
    rf"|[?&#;](?i:[\w-]{{0,40}}[_-])?(?i:{_SIGN})=[^\s&#]{{0,300}}|hooks\.slack\.com/services/\w"
)
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
    return bool(_MAKERS.search(text)) or any(_random(run[0]) for run in _RUN.finditer(text)) or masked(text) != text


def hidden(text: str) -> str:
    """Return a text for people to read, without known secrets and without what looks like one."""
    text = _MAKERS.sub(_stars, masked(text))
    return _RUN.sub(lambda run: _stars(run) if _random(run[0]) else run[0], text)


def masked(text: str) -> str:
    """Return a text of the same length in which stars stand for every known secret.

    Found are whole secrets, and of long ones any ten letters and digits in a row, whatever stands between them (ends
    of lines, quotes), also as percent codes, escapes of JSON, numbers of letters, base64 (twice, too) or base32.
    """
    whole, parts = _known()
    for secret in whole:
        text = text.replace(secret, "*" * len(secret))
    if not parts:
        return text
    letters = _LETTERS.sub("", text).lower()
    hits = [i for i in range(len(letters) - WINDOW + 1) if letters[i : i + WINDOW] in parts]
    if not hits:
        return text
    places = [one.start(1) for one in re.finditer(rf"{_LETTERS.pattern}|([A-Za-z0-9])", text) if one[1]]
    result = list(text)
    for place in {places[i + k] for i in hits for k in range(WINDOW)}:
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


# what may stand between the letters and digits of a secret, or the numbers of its letters
_LETTERS = re.compile(
    r"\\U0000|\\[bfnrtux]|&#x|</?\w{1,10} ?/?>|0x(?=[0-9A-Fa-f]{2}(?![0-9A-Za-z]))|U\+(?=[0-9A-Fa-f]{4})"
    r"|[^A-Za-z0-9\\&<]+|[\\&<]"
)


def _stars(match: re.Match[str]) -> str:
    return "*" * len(match[0])


def _known() -> tuple[tuple[str, ...], frozenset[str]]:
    return _forms(tuple(os.environ.items()), tuple(sorted(_registered)))


@lru_cache(maxsize=1)
def _forms(environment: tuple[tuple[str, str], ...], registered: tuple[str, ...]) -> tuple[tuple[str, ...], frozenset]:
    """Return known secrets, longest first, and the parts of them that give them away."""
    secrets = set(registered)
    for name, given in environment:
        value = given.strip()
        if _telling(value) and (_NAME.search(name) or _MAKERS.search(value)):
            secrets.add(value)
            secrets |= {part for part in re.split(r"://|[\s\"'{},;@:]+", value) if len(part) >= 12 and _telling(part)}
    parts = {part for secret in secrets for part in _parts(secret)}
    return tuple(sorted(secrets, key=len, reverse=True)), frozenset(parts)


def _telling(value: str) -> bool:
    """Return whether a value can be a secret: no word, number, path or name of a variable."""
    if len(value) < 8 or value.startswith(("/", "~/", "./")):
        return False
    kinds = [bool(re.search(kind, value)) for kind in ("[a-z]", "[A-Z]", "[0-9]", r"[^A-Za-z0-9\s_.-]")]
    return sum(kinds) > 1 or len(value) >= 20


def _parts(secret: str) -> Iterator[str]:
    """Yield windows of a secret in every form it may be written; no window of plain words."""
    if len(secret) > 4096 or " " in secret:
        return
    opaque = re.sub(r"^(?:[A-Za-z]{2,8}[_-])+", "", secret)  # what all tokens of its maker begin with
    raw = opaque.encode()
    forms = [opaque, quote(opaque, safe=""), raw.hex()]
    forms += ["".join(map(form.format, raw)) for form in ("00{:02x}", "25{:02x}", "{:d}", "{:o}", "{:03o}")]
    forms += [again for code in _base64(raw) for again in (code, *_base64(code.encode()))]
    for shift in range(5):
        code = base64.b32encode(b"\0" * shift + raw).decode().rstrip("=")
        forms.append(code[-(-8 * shift // 5) : len(code) - ((shift + len(raw)) % 5 > 0)])
    for form in forms:
        letters = _LETTERS.sub("", form)
        if len(letters) >= 16:
            windows = (letters[i : i + WINDOW] for i in range(len(letters) - WINDOW + 1))
            yield from (window.lower() for window in windows if re.search("[0-9]", window) or _changes(window) > 2)


def _base64(raw: bytes) -> Iterator[str]:
    """Yield what is certain of a text in base64, wherever it stands in a longer one that was encoded."""
    for shift in range(3):
        code = base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")
        yield code[(0, 2, 3)[shift] : len(code) - ((shift + len(raw)) % 3 > 0)]


def _changes(text: str) -> int:
    """Count where small letters, capitals and digits follow each other."""
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" for c in text]
    return sum(a != b for a, b in itertools.pairwise(kinds))


def _random(run: str) -> bool:
    """Return whether a long run of letters and digits is no word, path or hexadecimal hash but drawn by a machine."""
    text, amazon = re.sub("[/+]", "", run), len(run) == 40 and run.count("/") < 4
    mixed = min(len(re.findall(kind, text)) for kind in ("[a-z]", "[A-Z]", "[0-9]")) >= (1 if amazon else 3)
    return len(text) >= 32 and mixed and _changes(text) >= (0.33 if amazon else 0.45) * len(text)
