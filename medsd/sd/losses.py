"""The Similarity-Dissimilarity loss, and the frame that it shares with its rivals.

`ContrastiveLoss` holds what all of them do alike: unit embeddings, the temperature, views, reference sets, who is
compared with whom. A loss of the family says only how much each pair counts; start at `SDLoss`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medsd.errors import DataError, SettingsError
from medsd.sd.blocked import blocked_contrast
from medsd.sd.coefficients import Coefficients, Excluded
from medsd.sd.gather import gather_rows, summed, world_size
from medsd.sd.relations import LabelPairs, PairCounts

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
            would. The value is the same on each; gradients are scaled for a trainer that averages them over the
            processes, as DistributedDataParallel does.
        blocked: compute in blocks (True), at once (False), or as the number of pairs demands (None). Blocks have no
            second derivative.

    Raises:
        SettingsError: an option outside its range.
    """

    finding_weights: Tensor | None

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
        if empty not in ("equal", "ignore"):
            raise SettingsError(f"empty is '{empty}'; it must be 'equal' or 'ignore'")
        if negatives not in ("known", "sure"):
            raise SettingsError(f"negatives is '{negatives}'; it must be 'known' or 'sure'")
        self.empty, self.negatives, self.gather, self.blocked = empty, negatives, gather, blocked
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
            ref_emb: (M, D) or (B', V', D), what the anchors are compared with in place of their own batch.
            ref_labels: (M, F) or (B', F), the labels of `ref_emb`.
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
        plain = self.blocked is False or (self.blocked is None and len(embeddings) * len(refs) <= LARGEST_PLAIN)
        compare = self._compare if plain else self._compare_in_blocks
        with torch.autocast(embeddings.device.type, enabled=False):
            anchors = unit_length(embeddings)
            samples = anchors if refs is embeddings else unit_length(refs).to(anchors.dtype)
            sample_labels = None if ref_labels is labels else ref_labels.to(anchors.dtype)
            total, terms = compare(anchors, labels.to(anchors.dtype), samples, sample_labels, own)
            if not (self.gather and world_size() > 1):
                return total / terms.clamp(min=_FEWEST_TERMS)
            # Each process adds its anchors to one mean. Data-parallel training averages gradients over the processes,
            # hence the factor; the value is the mean itself.
            terms = summed(terms).clamp(min=_FEWEST_TERMS)
            value, share = summed(total) / terms, total * (world_size() / terms)
            return share + (value - share).detach()

    def _compare(
        self, anchors: Tensor, labels: Tensor, samples: Tensor, sample_labels: Tensor | None, own: int | None
    ) -> tuple[Tensor, Tensor]:
        """Sum of the anchors' losses and the number of summands, for unit embeddings (N, D) and (M, D)."""
        with torch.no_grad():
            pairs = LabelPairs(labels, sample_labels, self.finding_weights)
            excluded, found = self.block(pairs, slice(0, anchors.shape[0]), own)
        logits = (anchors * self.inverse_temperature()) @ samples.T  # (N, M)
        # The lowest number rather than -inf: a row without any sample then has a finite softmax and zero gradient.
        log_prob = excluded.fill_(logits, torch.finfo(logits.dtype).min).log_softmax(dim=1)
        total = 0 - (found.matrix * log_prob).sum()  # 0 − 0, for -0 would be printed
        if found.constant is not None:
            total = total + found.constant.sum()
        return total, found.terms.sum()

    @torch.compiler.disable  # its loop would be unrolled
    def _compare_in_blocks(
        self, anchors: Tensor, labels: Tensor, samples: Tensor, sample_labels: Tensor | None, own: int | None
    ) -> tuple[Tensor, Tensor]:
        """The same as `_compare`, in a memory that grows with N + M instead of N·M."""
        pairs = LabelPairs(labels, sample_labels, self.finding_weights)
        inverse_temperature = torch.as_tensor(self.inverse_temperature(), dtype=anchors.dtype, device=anchors.device)
        return blocked_contrast(anchors, samples, inverse_temperature, lambda rows: self.block(pairs, rows, own))

    def block(self, pairs: LabelPairs, rows: slice, own: int | None) -> tuple[Excluded, Coefficients]:
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
        return excluded, self.coefficients(counts, excluded, pairs, rows)

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

    and the loss is the mean of L_i over the anchors with a positive. Single-label batches give SupCon.

    Args:
        temperature: τ > 0.
        weight: ``"outside"`` the logarithm, as above, or ``"inside"``, log(K_s K_d · exp(…)/Σ…). Inside, the weight is
            an added constant: the value differs, but the gradient is that of the unweighted ANY loss, whatever the
            relations. It is there to reproduce results, not to learn from the weights.
        positives: ``"any"`` sample that shares a finding (two empty sets are equal and count), or a number in (0, 1]:
            those whose weight K_s K_d reaches it.
        normalise: divide by the ``"count"`` |P(i)| of positives, or by the sum of their ``"weight"``.
        symmetric: weigh a pair with the mean of its two directions, so that i attracts j as j attracts i.
        **options: learn_temperature, finding_weights, empty, negatives, gather and blocked of `ContrastiveLoss`.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]])
        >>> SDLoss(temperature=0.5)(embeddings, labels)
        tensor(0.1742)

    A loop in plain PyTorch, with two views (B, V, …) of each study:

        >>> studies = [(torch.rand(6), torch.tensor([float(i % 2), 1.0])) for i in range(8)]
        >>> loader = torch.utils.data.DataLoader(studies, batch_size=4)
        >>> encoder, loss = torch.nn.Linear(6, 4), SDLoss(learn_temperature=True)
        >>> optimiser = torch.optim.AdamW([*encoder.parameters(), *loss.parameters()])
        >>> for pixels, labels in loader:
        ...     views = torch.stack([pixels, pixels + 0.1 * torch.randn_like(pixels)], dim=1)
        ...     loss(encoder(views), labels).backward()
        ...     optimiser.step()
        ...     optimiser.zero_grad()

    MONAI's trainer calls it with the network's output and the batch's label:

        >>> from monai.engines import SupervisedTrainer
        >>> batches = torch.utils.data.DataLoader([{"image": x, "label": y} for x, y in studies], batch_size=4)
        >>> SupervisedTrainer(
        ...     device="cpu", max_epochs=1, train_data_loader=batches, network=encoder,
        ...     optimizer=optimiser, loss_function=SDLoss(),
        ... ).run()

    pytorch-metric-learning's trainers keep the whole row of labels with ``label_hierarchy_level="all"``:

        >>> from pytorch_metric_learning.trainers import MetricLossOnly
        >>> MetricLossOnly(
        ...     models={"trunk": encoder}, optimizers={"trunk_optimizer": optimiser}, batch_size=4,
        ...     loss_funcs={"metric_loss": SDLoss()}, dataset=studies, data_device="cpu",
        ...     label_hierarchy_level="all", dataloader_num_workers=0,
        ... ).train()
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        weight: Literal["outside", "inside"] = "outside",
        positives: Literal["any"] | float = "any",
        normalise: Literal["count", "weight"] = "count",
        symmetric: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(temperature=temperature, **options)
        if weight not in ("outside", "inside"):
            raise SettingsError(f"weight is '{weight}'; it must be 'outside' or 'inside' the logarithm")
        if normalise not in ("count", "weight"):
            raise SettingsError(f"normalise is '{normalise}'; it must be 'count' or 'weight'")
        if positives != "any" and not (isinstance(positives, int | float) and 0 < positives <= 1):
            raise SettingsError(f"positives is {positives!r}; it must be 'any' or a least weight in (0, 1]")
        self.weight, self.positives, self.normalise, self.symmetric = weight, positives, normalise, symmetric

    def coefficients(self, counts: PairCounts, excluded: Excluded, pairs: LabelPairs, rows: slice) -> Coefficients:
        weight = counts.weight()
        if self.symmetric:
            weight = (weight + counts.swapped().weight()) / 2
        excluded.fill_(weight, 0)
        if self.positives != "any":  # the margin is for K_s K_d = 1 met by rounded sums
            weight = weight * (weight > self.positives - 1e-6)
        return weigh_positives(weight, inside=self.weight == "inside", by_weight=self.normalise == "weight")


def weigh_positives(weight: Tensor, inside: bool = False, by_weight: bool = False) -> Coefficients:
    """Coefficients of the pairs with positive `weight` (R, M), divided by their count or by their sum of weights."""
    positive = weight > 0
    count = positive.sum(1, dtype=weight.dtype)  # (R,)
    terms = count.clamp(max=1)
    scale = terms / (weight.sum(1) if by_weight else count).clamp(min=torch.finfo(weight.dtype).tiny)
    if not inside:
        return Coefficients(weight * scale[:, None], terms)
    log_weight = weight.masked_fill(~positive, 1).log()
    return Coefficients(positive * scale[:, None], terms, constant=-(log_weight.sum(1) * scale))


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
