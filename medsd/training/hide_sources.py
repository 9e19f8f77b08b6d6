"""Hide the source of an image: the features of images lose the directions in which sources differ.

Merged sources differ in sharpness, exposure and in how their images were picked, and a network learns from that which
findings are commoner where. Least-squares concept erasure removes the directions of the learned space in which sources
differ among images of equal labels and view. The map is linear, and becomes part of the layer in front of the space.

Belrose N, Schneider-Joseph D, Ravfogel S, Cotterell R, Raff E, Biderman S. LEACE: perfect linear concept erasure in
closed form. NeurIPS 2023.
"""

import logging

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medsd.networks.fusion import StudyModel
from medsd.training.loaders import Rows, StudyArrays, plain_batches

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
_SMALLEST = 1e-6  # of the largest variance; a direction below it is removed whole, because a probe would enlarge it


def hide_sources(model: StudyModel, arrays: StudyArrays, table: pd.DataFrame, rows: Rows) -> None:
    """Change the fine-tuned `model` so that its image features hide the sources of the training images `rows`.

    Nothing changes where no two sources have images of the same labels and view. `table` is the manifest's, a row a
    study; its columns `source` and `view` are used.
    """
    rows = rows[arrays.has_image[rows]]
    with model.reading() as device:
        outputs = (model(inputs.to(device)) for inputs in plain_batches(arrays, rows))
        features = np.concatenate([each.image_features.double().cpu().numpy() for each in outputs])
    matrix = eraser(features, table.iloc[rows], arrays.labels[rows])
    removed = len(matrix) - int(np.linalg.matrix_rank(matrix))
    if not removed:
        return
    layer = model.image_to_space
    assert layer.bias is not None, "the layer in front of the space has a bias"
    weight, bias = (values.detach().double().flatten(1).cpu().numpy() for values in (layer.weight, layer.bias[:, None]))
    offset = features.mean(axis=0) - matrix @ features.mean(axis=0)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(matrix @ weight).view_as(layer.weight))
        layer.bias.copy_(torch.from_numpy(matrix @ bias[:, 0] + offset))
    log.info("%d of %d directions of the learned space told the sources, and were taken out", removed, len(matrix))


def eraser(features: FloatArray, table: pd.DataFrame, labels: npt.NDArray[np.floating]) -> FloatArray:
    """The matrix (D, D) that takes out of features what tells sources apart among images of equal labels and view.

    What is linear in the source is taken out of each kind of image: each view, with findings and without. `features`
    are (N, D), `table` has N rows with `source` and `view`, `labels` (N, F) are 1, 0 or NaN, which counts as a value.
    """
    known, view = np.where(np.isnan(labels), -1, labels).astype(np.int8), table["view"].fillna("").astype(str)
    groups = [f"{seen} {row.tobytes().hex()}" for seen, row in zip(view, known, strict=True)]
    present = (known == 1).any(axis=1)
    kinds = [f"{source} {seen} {found}" for source, seen, found in zip(table["source"], view, present, strict=True)]
    sources = _within(pd.get_dummies(pd.Series(kinds)).to_numpy(dtype=np.float64), groups)
    features = _within(features, groups)
    variances, axes = np.linalg.eigh(features.T @ features / len(features))
    kept = variances > _SMALLEST * variances.max()
    spread, axes = np.sqrt(variances[kept]), axes[:, kept]
    shared = axes.T @ (features.T @ sources) / len(features) / spread[:, None]  # (D', kinds), of whitened features
    directions, sizes, _ = np.linalg.svd(shared, full_matrices=False)
    directions = directions[:, sizes > _SMALLEST]
    result: FloatArray = axes @ axes.T - (axes * spread) @ directions @ directions.T @ (axes / spread).T
    return result


def _within(values: FloatArray, groups: list[str]) -> FloatArray:
    """Values less the means of their groups."""
    return values - pd.DataFrame(values).groupby(groups).transform("mean").to_numpy()
