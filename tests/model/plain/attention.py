"""Attention of one head: to every token, or to the tokens of some bricks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

ROWS_AT_A_TIME = 2048


@dataclass(frozen=True)
class PlainBricks:
    """Sizes in tokens (frames, rows, columns); either of the two ways to count may be None."""

    chunk_q: tuple[int, ...]
    chunk_k: tuple[int, ...]
    sparsity: float | None
    cdf_threshold: float | None = None


def attend_densely(q, k, v):
    out = []
    for rows in q.split(ROWS_AT_A_TIME):
        scores = rows @ k.T / math.sqrt(q.shape[-1])
        out.append(scores.softmax(-1) @ v)
    return torch.cat(out)


def attend_in_bricks(q, k, v, places, condition, bricks):
    """Every query brick on its own: rank the key bricks it may see, keep some, attend within them."""
    query_bricks, key_bricks = cut(places, bricks.chunk_q), cut(places, bricks.chunk_k)
    pooled = torch.stack([k[tokens].float().mean(0) for tokens in key_bricks])
    out = torch.empty_like(q)
    for tokens in query_bricks:
        held = int(places[tokens[0], 0]) < condition
        may_see = [
            i for i, those in enumerate(key_bricks) if not held or int(places[those[0], 0]) < condition
        ]
        scores = [float(q[tokens].float().mean(0) @ pooled[i]) for i in may_see]
        best = sorted(range(len(may_see)), key=lambda i: -scores[i])
        keep = best[: how_many([scores[i] for i in best], q.shape[-1], bricks)]
        seen = torch.cat([key_bricks[may_see[i]] for i in keep])
        out[tokens] = attend_densely(q[tokens], k[seen], v[seen])
    return out


def cut(places, chunk):
    """The tokens of each brick: those whose place, in whole chunks, is the same."""
    bricks: dict[tuple[int, ...], list[int]] = {}
    for token, corner in enumerate((places // torch.tensor(chunk)).tolist()):
        bricks.setdefault(tuple(corner), []).append(token)
    return [torch.tensor(tokens) for tokens in bricks.values()]


def how_many(scores, head_dim, bricks):
    """`scores` are sorted, highest first."""
    counts = [1]
    if bricks.sparsity is not None:
        counts.append(int((1 - bricks.sparsity) * len(scores)))
    if bricks.cdf_threshold is not None:
        exps = [math.exp((score - scores[0]) / math.sqrt(head_dim)) for score in scores]
        so_far, count = 0.0, 0
        for probability in (e / sum(exps) for e in exps):
            so_far += probability
            count += so_far <= bricks.cdf_threshold
        counts.append(count)
    return max(counts)
