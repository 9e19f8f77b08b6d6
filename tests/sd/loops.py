"""The losses written as loops over anchors and samples, straight from their papers; slow and independent of medsd."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from medsd.sd.losses import ContrastiveLoss
from medsd.sd.rivals import loss_by_name

Pair = tuple[set[int], set[int]]  # S and T, over the findings known on both sides
Weigh = Callable[[set[int], set[int]], float]  # anchor's set, sample's set → weight, 0 when not positive


def label_sets(labels: Tensor) -> list[set[int]]:
    return [{f for f, value in enumerate(row) if value == 1} for row in labels.tolist()]


def pair_of(anchor: list[float], sample: list[float]) -> Pair | None:
    """S and T over the findings known on both sides; None where too little is known to say how they relate."""
    known = {f for f, both in enumerate(zip(anchor, sample, strict=True)) if not any(map(math.isnan, both))}
    s, t = ({f for f, value in enumerate(row) if value == 1} for row in (anchor, sample))
    says_nothing = not (s & known) and not (t & known) and bool(s | t)
    return None if not known or says_nothing else (s & known, t & known)


def anchors(labels: Tensor, samples: Tensor | None = None) -> Iterator[tuple[int, set[int], dict[int, Pair]]]:
    """Each anchor with its own set, and its pairs with the other samples; undetermined pairs are left out."""
    rows, others = labels.tolist(), (labels if samples is None else samples).tolist()
    for i, s in enumerate(label_sets(labels)):
        found = {p: pair_of(rows[i], other) for p, other in enumerate(others) if samples is not None or p != i}
        yield i, s, {p: pair for p, pair in found.items() if pair is not None}


def cosines(embeddings: Tensor, temperature: float = 0.1) -> Tensor:
    """Cosines over τ (N, N)."""
    unit = torch.nn.functional.normalize(embeddings)
    return unit @ unit.T / temperature


def softmax_loop(
    similarity: Tensor, among: Iterable[int], factor: Callable[[int], float] = lambda a: 1.0
) -> dict[int, Tensor]:
    """log p of each of `among`, from the similarities (M,) over τ; `factor` weighs a summand of the denominator."""
    summands = {a: factor(a) * similarity[a].exp() for a in among}
    return {a: similarity[a] - torch.stack(list(summands.values())).sum().log() for a in summands}


def mean(found: list[Tensor]) -> Tensor:
    return torch.stack(found).mean() if found else torch.zeros((), dtype=torch.float64)


def weighted_loop(embeddings: Tensor, labels: Tensor, weigh: Weigh, temperature: float = 0.1) -> Tensor:
    """Mean over anchors with positives of −1/|P| Σ w · log p."""
    similarity, found = cosines(embeddings, temperature), []
    for i, _, pairs in anchors(labels):
        log_prob = softmax_loop(similarity[i], pairs)
        terms = [weigh(*pairs[p]) * log_prob[p] for p in pairs if weigh(*pairs[p]) > 0]
        if terms:
            found.append(-torch.stack(terms).mean())
    return mean(found)


def mulsupcon_loop(embeddings: Tensor, labels: Tensor, by_anchor: bool = False) -> Tensor:
    """Zhang and Wu, AAAI 2024: each label of each anchor has a SupCon term of its own, and so has the empty set. With
    `by_anchor` (`with_weight` in their code) the terms of an anchor share the weight 1."""
    similarity, found = cosines(embeddings), []
    for i, s, pairs in anchors(labels):
        log_prob = softmax_loop(similarity[i], pairs)
        positives = [[log_prob[p] for p, (_, t) in pairs.items() if f in t] for f in s]
        positives.append([log_prob[p] for p, pair in pairs.items() if pair == (set(), set())])
        terms = [-torch.stack(each).mean() for each in positives if each]
        if terms:
            found += [mean(terms)] if by_anchor else terms
    return mean(found)


def slcl_loop(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Lin et al., code: for each label a SupCon loss of the classes present and absent; NaN takes no part."""
    similarity, found = cosines(embeddings), []
    for i, _, pairs in anchors(labels):
        log_prob = softmax_loop(similarity[i], pairs)
        for f in range(labels.shape[1]):
            terms = [log_prob[p] for p in pairs if labels[p, f] == labels[i, f]]
            if terms:
                found.append(-torch.stack(terms).mean())
    return mean(found)


def jscl_loop(similarity: Tensor, labels: Tensor) -> Tensor:
    """Lin et al., code: all others are positive, the Jaccard index weighs the denominator. (N, N) similarity/τ."""
    found = []
    for i, _, pairs in anchors(labels):
        jaccard = {a: jaccard_weight(*pair) for a, pair in pairs.items()}
        if any(jaccard.values()):
            log_prob = softmax_loop(similarity[i], pairs, jaccard.__getitem__)
            found.append(-torch.stack(list(log_prob.values())).mean())
    return mean(found)


def multisupcon_loop(embeddings: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """The formula of pytorch-metric-learning 3.0; anchors whose loss is 0 leave the mean, as its reducer has it."""
    similarity, found = cosines(embeddings), []
    for i, _, pairs in anchors(labels):
        log_prob = softmax_loop(similarity[i], pairs)
        weight = {p: jaccard_weight(*pair) for p, pair in pairs.items()}
        near = [p for p in pairs if weight[p] >= threshold]
        if any(weight[p] for p in near):
            found.append(-torch.stack([weight[p] * log_prob[p] for p in near]).mean())
    return mean(found)


def ws_mulsupcon_loop(
    queries: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    single: list[float],
    multi: list[float],
    share: float,
) -> Tensor:
    """The code of ws-MulSupCon: anchors with one finding and with several, against keys with at most one, and with
    several or none; queries and keys come from two encoders, so that none is left out."""
    unit = torch.nn.functional.normalize
    similarity, key_sets = unit(queries) @ unit(keys).T / 0.1, label_sets(key_labels)
    total, healthy = torch.zeros((), dtype=torch.float64), []
    for several in (False, True):
        for of_several in (False, True):
            found = []
            for i, s, pairs in anchors(labels, key_labels):
                if not s or (len(s) > 1) != several:
                    continue
                among = [k for k in pairs if not key_sets[k] or (len(key_sets[k]) > 1) == of_several]
                log_prob = softmax_loop(similarity[i], among)
                for f in s:
                    weight = (multi if several else single)[f]
                    terms = [weight * jaccard_weight(*pairs[k]) * log_prob[k] for k in among if f in key_sets[k]]
                    if terms:
                        found.append(-torch.stack(terms).mean())
            total = total + mean(found)
    for i, _, pairs in anchors(labels, key_labels):
        log_prob = softmax_loop(similarity[i], pairs)
        normal = [log_prob[k] for k, pair in pairs.items() if pair == (set(), set())]
        if normal:
            healthy.append(-torch.stack(normal).mean())
    return (1 - share) * total + share * mean(healthy) if healthy else total


def msc_loop(embeddings: Tensor, labels: Tensor, prototypes: Tensor, alpha: float, beta: float) -> Tensor:
    """L_MSC of Audibert et al., from their code: prototypes are positives, samples count β in the denominator."""
    count, found = len(embeddings), []
    similarity = cosines(torch.cat([embeddings, prototypes]))
    for i, s, pairs in anchors(torch.cat([labels, torch.eye(len(prototypes), dtype=labels.dtype)])):
        if i >= count or not s:
            continue
        log_prob = softmax_loop(similarity[i], pairs, lambda a: beta if a < count else 1.0)
        loss = torch.zeros((), dtype=torch.float64)
        for f in s:
            weight = {j: alpha / len(a | t) for j, (a, t) in pairs.items() if j < count and f in t}
            weight[count + f] = 1.0
            loss = loss - sum(w * log_prob[j] for j, w in weight.items()) / sum(weight.values())
        found.append(loss / len(s))
    return mean(found)


def icl_loop(embeddings: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """ICL of Lin et al., from their code: a SupCon loss of the findings of a sample, present or absent."""
    found = []
    for e, y in zip(torch.nn.functional.normalize(embeddings, dim=2), labels, strict=True):
        known = [f for f in range(len(y)) if not y[f].isnan()]
        for f in known:
            others = [g for g in known if g != f]
            positives = [g for g in others if y[g] == y[f]]
            if positives:
                log_prob = softmax_loop(e @ e[f] / temperature, others)
                found.append(-torch.stack([log_prob[g] for g in positives]).mean())
    return mean(found)


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


def build_loss(name: str, **options: Any) -> ContrastiveLoss:
    """A loss for the batches of these tests: 4 findings, embeddings of length 5, always the same prototypes."""
    torch.manual_seed(0)
    return loss_by_name(name, **({"findings": 4, "embedding_size": 5} if name == "msc" else {}), **options)
