"""Images of the user's own: a folder and a table (CSV, plain or gzipped, or Parquet) whose columns the settings name.

Findings have a column each (1, 0, -1 for uncertain, empty for unknown, or words such as yes and no), or stand in one
column, separated ("Effusion|Edema"), where what is not listed is absent unless the settings say otherwise. A cell that
cannot be read is unknown and listed. An image in several rows is kept once, with the labels on which they agree. A row
without an image is a study with a note alone. Each row needs a patient, so that no patient stands in two splits.

The table is read in portions. A bad row is left out and listed with a reason (`medsd.studies.rejected`).
"""

import logging
import os
from collections.abc import Callable
from os.path import isfile, join, normpath, relpath  # of a million paths, pathlib would take minutes

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.findings import FindingSet, resolve_uncertain
from medsd.privacy import patient_id
from medsd.settings import CsvSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.rejected import REASONS, Rejections
from medsd.studies.sources import tables
from medsd.studies.sources.cells import LabelCells
from medsd.studies.sources.form import missing_columns

log = logging.getLogger(__name__)

Bools = npt.NDArray[np.bool_]
Reasons = npt.NDArray[np.object_]

_ENDINGS = (".csv", ".csv.gz", ".tsv", ".txt", ".parquet", ".pq")
_OWNER = "data.columns names columns of your table, so it"
_LATERAL = {"lateral": "LATERAL", "lat": "LATERAL", "ll": "LATERAL", "rl": "LATERAL", "l": "LATERAL"}
_OWN_SPLITS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("validation", "validate", "val", "valid", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def read(settings: CsvSource, splits: SplitSettings, findings: FindingSet) -> Manifest:
    """Read the table and list the images that are there; DataError where something is missing, or half of it is bad."""
    root, path = settings.root, settings.root / settings.table
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set data.root to the folder of your table and images")
    if not path.is_file():
        there = sorted(each.name for each in root.iterdir() if each.name.lower().endswith(_ENDINGS))
        here = f"{root} has {', '.join(there[:8])}" if there else f"{root} has no CSV or Parquet file"
        raise DataError(f"{path}: no such table; set data.table (below data.root); {here}")
    reader, rejected, total = _TableReader(settings, findings), Rejections(), 0
    parts = []
    for portion in tables.read_portions(path, reader.columns, _OWNER, settings.delimiter):
        total += len(portion.rows) + len(portion.unreadable)
        for row in portion.unreadable:
            rejected.add(row, None, "unreadable_row")
        parts.append(reader.studies(portion, rejected))
    if not total:
        raise DataError(f"{path}: the table has no rows")
    table = pd.concat(parts, ignore_index=True)
    table = tables.once(table, findings, path, table["row"].to_numpy(dtype=np.int64))
    table = _without_repeats(table, rejected)
    rejected.check(total, path)
    reader.cells.tell(path, rejected)
    if rejected:
        log.warning("%s: %d of %d rows are left out: %s", path, len(rejected), total, rejected.counts())
    table = tables.limited(table, settings.limit)
    rows = table.pop("row").to_numpy(dtype=np.int64)
    return tables.manifest_of(table, findings, root, splits, rejected=rejected, source_rows=rows)


def _without_repeats(table: pd.DataFrame, rejected: Rejections) -> pd.DataFrame:
    """The table without rows that contradict others; only the whole table shows them."""
    checks: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
        "duplicate_row": lambda left: left.duplicated(["study", "path"]),
        "duplicate_image": lambda left: left["path"].notna() & left.duplicated("path"),
    }
    if "split" in table:
        checks["divided_patient"] = lambda left: (
            left.groupby(left["patient"].map(patient_id))["split"].transform("nunique") > 1
        )
    for reason, find in checks.items():
        bad = find(table).to_numpy(dtype=bool)
        if bad.any():
            gone = table[bad]
            rejected.extend(gone["row"], gone["path"], gone["patient"], reason)
            table = table[~bad]
    return table


def _refuse(reasons: Reasons, bad: Bools, reason: str) -> None:
    """Leave the rows out where `bad` (N,) is True; the first reason stands, "" where nothing speaks against a row."""
    reasons[bad & (reasons == "")] = reason


class _TableReader:
    """Turns portions of the table into rows of the manifest."""

    def __init__(self, settings: CsvSource, findings: FindingSet) -> None:
        self.settings, self.findings, self.cells = settings, findings, LabelCells()
        self._root = str(settings.root.absolute())
        unknown = [name for name in settings.finding_columns if name not in findings.names]
        if unknown:
            raise DataError(f"data.finding_columns: {', '.join(unknown)} is no finding of {findings.key}")
        self._mapping = settings.finding_columns

    def columns(self, present: list[str]) -> list[str]:
        """The columns that are read, of those that are `present`; DataError if one is missing or there twice."""
        own, findings, path = self.settings.columns, self.findings, self.settings.root / self.settings.table
        wanted = {f"data.columns.{key}": column for key, column in own.model_dump().items() if column is not None}
        if self.settings.finding_list:
            wanted["data.finding_list"] = self.settings.finding_list
        else:
            self._mapping = self._mapping or {name: name for name in findings if name in present}
            wanted |= {f"data.finding_columns.{name}": column for name, column in self._mapping.items()}
        if missing := {key: column for key, column in wanted.items() if column not in present}:
            own_columns = [name for name in findings if name in present]
            where = f"; of the findings, {', '.join(own_columns)} have columns of their own: set data.finding_list=null"
            raise DataError(
                f"{path}: the columns {', '.join(missing.values())} are missing; {missing_columns(missing, present)}"
                f"{where if own_columns and 'data.finding_list' in missing else ''}"
            )
        if twice := sorted({column for column in wanted.values() if present.count(column) > 1}):
            raise DataError(f"{path}: the column {twice[0]} is there twice; give one of the two another name")
        if not self._mapping and not self.settings.finding_list:
            raise DataError(
                f"{path}: no column is named like a finding of {findings.key}; name the columns in "
                "data.finding_columns, or the one column in data.finding_list; "
                f"{missing_columns({'data.finding_list': 'findings'}, present)}"
            )
        if unread := [name for name in present if name not in wanted.values()]:
            log.info("%s: columns that are not read: %s", path, ", ".join(unread[:30]))
        return list(wanted.values())

    def studies(self, portion: tables.Portion, rejected: Rejections) -> pd.DataFrame:
        """The rows of the manifest, with their place in the table as `row`; what is left out goes to `rejected`."""
        cells, columns, reasons = portion.cells, self.settings.columns, np.full(len(portion.rows), "", dtype=object)
        patient = tables.texts(cells[columns.patient])
        _refuse(reasons, patient.isna().to_numpy(), "missing_patient")
        path = self._paths(tables.texts(cells[columns.image]), reasons)
        places = pd.Series(portion.rows, index=cells.index)
        study = path.fillna(places.map(lambda row: f"row {row - 1}"))
        study = tables.texts(cells[columns.study]).fillna(study) if columns.study else study
        # Patients as they are written, until one spelling is made of them (`tables.manifest_of`).
        table = pd.DataFrame({"row": places, "study": study, "patient": cells[columns.patient], "path": path})
        table["source"] = self.settings.name
        for column, values in self._described(cells, reasons, rejected).items():
            table[column] = values
        labels = pd.DataFrame(self._labels(portion), index=cells.index, columns=list(self.findings))
        kept = np.asarray(reasons == "", dtype=bool)
        for at in np.flatnonzero(~kept):
            reason = reasons[at]
            told = f"column '{columns.split}': {REASONS[reason]}" if reason == "unknown_split" else ""
            rejected.add(int(portion.rows[at]), path.iloc[at], reason, told, patient=patient.iloc[at])
        table = pd.concat([table, labels], axis=1)[kept]
        # Texts one by one are objects of some sixty bytes each; a million rows hold five million of them.
        return table.astype({name: "str" for name in table if name != "row" and table[name].dtype == object})

    def _paths(self, images: pd.Series, reasons: Reasons) -> pd.Series:
        """Paths of the images below root, None for a note alone."""
        below = [self._below(image) if isinstance(image, str) else None for image in images]
        outside = [isinstance(image, str) and path is None for image, path in zip(images, below, strict=True)]
        _refuse(reasons, np.array(outside, dtype=bool), "path_outside_root")
        there = [path is None or isfile(join(self._root, path)) for path in below]  # noqa: PTH113, PTH118
        _refuse(reasons, ~np.array(there, dtype=bool), "missing_file")
        shown = [path or image for path, image in zip(below, images, strict=True)]
        return pd.Series(shown, index=images.index, dtype=object)

    def _below(self, image: str) -> str | None:
        """The path of an image from root, None where it leads out of it; links are followed wherever they lead."""
        try:
            place = normpath(join(self._root, self.settings.images, image))  # noqa: PTH118
            if "\\" in image and not isfile(place):  # noqa: PTH113  a table that was written on Windows
                place = normpath(join(self._root, self.settings.images, image.replace("\\", "/")))  # noqa: PTH118
            below = relpath(place, self._root)
        except ValueError:  # a null character
            return None
        return None if below.startswith("..") or "\0" in below else below.replace(os.sep, "/")

    def _described(self, cells: pd.DataFrame, reasons: Reasons, rejected: Rejections) -> dict[str, pd.Series]:
        """The columns about the patient and the image that the table has."""
        columns = self.settings.columns
        readers: dict[str, Callable[[pd.Series], pd.Series]] = {
            "view": lambda column: tables.words(column, tables.VIEWS | _LATERAL),
            "age": tables.years,
            "sex": lambda column: tables.words(column, tables.SEXES),
            "note": tables.texts,
            "split": lambda column: tables.words(column, _OWN_SPLITS),
        }
        named = {name: getattr(columns, name) for name in readers}
        described = {name: readers[name](cells[column]) for name, column in named.items() if column}
        if columns.split:
            strange = (described["split"] == "").to_numpy()
            rejected.splits.update(cells[columns.split][strange].str.strip())
            _refuse(reasons, strange, "unknown_split")
        return described

    def _labels(self, portion: tables.Portion) -> npt.NDArray[np.float32]:
        """(N, F) from one column that lists findings, or from a column a finding."""
        settings = self.settings
        if settings.finding_list:
            return self.cells.read_lists(
                portion.cells[settings.finding_list],
                portion.rows,
                self.findings,
                settings.separator,
                names=settings.finding_names,
                unlisted_is_absent=settings.unlisted == "absent",
            )
        labels = np.full((len(portion.rows), len(self.findings)), np.nan, dtype=np.float32)
        for name, column in self._mapping.items():
            values = self.cells.read(portion.cells[column], portion.rows)
            labels[:, self.findings.names.index(name)] = resolve_uncertain(values, settings.uncertain)
        return labels
