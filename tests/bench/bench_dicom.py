"""What reading a DICOM file to the model's pixels costs, against pydicom's decoding of it alone.

Run `python -m tests.bench.bench_dicom`; it prints a Markdown table. Files are the real ones of the data folder that
both read, and generated DX films in the encodings in which hospitals archive. The contenders take turns at each file,
in the page cache, each the first in every other round; a file counts with the medians of its rounds, and in the last
column with the least of them, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medsd.dicom.gate import GatePolicy
from medsd.preprocessing.image import read_image
from medsd.settings import PixelSpec
from medsd.studies.phantom import generate_study, write_dicom
from tests.dicom.encoders import compress_jpeg_lossless

SYNTAXES = (JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, RLELossless, ExplicitVRLittleEndian)
SMALL = 500  # a phantom is drawn at this side and enlarged: drawing it whole takes seconds
OPEN = GatePolicy(modality="accept", body_part="accept", view="accept")  # a film that is refused is not read to its end
Films = Iterator[tuple[str, Path]]  # name of the transfer syntax, file


def real(folder: Path, spec: PixelSpec) -> Films:
    """The files of `folder` that both read."""
    for path in sorted(folder.glob("*.dcm")):
        film = read_image(path, spec, policy=OPEN, keep_image=False)
        try:
            syntax = _decode(path).file_meta.TransferSyntaxUID.name
        except Exception:
            continue
        if film.pixels is not None:
            yield syntax, path


def generated(count: int, side: int, seed: int = 0) -> Films:
    """`count` DX films of `side` × `side`, 12 bits, a phantom each with noise of its own, in turn in each syntax.

    Each is gone when the next is asked for.
    """
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            syntax = SYNTAXES[index % len(SYNTAXES)]
            path = Path(folder) / f"{index:03d}.dcm"
            write_dicom(generate_study(index, seed=seed, size=SMALL), path, photometric="MONOCHROME2", bits=12)
            ds = dcmread(path)
            _enlarge(ds, side, rng)
            _compress(ds, syntax)
            ds.save_as(path)
            yield syntax.name, path
            path.unlink()


def _enlarge(ds: Dataset, side: int, rng: np.random.Generator) -> None:
    small = Image.fromarray(ds.pixel_array.astype(np.float32))
    film = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
    noisy = film + rng.normal(0, 8, film.shape)
    ds.Rows = ds.Columns = side
    ds.PixelData = np.clip(np.rint(noisy), 0, 4095).astype("<u2").tobytes()


def _compress(ds: Dataset, syntax: UID) -> None:
    if syntax == JPEGLosslessSV1:
        compress_jpeg_lossless(ds, ds.pixel_array)
    elif syntax != ExplicitVRLittleEndian:
        ds.compress(syntax)


def _decode(path: Path) -> Dataset:
    ds = dcmread(path)
    _ = ds.pixel_array
    return ds


def seconds(path: Path, spec: PixelSpec, rounds: int) -> npt.NDArray[np.float64]:
    """Seconds of pydicom and of medsd for one file, median and least, (2, 2)."""
    contenders: tuple[Callable[[Path], object], ...] = (
        _decode,
        lambda path: read_image(path, spec, policy=OPEN, keep_image=False),
    )
    taken = np.empty((2, rounds))
    for contender in contenders:
        contender(path)  # reads the file into the page cache, imports what is to be imported
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.perf_counter()
            contenders[which](path)
            taken[which, turn] = time.perf_counter() - start
    return np.stack([np.median(taken, axis=1), taken.min(axis=1)])


def rows(title: str, films: Films, spec: PixelSpec, rounds: int) -> Iterator[tuple[str, ...]]:
    """Rows of the table: films, encoding, number, milliseconds a file of pydicom and of medsd, ratios of the sums."""
    taken: dict[str, list[npt.NDArray[np.float64]]] = {}
    for syntax, path in films:
        taken.setdefault(syntax, []).append(seconds(path, spec, rounds))
    if not taken:
        return
    taken["**all**"] = [each for several in taken.values() for each in several]
    for syntax, several in taken.items():
        sums = np.sum(several, axis=0)
        times = (f"{total / len(several) * 1e3:.1f}" for total in sums[0])
        yield title, syntax, str(len(several)), *times, *(f"{reading / decoding:.2f}" for decoding, reading in sums)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="generated films")
    parser.add_argument("--side", type=int, default=2000, help="their rows and columns")
    parser.add_argument("--size", type=int, default=224, help="side of the model's square")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDSD_DATA") or "../shared/data"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # pydicom's, about the oddities of the real files
    spec = PixelSpec(size=options.size)
    print("| films | encoding | files | pydicom, ms | medsd, ms | ratio | of the least |")
    print("|---|---|---:|---:|---:|---:|---:|")
    groups = {
        "real": real(options.data / "dicom", spec),
        f"generated, {options.side}²": generated(options.count, options.side),
    }
    for title, films in groups.items():
        for cells in rows(title, films, spec, options.rounds):
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
