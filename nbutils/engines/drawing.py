"""Drawing a token from next-token scores: temperature, top-k, nucleus."""

import torch

from nbutils.core.sampling import Sampling

# The nucleus nearly always lies within this many tokens; sorting them alone takes a tenth of the time of sorting all.
PREFIX = 1024


def nucleus(scores: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens a draw may take after temperature, top-k and top-p (Holtzman et al. 2020).

    Args:
        scores: next-token logits, shape (batch, vocabulary).

    Returns:
        Scores over the temperature, at minus infinity outside the nucleus, and the token ids they belong to; both of
        shape (batch, candidates). What transformers' own options give, without sorting the vocabulary where the
        nucleus is smaller.
    """
    scores = scores.float() / sampling.temperature
    size = scores.shape[-1]
    limit = min(sampling.top_k or size, size)
    if sampling.top_p == 1 and limit == size:
        return scores, torch.arange(size, device=scores.device).expand_as(scores)
    for prefix in (limit,) if sampling.top_k else (min(PREFIX, size), size):
        values, tokens = scores.topk(prefix)
        # top-k comes first: then only those k tokens share the probability
        total = (values if sampling.top_k else scores).logsumexp(-1, keepdim=True)
        before = (values - total).exp().cumsum(-1) - (values - total).exp()
        if prefix == limit or bool((before[:, -1] >= sampling.top_p).all()):
            break
    return values.masked_fill(before >= sampling.top_p, float("-inf")), tokens


def draw(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return a token id for every row of next-token logits, shape (batch, vocabulary); the likeliest at temperature 0.

    `generate` would draw from the whole vocabulary; on a CPU that and the sorting take as long as a small model itself.
    """
    if sampling.temperature == 0:
        return scores.argmax(-1)
    values, tokens = nucleus(scores, sampling)
    return tokens.gather(-1, torch.multinomial(values.softmax(-1), 1))[:, 0]


TOP = 20  # tokens that could have stood in a place and are kept, more than a scale of digits has levels


def likeliest(scores: torch.Tensor) -> list[dict[int, float]]:
    """Return the most probable tokens of every row of next-token logits and their log-probabilities."""
    values, tokens = scores.float().log_softmax(-1).topk(min(TOP, scores.shape[-1]))
    return [dict(zip(*pair, strict=True)) for pair in zip(tokens.tolist(), values.tolist(), strict=True)]
