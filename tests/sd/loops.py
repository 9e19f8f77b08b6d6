"""The losses written as loops over anchors and samples, straight from their papers; slow and independent of medsd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medsd.sd.losses import ContrastiveLoss
from medsd.sd.rivals import loss_by_name

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


def softmax_loop(
    similarity: Tensor, among: list[int], factor: Callable[[int], float] = lambda a: 1.0
) -> dict[int, Tensor]:
    """log p of each of `among`, from the similarities (M,) over τ; `factor` weighs a summand of the denominator."""
    summands = torch.stack([factor(a) * similarity[a].exp() for a in among])
    return {a: similarity[a] - summands.sum().log() for a in among}


def mean(found: list[Tensor]) -> Tensor:
    return torch.stack(found).mean() if found else torch.zeros((), dtype=torch.float64)


def mulsupcon_by_anchor_loop(embeddings: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Zhang and Wu's code with `with_weight`: the terms of an anchor share the weight 1."""
    sets, found = label_sets(labels), []
    for i, row in enumerate(log_probabilities(embeddings, temperature)):
        positives = [[row[p] for p in row if f in sets[p]] for f in sets[i]]
        terms = [-torch.stack(each).mean() for each in positives if each]
        if terms:
            found.append(mean(terms))
    return mean(found)


def slcl_loop(embeddings: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Lin et al., code: for each label a SupCon loss of the classes present and absent; NaN takes no part."""
    found = []
    for i, row in enumerate(log_probabilities(embeddings, temperature)):
        for f in range(labels.shape[1]):
            terms = [row[p] for p in row if labels[p, f] == labels[i, f]]
            if terms:
                found.append(-torch.stack(terms).mean())
    return mean(found)


def jscl_loop(similarity: Tensor, labels: Tensor) -> Tensor:
    """Lin et al., code: all others are positive, the Jaccard index weighs the denominator. (N, N) similarity/τ."""
    sets, found = label_sets(labels), []
    for i in range(len(sets)):
        others = [a for a in range(len(sets)) if a != i]
        jaccard = {a: jaccard_weight(sets[i], sets[a]) for a in others}
        if any(jaccard.values()):
            log_prob = softmax_loop(similarity[i], others, lambda a, j=jaccard: j[a])  # type: ignore[misc]
            found.append(-torch.stack(list(log_prob.values())).mean())
    return mean(found)


def multisupcon_loop(embeddings: Tensor, labels: Tensor, threshold: float, temperature: float = 0.1) -> Tensor:
    """The formula of pytorch-metric-learning 3.0; anchors whose loss is 0 leave the mean, as its reducer has it."""
    sets, found = label_sets(labels), []
    for i, row in enumerate(log_probabilities(embeddings, temperature)):
        weight = {p: jaccard_weight(sets[i], sets[p]) for p in row}
        near = [p for p in row if weight[p] >= threshold]
        if any(weight[p] for p in near):
            found.append(-torch.stack([weight[p] * row[p] for p in near]).mean())
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
    similarity = unit(queries) @ unit(keys).T / 0.1
    sets, key_sets = label_sets(labels), label_sets(key_labels)
    total = torch.zeros((), dtype=torch.float64)
    for several in (False, True):
        for of_several in (False, True):
            found = []
            among = [k for k, t in enumerate(key_sets) if not t or (len(t) > 1) == of_several]
            for i, s in enumerate(sets):
                if not s or (len(s) > 1) != several or not among:
                    continue
                log_prob = softmax_loop(similarity[i], among)
                for f in s:
                    weight = (multi if several else single)[f]
                    terms = [weight * jaccard_weight(s, key_sets[k]) * log_prob[k] for k in among if f in key_sets[k]]
                    if terms:
                        found.append(-torch.stack(terms).mean())
            total = total + mean(found)
    everybody = range(len(key_sets))
    normal = [k for k in everybody if not key_sets[k]]
    healthy = [softmax_loop(similarity[i], list(everybody)) for i, s in enumerate(sets) if not s]
    if not (normal and healthy):
        return total
    healthy_loss = mean([-torch.stack([log_prob[k] for k in normal]).mean() for log_prob in healthy])
    return (1 - share) * total + share * healthy_loss


def msc_loop(embeddings: Tensor, labels: Tensor, prototypes: Tensor, alpha: float, beta: float) -> Tensor:
    """L_MSC of Audibert et al., from their code: prototypes are positives, samples count β in the denominator."""
    count, found = len(embeddings), []
    unit = torch.nn.functional.normalize(torch.cat([embeddings, prototypes]))
    sets = label_sets(labels)
    for i, s in enumerate(sets):
        if not s:
            continue
        among = [a for a in range(len(unit)) if a != i]
        log_prob = softmax_loop(unit @ unit[i] / 0.1, among, lambda a: beta if a < count else 1.0)
        loss = torch.zeros((), dtype=torch.float64)
        for f in s:
            weight = {j: alpha / len(s | sets[j]) for j in range(count) if j != i and f in sets[j]}
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
