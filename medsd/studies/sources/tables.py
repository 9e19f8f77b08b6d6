"""What the sources share: tables read as text and checked for their columns, images that exist, the finished manifest.

Every cell is read as text, so that an identifier keeps its leading zeros and an empty cell stays empty. `read_table`
takes a CSV table whole; `read_portions` takes CSV or Parquet in portions and passes over rows that cannot be read.
"""

import csv
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from medsd.errors import DataError
from medsd.findings import FindingSet
from medsd.privacy import patient_id
from medsd.settings import SplitSettings
from medsd.studies.manifest import Manifest, complete
from medsd.studies.rejected import Rejections
from medsd.studies.sources.cells import EMPTY, LabelCells, agreed
from medsd.studies.sources.form import encoding_of, form_of
from medsd.studies.splits import deal

log = logging.getLogger(__name__)

PORTION = 32_768  # rows of Parquet
BLOCK = 4 << 20  # bytes of CSV; a single row may not be longer
_TRIED = 200  # rows
OLDEST = 120  # years; ages beyond are typing errors
SEXES = {"f": "F", "female": "F", "w": "F", "m": "M", "male": "M"}
VIEWS = {"pa": "PA", "ap": "AP", "ap supine": "AP", "ap_horizontal": "AP", "ap erect": "AP"}


def find_table(root: Path, patterns: Sequence[str], owner: str) -> Path:
    """The first file below `root` that fits a pattern; if there is none, DataError speaks of the `owner`'s layout."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set data.root to the folder of {owner}")
    if path := next((path for pattern in patterns for path in sorted(root.glob(pattern))), None):
        return path
    raise DataError(f"{root}: no {' or '.join(patterns)} here; set data.root to the folder of {owner}")


def read_table(path: Path, needed: Sequence[str], owner: str) -> pd.DataFrame:
    """A CSV table, every cell as text; raises DataError: it cannot be read, or a column of `needed` is missing."""
    try:
        table = pd.read_csv(path, dtype=str, encoding=encoding_of(path), keep_default_na=False, index_col=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such table; {owner} has it") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:  # ValueError: pandas' parser errors
        raise DataError(f"{path}: cannot be read as a CSV table ({type(error).__name__})") from None
    require(path, [str(name) for name in table.columns], needed, owner)
    return table


@dataclass(frozen=True)
class Portion:
    """N rows of a table, every cell as text."""

    cells: pd.DataFrame
    rows: npt.NDArray[np.int64]  # (N,) the place of each in the table; the first row below the header is 1
    unreadable: tuple[int, ...] = ()  # rows before the end of this portion that have too many or too few cells


def read_portions(
    path: Path, choose: Callable[[list[str]], list[str]], owner: str, delimiter: str | None = ","
) -> Iterator[Portion]:
    """A table in portions: CSV, plain or gzipped, or Parquet by its ending.

    `choose` names the columns to read, given those that there are; a name that comes twice is read once. `owner` has
    such a table, in messages. A `delimiter` of None is found out (`medsd.studies.sources.form`). Raises DataError: it
    cannot be read, or a column that `choose` wants is missing.
    """

    def wanted(present: list[str]) -> list[str]:
        names = list(dict.fromkeys(choose(present)))
        require(path, present, names, owner)
        return names

    read = _parquet_portions if path.suffix.lower() in (".parquet", ".pq") else partial(_csv_portions, delimiter)
    try:
        yield from read(path, wanted)
    except FileNotFoundError:
        raise DataError(f"{path}: no such table; {owner} has it") from None
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({type(error).__name__})") from None


def _csv_portions(delimiter: str | None, path: Path, choose: Callable[[list[str]], list[str]]) -> Iterator[Portion]:
    skipped: list[int] = []

    def skip(row: arrow_csv.InvalidRow) -> str:
        skipped.append(row.number - 1)  # the header is Arrow's row 1
        return "skip"

    encoding, delimiter, columns = form_of(path, delimiter)
    encoding = encoding.removesuffix("-sig")  # Arrow passes over the mark of UTF-8 itself
    raw = {name.strip(): name for name in reversed(columns)}  # " patient" is a column "patient"
    wanted = choose([name.strip() for name in columns])
    stand = [raw[name] for name in wanted]
    types = dict.fromkeys(stand, pa.string())
    with arrow_csv.open_csv(
        path,
        # Rows are numbered by one thread alone.
        read_options=arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK, encoding=encoding),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
        convert_options=arrow_csv.ConvertOptions(include_columns=stand, column_types=types, strings_can_be_null=False),
    ) as batches:
        seen = told = 0
        for batch in batches:
            rows = _numbered(seen, len(batch), skipped)
            seen += len(batch)
            before = tuple(skipped[told:])
            told = len(skipped)
            yield Portion(batch.rename_columns(wanted).to_pandas().astype("str"), rows, before)
        if told < len(skipped) or not seen:
            yield Portion(pd.DataFrame(columns=wanted, dtype=str), np.empty(0, np.int64), tuple(skipped[told:]))


def _parquet_portions(path: Path, choose: Callable[[list[str]], list[str]]) -> Iterator[Portion]:
    with pq.ParquetFile(path) as file:
        wanted, seen = choose(file.schema_arrow.names), 0
        for batch in file.iter_batches(batch_size=PORTION, columns=wanted):
            cells = pa.RecordBatch.from_arrays([_as_text(batch.column(name)) for name in wanted], names=wanted)
            yield Portion(cells.to_pandas().astype("str"), np.arange(seen + 1, seen + len(batch) + 1))
            seen += len(batch)


def _as_text(column: pa.Array) -> pa.Array:
    """A column of any plain type as it would stand in CSV: 1, not 1.0 or True."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_floating(column.type):
        whole = pc.all(pc.fill_null(pc.equal(column, pc.floor(column)), True)).as_py()
        column = pc.if_else(pc.is_nan(column), None, column)
        column = column.cast(pa.int64()) if whole else column
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column = column.cast(pa.string())
    return pc.fill_null(column, "")


def _numbered(seen: int, count: int, skipped: Sequence[int]) -> npt.NDArray[np.int64]:
    """Places in the table of the rows from number `seen` of those that could be read."""
    readable = np.arange(seen + 1, seen + count + 1)
    # The i-th skipped row stands before the readable row of number `skipped[i] - i`.
    before = np.asarray(skipped, dtype=np.int64) - np.arange(len(skipped))
    return readable + np.searchsorted(before, readable, side="right")


def require(path: Path, present: Sequence[str], needed: Iterable[str], owner: str) -> None:
    """Refuse a table that lacks a column."""
    if missing := [column for column in needed if column not in present]:
        raise DataError(f"{path}: the columns {', '.join(missing)} are missing; {owner} has them")


def numbers(table: pd.DataFrame, columns: Sequence[str], path: Path) -> npt.NDArray[np.float32]:
    """Label columns as float32 (N, F): 1, 0, -1 or NaN; cells that are no labels are told of (`LabelCells.tell`)."""
    cells, rows = LabelCells(), np.arange(1, len(table) + 1)
    values = [cells.read(table[column], rows) for column in columns]
    cells.tell(path)
    return np.stack(values, axis=1)


def years(column: pd.Series) -> pd.Series:
    """Ages in years; what is no number, or beyond any age, is unknown."""
    ages = pd.to_numeric(column, errors="coerce")
    return ages.where((ages >= 0) & (ages <= OLDEST))


def words(column: pd.Series, known: Mapping[str, str]) -> pd.Series:
    """Cells translated by `known`, whatever their case; "" where a cell is none of them."""
    return column.str.strip().str.lower().map(known).fillna("")


def texts(column: pd.Series) -> pd.Series:
    """Cells without spaces around them; None where nothing is left, or "nan" and its like."""
    text = column.str.strip()
    return text.astype(object).where(~text.str.casefold().isin(EMPTY), None)


def present_files(root: Path, paths: pd.Series) -> npt.NDArray[np.bool_]:
    """(N,) True where the image is there; how many are missing is logged, and DataError where all are."""
    there = np.fromiter(((root / path).is_file() for path in paths), dtype=bool, count=len(paths))
    if not there.any():
        raise DataError(f"{root}: none of the {len(paths)} listed images is here; check data.root")
    if not there.all():
        log.warning("%s: %d of %d listed images are not here and are left out", root, int((~there).sum()), len(there))
    return there


def one_spelling(patients: pd.Series, where: Path) -> pd.Series:
    """Identifiers as `medsd.privacy.patient_id` writes them, with a warning where one had several spellings."""
    spellings = patients.drop_duplicates().dropna().astype(str)
    one = spellings.map(patient_id)
    for names, told in (
        (one, "%d patients are written in several ways, with spaces, zeros in front or as 12.0; each is taken as one "
         "patient"),
        (one.drop_duplicates().map(_loosely), "%d groups of patients differ only in capitals, signs or zeros (as A-07 "
         "and a7); they are taken as different patients; if they are not, write them in one way"),
    ):  # fmt: skip
        if several := int((names.value_counts() > 1).sum()):
            log.warning(f"%s: {told}", where, several)
    return patients.map(dict(zip(spellings, one, strict=True)))


def _loosely(identifier: str) -> tuple[str, ...] | str:
    """Letters and numbers of an identifier, without capitals, signs between them, and zeros in front."""
    text = unicodedata.normalize("NFKC", identifier).casefold()
    return tuple(part.lstrip("0") for part in re.findall(r"[^\W\d_]+|\d+", text)) or identifier


def of_views(table: pd.DataFrame, kept: pd.Series, views: pd.Series, owner: str) -> pd.DataFrame:
    """The rows that are `kept` (N,); logs how many of which view are not, `views` (N,) as the table has them."""
    if not kept.all():
        counts = views[~kept].str.strip().replace("", "unknown").value_counts()
        said = ", ".join(f"{view} {count}" for view, count in counts.items())
        log.info("%s: %d of %d images are left out by their view: %s", owner, (~kept).sum(), len(kept), said)
    return table[kept]


def limited(table: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    """The rows of the first `limit` patients, in the order of their identifiers."""
    if limit is not None:
        table = table[table["patient"].isin(sorted(table["patient"].unique())[:limit])]
    return table.reset_index(drop=True)


def likeliest(root: Path, layouts: Iterable[pd.Series]) -> pd.Series:
    """Of several columns of paths below `root`, the one of which most are there, judged by its first rows.

    Copies of a data set differ in the folders above the images. Where none is there, it is the first column.
    """
    return max(layouts, key=lambda paths: sum((root / path).is_file() for path in paths.iloc[:_TRIED]))


def manifest_of_present(
    table: pd.DataFrame, findings: FindingSet, settings: Any, splits: SplitSettings, test_part: str = ""
) -> Manifest:
    """The manifest of the studies whose image is there, of `settings.limit` patients.

    Where the settings ask for the official split, the rows whose column `part` is `test_part` are the test set.
    """
    table = limited(table[present_files(settings.root, table["path"])], settings.limit)
    official = (table["part"] == test_part).to_numpy() if test_part and settings.official_split else None
    return manifest_of(table, findings, settings.root, splits, fixed_test=official)


def manifest_of(
    table: pd.DataFrame,
    findings: FindingSet,
    root: Path,
    splits: SplitSettings,
    fixed_test: npt.NDArray[np.bool_] | None = None,
    *,
    rejected: Rejections | None = None,
    source_rows: npt.NDArray[np.int64] | None = None,
) -> Manifest:
    """Split a table of studies and labels by patient, unless it has a split, and make it a manifest.

    An image that stands in several rows is kept once, with labels on which they agree (`cells.agreed`); a column
    `row`, or `source_rows`, tells where in its table a row stands.
    """
    if table.empty:
        raise DataError(f"{root}: no study is left; check data.root and what the settings under data leave out")
    if source_rows is None and "row" in table:
        source_rows = table["row"].to_numpy(dtype=np.int64)
    table = complete(table, findings)
    table["patient"] = one_spelling(table["patient"], root)
    dealt = fixed_test is None and bool(table["split"].isna().all())
    repeated = (table["path"].notna() & table.duplicated("path")).to_numpy()
    if repeated.any():
        table = once(table, findings, root, source_rows)[~repeated].reset_index(drop=True)
        fixed_test = None if fixed_test is None else fixed_test[~repeated]
        source_rows = None if source_rows is None else source_rows[~repeated]
    if table["split"].isna().all():
        table["split"] = deal(table, list(findings), splits, fixed_test=fixed_test)
    return Manifest(table, findings, root, Rejections() if rejected is None else rejected, source_rows, dealt=dealt)


def once(
    table: pd.DataFrame, findings: FindingSet, path: Path, rows: npt.NDArray[np.int64] | None = None
) -> pd.DataFrame:
    """The table, each image (or note alone) with the labels on which all of its rows agree.

    `rows` (N,) are their places in the table at `path`, 1 the first; by default as they stand.
    """
    named = list(findings)
    image = table["path"].astype(object).where(table["path"].notna(), "\0" + table["study"].astype(str)).tolist()
    labels = table[named].set_axis(image, axis=0)
    if labels.index.is_unique:
        return table
    merged = agreed(labels, np.arange(1, len(table) + 1) if rows is None else rows, path)
    return table.assign(**{name: merged.loc[image, name].to_numpy() for name in named})
