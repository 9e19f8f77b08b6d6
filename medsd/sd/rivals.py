"""The losses that the Similarity-Dissimilarity loss is compared with, called in the same way.

They differ in two things only: which samples are positive for an anchor, and how much each counts. What the frame
decides is equal for all, so that a comparison compares the rule: unknown labels, empty label sets (two of them are
equal unless ``empty="ignore"``), views, reference sets, several processes. Start at `loss_by_name`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medsd.errors import SettingsError
from medsd.sd.coefficients import Coefficients, Excluded
from medsd.sd.gather import largest, world_size
from medsd.sd.losses import ContrastiveLoss, SDLoss, weigh_positives
from medsd.sd.relations import LabelPairs, PairCounts


class AnyLoss(ContrastiveLoss):
    """ANY: every sample that shares a finding with the anchor is a full positive (Zhang and Wu, AAAI 2024, «ANY»).

    Args:
        **options: see `ContrastiveLoss`.
    """

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        positive = counts.shared > 0
        if counts.both_empty is not None:
            positive |= counts.both_empty
        return weigh_positives(excluded.fill_(positive, False).to(counts.shared.dtype))


class AllLoss(ContrastiveLoss):
    """ALL: only the samples with the very same label set are positive (Zhang and Wu, AAAI 2024, «ALL»).

    Args:
        **options: see `ContrastiveLoss`.
    """

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        equal = (counts.missing + counts.extra) <= 0
        return weigh_positives(excluded.fill_(equal, False).to(counts.shared.dtype))


class SupConLoss(AllLoss):
    """Supervised contrast of classes (Khosla et al., NeurIPS 2020, L_out), each distinct label set being one class.

    That is ALL on label sets; labels may also be class numbers (N,), as in the paper.

    Args:
        **options: see `ContrastiveLoss`.
    """

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        own: int | None = None,
    ) -> Tensor:
        """As `ContrastiveLoss.forward`; labels (N,) are class numbers from 0."""
        if labels.ndim == 1:
            both = labels if ref_labels is None else torch.cat([labels, ref_labels.to(labels.device)])
            classes = int(largest(both.max()) if self.gather and world_size() > 1 else both.max()) + 1
            labels = torch.nn.functional.one_hot(labels.long(), classes)
            ref_labels = None if ref_labels is None else torch.nn.functional.one_hot(ref_labels.long(), classes)
        return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels, own)


class MulSupConLoss(ContrastiveLoss):
    """MulSupCon: one SupCon term for each finding of the anchor (Zhang and Wu, AAAI 2024).

    The term of finding f has the samples with f as positives; the loss is the mean over all terms with a positive.
    «No finding» is a term of its own unless ``empty="ignore"``. Soft labels enter as products s·t, finding weights
    as the weights of the terms.

    Args:
        **options: see `ContrastiveLoss`.
    """

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        present, samples_with = pairs.totals()
        present = present[rows]  # (R, F)
        positives = samples_with.expand_as(present)
        if excluded.diagonal is not None:  # nobody is a positive of himself
            positives = positives - present
        some = positives > 1e-6  # a term without positives is left out
        weights = torch.ones_like(samples_with) if self.finding_weights is None else self.finding_weights.to(present)
        term = present * weights * some  # (R, F)
        matrix = pairs.overlap_of(term / positives.clamp(min=1e-6))
        found = Coefficients(excluded.fill_(matrix, 0), term.sum(1))
        if counts.both_empty is None or self.empty == "ignore":
            return found
        normal = weigh_positives(excluded.fill_(counts.both_empty.to(matrix.dtype), 0))
        return Coefficients(found.matrix + normal.matrix, found.terms + normal.terms)


class JaccardLoss(ContrastiveLoss):
    """Positives weighed by |S∩T| / |S∪T|: JSCL (Lin et al., Findings of ACL 2023), MultiSupCon with a threshold.

    Args:
        threshold: the least Jaccard index of a positive; 0 takes all that share a finding.
        **options: see `ContrastiveLoss`.
    """

    def __init__(self, *, threshold: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.threshold = _checked_threshold(threshold)

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        weight = excluded.fill_(counts.jaccard(), 0)
        return weigh_positives(weight * (weight > self.threshold - 1e-6))


class OverlapLoss(ContrastiveLoss):
    """Full positives where label sets overlap enough, in the manner of ProbMCL (Sajedi et al., ICASSP 2024).

    The paper's positive set A(i) = {j : D(y_i, y_j) ≥ α}, with the Jaccard index as D, on embeddings instead of its
    Gaussian mixtures.

    Args:
        threshold: α in (0, 1].
        **options: see `ContrastiveLoss`.
    """

    def __init__(self, *, threshold: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.threshold = _checked_threshold(threshold)

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        overlap = excluded.fill_(counts.jaccard(), 0)
        positive = (overlap > 0) & (overlap > self.threshold - 1e-6)
        return weigh_positives(positive.to(overlap.dtype))


LOSSES: Mapping[str, type[ContrastiveLoss]] = {
    "sd": SDLoss,
    "supcon": SupConLoss,
    "any": AnyLoss,
    "all": AllLoss,
    "mulsupcon": MulSupConLoss,
    "jaccard": JaccardLoss,
    "probmcl": OverlapLoss,
}


def loss_by_name(name: str, **options: Any) -> ContrastiveLoss:
    """Build a loss from its name in a configuration.

    Args:
        name: one of `LOSSES`: sd, supcon, any, all, mulsupcon, jaccard, probmcl.
        **options: the keyword arguments of its class.

    Raises:
        SettingsError: no such loss, an option that it has not, or a value outside the option's range.

    Example:
        >>> loss_by_name("jaccard", temperature=0.2, threshold=0.3).temperature
        0.2
    """
    if name not in LOSSES:
        raise SettingsError(f"there is no loss '{name}'; medsd has {', '.join(LOSSES)}")
    try:
        return LOSSES[name](**options)
    except TypeError as exc:
        raise SettingsError(f"loss '{name}' does not take these options: {', '.join(options)} ({exc})") from exc


def _checked_threshold(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise SettingsError(f"threshold is {threshold}; it must lie in [0, 1]")
    return threshold
