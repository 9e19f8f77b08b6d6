"""How two sets of findings relate: the five relations and the two factors of the Similarity-Dissimilarity loss.

Start at `relation_matrix`. The losses use `LabelPairs`, a block of anchors at a time. Every function takes NumPy arrays
or PyTorch tensors and returns the same kind; neither library is imported before an array of it arrives.
"""

import sys
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

from medsd.errors import DataError

Array: TypeAlias = Any  # a NumPy array or a torch tensor

FACTORS = ("both", "similarity", "dissimilarity")  # of the weight of the SD loss
_SMALLEST = 1e-30  # keeps 0/0 at 0; far below any label or finding weight


class Relation(IntEnum):
    """What the label set T of a sample is to the label set S of an anchor (Huang et al., arXiv 2410.13439, section 3).

    `UNDETERMINED` is medsd's own: too little is known on both sides.
    """

    UNDETERMINED = 0
    DISJOINT = 1  # R1: S and T share nothing
    EQUAL = 2  # R2: S = T, two empty sets included
    OVERLAP = 3  # R3: they meet and neither contains the other
    SUPERSET = 4  # R4: S ⊊ T, the sample has all of the anchor's findings and more
    SUBSET = 5  # R5: T ⊊ S, the sample has some of the anchor's findings and no other


def _namespace(labels: Array) -> Any:
    """The module, torch or numpy, whose functions fit `labels`."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(labels, torch.Tensor):
        return torch
    import numpy

    return numpy


def _is_compiling() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


@dataclass(frozen=True)
class PairCounts:
    """Sizes of the set algebra of R anchors with M samples, (R, M) each, over the findings known on both sides.

    Each size is a sum of terms that are never negative, so it is exactly 0 where the set is empty, with weights too.
    """

    shared: Array  # |S∩T|
    missing: Array  # |S∖T|, what the anchor has and the sample has not
    extra: Array  # |T∖S|, what the sample has and the anchor has not
    determined: Array | None  # bool; None when every pair is determined
    both_empty: Array | None  # bool, the determined pairs of two empty sets; None when there is none

    def swapped(self) -> "PairCounts":
        """The same pairs with S and T exchanged."""
        return PairCounts(self.shared, self.extra, self.missing, self.determined, self.both_empty)

    def similarity(self) -> Array:
        """K_s = |S∩T| / |S| (R, M); 1 for two empty sets, 0 for an undetermined pair."""
        factor = self.shared / (self.shared + self.missing).clip(_SMALLEST)
        return factor if self.both_empty is None else factor + self.both_empty

    def dissimilarity(self) -> Array:
        """K_d = 1 / (1 + |T∖S|) (R, M); 0 for an undetermined pair."""
        factor = 1 / (1 + self.extra)
        return factor if self.determined is None else factor * self.determined

    def positive(self) -> Array:
        """Whether the pair shares a finding or both sets are empty, (R, M) bool."""
        return self.shared > 0 if self.both_empty is None else (self.shared > 0) | self.both_empty

    def weight(self, factors: str = "both") -> Array:
        """K_s·K_d (R, M), or one of `FACTORS`; 1 for equal sets, 0 for disjoint sets and undetermined pairs."""
        if factors != "both":
            return self.similarity() if factors == "similarity" else self.dissimilarity() * self.positive()
        # shared is 0 wherever the pair is undetermined, so no mask is needed here
        factor = self.shared / ((self.shared + self.missing) * (1 + self.extra)).clip(_SMALLEST)
        return factor if self.both_empty is None else factor + self.both_empty

    def jaccard(self) -> Array:
        """|S∩T| / |S∪T| (R, M); 1 for two empty sets, 0 for an undetermined pair."""
        factor = self.shared / (self.shared + self.missing + self.extra).clip(_SMALLEST)
        return factor if self.both_empty is None else factor + self.both_empty

    def relation(self) -> Array:
        """`Relation` numbers (R, M), as integers."""
        has_missing, has_extra = self.missing > 0, self.extra > 0
        # EQUAL 2, + 1 with both kinds of difference, + 2 with extra alone, + 3 with missing alone
        relation = 2 + has_extra * 2 + has_missing * 3 - (has_extra & has_missing) * 4
        disjoint = self.shared <= 0
        if self.both_empty is not None:
            disjoint = disjoint & ~self.both_empty
        relation = relation * ~disjoint + disjoint * 1
        return relation if self.determined is None else relation * self.determined


class LabelPairs:
    """Labels of N anchors and M samples, made ready for counting one block of anchors after the other.

    Args:
        anchor_labels: (N, F) bool, integer or floating; each value in [0, 1], or NaN where unknown.
        sample_labels: (M, F) likewise; None pairs the anchors with themselves.
        finding_weights: (F,) positive; what a finding counts, 1 each when None.

    Attributes:
        anchor, sample: (N, F), (M, F) the labels, 0 where unknown.
        anchor_known, sample_known: (N, F), (M, F) 1 where the label is known, else 0.
        anchor_present, sample_present: (N,), (M,) bool, True where at least one finding is known to be present.

    Raises:
        DataError: shapes that do not fit, labels outside [0, 1], or weights that are not positive. Values are not
            checked while torch.compile traces.
    """

    def __init__(
        self, anchor_labels: Array, sample_labels: Array | None = None, finding_weights: Array | None = None
    ) -> None:
        xp = _namespace(anchor_labels)
        anchor = _as_float(xp, anchor_labels, "anchor_labels")
        sample = anchor if sample_labels is None else _as_float(xp, sample_labels, "sample_labels", like=anchor)
        if anchor.shape[1] != sample.shape[1]:
            raise DataError(
                f"anchor_labels have {anchor.shape[1]} findings and sample_labels {sample.shape[1]}; "
                "both need the columns of one finding set"
            )
        self._xp = xp
        self._weights = _checked_weights(xp, finding_weights, anchor)
        self.anchor, self.anchor_known, self.soft, self.partial = _split_unknown(xp, anchor)
        self.sample, self.sample_known = self.anchor, self.anchor_known
        if sample_labels is not None:
            self.sample, self.sample_known, soft, partial = _split_unknown(xp, sample)
            self.soft, self.partial = self.soft or soft, self.partial or partial
        self.anchor_present = self.anchor.sum(-1) > 0
        self.sample_present = self.sample.sum(-1) > 0
        # Two studies in three are normal in most data sets, but a set without normals saves the mask.
        self._may_be_empty = _is_compiling() or not bool(self.anchor_present.all() and self.sample_present.all())
        weights = 1.0 if self._weights is None else self._weights
        self._anchor_weighted = self.anchor * weights
        self._anchor_absent = (self.anchor_known - self.anchor) * weights
        self._sample_absent = self.sample_known - self.sample

    def counts(self, rows: slice = slice(None)) -> PairCounts:
        """The set sizes of the anchors in `rows` with all samples, (R, M) each."""
        if self.soft:
            shared, missing, extra = self._soft_sizes(rows)
        else:
            shared = self._anchor_weighted[rows] @ self.sample.T
            missing = self._anchor_weighted[rows] @ self._sample_absent.T
            extra = self._anchor_absent[rows] @ self.sample.T
        determined, both_empty = self._emptiness(rows, shared, missing, extra)
        return PairCounts(shared, missing, extra, determined, both_empty)

    def surely_disjoint(self, rows: slice = slice(None)) -> Array:
        """Which pairs share nothing whatever their unknown labels are, (R, M) bool.

        Every finding is known to be absent on at least one side, and the sets are not both empty. Only such a pair is a
        negative that more labels could never turn into a positive.
        """
        may_have = [  # 1 where the finding is not known to be absent
            self._xp.asarray((known == 0) | (present > 0), dtype=present.dtype)
            for present, known in ((self.anchor[rows], self.anchor_known[rows]), (self.sample, self.sample_known))
        ]
        return (may_have[0] @ may_have[1].T <= 0) & (self.anchor_present[rows, None] | self.sample_present[None, :])

    def _soft_sizes(self, rows: slice) -> tuple[Array, Array, Array]:
        xp = self._xp
        weights = xp.ones_like(self.anchor[0]) if self._weights is None else self._weights
        s, s_known = self.anchor[rows], self.anchor_known[rows]
        t, t_known = self.sample, self.sample_known
        if _is_compiling():  # the compiler fuses this into one reduction; F terms unrolled would bloat the graph
            s, s_known, t, t_known = s[:, None, :], s_known[:, None, :], t[None, :, :], t_known[None, :, :]
            shared = (xp.minimum(s, t) * weights).sum(-1)
            missing = ((s * t_known - t).clip(0) * weights).sum(-1)
            extra = ((t * s_known - s).clip(0) * weights).sum(-1)
            return shared, missing, extra
        shared = xp.zeros_like(s[:, :1] * t.T[:1])
        missing, extra = xp.zeros_like(shared), xp.zeros_like(shared)
        for f in range(s.shape[1]):  # one finding at a time: never (R, M, F) in memory
            s_f, t_f = s[:, f, None], t[None, :, f]
            shared += weights[f] * xp.minimum(s_f, t_f)
            missing += weights[f] * (s_f * t_known[None, :, f] - t_f).clip(0)
            extra += weights[f] * (t_f * s_known[:, f, None] - s_f).clip(0)
        return shared, missing, extra

    def _emptiness(self, rows: slice, shared: Array, missing: Array, extra: Array) -> tuple[Array | None, Array | None]:
        """Which pairs are determined, and which of them are two empty sets (None for all and for none)."""
        s_present, t_present = self.anchor_present[rows, None], self.sample_present[None, :]
        if not self.partial:
            return None, (~s_present & ~t_present) if self._may_be_empty else None
        any_known = self.anchor_known[rows] @ self.sample_known.T > 0
        empty_here = (shared + missing + extra) <= 0
        # Both empty over the common findings says nothing if one has a finding that the other does not know.
        determined = any_known & ~(empty_here & (s_present | t_present))
        return determined, (empty_here & determined) if self._may_be_empty else None


def relation_matrix(anchor_labels: Array, sample_labels: Array | None = None) -> Array:
    """The relation of every sample to every anchor, (N, M) int8 values of `Relation`.

    Labels (N, F) and (M, F) lie in [0, 1], or are NaN where unknown; without `sample_labels` the anchors are compared
    with themselves. Soft labels are compared as fuzzy sets: S ⊆ T when no s exceeds its t.

    Raises:
        DataError: shapes that do not fit or labels outside [0, 1].

    Example:
        >>> import numpy as np
        >>> relation_matrix(np.array([[1, 0, 0]]), np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0]]))
        array([[1, 2, 4]], dtype=int8)
    """
    pairs = LabelPairs(anchor_labels, sample_labels)
    xp = _namespace(anchor_labels)
    return xp.asarray(pairs.counts().relation(), dtype=xp.int8)


def similarity_factor(
    anchor_labels: Array, sample_labels: Array | None = None, *, finding_weights: Array | None = None
) -> Array:
    """K_s = |S∩T| / |S| (N, M), the share of the anchor's findings that the sample has.

    It is 1 where S ⊆ T and for two empty sets, 0 where disjoint or undetermined. With `finding_weights` (F,), positive,
    each count becomes a sum of these; labels as in `relation_matrix`.

    Example:
        >>> import numpy as np
        >>> similarity_factor(np.array([[1, 1, 0]]), np.array([[1, 0, 1]]))
        array([[0.5]])
    """
    return LabelPairs(anchor_labels, sample_labels, finding_weights).counts().similarity()


def dissimilarity_factor(
    anchor_labels: Array, sample_labels: Array | None = None, *, finding_weights: Array | None = None
) -> Array:
    """K_d = 1 / (1 + |T∖S|) (N, M), which falls with each finding that the sample has beyond those of the anchor.

    It is 1 where T ⊆ S, 0 where undetermined. The formula holds for disjoint sets as well, for which the paper leaves
    K_d open and K_s is 0. Arguments as in `similarity_factor`.

    Example:
        >>> import numpy as np
        >>> dissimilarity_factor(np.array([[1, 1, 0]]), np.array([[1, 0, 1]]))
        array([[0.5]])
    """
    return LabelPairs(anchor_labels, sample_labels, finding_weights).counts().dissimilarity()


def inverse_frequency_weights(labels: Array, power: float = 1.0) -> Array:
    """Finding weights (F,) for the long tail: (known / present) ** power, scaled to a mean of 1.

    Takes training labels (N, F) in [0, 1], or NaN where unknown. A finding that is never present is weighed as if it
    were present once. A `power` of 0.5 is a milder correction than 1, 0 is none.
    """
    xp = _namespace(labels)
    present, known, *_ = _split_unknown(xp, _as_float(xp, labels, "labels"))
    weights = (known.sum(0).clip(1) / present.sum(0).clip(1)) ** power
    return weights / weights.mean()


def _as_float(xp: Any, labels: Array, name: str, like: Array | None = None) -> Array:
    """`labels` as a two-dimensional floating array, in single precision or better (double for NumPy integers)."""
    labels = xp.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] == 0:
        raise DataError(
            f"{name} has shape {tuple(labels.shape)}; it needs (samples, findings) with one finding or more"
        )
    if like is not None:
        return xp.asarray(labels, dtype=like.dtype)
    if labels.dtype in (xp.float32, xp.float64):
        return labels
    return xp.asarray(labels, dtype=xp.float32 if xp.__name__ == "torch" else xp.float64)


def _split_unknown(xp: Any, labels: Array) -> tuple[Array, Array, bool, bool]:
    """Labels with 0 for unknown, the mask of the known as 0 and 1; whether some may be soft, and some unknown."""
    unknown = xp.isnan(labels)
    present = xp.where(unknown, xp.zeros_like(labels), labels)
    known = xp.asarray(~unknown, dtype=labels.dtype)
    if _is_compiling():
        return present, known, True, True
    if bool(((present < 0) | (present > 1)).any()):
        raise DataError("labels must lie in [0, 1], with NaN for unknown; map other codes before computing relations")
    return present, known, bool(((present > 0) & (present < 1)).any()), bool(unknown.any())


def _checked_weights(xp: Any, weights: Array | None, like: Array) -> Array | None:
    if weights is None:
        return None
    weights = xp.asarray(weights, dtype=like.dtype)
    if weights.shape != like.shape[1:]:
        raise DataError(f"finding_weights has shape {tuple(weights.shape)}; it needs ({like.shape[1]},), one a finding")
    if not _is_compiling() and not bool((xp.isfinite(weights) & (weights > 0)).all()):
        raise DataError("finding_weights must be positive and finite; leave a finding out by setting its labels to NaN")
    return weights
