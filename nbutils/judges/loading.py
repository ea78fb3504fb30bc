"""The judge that a parameter names; one that runs a model loads torch only here."""

from pathlib import Path

from nbutils.judges.files import AnswerFile, RewardFile, VerifierFile, read_file
from nbutils.judges.judge import Judge


def load(name: str, *, cache: Path, seed: int = 0) -> Judge:
    """Return the judge a parameter names; a model that runs here is loaded at its first question.

    Args:
        cache: folder for converted models, should the judge run one here.
        seed: of the markers around judged text and of the retries; part of every key in the store.
    """
    short, file = read_file(name)
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
