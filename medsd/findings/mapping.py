"""Labels carried from one vocabulary to another.

Each label of a set stands for a concept; concepts form a small tree of kinds. `map_labels` says what follows from the
columns that a set has, and leaves everything else unknown.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.findings.vocabulary import LITERAL, MEANINGS, WIDER, FindingSet

Column = npt.NDArray[np.float32]

_OWN = ("other lesion", "other diseases")  # what is left over differs from set to set


def map_labels(labels: npt.ArrayLike, from_set: FindingSet, to_set: FindingSet) -> npt.NDArray[np.float32]:
    """Carry labels from one vocabulary to another.

    A finding that is present makes every wider one present, and a wider one that is absent makes the narrower ones
    absent, where the set that has the wider label means it as the sum of its kinds (CheXpert's Lung Opacity; not
    MeSH's). Nothing else follows: a lung opacity that is present says nothing of consolidation, and a finding that
    the first set never labelled is unknown.

    Labels (N, F_from) are 1, 0 or NaN; the result is float32 (N, F_to), likewise. Raises DataError: the labels have not
    the columns of `from_set`.
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
        wider = next((name for name in ancestors(concept) if name in columns), None)  # the nearest that was labelled
        if wider is not None and concept not in columns and from_set.key not in LITERAL:
            # Absent where the wider concept is, and its other kinds are.
            values[np.isnan(values) & (_own_or_narrower(wider, columns, len(given)) == 0)] = 0.0
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
