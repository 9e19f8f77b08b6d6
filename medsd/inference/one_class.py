"""A Gaussian with a few free directions, and a quantile in the tail of a distribution: for `out_of_distribution`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]

TAIL = 0.2  # share of the values that the tail is fitted to
_LEAST_TAIL = 10  # values; with fewer the tail has no shape to speak of
_SHAPES = (-1.0, 0.5)  # from an even distribution to one whose variance no longer exists
_SMALLEST = 1e-9


@dataclass(frozen=True)
class PrincipalGaussian:
    """A Gaussian whose covariance is free along its leading directions and the same along all others.

    Probabilistic principal component analysis: Tipping and Bishop, J. R. Stat. Soc. B 61, 1999.
    """

    mean: Floats  # (D,)
    components: Floats  # (C, D), orthonormal
    variances: Floats  # (C,), along the components
    noise: float  # variance along every other direction

    @classmethod
    def fit(cls, features: npt.NDArray[np.floating], most: int = 64) -> Self:
        """Of features (N, D), with at most `most` directions, a quarter of N and a quarter of D."""
        count, size = features.shape
        mean = features.mean(axis=0, dtype=np.float64)
        centred = features.astype(np.float32) - mean.astype(np.float32)
        covariance = (centred.T @ centred).astype(np.float64) / count
        variances, vectors = np.linalg.eigh(covariance)  # ascending
        kept = max(1, min(most, count // 4, size // 4))
        rest = variances[: size - kept]
        floor = _SMALLEST + 1e-6 * float(variances.sum())
        noise = max(float(rest.mean()) if len(rest) else 0.0, floor)
        return cls(
            mean.astype(np.float32),
            np.ascontiguousarray(vectors[:, ::-1][:, :kept].T.astype(np.float32)),
            np.maximum(variances[::-1][:kept], floor).astype(np.float32),
            noise,
        )

    def distance(self, features: npt.NDArray[np.floating]) -> Floats:
        """log(1 + squared Mahalanobis distance) of features (N, D): (N,)."""
        centred = features.astype(np.float32) - self.mean
        along = centred @ self.components.T  # (N, C)
        beside = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        squared = (along.astype(np.float64) ** 2 / self.variances).sum(axis=1) + beside / self.noise
        return np.log1p(squared).astype(np.float32)

    def arrays(self, name: str) -> Arrays:
        """The numbers as arrays whose names begin with `name`."""
        noise = np.array([self.noise], np.float32)
        parts = {"mean": self.mean, "components": self.components, "variances": self.variances, "noise": noise}
        return {f"{name}_{part}": value for part, value in parts.items()}

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """What `arrays` gave; KeyError where one is missing, ValueError where they do not fit or are no variances."""
        mean, components, variances, noise = (
            arrays[f"{name}_{part}"].astype(np.float32) for part in ("mean", "components", "variances", "noise")
        )
        if components.shape != (*variances.shape, *mean.shape) or noise.shape != (1,):
            raise ValueError(f"the arrays of '{name}' do not fit each other")
        if not (variances > 0).all() or not noise[0] > 0:
            raise ValueError(f"the variances of '{name}' are not above 0")
        return cls(mean, components, variances, float(noise[0]))


def tail_quantile(values: npt.NDArray[np.floating], probability: float) -> float:
    """The quantile of `values` (N,), from a generalised Pareto distribution fitted to the largest of them.

    An empirical quantile would depend on the one or two largest values. The fit is by probability-weighted moments
    (Hosking and Wallis, Technometrics 29, 1987). With fewer than 10 values in the tail, or for a `probability` below
    it, the quantile is the empirical one.
    """
    threshold = float(np.quantile(values, 1 - TAIL))
    excess: Doubles = np.sort(values[values > threshold].astype(np.float64) - threshold)
    if len(excess) < _LEAST_TAIL or probability <= 1 - TAIL:
        return float(np.quantile(values, probability))
    shape, scale = _pareto(excess)
    beyond = (1 - probability) / (len(excess) / len(values))  # chance to exceed, of a value in the tail
    rare = -float(np.log(beyond))
    return threshold + scale * (rare if abs(shape) < 1e-6 else float(np.expm1(shape * rare)) / shape)


def _pareto(excess: Doubles) -> tuple[float, float]:
    """Shape ξ and scale σ of sorted excesses (K,), by the moments α0 = E[X] and α1 = E[X(1 − F(X))]."""
    count = len(excess)
    first = float(excess.mean())
    second = float((excess * (count - np.arange(1, count + 1)) / (count - 1)).mean())
    shape = float(np.clip(2 - first / max(first - 2 * second, _SMALLEST), *_SHAPES))
    return shape, first * (1 - shape)
