"""What Lin et al. add to the family (Findings of ACL 2023, arXiv 2212.00552): JSCL, JSPCL and ICL.

Their SCL is `rivals.AllLoss`, their SLCL `by_finding.StepwiseLoss`. All five follow the authors' code (the repository
CL-MTC); the text of the paper was not at hand. The code takes raw dot products of its features; here embeddings have
unit length, but for JSPCL.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medsd.errors import DataError, SettingsError
from medsd.sd.coefficients import Coefficients, Excluded, contrastive_sum, product, weigh_positives
from medsd.sd.losses import ContrastiveLoss, unit_length
from medsd.sd.relations import LabelPairs, PairCounts


class JSCLLoss(ContrastiveLoss):
    r"""JSCL, the Jaccard similarity contrastive loss, as its authors' code has it.

        L_i = −1/|A(i)| · Σ_{p∈A(i)} log( exp(z_i·z_p/τ) / Σ_{a∈A(i)} J_ia exp(z_i·z_a/τ) ),  J = |S∩T| / |S∪T|

    and the loss is the mean over the anchors with some J above 0. Every other sample is positive, to the same extent;
    the negatives are those with J above 0, so that the code pushes apart what shares findings. That contradicts the
    aim of the paper; the weight outside the logarithm, `rivals.JaccardLoss`, serves it.

    Args:
        **options: see `ContrastiveLoss`.
    """

    source = "Lin et al., ACL 2023 (JSCL)"
    positive = "every sample; the Jaccard index stands in the denominator"

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        jaccard = excluded.fill_(counts.jaccard(), 0)
        some = (jaccard > 0).any(1)
        found = weigh_positives(excluded.fill_(torch.ones_like(jaccard), 0) * some[:, None])
        return Coefficients(found.matrix, found.terms, denominator=jaccard)


class JSPCLLoss(JSCLLoss):
    """JSPCL: JSCL on what the classifier says, (N, F) logits as the authors' code has it, compared by dot products.

    Args:
        **options: see `ContrastiveLoss`.
    """

    source = "Lin et al., ACL 2023 (JSPCL)"
    on_sphere = False


class IntraLabelLoss(nn.Module):
    r"""ICL, the intra-label contrastive loss: the embeddings of the findings within one sample.

    It needs an embedding of each finding of each sample, as a network with one query or token a finding gives it, and
    so stands beside the family: it cannot be named in a configuration.

        L_bf = −1/|P| · Σ_{g∈P} log( exp(e_bf·e_bg/τ) / Σ_{g≠f} exp(e_bf·e_bg/τ) ),  P the other findings of b that have
        the value of f

    and the loss is the mean over samples and findings with a positive. Positive: two findings both present, or both
    absent, in the sample. Negative: one present, the other absent. Unknown findings are left out.

    Args:
        temperature: τ > 0.

    Raises:
        SettingsError: τ is not positive.

    Example:
        >>> IntraLabelLoss()(torch.eye(4)[None], torch.tensor([[1, 1, 0, 0]]))
        tensor(1.0986)
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise SettingsError(f"temperature is {temperature}; it must be a positive number, for instance 0.1")
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            embeddings: (B, F, D) of any length.
            labels: (B, F), each value 0, 1 or NaN where unknown.

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
            return contrastive_sum(logits, Excluded(left_out.flatten(0, 1), None), found) / found.terms.sum().clamp(
                min=1
            )
