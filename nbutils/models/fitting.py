"""Which prompts and pairs a policy can take: others are dropped and counted under a reason, before a weight is loaded.

Used by 02 and 04. TRL tokenizes a prompt alone and with each answer, and takes what they have in common for the
prompt: where the whole does not begin with all of the prompt, it would train on a context that the model never
answers in.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from nbutils.core.errors import InputError, first_line, shown
from nbutils.core.printed import Unusable
from nbutils.core.records import Messages, Row
from nbutils.core.sampling import Sample
from nbutils.models import chat

log = logging.getLogger(__name__)

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A pair as the trainer will see it."""

    row: Row
    tokenizer: PreTrainedTokenizerBase
    template: Mapping[str, Any]
    max_length: int
    vocabulary: int

    @cached_property
    def prompt(self) -> list[int]:
        """Token ids of the prompt alone, as the policy is given it."""
        return chat.render(self.tokenizer, self.row["prompt"], dict(self.template))

    @cached_property
    def whole(self) -> list[list[int]]:
        """Token ids of the prompt with each answer."""
        return [self.answered(self.row[side]) for side in SIDES]

    def answered(self, answer: Messages, *, tokenize: bool = True) -> Any:
        return self.tokenizer.apply_chat_template(
            self.row["prompt"] + answer, tokenize=tokenize, return_dict=False, **self.template
        )


def _arguments(pair: Pair) -> str:
    own = pair.row["chat_template_kwargs"]  # pairs from 01 carry none: no model was involved
    differ = own and own != dict(pair.template)
    return f"it was sampled with {shown(own)}, this run is to train with {shown(dict(pair.template))}" if differ else ""


def _turns(pair: Pair) -> str:
    roles = [turn["role"] for turn in pair.row["prompt"]]
    if "user" not in roles or roles[-1] not in ("user", "tool"):
        return f"its prompt has the turns {shown(roles)}"
    answers = [[turn["role"] for turn in pair.row[side]] for side in SIDES]
    return "" if answers == [["assistant"]] * 2 else f"its answers have the turns {shown(answers)}"


def _empty(pair: Pair) -> str:
    side = next((side for side in SIDES if not pair.row[side][-1]["content"].strip()), "")
    return f"{side} is {shown(pair.row[side][-1]['content'])}" if side else ""


def _control(pair: Pair) -> str:
    for name, turns in (("its prompt", pair.row["prompt"]), *((side, pair.row[side]) for side in SIDES)):
        if token := control_in(pair.tokenizer, turns):
            return f"{name} spells {shown(token)}"
    return ""


def control_in(tokenizer: PreTrainedTokenizerBase, turns: Messages) -> str:
    """Return the first of the policy's control tokens that a turn spells, which would end it or open another."""
    found = (chat.spelled(tokenizer, t["content"], thoughts=t["role"] == "assistant") for t in turns)
    return next(filter(None, found), "")


def _template(pair: Pair) -> str:
    return "" if pair.prompt and all(pair.whole) else "it renders nothing"


def _prefix(pair: Pair) -> str:
    for side, answered in zip(SIDES, pair.whole, strict=True):
        if answered[: len(pair.prompt)] != pair.prompt:
            both = (pair.prompt, answered)
            same = next((i for i, (a, b) in enumerate(zip(*both, strict=False)) if a != b), min(map(len, both)))
            start = max(same - 6, 0)  # enough tokens to recognise the place
            alone, before = (shown(pair.tokenizer.decode(ids[start : same + 12])) for ids in both)
            cause = cause_of(pair, pair.row[side][-1]["content"])
            return f"{cause}: the prompt alone ends in {alone}, but before {side} stands {before}"
    return ""


def cause_of(pair: Pair, answer: str) -> str:
    """Return why the prompt is no prefix before this answer: its own beginning, tokens that join, or the template."""
    stripped = pair.answered(_said(answer.lstrip()))
    if answer != answer.lstrip() and stripped[: len(pair.prompt)] == pair.prompt:
        return "the answer begins with white space"
    template = {"tokenize": False, "add_generation_prompt": True, **pair.template}
    text = str(pair.tokenizer.apply_chat_template(pair.row["prompt"], **template))
    joined = str(pair.answered(_said(answer), tokenize=False)).startswith(text)
    return "tokens join where the answer begins" if joined else "the template ends a prompt alone in another way"


def _said(answer: str) -> Messages:
    return [{"role": "assistant", "content": answer}]


def _tokens(pair: Pair) -> str:
    highest = max(map(max, pair.whole))
    known = pair.vocabulary
    return f"it has the token {highest}, the model knows {known} of them" if known and highest >= known else ""


def _equal(pair: Pair) -> str:
    return "chosen and rejected become the same tokens" if pair.whole[0] == pair.whole[1] else ""


def _too_long(pair: Pair) -> str:
    longest = max(map(len, pair.whole))
    return f"it has {longest} tokens, max_length is {pair.max_length}" if longest > pair.max_length else ""


class Check(NamedTuple):
    """What a reason means, what to do if it is most pairs', and the function that says what is wrong with a pair."""

    means: str
    remedy: str
    fault: Callable[[Pair], str]


# In this order: the first that says something is the reason. From `template` on the pair can be rendered.
REASONS = {
    "arguments": Check("sampled with other template arguments", "set chat_template_kwargs to the same", _arguments),
    "turns": Check("not a prompt of a user and one answer each", "mend the source of the pairs", _turns),
    "empty": Check("an answer without text", "mend the source of the pairs", _empty),
    "control": Check(
        "text that spells a control token of the policy",
        "clean the source, or remove the rows",
        _control,
    ),
    "template": Check(
        "refused by the chat template",
        "leave out what it refuses (system_prompt in 02, if it takes no system role), or choose another model",
        _template,
    ),
    "prefix": Check(
        "a prompt that the whole does not begin with",
        "where answers begin with white space, strip it in the source; else set chat_template_kwargs so that both "
        "agree ('enable_thinking: false' for some models), or choose another model",
        _prefix,
    ),
    "tokens": Check(
        "tokens that the model has no weights for",
        "tokens were added to the tokenizer alone: take the tokenizer the model was saved with",
        _tokens,
    ),
    "equal": Check("answers that render alike", "mend the source of the pairs", _equal),
    "too_long": Check("longer than max_length", "raise max_length in the training file", _too_long),
}
FINE = {"too_long"}  # no fault of the pairs or the template, however many they are


def fit(
    pairs: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    template: Mapping[str, Any],
    max_length: int,
    vocabulary: int = 0,
) -> tuple[list[Row], dict[str, int]]:
    """Return the pairs that can be trained on, each with the template's arguments, and how many cannot for what.

    Pairs that do not fit `max_length` tokens whole are dropped, since TRL would cut their answers' ends. What is
    dropped for another reason than length is named in a warning, with the first such pair.

    Args:
        template: the arguments of the chat template that the policy is sampled and trained with.
        max_length, vocabulary: from `load.limits`; a vocabulary of 0 is not looked at.

    Returns:
        Pairs and counts: `too_long` always, `filtered:<reason>` for each other of REASONS that occurs.

    Raises:
        InputError: if none is left, or more than half of the pairs are at fault.
    """
    kept: list[Row] = []
    lost: Counter[str] = Counter()
    first: dict[str, str] = {}
    for row in pairs:
        reason, said = fault(Pair(row, tokenizer, template, max_length, vocabulary))
        if reason:
            lost[reason] += 1
            first.setdefault(reason, f"pair {row['id']}: {said}")
        else:
            kept.append(row | {"chat_template_kwargs": dict(template)})
    faults = {reason: f"{lost[reason]} {REASONS[reason].means} (first {said})" for reason, said in first.items()}
    wrong = sum(count for reason, count in lost.items() if reason not in FINE)
    if pairs and (not kept or 2 * wrong > len(pairs)):
        raise InputError(
            f"{lost.total()} of {len(pairs)} pairs cannot be trained on: {'; '.join(faults.values())}; to do: "
            + "; ".join(REASONS[reason].remedy for reason, _ in lost.most_common())
        )
    for reason in first.keys() - FINE:
        log.warning("dropped of %d pairs: %s", len(pairs), faults[reason])
    counts = {f"filtered:{reason}": lost[reason] for reason in REASONS if lost[reason] and reason not in FINE}
    return kept, {"too_long": lost["too_long"]} | counts


def fault(pair: Pair) -> tuple[str, str]:
    """Return the first of REASONS that holds for a pair and what is wrong with it; two empty texts if it fits."""
    try:
        return next(((name, said) for name, check in REASONS.items() if (said := check.fault(pair))), ("", ""))
    except Exception as error:  # whatever a template raises: it is a program of the model's makers
        return "template", f"it says: {first_line(error)}"


def can_ask(prompt: Messages, tokenizer: PreTrainedTokenizerBase, template: Mapping[str, Any], room: int) -> bool:
    """Tell whether a policy can be asked this in so many tokens; what the chat template raises passes.

    Raises:
        Unusable: with the reason `control`, if a turn spells a control token of the policy.
    """
    if token := control_in(tokenizer, prompt):
        raise Unusable(f"a turn spells {token}", "control")
    return len(chat.render(tokenizer, prompt, dict(template))) <= room


def said(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Return what the `samples` schema keeps; of a text that spells a control token it says so for a finish reason."""
    control = [chat.spelled(tokenizer, sample.text, thoughts=True) for sample in samples]
    return [s.row() | ({"finish_reason": "control"} if c else {}) for s, c in zip(samples, control, strict=True)]


def check_template(
    path: str, tokenizer: PreTrainedTokenizerBase, template: Mapping[str, Any], system_prompt: str = ""
) -> None:
    """Look at the chat template once: does it take the system prompt, and does an answer end in a stop token?

    An answer without one is warned of: nobody could learn from it to stop.

    Raises:
        InputError: if the template refuses a system turn, or leaves it out.
    """
    turns: Messages = [{"role": "user", "content": "Name a river."}]
    if system_prompt.strip():
        system: Messages = [{"role": "system", "content": system_prompt}, *turns]
        try:
            text = str(tokenizer.apply_chat_template(system, tokenize=False, **template))
            fault = "" if system_prompt.strip() in text else "leaves out"
        except Exception as error:  # as in `_template`
            fault = f"refuses (it says: {first_line(error)})"
        if fault:
            raise InputError(
                f"system_prompt: the model's chat template {fault} a system turn; put the text into prompt_suffix, or "
                "leave system_prompt empty"
            )
    try:
        ids, other = (
            tokenizer.apply_chat_template(turns + _said(answer), return_dict=False, **template)
            for answer in ("The Po.", "Bread, and then wine!")
        )
    except Exception:  # each pair's fault then
        return
    # what two answers have in common at their ends stands behind the answer: a user's turn may end in the token, too
    alike = [a == b for a, b in zip(reversed(ids), reversed(other), strict=False)]
    behind = ids[len(ids) - alike.index(False) :] if False in alike else []
    if not chat.stop_ids(path, tokenizer).intersection(behind):
        end = tokenizer.decode(ids[-8:])
        log.warning("chat template: an answer ends in %r, in no stop token; a policy trained on it may never stop", end)


def breaking(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, template: Mapping[str, Any]) -> int:
    """Count the sampled answers that 04 would drop for `prefix`: 02 looks before a judge is paid, and warns of causes.

    Args:
        rows: of the `samples` schema.
    """
    causes: Counter[str] = Counter()
    for row in rows:
        pair = Pair(row, tokenizer, template, 0, 0)
        for text in (response["text"] for response in row["responses"]):
            try:
                if text.strip() and pair.answered(_said(text))[: len(pair.prompt)] != pair.prompt:
                    causes[cause_of(pair, text)] += 1
            except Exception:  # as in `fault`
                causes["the template refuses it"] += 1
    if causes:
        said = ", ".join(f"{cause} ({count})" for cause, count in causes.most_common())
        log.warning("%d answers would be dropped by 04, %s: %s", causes.total(), REASONS["prefix"].means, said)
    return causes.total()
