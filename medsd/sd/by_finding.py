"""Losses that contrast finding by finding: an anchor has a term for each finding, with positives of its own.

In all formulas, p_ip is the softmax over A(i) of `SDLoss`, S and T are the label sets of anchor and sample, and P_f(i)
is the set of the other samples with finding f. Every loss but `IntraLabelLoss` takes the options of `ContrastiveLoss`.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medsd.errors import DataError, SettingsError
from medsd.sd.coefficients import Coefficients, Excluded, contrastive_sum, product, weigh_positives
from medsd.sd.gather import shared_mean, summed, world_size
from medsd.sd.losses import ContrastiveLoss, one_of, unit_length
from medsd.sd.relations import LabelPairs, PairCounts


def terms_by_finding(
    anchors: Tensor, samples: Tensor, excluded: Excluded, weights: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Σ_f w_f · (mean over the samples with finding f), for the findings of each anchor; `weights` w are (F,).

    Takes labels (R, F) and (M, F) in [0, 1]. Returns coefficients (R, M), and the terms (R, F): the anchor's labels of
    the findings that some sample has too.
    """
    if excluded.mask is None:
        positives = samples.sum(0).expand_as(anchors)
        if excluded.diagonal is not None:  # no anchor is a positive of itself
            positives = positives - samples[excluded.diagonal : excluded.diagonal + len(anchors)]
    else:
        positives = excluded.fill_(samples.new_ones(len(anchors), len(samples)), 0) @ samples
    terms = anchors * (positives > 1e-6)  # a term without positives is left out
    matrix = (terms * weights / positives.clamp(min=1e-6)) @ samples.T
    return excluded.fill_(matrix, 0), terms


class MulSupConLoss(ContrastiveLoss):
    r"""MulSupCon: one SupCon term for each finding of the anchor (Zhang and Wu, AAAI 2024).

        L_if = −1/|P_f(i)| · Σ_{p∈P_f(i)} log p_ip

    and the loss is the mean over all terms with a positive. Positive: a sample that shares a finding, once for each
    shared finding. Negative: the others. An empty set has the finding "none", a term of its own, unless
    ``empty="ignore"``. Soft labels enter as products s·t, finding weights as the weights of the terms. The authors'
    code compares with keys of a momentum encoder; here, `ref_emb` or `MemoryQueue`.

    Args:
        normalise: take the mean over each ``"term"`` (the default of the authors' code) or each ``"anchor"``, whose
            terms then share the weight 1 (``with_weight`` in the code).
    """

    source = "Zhang and Wu, AAAI 2024"
    positive = "shares the finding of the term"
    unknown = "count as absent"
    empty_sets = "a finding"
    soft = "products"

    def __init__(self, *, normalise: Literal["term", "anchor"] = "term", **options: Any) -> None:
        super().__init__(**options)
        self.normalise = one_of("normalise", normalise, ("term", "anchor"))

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        weights = 1.0 if self.finding_weights is None else self.finding_weights.to(pairs.sample)
        matrix, terms = terms_by_finding(pairs.anchor[rows], pairs.sample, excluded, weights)
        found = Coefficients(matrix, (terms * weights).sum(1))
        if self.normalise == "anchor":
            share = (found.terms > 0) / found.terms.clamp(min=torch.finfo(matrix.dtype).tiny)
            found = Coefficients(matrix * share[:, None], found.terms * share)
        if counts.both_empty is None or self.empty == "ignore":
            return found
        normal = weigh_positives(excluded.fill_(counts.both_empty.to(matrix.dtype), 0))
        return Coefficients(found.matrix + normal.matrix, found.terms + normal.terms)


class StepwiseLoss(ContrastiveLoss):
    r"""SLCL, the stepwise label contrastive loss (Lin et al., Findings of ACL 2023, arXiv 2212.00552).

    The formula is that of `MulSupConLoss`, with P_f(i) the other samples with the anchor's value of label f, and the
    loss is the mean over anchors and findings with a positive. Positive in step f: the samples in which f is present,
    or absent, as in the anchor. This is the rule of the authors' code; if the paper, which was not at hand, means
    present labels alone, `MulSupConLoss` is that. Their further division by the batch size and their constant −1 for
    anchors without a positive are left out: they do not change the direction of a step. Finding weights have no effect.
    """

    source = "Lin et al., ACL 2023 (SLCL)"
    positive = "has the finding of the step as the anchor has it, present or absent"
    unknown = "left out of their step"
    empty_sets = "absent findings"
    soft = "products"

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        anchor, known = pairs.anchor[rows], pairs.anchor_known[rows]
        present, present_terms = terms_by_finding(anchor, pairs.sample, excluded)
        absent, absent_terms = terms_by_finding(known - anchor, pairs.sample_known - pairs.sample, excluded)
        return Coefficients(present + absent, (present_terms + absent_terms).sum(1))


class WsMulSupConLoss(ContrastiveLoss):
    r"""ws-MulSupCon: MulSupCon in strata, for the long tail of chest radiographs (MICCAI 2025, paper 1834).

    Studies with one finding (s) and with several (m) are contrasted apart: for each pair of strata a→b, an anchor i of
    a has a term for each of its findings f,

        L_if = −1/|P_f(i)| · Σ_{p∈P_f(i)} w_f · |S∩T| / |S∪T| · log( exp(z_i·z_p/τ) / Σ_{a∈b∪healthy} exp(z_i·z_a/τ) ),

    with P_f(i) taken from b. The loss of a→b is the mean of its terms, L_h the SupCon loss among studies without
    findings, against all, and

        L = (1 − λ) · (L_s→s + L_s→m + L_m→s + L_m→m) + λ · L_h        (without healthy anchors, the sum alone).

    Positive: the same finding, or both healthy. Negative: the others of the stratum, and the healthy. Neutral: the
    other stratum. From the authors' code, whose switch for healthy negatives in s→m and m→m has no default.

    Args:
        healthy_weight: λ in [0, 1]; 0.75 is the code's default, 0.7 its choice for NIH ChestX-ray14.
        healthy_negatives: whether the healthy are negatives in s→m and m→m, too.
        single_weights, multi_weights: (F,) w of anchors with one finding and with several, not negative; None for 1;
            see `complement_frequency_weights`.
        **options: finding weights enter |S∩T| / |S∪T|.
    """

    source = "ws-MulSupCon, MICCAI 2025"
    positive = "shares the finding of the term, with the Jaccard index, within a stratum"
    unknown = "absent; left out of the Jaccard index"
    empty_sets = "a term of their own"
    soft = "an error"
    single_weights: Tensor | None
    multi_weights: Tensor | None

    def __init__(
        self,
        *,
        healthy_weight: float = 0.75,
        healthy_negatives: bool = True,
        single_weights: Tensor | list[float] | None = None,
        multi_weights: Tensor | list[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 <= healthy_weight <= 1:
            raise SettingsError(f"healthy_weight is {healthy_weight}; it must lie in [0, 1]")
        self.healthy_weight, self.healthy_negatives = healthy_weight, healthy_negatives
        for name, weights in (("single_weights", single_weights), ("multi_weights", multi_weights)):
            values = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
            self.register_buffer(name, values, persistent=False)

    def contrast(self, embeddings: Tensor, labels: Tensor, refs: Tensor, ref_labels: Tensor, own: int | None) -> Tensor:
        """As in `ContrastiveLoss`."""
        batch = (embeddings, labels, refs, ref_labels, own)
        strata = [partial(self._stratum, several=a, of_several=b) for a in (False, True) for b in (False, True)]
        with_findings = torch.stack([self.mean_of(stratum, *batch)[0] for stratum in strata]).sum()
        healthy, terms = self.mean_of(self._healthy, *batch)
        share = (terms > 0).to(healthy.dtype) * self.healthy_weight
        return (1 - share) * with_findings + share * healthy

    def _stratum(
        self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice, several: bool, of_several: bool
    ) -> Coefficients:
        if pairs.soft and not torch.compiler.is_compiling():
            raise DataError("ws-MulSupCon sorts studies by their number of findings; its labels must be 0, 1 or NaN")
        size, sample_size = pairs.anchor[rows].sum(1), pairs.sample.sum(1)
        anchors = (pairs.anchor[rows] * ((size > 1) == several)[:, None]).to(pairs.sample)
        among = (sample_size > 1) == of_several  # the healthy are in the stratum of one finding
        if of_several and self.healthy_negatives:
            among = among | (sample_size == 0)
        weights = self.multi_weights if several else self.single_weights
        matrix, terms = terms_by_finding(
            anchors, pairs.sample * among[:, None], excluded, 1.0 if weights is None else weights.to(pairs.sample)
        )
        denominator = among.to(matrix.dtype).expand_as(matrix)
        return Coefficients(matrix * counts.jaccard(), terms.sum(1), denominator=denominator)

    def _healthy(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        both = torch.zeros_like(counts.shared) if counts.both_empty is None else counts.both_empty.to(counts.shared)
        return weigh_positives(excluded.fill_(both, 0))


def complement_frequency_weights(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The finding weights of ws-MulSupCon, 1 − n_f / Σ_g n_g, counted over all studies and over those with several.

    Takes training labels (N, F) 0, 1 or NaN; returns `single_weights` (F,) and `multi_weights` (F,) of
    `WsMulSupConLoss`.
    """
    present = labels.nan_to_num().to(torch.float32)
    several = present * (present.sum(1, keepdim=True) > 1)
    single, multi = (1 - n / n.sum().clamp(min=1) for n in (present.sum(0), several.sum(0)))
    return single, multi


class PrototypeLoss(ContrastiveLoss):
    r"""L_MSC of ABALONE, for long-tailed label sets (Audibert et al., ECML PKDD 2024, arXiv 2404.08720).

    Each finding f has a learned prototype c_f, a positive of every sample that has f. With |S| the anchor's findings,

        L_i = −1/|S| · Σ_{f∈S} 1/N_f · ( Σ_{j: f∈T_j} α/|S∪T_j| · log p_ij + log p_{i,c_f} ),
        N_f = 1 + Σ_{j: f∈T_j} α/|S∪T_j|,
        p_ij = exp(z_i·z_j/τ) / ( β Σ_{samples a≠i} exp(z_i·z_a/τ) + Σ_{prototypes g} exp(z_i·c_g/τ) ),

    and the loss is the mean over the anchors with a finding. Positive: samples that share a finding, and the prototypes
    of the anchor's findings. Negative: all others, samples with the weight β. An anchor without findings has no term.
    The queue of the paper is `MemoryQueue` around this loss. From the authors' code; the text was not at hand.

    Args:
        findings: F.
        embedding_size: D.
        sample_weight: α > 0; 1 in the authors' runs.
        repulsion: β ≥ 0, what a sample counts in the denominator beside a prototype; 0.1 in the authors' configuration.
        **options: finding weights enter |S∪T|.

    The prototypes are parameters, random at first: give `loss.parameters()` to the optimiser.
    """

    source = "Audibert et al., arXiv 2404.08720"
    positive = "shares a finding, by 1 / size of the union; the prototypes of the anchor's findings"
    unknown = "absent; left out of the union"
    empty_sets = "negatives only"
    soft = "products"

    def __init__(
        self, *, findings: int, embedding_size: int, sample_weight: float = 1.0, repulsion: float = 0.1, **options: Any
    ) -> None:
        super().__init__(**options)
        if not (sample_weight > 0 and repulsion >= 0):
            raise SettingsError(
                f"sample_weight is {sample_weight} and repulsion {repulsion}; they must be above 0, and 0 or above"
            )
        self.sample_weight, self.repulsion = sample_weight, repulsion
        self.prototypes = nn.Parameter(nn.init.xavier_uniform_(torch.empty(findings, embedding_size)))

    def contrast(self, embeddings: Tensor, labels: Tensor, refs: Tensor, ref_labels: Tensor, own: int | None) -> Tensor:
        """As `ContrastiveLoss.contrast`; the prototypes are samples of one finding, behind the others."""
        if (labels.shape[1], embeddings.shape[1]) != tuple(self.prototypes.shape):
            raise DataError(
                f"the prototypes are for {self.prototypes.shape[0]} findings and embeddings of length "
                f"{self.prototypes.shape[1]}; the batch has {labels.shape[1]} and {embeddings.shape[1]}"
            )
        one_each = torch.eye(len(self.prototypes), dtype=ref_labels.dtype, device=ref_labels.device)
        prototypes = self.prototypes.to(torch.promote_types(refs.dtype, self.prototypes.dtype))
        refs, ref_labels = torch.cat([refs.to(prototypes.dtype), prototypes]), torch.cat([ref_labels, one_each])
        return super().contrast(embeddings, labels, refs, ref_labels, own)

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        present, count = pairs.anchor[rows], len(self.prototypes)
        samples = pairs.sample[:-count]
        share = self.sample_weight / (counts.shared + counts.missing + counts.extra).clamp(min=1e-6)
        share = excluded.fill_(share, 0)[:, :-count]  # (R, M − F)
        term = present / (1 + share @ samples) / present.sum(1, keepdim=True).clamp(min=1e-6)  # 1/(|S| N_f)
        matrix = torch.cat([share * (term @ samples.T), term], dim=1)
        denominator = torch.full_like(matrix, self.repulsion)
        denominator[:, -count:] = 1
        found = (present.sum(1) > 0).to(matrix.dtype)
        return Coefficients(excluded.fill_(matrix, 0), found, denominator=denominator)


class IntraLabelLoss(nn.Module):
    r"""ICL, the intra-label contrastive loss (Lin et al.): the embeddings of the findings within one sample.

        L_bf = −1/|P| · Σ_{g∈P} log( exp(e_bf·e_bg/τ) / Σ_{g≠f} exp(e_bf·e_bg/τ) ),  P the other findings of b that have
        the value of f

    and the loss is the mean over samples and findings with a positive. Positive: two findings both present, or both
    absent, in the sample. Negative: one present, the other absent. Unknown findings are left out. It needs an embedding
    of each finding of each sample; `medsd.training.contrast.finding_features` makes one from a feature map.

    Args:
        temperature: τ > 0.
        gather: take the mean over the samples of all processes; see `ContrastiveLoss`.

    Raises:
        SettingsError: τ is not positive.

    Example:
        >>> IntraLabelLoss()(torch.eye(4)[None], torch.tensor([[1, 1, 0, 0]]))
        tensor(1.0986)
    """

    def __init__(self, *, temperature: float = 0.1, gather: bool = False) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise SettingsError(f"temperature is {temperature}; it must be a positive number, for instance 0.1")
        self.temperature, self.gather = temperature, gather

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar, of embeddings (B, F, D) of any length with labels (B, F), 0, 1 or NaN where unknown.

        Raises:
            DataError: shapes that do not fit, or other labels.
        """
        if embeddings.shape[:2] != labels.shape or embeddings.ndim != 3:
            raise DataError(
                f"embeddings has shape {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; they need (B, F, D) "
                "and (B, F)"
            )
        labels = labels.to(embeddings.device)
        known = ~labels.isnan()
        if not bool(((labels == 0) | (labels == 1) | ~known).all()):
            raise DataError("labels must be 0, 1 or NaN; ICL has no form for soft labels")
        itself = torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
        left_out = ~(known[:, :, None] & known[:, None, :]) | itself  # (B, F, F)
        same = (labels[:, :, None] == labels[:, None, :]) & ~left_out
        with torch.autocast(embeddings.device.type, enabled=False):
            places = unit_length(embeddings.flatten(0, 1)).reshape(embeddings.shape)
            logits = product(places / self.temperature, places.mT).flatten(0, 1)  # (B·F, F)
            found = weigh_positives(same.flatten(0, 1).to(logits.dtype))
            total, terms = contrastive_sum(logits, Excluded(left_out.flatten(0, 1), None), found), found.terms.sum()
            if self.gather and world_size() > 1:
                return shared_mean(total, summed(terms).clamp(min=1))
            return total / terms.clamp(min=1)
