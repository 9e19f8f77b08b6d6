"""The out-of-distribution statistics of bundles that medsd 0.1 exported: read and judged as they were then.

Three scores, each with the empirical quantile of the validation films as its limit. Such a limit hangs on the one or
two strangest of them, so films beyond it are refused only where they are far beyond. New bundles are described in
`medsd.inference.out_of_distribution`, which opens either kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.bundle import layout
from medsd.errors import BundleError
from medsd.inference.descriptors import THUMBNAIL, Floats, Pixels, thumbnails
from medsd.inference.verdict import WORDS, Verdict

# ChestX-ray14, five splits by patient: the strangest upright chests (white shutters around a small field) reach 1.84
# times the limit, an animal's thorax 1.9, a hip 2.9, an inverted chest 3.2.
FAR_RATIO = 2.0
_FAR_LOOK = 0.9
_SPEAKS = {"look": "greys", "residual": "greys", "neighbours": "network"}


@dataclass(frozen=True)
class EarlyReference:
    """The training films as the scores need them.

    Attributes:
        description: limits, and how many neighbours.
        template: (1024,) mean training thumbnail, of unit length.
        mean, components: (1024,) and (C, 1024), principal components of the training thumbnails.
        embeddings: (M, D) unit vectors of training studies; None where none were given.
    """

    description: layout.OutOfDistribution
    template: Floats
    mean: Floats
    components: Floats
    embeddings: Floats | None

    @classmethod
    def from_arrays(
        cls, description: layout.OutOfDistribution, arrays: Mapping[str, npt.NDArray[Any]]
    ) -> EarlyReference:
        """Put together what the bundle holds.

        Raises:
            BundleError: an array is missing or has another shape.
        """
        side = THUMBNAIL**2
        try:
            template, mean, components = (
                arrays[name].astype(np.float32) for name in ("template", "mean", "components")
            )
        except KeyError as error:
            raise BundleError(f"{layout.OUT_OF_DISTRIBUTION}: array {error} is missing; export again") from None
        if template.shape != (side,) or mean.shape != (side,) or components.shape[1:] != (side,):
            raise BundleError(f"{layout.OUT_OF_DISTRIBUTION}: thumbnails are not {THUMBNAIL} × {THUMBNAIL}")
        stored = arrays.get("embeddings")
        embeddings = None if stored is None else stored.astype(np.float32)
        return cls(description, template, mean, components, embeddings)

    @property
    def embedding_size(self) -> int | None:
        """D, or None where there are no embeddings."""
        return None if self.embeddings is None else self.embeddings.shape[1]

    def judge(self, pixels: Pixels, embeddings: Floats | None) -> list[Verdict]:
        """A verdict for each of N films: pixels (N, S, S) uint8 and embeddings (N, D)."""
        small = thumbnails(pixels)
        ratios = self._ratios(self._greys(small))
        if self.embeddings is not None and embeddings is not None:
            ratios |= self._ratios({"neighbours": self._distance(embeddings)})
        # The embedding alone is never far: its limits can be very narrow.
        far = np.maximum(ratios["look"], ratios["residual"]) > FAR_RATIO
        far &= self._greys(small)["look"] > _FAR_LOOK
        negated = self._ratios(self._greys(-small))
        inverted = (small @ self.template < 0) & (np.maximum(negated["look"], negated["residual"]) <= 1)
        return [
            _verdict({name: float(values[row]) for name, values in ratios.items()}, bool(far[row]), bool(inverted[row]))
            for row in range(len(pixels))
        ]

    def _greys(self, small: Floats) -> dict[str, Floats]:
        """1 − correlation with the mean training thumbnail, and what the components leave, of thumbnails (N, 1024)."""
        centred = small - self.mean
        left = (centred**2).sum(axis=1) - ((centred @ self.components.T) ** 2).sum(axis=1)
        return {"look": 1 - small @ self.template, "residual": np.sqrt(np.maximum(left, 0))}

    def _distance(self, embeddings: Floats) -> Floats:
        """Mean cosine distance of embeddings (N, D) to their nearest training studies: (N,) in 0…2."""
        assert self.embeddings is not None
        similarity = embeddings.astype(np.float32) @ self.embeddings.T  # (N, M)
        count = min(max(1, self.description.neighbours), similarity.shape[1])
        nearest = np.partition(similarity, -count, axis=1)[:, -count:]
        return (1 - nearest.mean(axis=1)).astype(np.float32)

    def _ratios(self, scores: Mapping[str, Floats]) -> dict[str, Floats]:
        limits = self.description.limits
        return {name: values / np.float32(max(limits[name], 1e-6)) for name, values in scores.items()}


def _verdict(ratios: Mapping[str, float], far: bool, inverted: bool) -> Verdict:
    most = max(ratios, key=lambda name: ratios[name])
    if inverted:
        return Verdict(ratios[most], "inverted_look")
    if ratios[most] <= 1:
        return Verdict(ratios[most])
    return Verdict(ratios[most], "out_of_distribution", far, WORDS[_SPEAKS[most]], firm=False)
