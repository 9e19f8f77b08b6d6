"""Is an image like those that the model learned from? `fit` learns it for a bundle, `Reference` judges images by it.

Two checks look at the image itself (`medsd.inference.descriptors`) and so see what the network may have learned to
ignore. The third looks at the network's embedding. Together they are one value, with a limit that a named share of
suitable images exceeds. NumPy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from medsd.bundle import layout
from medsd.errors import BundleError, DataError
from medsd.inference.descriptors import THUMBNAIL, Floats, Pixels, orientation_histograms, thumbnails, without_borders
from medsd.inference.one_class import Arrays, PrincipalGaussian, tail_quantile

CHECKS = ("greys", "edges", "network")
WORDS: Mapping[str, str] = {
    "greys": "light and dark do not lie as in a frontal chest",
    "edges": "its outlines are not those of a frontal chest",
    "network": "the network's own features of it lie far from those of its training images",
}
"""Check → what it means for a person when it exceeds its limit."""
_PICTURE = ("greys", "edges")
# Limits in bundle.json: of all checks together, and of those that look at the image itself.
_ALL, _IMAGE = "all", "image"
MAX_IMAGES = 20_000
FOLDS = 5
# Where the policy only warns, images above this are refused all the same.
FAR_RATIO = 2.0
# The edges of a negative run the other way (2.3 deviations and more on the negatives of 194 validation images), and to
# the network it is still a chest (4.5 and less). A blank image, whose negative may pass for a smooth chest, is neither.
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
class Verdict:
    """How unlike the training images one image is."""

    value: float  # as a share of the limit; above 1 it is unlike the training images
    reason: Literal["", "out_of_distribution", "inverted_look"] = ""
    far: bool = False  # so far away that the model should not read it, even where the policy only warns
    detail: str = ""  # which check spoke and why, in words


@dataclass(frozen=True)
class _Images:
    """Images as the checks need them: thumbnails (N, 1024), histograms (N, 288) and embeddings (N, D) or None."""

    small: Floats
    edges: Floats
    embeddings: npt.NDArray[np.floating] | None

    @classmethod
    def of(cls, pixels: Pixels, embeddings: npt.NDArray[np.floating] | None) -> Self:
        pixels = without_borders(pixels)
        return cls(thumbnails(pixels), orientation_histograms(pixels), embeddings)

    def __getitem__(self, rows: npt.NDArray[Any]) -> Self:
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return type(self)(self.small[rows], self.edges[rows], embeddings)


@dataclass(frozen=True)
class _Models:
    """What the training images are like."""

    template: Floats  # (1024,) mean thumbnail, of unit length
    edges: PrincipalGaussian  # of the histograms
    network: PrincipalGaussian | None  # of the embeddings; None where the bundle has none

    @classmethod
    def fit(cls, images: _Images) -> Self:
        mean = images.small.mean(axis=0)
        template = (mean / max(float(np.linalg.norm(mean)), 1e-6)).astype(np.float32)
        network = None if images.embeddings is None else PrincipalGaussian.fit(images.embeddings)
        return cls(template, PrincipalGaussian.fit(images.edges), network)

    def distances(self, images: _Images) -> dict[str, Floats]:
        """Distance of each image by each check, (N,); higher is stranger.

        `greys` is 1 − the correlation with the mean training image, 0…2; `edges` and `network` are logarithms of a
        Mahalanobis distance.
        """
        found = {"greys": 1 - images.small @ self.template, "edges": self.edges.distance(images.edges)}
        if self.network is not None and images.embeddings is not None:
            found["network"] = self.network.distance(images.embeddings)
        return found


@dataclass(frozen=True)
class Reference:
    """The training images as the checks need them, with the scales and limits."""

    description: layout.OutOfDistribution
    models: _Models

    @classmethod
    def from_arrays(cls, description: layout.OutOfDistribution, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Put together what `fit` returned; raises BundleError where an array is missing or has another shape."""
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
        """D of the embeddings, or None where only images are looked at."""
        return None if self.models.network is None else len(self.models.network.mean)

    def strangeness(self, pixels: Pixels, embeddings: npt.NDArray[np.floating] | None) -> dict[str, Floats]:
        """How strange each image is by each check, (N,): 0 as the median suitable image, in its deviations above."""
        return self._standardised(_Images.of(pixels, embeddings))

    def values(self, pixels: Pixels, embeddings: npt.NDArray[np.floating] | None) -> Floats:
        """All checks together as a share of the limit, (N,)."""
        return self._value(self.strangeness(pixels, embeddings))

    def judge(self, pixels: Pixels, embeddings: npt.NDArray[np.floating] | None) -> list[Verdict]:
        """A verdict for each of N images: pixels (N, S, S) uint8 and embeddings (N, D)."""
        images = _Images.of(pixels, embeddings)
        strange = self._standardised(images)
        values = self._value(strange)
        return [
            self._verdict(pixels[row], float(values[row]), {name: float(z[row]) for name, z in strange.items()})
            for row in range(len(pixels))
        ]

    def _standardised(self, images: _Images) -> dict[str, Floats]:
        scales = self.description.checks
        found = self.models.distances(images)
        return {name: (found[name] - scales[name].centre) / scales[name].spread for name in scales if name in found}

    def _value(self, strange: Mapping[str, Floats]) -> Floats:
        """The combined value by its own limit: without embeddings, that of the checks of the image."""
        limit = self.description.limits[_ALL if "network" in strange else _IMAGE]
        return combined(strange) / np.float32(limit)

    def _verdict(self, image: Pixels, value: float, strange: Mapping[str, float]) -> Verdict:
        if value <= 1:
            return Verdict(value)
        most = max(strange.values())
        speaking = " and ".join(WORDS[name] for name in strange if strange[name] >= 0.7 * most)
        # What it would be like if it were its own negative, or turned.
        others = np.stack([255 - image, *(np.rot90(image, turn) for turn in _TURNS)])
        negative, *turned = self._value(self._standardised(_Images.of(others, None))) <= 1
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
    """Learn what training images look like and where the limits lie.

    The limits come from the validation images and from the training images, each of which is compared with images of
    other patients, in five folds. The network has seen the training images, so the centre of the embeddings' distances
    is that of the validation images alone.

    `pixels` are uint8 (N, S, S), the training images as the network sees them, without augmentation, and `embeddings`
    (N, D) of unit length, without which the check of the network is left out; the validation images are of other
    patients. `patients` says whose each training image is, by default another's. `false_alarm_rate` is the share of
    suitable images that all checks together may put above the limit.

    Returns the description for bundle.json, and the arrays for `save`; raises DataError where there are fewer than two
    training images or no validation image.
    """
    if len(pixels) < 2 or len(validation_pixels) < 1:
        raise DataError("out of distribution: at least two training images and one validation image are needed")
    rows = np.linspace(0, len(pixels) - 1, min(len(pixels), MAX_IMAGES)).astype(int)
    images = _Images.of(pixels[rows], None if embeddings is None else np.asarray(embeddings)[rows])
    models = _Models.fit(images)
    whose = np.arange(len(pixels)) if patients is None else np.asarray(patients)
    held = _held_out(images, whose[rows], models)
    validation = models.distances(_Images.of(validation_pixels, None if embeddings is None else validation_embeddings))
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
    image = {name: together[name] for name in _PICTURE}
    limits = {
        which: max(tail_quantile(combined(strange), 1 - false_alarm_rate), _NARROWEST)
        for which, strange in ((_ALL, together), (_IMAGE, image))
    }
    description = layout.OutOfDistribution(false_alarm_rate=false_alarm_rate, limits=limits, checks=scales)
    arrays: Arrays = {"template": models.template, **models.edges.arrays("edges")}
    return description, arrays | ({} if models.network is None else models.network.arrays("network"))


def _held_out(images: _Images, patients: npt.NDArray[Any], models: _Models) -> dict[str, Floats]:
    """Distances of images to those of other patients, in folds; to all (`models`) where one patient has all images."""
    found = models.distances(images)
    names, number = np.unique(patients, return_inverse=True)
    for fold in range(min(FOLDS, len(names)) if len(names) > 1 else 0):
        part = number % FOLDS == fold
        for name, values in _Models.fit(images[~part]).distances(images[part]).items():
            found[name][part] = values
    return found


def save(path: Path, arrays: Arrays) -> None:
    """Write the arrays of `fit` as safetensors."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, str(path))


def load(bundle: layout.Bundle) -> Reference | None:
    """The reference that the bundle carries, or None; raises BundleError where its arrays cannot be read."""
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
    if reference.embedding_size not in (None, bundle.description.embedding_size):
        raise BundleError(f"{path}: embeddings are not of the bundle's size; export again")
    return reference
