"""The embeddings of a batch, one a row of its table, as a NumPy array or as Parquet with the paths.

Row n belongs to row n of the table; a refused study has no embedding, its row is NaN.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsd.errors import explained
from medsd.files import replacing
from medsd.scoring import table

SUFFIXES = (".npy", ".parquet")
_CHUNK = 1000

Vectors = npt.NDArray[np.float32]


check_format = partial(table.check_format, suffixes=SUFFIXES, what="embeddings are")


def write(path: Path, chunks: Iterable[Vectors], paths: Iterable[str], rows: int, dimensions: int) -> None:
    """Write embeddings, arrays (n, D) that make N `rows`, so that a reader sees the old file or the whole new one.

    As .npy they are float32 (N, D) in C order; as .parquet they have the columns ``path`` and ``embedding``. Raises
    DataError for another suffix, OSError where it cannot be written.
    """
    check_format(path)
    with replacing(path) as draft:
        if path.suffix.lower() == ".npy":
            _write_npy(draft, chunks, (rows, dimensions))
        else:
            _write_parquet(draft, chunks, iter(paths), dimensions)


def _write_npy(path: Path, chunks: Iterable[Vectors], shape: tuple[int, int]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, "<f4").tobytes())


def _write_parquet(path: Path, chunks: Iterable[Vectors], paths: Iterator[str], dimensions: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.float32(), dimensions)
    schema = pa.schema([("path", pa.string()), ("embedding", kind)])
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in chunks:
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(chunk)), dimensions)
            names = pa.array(list(islice(paths, len(chunk))), pa.string())
            writer.write_table(pa.Table.from_arrays([names, vectors.cast(kind)], schema=schema))


def read(path: Path, dimensions: int) -> Iterator[Vectors]:
    """The embeddings (D,) of a file that `write` wrote; raises DataError where there are none."""
    check_format(path)
    with explained(f"{path}: holds no embeddings of {dimensions} numbers", OSError, ValueError, KeyError):
        yield from (_read_npy if path.suffix.lower() == ".npy" else _read_parquet)(path, dimensions)


def _read_npy(path: Path, dimensions: int) -> Iterator[Vectors]:
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if found.ndim != 2 or found.shape[1] != dimensions or found.dtype != np.float32:
        raise ValueError("another shape or type")
    for start in range(0, len(found), _CHUNK):
        yield from np.array(found[start : start + _CHUNK])


def _read_parquet(path: Path, dimensions: int) -> Iterator[Vectors]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for portion in file.iter_batches(batch_size=_CHUNK, columns=["embedding"]):
            flat = portion.column("embedding").flatten().to_numpy(zero_copy_only=False)
            yield from flat.astype(np.float32, copy=False).reshape(-1, dimensions)
