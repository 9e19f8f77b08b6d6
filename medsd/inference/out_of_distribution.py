"""Is a film like those that the model learned from? Fitted at the end of training, scored in front of every reading.

One definition for both sides, NumPy only: `fit` makes the arrays and limits that go into the bundle, `Reference` scores
films against them. Two scores look at a 32 × 32 thumbnail, so they see what the network may have learned to ignore; one
looks at the network's own embedding (deep nearest neighbours: Sun et al., ICML 2022, arXiv 2204.06507).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medsd.bundle import layout
from medsd.errors import BundleError, DataError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]

THUMBNAIL = 32
# Few components: with 16 the residual limit carries over to films of other hospitals (8 % of the COVID-19 image data
# collection above it) while it sees rotation; with 160 it learns the training hospital's own detail (15 %).
COMPONENTS = 16
MAX_EMBEDDINGS = 20_000
# ChestX-ray14, five splits by patient: the strangest upright chests (white shutters around a small field) reach 1.84
# times the limit, an animal's thorax 1.9, a hip 2.9, an inverted chest 3.2. Warnings reach 2.8 % of the test films.
FAR_RATIO = 2.0
_FAR_LOOK = 0.9


@dataclass(frozen=True)
class Verdict:
    """What one film amounts to.

    Attributes:
        value: the largest ratio of a score to its limit; above 1 the film is unlike the training films.
        reason: "", "out_of_distribution" or "inverted_look".
        far: so far away that the model should not read it at all. A thumbnail score is above `FAR_RATIO` times its
            limit, and the film hardly correlates with the mean training film; the embedding alone never says so,
            because its limits can be very narrow.
    """

    value: float
    reason: Literal["", "out_of_distribution", "inverted_look"] = ""
    far: bool = False


def thumbnails(pixels: Pixels) -> Floats:
    """Films (N, S, S) as standardised thumbnails (N, 1024): block means, then zero mean and unit length each.

    A flat film has no direction and becomes zeros: it correlates with nothing.
    """
    if pixels.ndim != 3 or pixels.shape[1] % THUMBNAIL or pixels.shape[2] % THUMBNAIL:
        raise DataError(f"films are (N, S, S) with S a multiple of {THUMBNAIL}, not {pixels.shape}")
    count, height, width = pixels.shape
    blocks = pixels.reshape(count, THUMBNAIL, height // THUMBNAIL, THUMBNAIL, width // THUMBNAIL)
    small = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(count, -1)
    centred = small - small.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    flat = length < np.sqrt(centred.shape[1])  # less than one grey level of standard deviation
    return np.where(flat, np.float32(0), centred / np.where(flat, np.float32(1), length)).astype(np.float32)


@dataclass(frozen=True)
class Reference:
    """The training films as the scores need them.

    Attributes:
        description: limits, and how many neighbours.
        template: (1024,) mean training thumbnail, of unit length.
        mean, components: (1024,) and (C, 1024), principal components of the training thumbnails.
        embeddings: (M, D) unit vectors of training studies, stored as float16; None where none were given.
    """

    description: layout.OutOfDistribution
    template: Floats
    mean: Floats
    components: Floats
    embeddings: Floats | None

    @classmethod
    def from_arrays(cls, description: layout.OutOfDistribution, arrays: Mapping[str, npt.NDArray[Any]]) -> Reference:
        """Put together what `fit` returned.

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

    def look(self, small: Floats) -> Floats:
        """1 − correlation of thumbnails (N, 1024) with the mean training thumbnail: (N,) in 0…2."""
        return (1 - small @ self.template).astype(np.float32)

    def residual(self, small: Floats) -> Floats:
        """Length of what the principal components leave of thumbnails (N, 1024): (N,)."""
        centred = small - self.mean
        kept = centred @ self.components.T
        left = (centred**2).sum(axis=1) - (kept**2).sum(axis=1)
        return np.sqrt(np.maximum(left, 0)).astype(np.float32)

    def distance(self, embeddings: Floats) -> Floats:
        """Mean cosine distance of embeddings (N, D) to their nearest training studies: (N,) in 0…2."""
        assert self.embeddings is not None
        similarity = embeddings.astype(np.float32) @ self.embeddings.T  # (N, M)
        count = min(self.description.neighbours, similarity.shape[1])
        nearest = np.partition(similarity, -count, axis=1)[:, -count:]
        return (1 - nearest.mean(axis=1)).astype(np.float32)

    def scores(self, pixels: Pixels, embeddings: Floats | None) -> dict[str, Floats]:
        """Every score (N,) of films (N, S, S) and their embeddings (N, D); higher is stranger."""
        small = thumbnails(pixels)
        found = {"look": self.look(small), "residual": self.residual(small)}
        if self.embeddings is not None and embeddings is not None:
            found["neighbours"] = self.distance(embeddings)
        return found

    def ratios(self, scores: Mapping[str, Floats]) -> Floats:
        """The largest ratio of a score to its limit, (N,)."""
        limits = self.description.limits
        return np.max([scores[name] / max(limits[name], 1e-6) for name in scores if name in limits], axis=0)

    def judge(self, pixels: Pixels, embeddings: Floats | None) -> list[Verdict]:
        """A verdict for each of N films: pixels (N, S, S) uint8 and embeddings (N, D)."""
        scores = self.scores(pixels, embeddings)
        values = self.ratios(scores)
        look = {name: scores[name] for name in ("look", "residual")}
        far = (self.ratios(look) > FAR_RATIO) & (scores["look"] > _FAR_LOOK)
        inverted = self.inverted(thumbnails(pixels))
        return [_verdict(*row) for row in zip(values.tolist(), far.tolist(), inverted.tolist(), strict=True)]

    def inverted(self, small: Floats) -> npt.NDArray[np.bool_]:
        """Which thumbnails (N, 1024) look like a training film only when bright and dark are exchanged."""
        negated = {"look": self.look(-small), "residual": self.residual(-small)}
        return (small @ self.template < 0) & (self.ratios(negated) <= 1)


def _verdict(value: float, far: bool, inverted: bool) -> Verdict:
    if inverted:
        return Verdict(value, "inverted_look")
    return Verdict(value, "out_of_distribution", far) if value > 1 else Verdict(value)


def fit(
    pixels: Pixels,
    embeddings: Floats | None,
    validation_pixels: Pixels,
    validation_embeddings: Floats | None,
    *,
    neighbours: int = 10,
    false_alarm_rate: float = 0.01,
) -> tuple[layout.OutOfDistribution, Arrays]:
    """Learn what training films look like and where the limits lie.

    Args:
        pixels: uint8 (N, S, S), the training films as the network sees them, without augmentation.
        embeddings: (N, D) of unit length, in the same order; None leaves the neighbour score out.
        validation_pixels, validation_embeddings: films of other patients, on which the limits are set.
        neighbours: how many training studies the mean distance is taken over.
        false_alarm_rate: share of validation films that each single score may put above its limit.

    Returns:
        the description for bundle.json, and the arrays for `save`.

    Raises:
        DataError: fewer than two training films or no validation film.
    """
    if len(pixels) < 2 or len(validation_pixels) < 1:
        raise DataError("out of distribution: at least two training films and one validation film are needed")
    small = thumbnails(pixels)
    mean = small.mean(axis=0)
    arrays: Arrays = {"template": mean / np.linalg.norm(mean), "mean": mean, "components": _components(small - mean)}
    if embeddings is not None:
        chosen = np.linspace(0, len(embeddings) - 1, min(len(embeddings), MAX_EMBEDDINGS)).astype(int)
        arrays["embeddings"] = np.asarray(embeddings)[chosen].astype(np.float16)
    draft = layout.OutOfDistribution(neighbours=neighbours, false_alarm_rate=false_alarm_rate, limits={})
    scores = Reference.from_arrays(draft, arrays).scores(validation_pixels, validation_embeddings)
    limits = {name: float(np.quantile(values, 1 - false_alarm_rate)) for name, values in scores.items()}
    return draft.model_copy(update={"limits": limits}), arrays


def _components(centred: Floats) -> Floats:
    """Leading principal components (C, 1024) by the covariance, whose size does not grow with the films."""
    covariance = centred.T.astype(np.float64) @ centred.astype(np.float64)
    _, vectors = np.linalg.eigh(covariance)  # ascending
    count = min(COMPONENTS, max(1, len(centred) // 4))
    return np.ascontiguousarray(vectors[:, ::-1][:, :count].T.astype(np.float32))


def save(path: Path, arrays: Arrays) -> None:
    """Write the arrays of `fit` as safetensors."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, str(path))


def load(bundle: layout.Bundle) -> Reference | None:
    """The reference that the bundle carries, or None where it carries none.

    Raises:
        BundleError: bundle.json has limits but the arrays are missing or cannot be read.
    """
    description = bundle.description.out_of_distribution
    if description is None:
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = bundle.folder / layout.OUT_OF_DISTRIBUTION
    try:
        arrays = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: cannot be read ({type(error).__name__}); copy the whole bundle again") from None
    reference = Reference.from_arrays(description, arrays)
    if reference.embeddings is not None and reference.embeddings.shape[1] != bundle.description.embedding_size:
        raise BundleError(f"{path}: embeddings are not of the bundle's size; export again")
    return reference
