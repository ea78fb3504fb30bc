"""The judge that a parameter names; one that runs a model loads torch only here."""

from pathlib import Path

from nbutils.core.errors import InputError
from nbutils.judges.assume import Assume
from nbutils.judges.files import AnswerFile, AssumeFile, RewardFile, VerifierFile, read_file
from nbutils.judges.judge import Judge


def load(name: str, *, cache: Path, seed: int = 0, ordered: bool = False) -> Judge:
    """Return the judge a parameter names; a model that runs here is loaded at its first question.

    Args:
        cache: folder for converted models, should the judge run one here.
        seed: of the markers around judged text and of the retries; part of every key in the store.
        ordered: whether the first of two responses is the one that a source calls better, as in 01.

    Raises:
        InputError: if the file is faulty, or needs an order where there is none.
    """
    short, file = read_file(name)
    if isinstance(file, AssumeFile):
        if not ordered:
            raise InputError(f"judge {short} keeps the order of a source, and here there is none; only 01 can use it")
        return Assume(short, file)
    if isinstance(file, VerifierFile):
        from nbutils.judges.verifier import Verifier

        return Verifier(short, file)
    if isinstance(file, AnswerFile):
        from nbutils.judges.answer import AnswerJudge

        return AnswerJudge(short, file)
    if isinstance(file, RewardFile):
        from nbutils.judges.reward import RewardJudge

        return RewardJudge(short, file, cache=cache)
    from nbutils.judges.llm import LlmJudge

    return LlmJudge(short, file, cache=cache, seed=seed)


def beside(judge: Judge, second: str = "", *, cache: Path, seed: int = 0) -> list[Judge]:
    """Return who is tried beside a judge: a second one, and the judge itself without the reference that it is shown.

    Args:
        second: name of another judge, empty for none.
    """
    others = [load(second, cache=cache, seed=seed)] if second else []
    bare = getattr(judge, "without_reference", lambda: None)()
    for other in others:
        if other.name == judge.name:  # of another folder; or the very same, which may be tried once more
            other.name = f"{other.name} 2"
    return others + ([bare] if bare else [])
