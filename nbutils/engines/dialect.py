"""What a server takes of a request and what it refuses: servers differ, and tell only when asked.

A request is made of parts. Where a server refuses it, the parts that the refusal names are left out and the rest is
asked again; a part is left out from then on when it has been refused several times and never been taken in between. A
part that the server has taken before takes many refusals that name it, and is tried again now and then. Of parts that
are refused without a name as few as can be are left out. What a request went without stands in the notes of its reply.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from nbutils.engines.protocol import Request

# part -> what is said where a server refuses it, and the note of a reply that went without it
SAID = {
    "response_format": ("a JSON schema", "without a JSON schema"),
    "logprobs": ("log-probabilities", "without log-probabilities"),
    "seed": ("a seed", "without a seed"),
    "temperature": ("a temperature", "at the server's own temperature"),
    "top_p": ("top_p", "at the server's own top_p"),
    "max_tokens": ("max_tokens and is asked for max_completion_tokens", ""),
    "neutral": ("top_k, min_p and repetition_penalty", "with the server's own top_k, min_p and repetition penalty"),
}
# Without these a server adds what the model's generation_config says, and the answers are not the policy's own.
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
# A part is left out for good after as many refusals as make up this sum; one that names it weighs three.
ENOUGH, NAMED = 8, 3
# Servers fail at parts now and then: one that was taken is left out after so many refusals in a row that name it, and
# asked for again at every so many requests.
MANY, AGAIN = 20, 50
TOP_LOGPROBS = 10  # more than a scale of digits has levels
# how a refusal names a part: by the very word, or else in other words
_WORDS = {
    "response_format": re.compile(r"response_format|json_schema|guided_json"),
    "logprobs": re.compile(r"logprobs"),
    "seed": re.compile(r"(?<![a-z])seed(?![a-z])"),  # random_seed
    "temperature": re.compile(r"\btemperature\b"),
    "top_p": re.compile(r"\btop_p\b"),
    "max_tokens": re.compile(r"\bmax_(?:completion_)?tokens\b"),
    "neutral": re.compile(r"\b(?:top_k|min_p|repetition_penalty)\b"),
}
_LOOSELY = {
    "response_format": re.compile(r"json|schema|structured|grammar|guided|response.?format"),
    "logprobs": re.compile(r"log.?prob"),
    "max_tokens": re.compile(r"max.?(?:completion|output|new).?tokens"),
    "seed": re.compile(r"random.?seed"),
    "top_p": re.compile(r"\btop.?p\b"),
    "neutral": re.compile(r"\b(?:top.?k|min.?p|repetition.?penalty)\b"),
}
# a refusal in such words is about the request itself: nothing is gained by leaving parts out
_ITSELF = re.compile(
    r"content.?(?:filter|policy|management|moderation)|safety|moderat|flagged|context|too (?:long|large|many tokens)"
)
PLAIN = {"max_tokens"}  # of a request that any server takes
# What may be left out on no more than a guess, where a refusal names nothing; those first that go together.
_GUESSED = ("neutral", "seed", "response_format", "logprobs")
_FAILS = ("response_format", "logprobs")  # what a server that takes it may fail at for one request
# statuses that speak of the request's size or of the law
_ITS_OWN = (413, 414, 431, 451)


class Dialect:
    """What one server was found to take; shared by all requests to it."""

    def __init__(self) -> None:
        self._refused: set[str] = set()
        self._taken: set[str] = set()
        self._votes: Counter[str] = Counter()
        self._since: dict[str, int] = {}  # requests since a part that was taken once is left out
        self._helped = set[str]()  # what was left out on a guess, and the request was answered

    def begin(self, whole: set[str]) -> "Trial":
        """Return how to ask for a request of these parts: without what is refused, but for what is tried again."""
        again = set()
        for part in whole & self._since.keys():
            self._since[part] += 1
            again |= {part} if self._since[part] % AGAIN == 0 else set()
        return Trial(self, whole - self._refused | again, again)

    def learn(self, wanted: set[str], without: set[str], named: set[str]) -> tuple[list[str], list[str]]:
        """Note that a request was answered without some of the parts it wanted.

        Args:
            named: those of the left-out parts that a refusal named.

        Returns:
            What is refused from now on, and what no longer is.
        """
        self._taken |= wanted - without
        self._helped = without - named or self._helped
        new = []
        for part in wanted & without:
            known = part in self._taken
            self._votes[part] += int(part in named) if known else NAMED if part in named else 1
            if self._votes[part] >= (MANY if known else ENOUGH) and part not in self._refused:
                self._refused.add(part)
                new.append(part)
                if known and SAID[part][1]:  # what costs nothing to leave out stays out
                    self._since[part] = 0
        back = (wanted - without) & self._refused
        self._refused -= back
        for part in wanted - without:
            self._votes[part] = 0
            self._since.pop(part, None)
        return sorted(new), sorted(back)

    def guesses(self, parts: set[str]) -> Iterator[set[str]]:
        """Yield what to ask with where a refusal names no part: without one doubtful part, without two, without all.

        Doubtful is what the server never took; if it took everything, a schema or log-probabilities may have failed
        this once. What helped another request comes first.
        """
        doubtful = [p for p in _GUESSED if p in parts and p not in self._taken]
        doubtful = doubtful or [p for p in _FAILS if p in parts]
        if self._helped <= set(doubtful):
            yield parts - self._helped
        for count in range(1, len(doubtful) + 1):
            for some in combinations(doubtful, count):
                yield parts - set(some)


class Trial:
    """One request on its way past a server's refusals: `parts` is what to ask with next."""

    def __init__(self, dialect: Dialect, wanted: set[str], again: set[str]):
        self.parts = self._wanted = wanted
        self._dialect, self._again, self._base = dialect, again, wanted
        self._named, self._tried = set[str](), [wanted]

    @property
    def repeated(self) -> bool:
        """Tell whether the request was refused before."""
        return len(self._tried) > 1

    @property
    def guessed(self) -> bool:
        """Tell whether something is left out that no refusal named."""
        return self.parts != self._base

    def refused(self, status: int, said: str) -> bool:
        """Choose the parts to ask with after a refusal; return whether there is anything left to try."""
        if not 400 <= status < 500:
            return False
        if found := named(said, self.parts):
            self._named |= found
            self._base = self.parts = self._base - found  # what was guessed before may be innocent
        elif again := self._base & self._again:  # as the requests before this one were asked
            self._base = self.parts = self._base - again
        else:
            its_own = status in _ITS_OWN or about_itself(said)
            others = () if its_own else self._dialect.guesses(self._base)
            self.parts = next((other for other in others if other not in self._tried), self.parts)
        new = self.parts not in self._tried
        self._tried.append(self.parts)
        return new

    def taken(self) -> list[str]:
        """Note that the request was answered; return what to say of the server that was not known before."""
        new, back = self._dialect.learn(self._wanted, self._wanted - self.parts, self._named)
        said = [f"refuses {SAID[part][0]}; asking without from now on" for part in new]
        return said + [f"takes {SAID[part][0].partition(' and is ')[0]} again; asking for it" for part in back]


def parts_of(request: Request, *, neutral: bool) -> set[str]:
    """Return the parts a request is made of; `neutral` is one where something is drawn and it is wanted."""
    parts = {"temperature", "max_tokens"}
    parts |= {name for name in ("response_format", "logprobs") if getattr(request, name)}
    if request.sampling.temperature > 0:
        parts |= {"seed", "top_p"} | ({"neutral"} if neutral else set())
    return parts


def named(refusal: str, parts: set[str]) -> set[str]:
    """Return the part that a refusal names; of several the first: the others may be those that are taken.

    >>> named("Unknown name min_p in this JSON payload", {"neutral", "response_format"})
    {'neutral'}
    >>> named("No seed here. Supported are temperature and top_p.", {"seed", "temperature", "top_p"})
    {'seed'}
    """
    text = refusal.lower()
    for words in (_WORDS, _LOOSELY):
        if found := {part: match.start() for part in parts & words.keys() if (match := words[part].search(text))}:
            if {"temperature", "top_p"} <= found.keys() and "both" in text:  # they cannot both be specified
                return {"top_p"}
            return {min(found, key=lambda part: found[part])}
    return set()


def about_itself(refusal: str) -> bool:
    """Tell whether a refusal is about the request as a whole, not about a part."""
    return bool(_ITSELF.search(refusal.lower()))


def identity(server: str, model: str, chat_template_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a server's replies hang on beside the request, whether it is asked now or by batch."""
    extra = {"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}
    return {"engine": "api", "server": server, "model": model, **extra}


def body(request: Request, identity: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is sent for a request."""
    extra = {name: value for name, value in identity.items() if name not in ("engine", "server", "model")}
    return {"model": identity["model"], "messages": list(request.messages), **options, **extra}


def options(request: Request, seed: int, parts: set[str]) -> dict[str, Any]:
    """Return what stands in the body of a request, beside model and messages."""
    sampling = request.sampling
    result: dict[str, Any] = {
        "max_tokens" if "max_tokens" in parts else "max_completion_tokens": sampling.max_tokens,
    }
    if "temperature" in parts:
        result["temperature"] = sampling.temperature
    if "top_p" in parts:
        result["top_p"] = sampling.top_p
    if "seed" in parts:
        result["seed"] = seed + request.attempt - 1
    if "neutral" in parts:
        result |= NEUTRAL
    if sampling.top_k:  # asked for by name: a server that refuses it is the wrong one
        result["top_k"] = sampling.top_k
    if "response_format" in parts:
        result["response_format"] = request.response_format
    if "logprobs" in parts:
        result |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return result
