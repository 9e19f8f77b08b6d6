"""The losses that the Similarity-Dissimilarity loss is compared with, called in the same way; see `loss_by_name`.

They differ in which samples are positive for an anchor, how much each counts and, a few, in the denominator. The frame
decides the rest alike for all, so that a comparison compares the rule. Every loss takes the options of
`ContrastiveLoss`. In all formulas, p_ip is the softmax over A(i) of `SDLoss`, S and T are the label sets of anchor and
sample, J = |S∩T| / |S∪T|, and the loss is the mean of L_i over the anchors with a positive.

The losses of Lin et al. (Findings of ACL 2023, arXiv 2212.00552) follow the authors' code (the repository CL-MTC), as
the text of the paper was not at hand: SCL is `AllLoss`, SLCL `by_finding.StepwiseLoss`, ICL
`by_finding.IntraLabelLoss`. The code takes raw dot products; here embeddings have unit length, except in JSPCL.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from medsd.errors import SettingsError
from medsd.sd.by_finding import MulSupConLoss, PrototypeLoss, StepwiseLoss, WsMulSupConLoss
from medsd.sd.coefficients import Coefficients, Excluded, weigh_positives
from medsd.sd.gather import largest, world_size
from medsd.sd.losses import ContrastiveLoss, SDLoss, one_of
from medsd.sd.relations import LabelPairs, PairCounts


class AnyLoss(ContrastiveLoss):
    """ANY: every sample that shares a finding with the anchor is a full positive (Zhang and Wu, AAAI 2024).

    L_i = −1/|P(i)| · Σ_{p∈P(i)} log p_ip
    """

    source = "ANY of Zhang and Wu, AAAI 2024"
    positive = "shares a finding"
    soft = "present if above 0"

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        return weigh_positives(excluded.fill_(counts.positive(), False).to(counts.shared.dtype))


class AllLoss(ContrastiveLoss):
    """ALL: only the samples with the same label set are positive, as in SCL, the strict contrastive loss.

    The formula is that of `AnyLoss`.
    """

    source = "ALL of Zhang and Wu, AAAI 2024; SCL of Lin et al., ACL 2023"
    positive = "has the same set"

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        equal = (counts.missing + counts.extra) <= 0
        return weigh_positives(excluded.fill_(equal, False).to(counts.shared.dtype))


class SupConLoss(AllLoss):
    """Supervised contrast of classes (L_out): each distinct label set is one class, which is ALL.

    Labels may also be class numbers (N,) from 0, as in the paper.
    """

    source = "Khosla et al., NeurIPS 2020"

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        own: int | None = None,
    ) -> Tensor:
        """As `ContrastiveLoss.forward`."""
        if labels.ndim == 1:
            both = labels if ref_labels is None else torch.cat([labels, ref_labels.to(labels.device)])
            classes = int(largest(both.max()) if self.gather and world_size() > 1 else both.max()) + 1
            labels = torch.nn.functional.one_hot(labels.long(), classes)
            ref_labels = None if ref_labels is None else torch.nn.functional.one_hot(ref_labels.long(), classes)
        return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels, own)


class _ThresholdLoss(ContrastiveLoss):
    """A loss with a threshold on the Jaccard index."""

    def __init__(self, *, threshold: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= threshold <= 1:
            raise SettingsError(f"threshold is {threshold}; it must lie in [0, 1]")
        self.threshold = threshold

    def reaching(self, counts: PairCounts, excluded: Excluded) -> tuple[Tensor, Tensor]:
        """J (R, M), and whether it reaches the threshold."""
        jaccard = excluded.fill_(counts.jaccard(), 0)
        return jaccard, excluded.fill_(jaccard > self.threshold - 1e-6, False)


class JaccardLoss(_ThresholdLoss):
    r"""Positives weighed by the Jaccard index outside the logarithm.

        L_i = −1/|P(i)| · Σ_{p∈P(i)} J_ip · log p_ip,  P(i) the samples with J_ip > 0 that reach the threshold

    What JSCL aims at (see `JSCLLoss` for what its code does), and with ``normalise="weight"`` the baseline L_Base of
    Audibert et al. (arXiv 2404.08720). Negative: the others.

    Args:
        threshold: the least Jaccard index of a positive; 0 takes all that share a finding.
        normalise: divide by the ``"count"`` |P(i)|, or by the sum of the ``"weight"`` of the positives.
    """

    source = "aim of Lin et al., ACL 2023"
    positive = "shares a finding, with the Jaccard index"

    def __init__(
        self, *, threshold: float = 0.0, normalise: Literal["count", "weight"] = "count", **options: Any
    ) -> None:
        super().__init__(threshold=threshold, **options)
        self.normalise = one_of("normalise", normalise, ("count", "weight"))

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        jaccard, reached = self.reaching(counts, excluded)
        return weigh_positives(jaccard * reached, by_weight=self.normalise == "weight")


class MultiSupConLoss(_ThresholdLoss):
    r"""MultiSupCon (NeurIPS 2022 workshop on self-supervised learning, paper 8).

        L_i = −1/|N(i)| · Σ_{p∈N(i)} J_ip · log p_ip,  N(i) = {p ≠ i : J_ip ≥ c}

    as pytorch-metric-learning 3.0 documents it: the threshold is inclusive, two empty sets have J = 1, and with c = 0
    the samples that share nothing count in |N(i)|. Negative: the samples below the threshold.

    Args:
        threshold: c in [0, 1].
    """

    source = "MultiSupCon, NeurIPS 2022 SSL workshop"
    positive = "Jaccard index of the threshold or above, with the Jaccard index"

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        jaccard, reached = self.reaching(counts, excluded)
        return weigh_positives(jaccard * reached, positive=reached)


class OverlapLoss(_ThresholdLoss):
    """Full positives where label sets overlap enough, in the manner of ProbMCL (Sajedi et al., ICASSP 2024).

    The formula is that of `AnyLoss`, over the paper's positive set A(i) = {j : D(y_i, y_j) ≥ α} with J as D, on
    embeddings. This is not the published loss: that compares Gaussian mixtures p_i of a mixture density network by a
    similarity Sim(p_i, p_j), and adds their negative log-likelihood. Neither D nor Sim could be had with certainty, and
    no code is public.

    Args:
        threshold: α in [0, 1]; with 0, all that share a finding.
    """

    source = "threshold of ProbMCL, ICASSP 2024"
    positive = "Jaccard index of the threshold or above"

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        jaccard, reached = self.reaching(counts, excluded)
        return weigh_positives((reached & (jaccard > 0)).to(jaccard.dtype))


class JSCLLoss(ContrastiveLoss):
    r"""JSCL, the Jaccard similarity contrastive loss, as its authors' code has it.

        L_i = −1/|A(i)| · Σ_{p∈A(i)} log( exp(z_i·z_p/τ) / Σ_{a∈A(i)} J_ia exp(z_i·z_a/τ) )

    and the loss is the mean over the anchors with some J above 0. Every other sample is positive, to the same extent.
    The negatives are those with J above 0, so that the code pushes apart what shares findings. That contradicts the
    aim of the paper; the weight outside the logarithm, `JaccardLoss`, serves it.
    """

    source = "Lin et al., ACL 2023 (JSCL)"
    positive = "every sample; the Jaccard index stands in the denominator"

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        jaccard = excluded.fill_(counts.jaccard(), 0)
        some = (jaccard > 0).any(1)
        found = weigh_positives(excluded.fill_(torch.ones_like(jaccard), 0) * some[:, None])
        return Coefficients(found.matrix, found.terms, denominator=jaccard)


class JSPCLLoss(JSCLLoss):
    """JSPCL: JSCL on the classifier's logits (N, F), as the authors' code has it, compared by dot products."""

    source = "Lin et al., ACL 2023 (JSPCL)"
    on_sphere = False


LOSSES: Mapping[str, type[ContrastiveLoss]] = {
    "sd": SDLoss,
    "supcon": SupConLoss,
    "any": AnyLoss,
    "all": AllLoss,
    "mulsupcon": MulSupConLoss,
    "jaccard": JaccardLoss,
    "probmcl": OverlapLoss,
    "multisupcon": MultiSupConLoss,
    "ws-mulsupcon": WsMulSupConLoss,
    "msc": PrototypeLoss,
    "slcl": StepwiseLoss,
    "jscl": JSCLLoss,
    "jspcl": JSPCLLoss,
}


def loss_by_name(name: str, **options: Any) -> ContrastiveLoss:
    """Build a loss from its name in a configuration, a key of `LOSSES`; `options` are the arguments of its class.

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


def family_table() -> str:
    """What each loss does with what data may bring, as a Markdown table for the documentation."""
    heads = ("name", "source", "positive", "unknown labels", "empty sets", "soft labels", "processes", "blocks")
    rows = [heads, ("---",) * len(heads)]
    for name, loss in LOSSES.items():
        rows.append((name, loss.source, loss.positive, loss.unknown, loss.empty_sets, loss.soft, "yes", "yes"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
