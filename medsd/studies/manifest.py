"""The manifest: the table of studies that every step of training reads, one row an image, kept as Parquet.

Columns: study, patient (keyed hashes from `medsd.studies.protect` on), path (relative to the source's root), note,
view, age, sex, source, use, split, then one float32 column a finding: 1 present, 0 absent, NaN unknown. `use` is empty
for most images, "selected" for those picked by finding, which train or are measured apart, and "train" for those that
only train.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medsd.errors import DataError
from medsd.files import replacing
from medsd.findings import FindingSet, finding_set
from medsd.studies.rejected import Rejections
from medsd.text import normalise_text

COLUMNS = ("study", "patient", "path", "note", "view", "age", "sex", "source", "use", "split")
SPLITS = ("train", "validation", "test")
USES = ("", "train", "selected")
SELECTED = "selected"  # the split of test patients' images that were picked by finding: in no headline figure
ROW_GROUP = 65_536  # rows of the file that a reader takes at a time


@dataclass(frozen=True)
class Manifest:
    """A checked table of studies; `rejected`, `source_rows` and `dealt` are not kept in the file."""

    table: pd.DataFrame  # one row an image, columns `COLUMNS` and the findings
    findings: FindingSet  # of the label columns
    root: Path  # the folder that `path` is relative to
    rejected: Rejections = field(default_factory=Rejections, compare=False, repr=False)
    # (N,) where each row stood in the source's table, the first being 1.
    source_rows: npt.NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    keyed: bool = False  # study and patient are keyed hashes, and notes are scrubbed (`medsd.studies.protect`)
    dealt: bool = field(default=False, compare=False)  # medsd chose the splits; the source has no test list or split

    def __post_init__(self) -> None:
        _check(self.table, self.findings)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """float32 (N, F): 1 present, 0 absent, NaN unknown."""
        return self.table[list(self.findings)].to_numpy(dtype=np.float32, na_value=np.nan)

    @property
    def patients(self) -> npt.NDArray[np.str_]:
        """(N,) patient identifiers, for splitting and for intervals."""
        return self.table["patient"].to_numpy(dtype=str)

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.table["split"].to_numpy() == split)

    def counts(self, column: str | None = None) -> dict[str, int]:
        """Images in each split, or distinct values of `column` in each split."""
        groups = self.table.groupby("split")
        sizes = groups.size() if column is None else groups[column].nunique()
        return {split: int(sizes.get(split, 0)) for split in SPLITS}

    def without(self, rows: Sequence[int]) -> Self:
        if not len(rows):
            return self
        kept = np.ones(len(self), dtype=bool)
        kept[list(rows)] = False
        places = None if self.source_rows is None else self.source_rows[kept]
        return replace(self, table=self.table[kept].reset_index(drop=True), source_rows=places)

    def data_hash(self) -> str:
        """sha256 over the rows without the split, whatever their order."""
        columns = [c for c in (*COLUMNS, *self.findings) if c != "split"]
        known = self.table[columns].astype(object).where(self.table[columns].notna(), "")
        return _rows_hash("\x1f".join(map(str, row)) for row in known.itertuples(index=False))

    def split_hash(self) -> str:
        """sha256 over the pairs of study and split, whatever their order; no split counts as an empty one."""
        return _rows_hash(self.table["study"].astype(str) + "\x1f" + self.table["split"].fillna(""))

    def write(self, path: Path) -> None:
        """Write the Parquet file atomically; vocabulary and root travel in its metadata."""
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pandas(self.table, preserve_index=False)
        about = {"findings": self.findings.key, "root": str(self.root.resolve()), "keyed": self.keyed}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"medsd": json.dumps(about).encode()})
        with replacing(path) as draft:
            pq.write_table(table, draft, row_group_size=ROW_GROUP)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest that `write` wrote; DataError if it is missing, or breaks one of its rules."""
        try:
            table = pq.read_table(path)
        except FileNotFoundError:
            raise DataError(f"{path}: no such manifest; run `medsd prepare` first") from None
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({type(error).__name__}); prepare it again") from None
        own = json.loads((table.schema.metadata or {}).get(b"medsd", b"{}"))
        if "findings" not in own:
            raise DataError(f"{path}: this Parquet file is no manifest of medsd; run `medsd prepare`")
        return cls(table.to_pandas(), finding_set(own["findings"]), Path(own["root"]), keyed=own["keyed"])


def complete(table: pd.DataFrame, findings: FindingSet) -> pd.DataFrame:
    """Bring a source's table into the manifest's columns, order and types; columns that it lacks are unknown.

    Notes are put in one spelling (`medsd.text`) here, before anything reads them.
    """
    table = table.copy()
    for column in (*COLUMNS, *findings):
        if column not in table:
            table[column] = np.nan if column in (*findings, "age") else None
    for column in findings:
        table[column] = table[column].astype(np.float32)
    table["age"] = pd.to_numeric(table["age"], errors="coerce").astype(np.float32)
    notes = [normalise_text(note) if isinstance(note, str) else None for note in table["note"]]
    table["note"] = pd.Series(notes, index=table.index, dtype=table["note"].dtype)
    return table[[*COLUMNS, *findings]].reset_index(drop=True)


def _check(table: pd.DataFrame, findings: FindingSet) -> None:
    if missing := [column for column in (*COLUMNS, *findings) if column not in table]:
        raise DataError(f"the manifest lacks the columns {', '.join(missing)}")
    if table.empty:
        raise DataError("the manifest has no studies; check the folder that the settings name under data.root")
    for column in ("study", "patient"):
        if table[column].isna().any():
            raise DataError(f"the manifest has rows without a {column}; every image needs one, so that splits hold")
    if table.duplicated(["study", "path"]).any():
        raise DataError("the manifest has the same study and path twice; remove one of the rows")
    values = table[list(findings)].to_numpy(dtype=np.float32, na_value=np.nan)
    labels = np.isnan(values) | np.isin(values, (0.0, 1.0))
    if wrong := [name for name, right in zip(findings, labels.all(axis=0), strict=True) if not right]:
        raise DataError(f"labels must be 1, 0 or empty; others stand in {', '.join(wrong)}")
    split = table["split"].dropna()
    if not split.isin([*SPLITS, SELECTED]).all():
        raise DataError(f"split must be one of {', '.join(SPLITS)}")
    if not table["use"].fillna("").isin(USES).all():
        raise DataError("use must be empty, train or selected")
    if (split.replace(SELECTED, "test").groupby(table.loc[split.index, "patient"]).nunique() > 1).any():
        raise DataError("a patient stands in two splits; a figure measured on such a split would be too good")


def _rows_hash(rows: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{row}\n" for row in sorted(rows)).encode()).hexdigest()
