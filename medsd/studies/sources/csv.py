"""Films of the user's own: a folder and a CSV table whose columns the settings name.

Findings stand in the table in one of two ways: a column each (1, 0, −1 for uncertain, empty for unknown; yes and no,
true and false are read, too), or all in one column, separated («Effusion|Edema»), where what is not listed is absent
unless the settings say otherwise. A finding of the finding set that the table does not have is unknown throughout.
Films are DICOM, PNG or JPEG; a row without one is a study with a note alone. Each row needs a patient, so that no
patient stands in two splits; a column of splits of your own is followed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.findings import FindingSet, resolve_uncertain
from medsd.settings import CsvSource, SplitSettings
from medsd.studies.manifest import SPLITS, Manifest
from medsd.studies.sources.tables import (
    SEXES,
    VIEWS,
    limited,
    manifest_of,
    numbers,
    present_files,
    read_table,
    texts,
    words,
    years,
)

_OWNER = "data.columns names columns of your table, so it"
_WORDS = {"yes": "1", "true": "1", "present": "1", "no": "0", "false": "0", "absent": "0", "uncertain": "-1"}
_LATERAL = {"lateral": "LATERAL", "lat": "LATERAL", "ll": "LATERAL", "rl": "LATERAL", "l": "LATERAL"}


def read(settings: CsvSource, splits: SplitSettings, findings: FindingSet) -> Manifest:
    """Read the table and list the films that are there; labels are in the order of `findings`.

    Raises:
        DataError: the table, a column or every film is missing, or a cell is no label.
    """
    root, columns, path = settings.root, settings.columns, settings.root / settings.table
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set data.root to the folder of your table and films")
    named = [value for value in columns.model_dump().values() if value is not None]
    listed = [settings.finding_list] if settings.finding_list else list(settings.finding_columns.values())
    entries = read_table(path, [*named, *listed], _OWNER, settings.delimiter)
    images = texts(entries[columns.image]).map(lambda name: (settings.images / name).as_posix(), na_action="ignore")
    study = entries[columns.study] if columns.study else images.fillna(entries.index.to_series().map("row {}".format))
    table = pd.DataFrame(
        {"study": study, "patient": texts(entries[columns.patient]), "path": images, "source": settings.name}
    )
    if table["patient"].isna().any():
        line = int(np.flatnonzero(table["patient"].isna())[0]) + 2
        raise DataError(f"{path}: line {line}: no patient; every row needs one, so that splits hold")
    for column, cells in _described(entries, settings).items():
        table[column] = cells
    read_labels = _listed_labels if settings.finding_list else _column_labels
    table[list(findings)] = read_labels(entries, settings, findings)
    there = table["path"].isna().to_numpy(copy=True)
    if not there.all():
        there[~there] = present_files(root, table.loc[~there, "path"])
    return manifest_of(limited(table[there], settings.limit), findings, root, splits)


def _described(entries: pd.DataFrame, settings: CsvSource) -> dict[str, pd.Series]:
    """The columns about the patient and the film that the table has."""
    columns, described = settings.columns, {}
    if columns.view:
        described["view"] = words(entries[columns.view], VIEWS | _LATERAL)
    if columns.age:
        described["age"] = years(entries[columns.age])
    if columns.sex:
        described["sex"] = words(entries[columns.sex], SEXES)
    if columns.note:
        described["note"] = texts(entries[columns.note])
    if columns.split:
        described["split"] = words(entries[columns.split], {name: name for name in SPLITS})
        wrong = np.flatnonzero(described["split"] == "")
        if len(wrong):
            place = f"{settings.root / settings.table}: line {int(wrong[0]) + 2}, column '{columns.split}'"
            raise DataError(f"{place}: a split is {', '.join(SPLITS)}")
    return described


def _column_labels(entries: pd.DataFrame, settings: CsvSource, findings: FindingSet) -> npt.NDArray[np.float32]:
    """(N, F) from a column a finding; without a mapping, the columns that are named like findings."""
    path = settings.root / settings.table
    mapping = settings.finding_columns or {name: name for name in findings if name in entries}
    unknown = [name for name in mapping if name not in findings.names]
    if unknown:
        raise DataError(f"data.finding_columns: {', '.join(unknown)} is no finding of {findings.key}")
    if not mapping:
        raise DataError(
            f"{path}: no column is named like a finding of {findings.key}; "
            "name the columns in data.finding_columns, or the one column in data.finding_list"
        )
    cells = {column: entries[column].str.strip().str.lower().replace(_WORDS) for column in mapping.values()}
    given = resolve_uncertain(numbers(pd.DataFrame(cells), list(mapping.values()), path), settings.uncertain)
    labels = np.full((len(entries), len(findings)), np.nan, dtype=np.float32)
    labels[:, [findings.names.index(name) for name in mapping]] = given
    return labels


def _listed_labels(entries: pd.DataFrame, settings: CsvSource, findings: FindingSet) -> npt.NDArray[np.float32]:
    """(N, F) from one column that lists what is present; an empty cell says nothing."""
    path, column = settings.root / settings.table, str(settings.finding_list)
    labels = np.full((len(entries), len(findings)), np.nan, dtype=np.float32)
    for row, text in enumerate(entries[column]):
        given = [name.strip() for name in text.split(settings.separator) if name.strip()]
        if not given:
            continue
        try:
            encoded = findings.encode([settings.finding_names.get(name, name) for name in given])
        except DataError as error:
            raise DataError(
                f"{path}: line {row + 2}, column '{column}': {error}; data.finding_names translates your words"
            ) from None
        known = (encoded == 1) | (settings.unlisted == "absent") | all(name in findings.negatives for name in given)
        labels[row] = np.where(known, encoded, np.nan)
    return labels
