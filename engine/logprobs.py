"""What is reported of tokens' log-probabilities, and their ranks in the order of token_order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pagetwin.engine.step import TokenLogprobs
from pagetwin.engine.token_order import order_keys

LOWEST_LOGPROB = torch.finfo(torch.float32).min
"""Reported for a token of probability 0: JSON, and so a history, has no infinity."""


def report_logprobs(
    logits: Tensor,
    chosen: Sequence[int],
    num_top: Sequence[int],
    extra_ids: Sequence[Sequence[int]],
) -> list[TokenLogprobs]:
    """Log-softmax of `logits`, float32 [R, V], at each row's chosen token, its `num_top` first
    ones (-1 = all), and its `extra_ids`, in this order, each token once.

    Logits are finite or -inf, and at least one is finite in each row. The log-softmax is taken
    row by row, so that its bits do not depend on the batch (a reduction over all rows at once
    may be split among threads in another way for another number of rows).
    """
    vocab_size = logits.shape[-1]
    widths = [vocab_size if k == -1 else min(k, vocab_size) for k in num_top]
    keys = order_keys(logits)
    top = keys.topk(max(widths), dim=-1).indices.tolist()
    index = torch.tensor(chosen, device=logits.device)[:, None]
    chosen_ranks = ((keys > keys.gather(1, index)).sum(dim=-1) + 1).tolist()
    logprobs = torch.log_softmax(logits, dim=-1).clamp_(min=LOWEST_LOGPROB)
    reports = []
    for i, width in enumerate(widths):
        ranks = {chosen[i]: chosen_ranks[i]}
        ranks |= {token: place + 1 for place, token in enumerate(top[i][:width])}
        ranks |= {token: _rank(keys[i], token) for token in extra_ids[i] if token not in ranks}
        values = logprobs[i, list(ranks)].tolist()
        reports.append(
            TokenLogprobs(
                token_ids=tuple(ranks), logprobs=tuple(values), ranks=tuple(ranks.values())
            )
        )
    return reports


def _rank(keys: Tensor, token: int) -> int:
    return int((keys > keys[token]).sum()) + 1


def first_tokens(scores: Tensor, count: int) -> TokenLogprobs:
    """The first `count` tokens of one row of log-probabilities, float32 [V]; none that is -inf."""
    index = order_keys(scores).topk(min(count, scores.shape[-1])).indices
    kept = scores[index].tolist()
    pairs = [(i, s) for i, s in zip(index.tolist(), kept, strict=True) if s != float("-inf")]
    return TokenLogprobs(
        token_ids=tuple(i for i, _ in pairs),
        logprobs=tuple(s for _, s in pairs),
        ranks=tuple(range(1, len(pairs) + 1)),
    )
