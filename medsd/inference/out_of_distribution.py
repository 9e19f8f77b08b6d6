"""Is a film like those that the model learned from? Fitted when a bundle is made, scored in front of every reading.

One definition for both sides, NumPy only: `fit` makes the numbers that go into the bundle, `Reference` judges films by
them. Two checks look at the film itself (`medsd.inference.descriptors`), so they see what the network may have learned
to ignore; one looks at the network's embedding. Together they are one value, whose limit a named share of suitable
films exceeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.bundle import layout
from medsd.errors import BundleError, DataError
from medsd.inference.descriptors import THUMBNAIL, Floats, Pixels, orientation_histograms, thumbnails, without_borders
from medsd.inference.early_distribution import EarlyReference
from medsd.inference.one_class import Arrays, PrincipalGaussian, tail_quantile
from medsd.inference.verdict import WORDS, Verdict

__all__ = ["CHECKS", "Reference", "Verdict", "fit", "load", "save", "thumbnails"]

CHECKS = ("greys", "edges", "network")
_PICTURE = ("greys", "edges")
# Limits in bundle.json: of all checks together, and of those that look at the film itself.
_ALL, _FILM = "all", "film"
MAX_FILMS = 20_000
FOLDS = 5
# Where the policy only warns, films above this are refused all the same.
FAR_RATIO = 2.0
# A negative's edges all run the other way (2.3 deviations and more on the negatives of 194 validation films), and to
# the network it is still a film (4.5 and less); a blank film, whose negative may pass for a smooth chest, is neither.
_NEGATIVE_EDGES, _NEGATIVE_NETWORK = 1.5, 5.5
_NARROWEST = 0.01
_UPPER = 0.95  # the spread is that of the upper half, from the median to here, in standard deviations of a Gaussian
_UPPER_DEVIATIONS = 1.6449
_TURNS = {
    1: "turned by 90° to the left it would look like a frontal chest",
    2: "it looks like a frontal chest that is upside down",
    3: "turned by 90° to the right it would look like a frontal chest",
}


@dataclass(frozen=True)
class _Films:
    """Films as the checks need them: thumbnails (N, 1024), histograms (N, 288) and embeddings (N, D) or None."""

    small: Floats
    edges: Floats
    embeddings: npt.NDArray[np.floating] | None

    @classmethod
    def of(cls, pixels: Pixels, embeddings: npt.NDArray[np.floating] | None, *, trimmed: bool = True) -> _Films:
        pixels = without_borders(pixels) if trimmed else pixels
        return cls(thumbnails(pixels), orientation_histograms(pixels), embeddings)

    def __getitem__(self, rows: npt.NDArray[Any]) -> _Films:
        return _Films(self.small[rows], self.edges[rows], None if self.embeddings is None else self.embeddings[rows])


@dataclass(frozen=True)
class _Models:
    """What the training films are like.

    Attributes:
        template: (1024,) mean thumbnail, of unit length.
        edges: of the histograms.
        network: of the embeddings; None where the bundle has none.
    """

    template: Floats
    edges: PrincipalGaussian
    network: PrincipalGaussian | None

    @classmethod
    def fit(cls, films: _Films) -> _Models:
        mean = films.small.mean(axis=0)
        network = None if films.embeddings is None else PrincipalGaussian.fit(films.embeddings)
        return cls(
            (mean / max(float(np.linalg.norm(mean)), 1e-6)).astype(np.float32),
            PrincipalGaussian.fit(films.edges),
            network,
        )

    def distances(self, films: _Films) -> dict[str, Floats]:
        """Distance of each film by each check, (N,); higher is stranger.

        `greys` is 1 − the correlation with the mean training film, 0…2; `edges` and `network` are logarithms of a
        Mahalanobis distance.
        """
        found = {"greys": 1 - films.small @ self.template, "edges": self.edges.distance(films.edges)}
        if self.network is not None and films.embeddings is not None:
            found["network"] = self.network.distance(films.embeddings)
        return found


@dataclass(frozen=True)
class Reference:
    """The training films as the checks need them, with the limits.

    Attributes:
        description: scales and limits.
        models: what the films are like.
    """

    description: layout.OutOfDistribution
    models: _Models

    @classmethod
    def from_arrays(cls, description: layout.OutOfDistribution, arrays: Mapping[str, npt.NDArray[Any]]) -> Reference:
        """Put together what `fit` returned.

        Raises:
            BundleError: an array is missing or has another shape.
        """
        try:
            template, edges = arrays["template"].astype(np.float32), PrincipalGaussian.from_arrays("edges", arrays)
            network = PrincipalGaussian.from_arrays("network", arrays) if "network" in description.checks else None
        except KeyError as error:
            raise BundleError(f"{layout.OUT_OF_DISTRIBUTION}: array {error} is missing; export again") from None
        except ValueError as error:
            raise BundleError(f"{layout.OUT_OF_DISTRIBUTION}: {error}; export again") from None
        if template.shape != (THUMBNAIL**2,):
            raise BundleError(f"{layout.OUT_OF_DISTRIBUTION}: thumbnails are not {THUMBNAIL} × {THUMBNAIL}")
        return cls(description, _Models(template, edges, network))

    @property
    def embedding_size(self) -> int | None:
        """D of the embeddings, or None where only films are looked at."""
        return None if self.models.network is None else len(self.models.network.mean)

    def strangeness(self, pixels: Pixels, embeddings: npt.NDArray[np.floating] | None) -> dict[str, Floats]:
        """How strange each film is by each check, (N,): 0 as the median suitable film, in its deviations above."""
        return self._standardised(self._films(pixels, embeddings))

    def values(self, pixels: Pixels, embeddings: npt.NDArray[np.floating] | None) -> Floats:
        """All checks together as a share of the limit, (N,)."""
        return self._value(self.strangeness(pixels, embeddings))

    def judge(self, pixels: Pixels, embeddings: npt.NDArray[np.floating] | None) -> list[Verdict]:
        """A verdict for each of N films: pixels (N, S, S) uint8 and embeddings (N, D)."""
        films = self._films(pixels, embeddings)
        strange = self._standardised(films)
        values = self._value(strange)
        return [
            self._verdict(pixels[row], float(values[row]), {name: float(z[row]) for name, z in strange.items()})
            for row in range(len(pixels))
        ]

    def _films(self, pixels: Pixels, embeddings: npt.NDArray[np.floating] | None) -> _Films:
        return _Films.of(pixels, embeddings, trimmed=self.description.trimmed)

    def _standardised(self, films: _Films) -> dict[str, Floats]:
        scales = self.description.checks
        found = self.models.distances(films)
        return {name: (found[name] - scales[name].centre) / scales[name].spread for name in scales if name in found}

    def _value(self, strange: Mapping[str, Floats]) -> Floats:
        """The combined value by its own limit: without embeddings, that of the checks of the film."""
        limit = self.description.limits[_ALL if "network" in strange else _FILM]
        return combined(strange) / np.float32(limit)

    def _verdict(self, film: Pixels, value: float, strange: Mapping[str, float]) -> Verdict:
        if value <= 1:
            return Verdict(value)
        most = max(strange.values())
        speaking = " and ".join(WORDS[name] for name in strange if strange[name] >= 0.7 * most)
        # What it would be like if it were its own negative, or turned.
        others = np.stack([255 - film, *(np.rot90(film, turn) for turn in _TURNS)])
        negative, *turned = self._value(self._standardised(self._films(others, None))) <= 1
        if negative and strange["edges"] > _NEGATIVE_EDGES and strange.get("network", 0) < _NEGATIVE_NETWORK:
            return Verdict(value, "inverted_look")
        said = [words for words, fits in zip(_TURNS.values(), turned, strict=True) if fits]
        return Verdict(value, "out_of_distribution", value > FAR_RATIO, "; ".join([speaking, *said[:1]]))


def combined(strange: Mapping[str, Floats]) -> Floats:
    """Several checks as one number, (N,): the length of the vector of what each has above its median.

    Two checks that are each somewhat strange add up, and one that is very strange is not hidden by the others.
    """
    return np.sqrt(np.sum([np.maximum(z, 0) ** 2 for z in strange.values()], axis=0, dtype=np.float32))


def fit(
    pixels: Pixels,
    embeddings: npt.NDArray[np.floating] | None,
    validation_pixels: Pixels,
    validation_embeddings: npt.NDArray[np.floating] | None,
    *,
    patients: Sequence[str] | npt.NDArray[Any] | None = None,
    false_alarm_rate: float = 0.005,
) -> tuple[layout.OutOfDistribution, Arrays]:
    """Learn what training films look like and where the limits lie.

    The limits come from validation films and from the training films, each measured against films of other patients
    (in five parts). The network has seen the training films, so the place of the embeddings' distances is that of the
    validation films, and only their spread and their tail are shared.

    Args:
        pixels: uint8 (N, S, S), the training films as the network sees them, without augmentation.
        embeddings: (N, D) of unit length, in the same order; None leaves the check of the network out.
        validation_pixels, validation_embeddings: films of other patients.
        patients: whose each training film is; by default each is another's.
        false_alarm_rate: share of suitable films that all checks together may put above the limit.

    Returns:
        the description for bundle.json, and the arrays for `save`.

    Raises:
        DataError: fewer than two training films or no validation film.
    """
    held, validation, models = _distances(pixels, embeddings, validation_pixels, validation_embeddings, patients)
    scales, train_strange, validation_strange = {}, {}, {}
    for name, values in held.items():
        others = validation[name]
        centres = (np.median(values), np.median(others))
        if name in _PICTURE:
            centres = (np.median(np.concatenate([values, others])),) * 2
        above = np.concatenate([values - centres[0], others - centres[1]])
        spread = max(float(np.quantile(above, _UPPER)) / _UPPER_DEVIATIONS, _NARROWEST)
        scales[name] = layout.OutOfDistributionCheck(centre=float(centres[1]), spread=spread)
        train_strange[name], validation_strange[name] = (values - centres[0]) / spread, (others - centres[1]) / spread
    together = {name: np.concatenate([train_strange[name], validation_strange[name]]) for name in scales}
    film = {name: together[name] for name in _PICTURE}
    limits = {
        which: max(tail_quantile(combined(strange), 1 - false_alarm_rate), _NARROWEST)
        for which, strange in ((_ALL, together), (_FILM, film))
    }
    description = layout.OutOfDistribution(
        false_alarm_rate=false_alarm_rate, limits=limits, checks=scales, trimmed=True
    )
    arrays: Arrays = {"template": models.template, **models.edges.arrays("edges")}
    return description, arrays | ({} if models.network is None else models.network.arrays("network"))


def _distances(
    pixels: Pixels,
    embeddings: npt.NDArray[np.floating] | None,
    validation_pixels: Pixels,
    validation_embeddings: npt.NDArray[np.floating] | None,
    patients: Sequence[str] | npt.NDArray[Any] | None,
) -> tuple[dict[str, Floats], dict[str, Floats], _Models]:
    """Distances of training films to those of other patients and of validation films to all; and what they are like."""
    if len(pixels) < 2 or len(validation_pixels) < 1:
        raise DataError("out of distribution: at least two training films and one validation film are needed")
    whose = np.arange(len(pixels)) if patients is None else np.asarray(patients)
    rows = np.linspace(0, len(pixels) - 1, min(len(pixels), MAX_FILMS)).astype(int)
    films = _Films.of(pixels[rows], None if embeddings is None else np.asarray(embeddings)[rows])
    models = _Models.fit(films)
    others = _Films.of(validation_pixels, None if embeddings is None else validation_embeddings)
    parts = [(part, _Models.fit(films[~part]).distances(films[part])) for part in _folds(whose[rows])]
    found = models.distances(films)  # where one patient has all films, there is nobody else to compare with
    for part, distances in parts:
        for name, values in distances.items():
            found[name][part] = values
    return found, models.distances(others), models


def _folds(patients: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.bool_]]:
    """Parts of the films such that no patient stands in two."""
    names, number = np.unique(patients, return_inverse=True)
    if len(names) > 1:
        yield from (number % FOLDS == fold for fold in range(min(FOLDS, len(names))))


def save(path: Path, arrays: Arrays) -> None:
    """Write the arrays of `fit` as safetensors."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, str(path))


def load(bundle: layout.Bundle) -> Reference | EarlyReference | None:
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
    kind = Reference if description.checks else EarlyReference
    reference = kind.from_arrays(description, arrays)
    if reference.embedding_size not in (None, bundle.description.embedding_size):
        raise BundleError(f"{path}: embeddings are not of the bundle's size; export again")
    return reference
