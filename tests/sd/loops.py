"""The losses written as loops over anchors and samples, straight from their papers; slow and independent of medsd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Sets = list[set[int]]
Weigh = Callable[[set[int], set[int]], float]  # anchor's set, sample's set → weight, 0 when not positive


def label_sets(labels: Tensor) -> Sets:
    return [{f for f, value in enumerate(row) if value == 1} for row in labels.tolist()]


def log_probabilities(embeddings: Tensor, temperature: float) -> list[dict[int, Tensor]]:
    """log p(sample | anchor), by anchor and sample."""
    unit = torch.nn.functional.normalize(embeddings)
    rows = []
    for i in range(len(unit)):
        others = [a for a in range(len(unit)) if a != i]
        similarity = {a: (unit[i] * unit[a]).sum() / temperature for a in others}
        normaliser = torch.logsumexp(torch.stack([similarity[a] for a in others]), 0)
        rows.append({a: similarity[a] - normaliser for a in others})
    return rows


def weighted_loop(embeddings: Tensor, labels: Tensor, weigh: Weigh, temperature: float = 0.1) -> Tensor:
    """Mean over anchors with positives of −1/|P| Σ w · log p."""
    sets, found = label_sets(labels), []
    for i, row in enumerate(log_probabilities(embeddings, temperature)):
        terms = [weigh(sets[i], sets[p]) * row[p] for p in row if weigh(sets[i], sets[p]) > 0]
        if terms:
            found.append(-torch.stack(terms).mean())
    return torch.stack(found).mean() if found else torch.zeros((), dtype=embeddings.dtype)


def mulsupcon_loop(embeddings: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Zhang and Wu, AAAI 2024: each label of each anchor has a SupCon term of its own."""
    sets, found = label_sets(labels), []
    for i, row in enumerate(log_probabilities(embeddings, temperature)):
        for f in sets[i]:
            terms = [row[p] for p in row if f in sets[p]]
            if terms:
                found.append(-torch.stack(terms).mean())
    return torch.stack(found).mean() if found else torch.zeros((), dtype=embeddings.dtype)


def sd_weight(s: set[int], t: set[int]) -> float:
    """Huang et al., arXiv 2410.13439: K_s · K_d; two empty sets are equal."""
    if s == t:
        return 1.0
    return len(s & t) / len(s) / (1 + len(t - s)) if s & t else 0.0


def any_weight(s: set[int], t: set[int]) -> float:
    return float(bool(s & t) or s == t)


def all_weight(s: set[int], t: set[int]) -> float:
    return float(s == t)


def jaccard_weight(s: set[int], t: set[int]) -> float:
    return len(s & t) / len(s | t) if s | t else 1.0


def overlap_weight(s: set[int], t: set[int]) -> float:
    return float(jaccard_weight(s, t) >= 0.5)
