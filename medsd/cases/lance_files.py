"""The files under a LanceDB table: where they lie, who may write, what is pruned, how values are quoted."""

import contextlib
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock

from medsd.cases.case import FILTER_COLUMNS, CaseFilter, Excluded
from medsd.errors import BundleError
from medsd.findings import FindingSet

_NEVER = timedelta(days=36_500)


def create_beside(folder: Path, write: Callable[[str], Any]) -> None:
    """Write in a temporary sibling and rename it; what a crash leaves is never at `folder`."""
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        write(str(part))
        part.replace(folder)
    except (OSError, RuntimeError) as error:
        raise _cannot_write(folder, error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def merge(table: Any) -> None:
    """Merge small files into a new version; the older ones stay for those who read them."""
    table.optimize(cleanup_older_than=_NEVER)


def prune(table: Any) -> None:
    """Remove every version but the newest, with the files of failed writes."""
    with warnings.catch_warnings():
        # It warns that readers of older versions fail; ours ask again.
        warnings.filterwarnings("ignore", message="optimize", category=UserWarning)
        table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)


@contextlib.contextmanager
def writing(folder: Path | None) -> Iterator[None]:
    """One writer at a time; the system frees the lock when a process dies. An object store has no such lock."""
    if folder is None:
        yield
        return
    try:
        with FileLock(folder / ".write.lock"):
            yield
    except (OSError, RuntimeError) as error:
        raise _cannot_write(folder, error) from None


def _cannot_write(folder: Path, error: Exception) -> BundleError:
    return BundleError(f"{folder}: the case index cannot be written ({first_line(error)})")


def local_folder(path: str | Path) -> Path | None:
    """The folder, or None for the URI of an object store."""
    return None if isinstance(path, str) and "://" in path else Path(path)


def full_uri(path: str | Path) -> str:
    folder = local_folder(path)
    return str(path) if folder is None else str(folder.absolute())


def quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]


def filter_sql(filters: CaseFilter | None, findings: FindingSet, excluded: Excluded) -> str:
    """The filter as an SQL condition of LanceDB, values escaped; an empty string if all may be found."""
    parts = [f"{column} != {quoted(key)}" for column, keys in excluded.items() for key in keys]
    filters = filters or CaseFilter()
    for names, value in ((filters.present, "1.0"), (filters.absent, "0.0")):
        parts += [f"labels[{findings.names.index(name) + 1}] = {value}" for name in names]  # SQL counts from one
    for column in FILTER_COLUMNS:
        if values := getattr(filters, column):
            parts.append(f"{column} IN ({', '.join(map(quoted, values))})")
    return " AND ".join(parts)
