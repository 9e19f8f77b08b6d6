"""Which regions of two films make them alike.

Everything after the last feature map is linear, so a cosine splits exactly into what each place of a film adds: with
regions r(x, y) whose mean is the embedding e, and e' another study's, cos = mean over (x, y) of r(x, y)·e' (and what
the note adds). The cosine changes by just that much per place, positive for, negative against the likeness (Stylianou
et al., Visualizing deep similarity networks, WACV 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsd.cases.case import FloatArray
from medsd.errors import DataError
from medsd.inference.prediction import Prediction
from medsd.preprocessing.pixels import evidence_to_image


@dataclass(frozen=True)
class Likeness:
    """Maps of the likeness of a study and a case; float32, of the size of each film.

    Attributes:
        query: (H, W) of the study's film.
        case: (H', W') of the case's film; None where that film is not at hand.
    """

    query: FloatArray
    case: FloatArray | None = None


def region_shares(prediction: Prediction, embedding: FloatArray) -> FloatArray:
    """What each place of the film adds to the cosine with another embedding.

    Args:
        prediction: of the film.
        embedding: (D,) of unit length, the other study's.

    Returns:
        float32 (h, w) in the model's grid. Its mean is the film's part of the cosine: all of it without a note.

    Raises:
        DataError: there is no film behind the prediction, its bundle does not say what each place adds, or the sizes
            do not fit.
    """
    if prediction.regions is None:
        why = "the study was refused" if prediction.refused else "there is no film, or its bundle is older than this"
        raise DataError(f"no map of the likeness: {why}; it needs a film read by a bundle exported by this medsd")
    other = np.asarray(embedding, dtype=np.float32)
    if other.shape != prediction.regions.shape[:1]:
        raise DataError(
            f"no map of the likeness: embeddings of {other.shape} and {prediction.regions.shape[:1]} numbers"
        )
    return np.tensordot(other, prediction.regions, axes=1)


def likeness_map(prediction: Prediction, embedding: FloatArray) -> FloatArray:
    """`region_shares` laid over the film, float32 (H, W); raises DataError as that does."""
    shares = region_shares(prediction, embedding)
    if prediction.image is None or prediction.pixel_spec is None:
        raise DataError("no map of the likeness: the film itself is not at hand")
    height, width = prediction.image.shape
    return evidence_to_image(shares, (height, width), prediction.pixel_spec)


def likeness(query: Prediction, case_embedding: FloatArray, case: Prediction | None = None) -> Likeness:
    """The maps of both films.

    Args:
        query: of the study at hand.
        case_embedding: (D,) as the index holds it (`SimilarCase.embedding`).
        case: of the case's own film, read by the same model, where it is at hand.

    Raises:
        DataError: as `region_shares`, for the query. A case whose film gives no map leaves its map out.
    """
    maps = Likeness(likeness_map(query, case_embedding))
    if case is None or case.regions is None or case.image is None or query.embedding is None:
        return maps
    return Likeness(maps.query, likeness_map(case, query.embedding))
