"""The Similarity-Dissimilarity loss, and the frame that it shares with its rivals; start at `SDLoss`.

`ContrastiveLoss` has what is common: unit embeddings, the temperature, views, reference sets, and which pairs are
compared. A loss of the family defines only how much each pair counts.
"""

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from medsd.errors import DataError, SettingsError
from medsd.sd.blocked import blocked_contrast
from medsd.sd.coefficients import Coefficients, Excluded, contrastive_sum, product, weigh_positives
from medsd.sd.gather import gather_rows, shared_mean, summed, world_size
from medsd.sd.relations import FACTORS, LabelPairs, PairCounts

Weigh = Callable[[PairCounts, Excluded, LabelPairs, slice], Coefficients]
Block = Callable[[LabelPairs, slice], tuple[Excluded, Coefficients]]

_FEWEST_TERMS = 1e-12  # makes 0/0 a 0; the terms of soft or weighted findings may sum to less than 1
LARGEST_PLAIN = 1 << 20  # pairs; above, blocks are as fast or faster and take far less memory
LOWEST_LEARNED_TEMPERATURE = 0.01  # as CLIP bounds its logit scale by 100 (Radford et al. 2021)


class ContrastiveLoss(nn.Module):
    """Frame of the contrastive losses over label sets; use a child such as `SDLoss`.

    Args:
        temperature: τ > 0.
        learn_temperature: make log τ a parameter, bounded below by 0.01 (or by `temperature` if lower).
        finding_weights: (F,) positive, what each finding counts; see `relations.inverse_frequency_weights`.
        empty: ``"equal"`` holds two empty label sets for equal; ``"ignore"`` drops the samples without findings.
        negatives: ``"known"`` takes a pair that shares none of the findings known on both sides for a negative;
            ``"sure"`` only where no unknown label could make it share one (`relations.LabelPairs.surely_disjoint`), and
            leaves the other such pairs out, as it suits pseudo-labels and labels of other data sets.
        gather: compare with the samples of all processes of torch.distributed, as one process with the joint batch
            would; see `gather.shared_mean` for the gradients.
        blocked: compute in blocks (True), at once (False), or as the number of pairs demands (None).

    Raises:
        SettingsError: an option outside its range.
    """

    finding_weights: Tensor | None

    # What `rivals.family_table` says of a loss; `on_sphere`: embeddings have unit length.
    source: ClassVar[str]
    positive: ClassVar[str]
    unknown: ClassVar[str] = "left out"
    empty_sets: ClassVar[str] = "equal"
    soft: ClassVar[str] = "fuzzy sets"
    on_sphere: ClassVar[bool] = True

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        learn_temperature: bool = False,
        finding_weights: Tensor | list[float] | None = None,
        empty: Literal["equal", "ignore"] = "equal",
        negatives: Literal["known", "sure"] = "known",
        gather: bool = False,
        blocked: bool | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise SettingsError(f"temperature is {temperature}; it must be a positive number, for instance 0.1")
        self.empty = one_of("empty", empty, ("equal", "ignore"))
        self.negatives = one_of("negatives", negatives, ("known", "sure"))
        self.gather, self.blocked = gather, blocked
        self._fixed_temperature = temperature
        self._lowest = min(temperature, LOWEST_LEARNED_TEMPERATURE)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learn_temperature else None
        weights = None if finding_weights is None else torch.as_tensor(finding_weights, dtype=torch.float32)
        self.register_buffer("finding_weights", weights, persistent=False)

    @property
    def temperature(self) -> float:
        """The present τ."""
        return self._fixed_temperature if self.log_temperature is None else float(self.log_temperature.detach().exp())

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        """How much each pair of the anchors in `rows` counts; each loss of the family defines it."""
        raise NotImplementedError

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        own: int | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar in single precision (double for double embeddings).

        Args:
            embeddings: (N, D) of any length, or (B, V, D) for V views of each of B samples.
            labels: (N, F) or (B, F), each value in [0, 1] or NaN where unknown.
            indices_tuple: always None; it stands where pytorch-metric-learning's trainers pass mined pairs.
            ref_emb, ref_labels: shaped likewise, what the anchors are compared with in place of their own batch.
            own: where the anchors themselves start within `ref_emb`, if they stand there; those pairs are left out.

        Returns:
            The mean over the anchors that have a positive; 0, with zero gradients, when none has.

        Raises:
            DataError: shapes that do not fit, labels outside [0, 1], or `ref_emb` without `ref_labels`.
        """
        if indices_tuple is not None:
            raise DataError("indices_tuple is given, but these losses weigh every pair; train without a miner")
        if (ref_emb is None) != (ref_labels is None):
            raise DataError("ref_emb and ref_labels belong together; give both or neither")
        embeddings, labels = flatten_views(embeddings, labels, "embeddings", "labels")
        if ref_emb is None or ref_labels is None:
            refs, ref_labels, own = self.all_samples(embeddings, labels)
        else:
            refs, ref_labels = flatten_views(ref_emb, ref_labels.to(labels.device), "ref_emb", "ref_labels")
            refs, ref_labels, start = self.all_samples(refs, ref_labels)
            own = None if own is None else own + start
        return self.contrast(embeddings, labels, refs, ref_labels, own)

    def all_samples(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        """Embeddings and labels of all processes, and where those of this one start among them."""
        if not (self.gather and world_size() > 1):
            return embeddings, labels, 0
        embeddings, start = gather_rows(embeddings)
        return embeddings, gather_rows(labels.to(torch.promote_types(labels.dtype, torch.float16)))[0], start

    def contrast(self, embeddings: Tensor, labels: Tensor, refs: Tensor, ref_labels: Tensor, own: int | None) -> Tensor:
        """The loss of anchors (N, D) against samples (M, D) that are already gathered; see `forward`."""
        return self.mean_of(self.coefficients, embeddings, labels, refs, ref_labels, own)[0]

    def mean_of(
        self, weigh: Weigh, embeddings: Tensor, labels: Tensor, refs: Tensor, ref_labels: Tensor, own: int | None
    ) -> tuple[Tensor, Tensor]:
        """The mean over the summands whose coefficients `weigh` gives, and their number over all processes."""
        plain = self.blocked is False or (self.blocked is None and len(embeddings) * len(refs) <= LARGEST_PLAIN)
        compare = self._compare if plain else self._compare_in_blocks
        with torch.autocast(embeddings.device.type, enabled=False):
            anchors = self.place(embeddings)
            samples = anchors if refs is embeddings else self.place(refs).to(anchors.dtype)
            sample_labels = None if ref_labels is labels else ref_labels.to(anchors.dtype)
            block = partial(self.block, own=own, weigh=weigh)
            total, terms = compare(anchors, labels.to(anchors.dtype), samples, sample_labels, block)
            if not (self.gather and world_size() > 1):
                return total / terms.clamp(min=_FEWEST_TERMS), terms
            terms = summed(terms)
            return shared_mean(total, terms.clamp(min=_FEWEST_TERMS)), terms

    def place(self, embeddings: Tensor) -> Tensor:
        """Embeddings (N, D) as they are compared: in single precision or better, of unit length where the loss asks."""
        if self.on_sphere:
            return unit_length(embeddings)
        return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))

    def _compare(
        self, anchors: Tensor, labels: Tensor, samples: Tensor, sample_labels: Tensor | None, block: Block
    ) -> tuple[Tensor, Tensor]:
        """Sum of the anchors' losses and the number of summands, for placed embeddings (N, D) and (M, D)."""
        with torch.no_grad():
            pairs = LabelPairs(labels, sample_labels, self.finding_weights)
            excluded, found = block(pairs, slice(0, anchors.shape[0]))
        logits = product(anchors * self.inverse_temperature(), samples.T)  # (N, M)
        return contrastive_sum(logits, excluded, found), found.terms.sum()

    @torch.compiler.disable  # its loop would be unrolled
    def _compare_in_blocks(
        self, anchors: Tensor, labels: Tensor, samples: Tensor, sample_labels: Tensor | None, block: Block
    ) -> tuple[Tensor, Tensor]:
        """The same as `_compare`, in a memory that grows with N + M instead of N·M."""
        pairs = LabelPairs(labels, sample_labels, self.finding_weights)
        inverse_temperature = torch.as_tensor(self.inverse_temperature(), dtype=anchors.dtype, device=anchors.device)
        return blocked_contrast(anchors, samples, inverse_temperature, partial(block, pairs))

    def block(self, pairs: LabelPairs, rows: slice, own: int | None, weigh: Weigh) -> tuple[Excluded, Coefficients]:
        """The left-out pairs and the coefficients of the anchors in `rows`, over all samples."""
        counts = pairs.counts(rows)
        left_out = None if counts.determined is None else ~counts.determined
        if self.empty == "ignore":
            empty = ~(pairs.anchor_present[rows, None] & pairs.sample_present[None, :])
            left_out = empty if left_out is None else left_out | empty
        if self.negatives == "sure" and pairs.partial:
            unsure = (counts.weight() <= 0) & ~pairs.surely_disjoint(rows)
            left_out = unsure if left_out is None else left_out | unsure
        excluded = Excluded(left_out, None if own is None else own + rows.start)
        return excluded, weigh(counts, excluded, pairs, rows)

    def inverse_temperature(self) -> Tensor | float:
        """1/τ; a learned τ is brought back into its bounds."""
        if self.log_temperature is None:
            return 1 / self._fixed_temperature
        with torch.no_grad():
            self.log_temperature.clamp_(min=math.log(self._lowest))
        return torch.exp(-self.log_temperature)


class SDLoss(ContrastiveLoss):
    r"""The Similarity-Dissimilarity loss (Huang, Long and Luo, arXiv 2410.13439).

    With unit embeddings z, label sets S of anchor i and T of sample p, A(i) all other samples, P(i) the positives:

        L_i = −1/|P(i)| · Σ_{p∈P(i)} K_s K_d · log( exp(z_i·z_p/τ) / Σ_{a∈A(i)} exp(z_i·z_a/τ) ),
        K_s = |S∩T| / |S|,   K_d = 1 / (1 + |T∖S|)

    and the loss is the mean of L_i over the anchors with a positive. Single-label batches give SupCon. Positive: a
    sample that shares a finding. Negative: all others. Neutral: pairs of which too little is known.

    Args:
        temperature: τ > 0. The paper uses 0.07. The default is 0.1, with which MulSupCon, ws-MulSupCon and
            pytorch-metric-learning publish the losses that this one is compared with. In the ablation of medsd
            (`configs/compare/ablation.yaml`, four sets, and radiographs; five seeds) 0.07 is not told apart from it:
            nDCG@10 differs by −0.009 to +0.002. 0.2 and 0.3 were better on one set, 0.03 and 0.5 worse on two each.
        factors: what weighs a positive: ``"both"`` K_s K_d, ``"similarity"`` K_s or ``"dissimilarity"`` K_d alone.
        direction: ``"anchor"`` counts from the anchor to the sample, as above. ``"sample"`` is the transpose, S and T
            changed: |S∩T| / |T| and 1 / (1 + |S∖T|), as the code published with ws-MulSupCon (MICCAI 2025) has it under
            the name SimDiss; it gives a superset the weight of a subset and the reverse. ``"both"`` is the mean of the
            two, so that i attracts j as j attracts i.
        weight: ``"outside"`` the logarithm, as above, or ``"inside"``, log(K_s K_d · exp(…)/Σ…). Inside, the weight is
            an added constant: the value differs, but the gradient is that of the unweighted ANY loss, whatever the
            relations. It is there to reproduce results, not to learn from the weights.
        positives: ``"any"`` sample that shares a finding (two empty sets are equal and count), or a number in (0, 1]:
            those whose weight reaches it.
        normalise: divide by the ``"count"`` |P(i)| of positives, or by the sum of their ``"weight"``.
        **options: learn_temperature, finding_weights, empty, negatives, gather and blocked of `ContrastiveLoss`.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]])
        >>> SDLoss(temperature=0.5)(embeddings, labels)
        tensor(0.1742)
    """

    source = "Huang et al., arXiv 2410.13439"
    positive = "shares a finding, with K_s K_d"

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        factors: Literal["both", "similarity", "dissimilarity"] = "both",
        direction: Literal["anchor", "sample", "both"] = "anchor",
        weight: Literal["outside", "inside"] = "outside",
        positives: Literal["any"] | float = "any",
        normalise: Literal["count", "weight"] = "count",
        **options: Any,
    ) -> None:
        super().__init__(temperature=temperature, **options)
        self.factors = one_of("factors", factors, FACTORS)
        self.direction = one_of("direction", direction, ("anchor", "sample", "both"))
        self.weight = one_of("weight", weight, ("outside", "inside"))
        self.normalise = one_of("normalise", normalise, ("count", "weight"))
        if positives != "any" and not (isinstance(positives, int | float) and 0 < positives <= 1):
            raise SettingsError(f"positives is {positives!r}; it must be 'any' or a least weight in (0, 1]")
        self.positives = positives

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        weight = (counts.swapped() if self.direction == "sample" else counts).weight(self.factors)
        if self.direction == "both":
            weight = (weight + counts.swapped().weight(self.factors)) / 2
        excluded.fill_(weight, 0)
        if self.positives != "any":  # the margin is for a weight of 1 met by rounded sums
            weight = weight * (weight > self.positives - 1e-6)
        return weigh_positives(weight, inside=self.weight == "inside", by_weight=self.normalise == "weight")


def one_of(name: str, value: str, allowed: Collection[str]) -> str:
    """`value` if it is allowed, else a SettingsError that names the option."""
    if value not in allowed:
        raise SettingsError(f"{name} is '{value}'; it must be {' or '.join(repr(each) for each in allowed)}")
    return value


def unit_length(embeddings: Tensor) -> Tensor:
    """Embeddings (N, D) on the unit sphere, in single precision or better; a zero vector stays zero."""
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    norm = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    return embeddings / norm.where(norm > 0, 1)  # the gradient of a zero vector is finite, too


def flatten_views(embeddings: Tensor, labels: Tensor, name: str, label_name: str) -> tuple[Tensor, Tensor]:
    """(B, V, D) and (B, F) as (V·B, D) and (V·B, F), view after view; two dimensions stay as they are."""
    labels = labels.to(embeddings.device)
    if embeddings.ndim == 3 and labels.ndim == 2:
        labels = labels.repeat(embeddings.shape[1], 1)
        embeddings = embeddings.transpose(0, 1).flatten(0, 1)
    if embeddings.ndim != 2 or labels.ndim != 2 or embeddings.shape[0] != labels.shape[0]:
        raise DataError(
            f"{name} has shape {tuple(embeddings.shape)} and {label_name} {tuple(labels.shape)}; they need (N, D) and "
            "(N, F). Views of the same studies go in as (B, V, D) with (B, F), or concatenated with their labels"
        )
    return embeddings, labels
