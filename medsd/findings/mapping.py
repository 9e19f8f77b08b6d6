"""Labels carried from one vocabulary to another.

Each label of a set stands for a concept; concepts form a small tree of kinds. `map_labels` says what follows from the
columns that a set has, and leaves everything else unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.findings.vocabulary import FindingSet

Column = npt.NDArray[np.float32]

# What the labels of each set mean, where the spelling alone does not say it: name in the set → common concept. A label
# that stands in no row is a concept of its own name, whatever its case.
MEANINGS: Mapping[str, Mapping[str, str]] = {
    "chexpert14": {"Pleural Effusion": "effusion"},
    "vindr": {
        "Pleural effusion": "effusion",
        "Pleural thickening": "pleural_thickening",
        "Pulmonary fibrosis": "fibrosis",
    },
    "padchest": {
        "hiatal hernia": "hernia",
        "infiltrates": "infiltration",
        "pleural effusion": "effusion",
        "pleural thickening": "pleural_thickening",
        "pulmonary edema": "edema",
        "pulmonary fibrosis": "fibrosis",
        "pulmonary mass": "mass",
    },
    "mesh": {
        "Airspace Disease": "alveolar pattern",
        "Costophrenic Angle/blunted": "costophrenic angle blunting",
        "Diaphragm/elevated": "hemidiaphragm elevation",
        "Fractures, Bone": "fracture",
        "Hernia, Hiatal": "hernia",
        "Infiltrate": "infiltration",
        "Lung Diseases, Interstitial": "ild",
        "Mass/lung": "mass",
        "Opacity/lung": "lung opacity",
        "Pleural Effusion": "effusion",
        "Pulmonary Atelectasis": "atelectasis",
        "Pulmonary Disease, Chronic Obstructive": "copd",
        "Pulmonary Edema": "edema",
        "Pulmonary Fibrosis": "fibrosis",
        "Thickening/pleura": "pleural_thickening",
    },
}
# Concept → the wider concept that it is a kind of (Irvin et al., figure 1; VinDr-CXR calls its Lung Opacity a label
# for all of them; and what radiologists would not dispute).
WIDER: Mapping[str, str] = {
    "cardiomegaly": "enlarged cardiomediastinum",
    "mediastinum/enlarged": "enlarged cardiomediastinum",
    "alveolar pattern": "lung opacity",
    "atelectasis": "lung opacity",
    "consolidation": "lung opacity",
    "edema": "lung opacity",
    "infiltration": "lung opacity",
    "pneumonia": "lung opacity",
    "lung lesion": "lung opacity",
    "nodule/mass": "lung lesion",
    "lung cavity": "lung lesion",
    "lung tumor": "lung lesion",
    "mass": "nodule/mass",
    "nodule": "nodule/mass",
    "pleural_thickening": "pleural other",
    "clavicle fracture": "fracture",
    "rib fracture": "fracture",
    "catheters, indwelling": "support devices",
    "central venous catheter": "support devices",
    "endotracheal tube": "support devices",
    "implanted medical device": "support devices",
    "nsg tube": "support devices",
    "pacemaker": "support devices",
    "tube, inserted": "support devices",
}
# Sets whose wider labels are words of the report, not the sum of the narrower ones: Open-i's annotators coded
# «Opacity» where the report says so, and not for every consolidation.
LITERAL = frozenset({"mesh"})
_OWN = ("other lesion", "other diseases")  # what is left over differs from set to set


def map_labels(labels: npt.ArrayLike, from_set: FindingSet, to_set: FindingSet) -> npt.NDArray[np.float32]:
    """Carry labels from one vocabulary to another.

    A finding that is present makes every wider one present, and a wider one that is absent makes the narrower ones
    absent, where the set that has the wider label means it as the sum of its kinds (CheXpert's Lung Opacity; not
    MeSH's). Nothing else follows: a lung opacity that is present says nothing of consolidation, and a finding that
    the first set never labelled is unknown.

    Args:
        labels: (N, F_from), 1, 0 or NaN, in the order of `from_set`.
        from_set: their vocabulary.
        to_set: the vocabulary that is wanted.

    Returns:
        float32 (N, F_to), 1, 0 or NaN, in the order of `to_set`.

    Raises:
        DataError: the labels have not the columns of `from_set`.
    """
    given = np.array(labels, dtype=np.float32)
    if given.ndim != 2 or given.shape[1] != len(from_set):
        raise DataError(f"labels of shape {given.shape} do not fit {from_set.key}, which has {len(from_set)} findings")
    if from_set.names == to_set.names:
        return given
    columns = dict(zip(concepts(from_set), given.T, strict=True))
    mapped = np.full((len(given), len(to_set)), np.nan, dtype=np.float32)
    for position, concept in enumerate(concepts(to_set)):
        values = _own_or_narrower(concept, columns, len(given), sums=to_set.key not in LITERAL)
        if concept not in columns and from_set.key not in LITERAL:
            values[np.isnan(values) & _wider_is_absent(concept, columns, len(given))] = 0.0
        mapped[:, position] = values
    return mapped


def concepts(vocabulary: FindingSet) -> list[str]:
    """The concept that each label of a set stands for, in its order."""
    meanings = MEANINGS.get(vocabulary.key, {})
    names = [meanings.get(name, name.lower()) for name in vocabulary]
    return [f"{vocabulary.key} {name}" if name in _OWN else name for name in names]


def ancestors(concept: str) -> Iterator[str]:
    """The wider concepts of `concept`, nearest first."""
    while concept in WIDER:
        concept = WIDER[concept]
        yield concept


def _own_or_narrower(concept: str, columns: Mapping[str, Column], count: int, *, sums: bool = True) -> Column:
    """(N,) the column of `concept` itself, if there is one, and, if its label `sums` its kinds, 1 where one is 1."""
    values = columns[concept].copy() if concept in columns else np.full(count, np.nan, dtype=np.float32)
    for narrower, column in columns.items():
        if sums and concept in ancestors(narrower):
            values[column == 1] = 1.0
    return values


def _wider_is_absent(concept: str, columns: Mapping[str, Column], count: int) -> npt.NDArray[np.bool_]:
    """(N,) True where the nearest wider concept that was labelled is absent, and so are its other kinds."""
    wider = next((name for name in ancestors(concept) if name in columns), None)
    return np.zeros(count, dtype=bool) if wider is None else _own_or_narrower(wider, columns, count) == 0
