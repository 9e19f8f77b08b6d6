"""The same picture under several patients: found, reported, and kept out of different splits.

Each prepared image becomes a perceptual descriptor: the ranks of 32 × 32 means, and of their cosine transform the 16 ×
16 lowest coefficients without the 3 × 3 lowest, which are alike in all radiographs. Ranks remove contrast and gamma.
Two images with a cosine of `ALIKE` or more are near duplicates.

Of 43 million pairs of different patients of ChestX-ray14 the most alike has 0.956. Copies that were compressed,
scaled, given another gamma, some noise, or cut by 1 % lie above 0.97; those that are cut by more, turned, mirrored, or
have large marks burned in are not found. The time grows with the square of the images: some minutes for 100,000.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import rankdata

from medsd.errors import DataError
from medsd.files import replacing
from medsd.settings import SplitSettings
from medsd.studies.manifest import SELECTED, SPLITS, Manifest
from medsd.studies.rejected import without_patient
from medsd.studies.splits import FEWEST, deal

log = logging.getLogger(__name__)

ALIKE = 0.97
_SIDE, _HIGHEST, _LOWEST = 32, 16, 3  # of the means, of the coefficients that count, and of those that do not
MOST_IMAGES, MOST_PAIRS = 250_000, 5_000_000  # the second is 40 MB and more of a list that nobody reads
_ROWS = 1024  # described at a time
_AT_A_TIME = 1 << 25  # pairs that are compared: 128 MB


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of rows of different patients whose images look the same."""

    first: npt.NDArray[np.int64]  # (K,) rows of the manifest
    second: npt.NDArray[np.int64]  # (K,), each greater than the first
    likeness: npt.NDArray[np.float32]  # (K,) cosine of their descriptors, `ALIKE`…1

    def __len__(self) -> int:
        return len(self.first)


def describe(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Descriptors of unit length, float32 (N, D), of images uint8 (N, S, S), S a multiple of 32; 0 of a blank one."""
    parts = [np.empty((0, _HIGHEST**2), np.float32)]
    for start in range(0, len(pixels), _ROWS):
        images = np.asarray(pixels[start : start + _ROWS])
        count, side = len(images), images.shape[-1] // _SIDE
        means = images.reshape(count, _SIDE, side, _SIDE, side).mean(axis=(2, 4), dtype=np.float32)
        ranks = rankdata(means.reshape(count, -1), axis=1).reshape(count, _SIDE, _SIDE)
        waves = dctn(ranks, axes=(1, 2), norm="ortho")[:, :_HIGHEST, :_HIGHEST]
        waves[:, :_LOWEST, :_LOWEST] = 0
        flat = waves.reshape(count, -1)
        length = np.linalg.norm(flat, axis=1, keepdims=True)
        parts.append(np.where(length > 1, flat / np.maximum(length, 1), 0).astype(np.float32))
    return np.concatenate(parts)


def find_near_duplicates(pixels: npt.NDArray[np.uint8], patients: npt.NDArray[np.str_]) -> NearDuplicates:
    """Pairs of different patients' images that look alike; pixels uint8 (N, S, S), S a multiple of 32, patients (N,).

    Raises DataError: there are more than `MOST_PAIRS`.
    """
    if len(pixels) > MOST_IMAGES:
        log.warning("near duplicates are not looked for in more than %d images", MOST_IMAGES)
        pixels, patients = pixels[:0], patients[:0]
    described, (people, _) = describe(pixels), pd.factorize(patients)
    found, count, rows = [], 0, max(1, _AT_A_TIME // max(1, len(described)))
    for start in range(0, len(described) or 1, rows):
        likeness = described[start : start + rows] @ described[start:].T  # (rows, N - start)
        first, second = np.nonzero(likeness >= ALIKE)
        new = (first < second) & (people[first + start] != people[second + start])
        first, second = first[new], second[new]
        found.append((first + start, second + start, likeness[first, second]))
        count += len(first)
        if count > MOST_PAIRS:
            raise DataError(
                f"more than {MOST_PAIRS:,} pairs of images of different patients look the same; set "
                "splits.near_duplicates: false where that is meant"
            )
    return NearDuplicates(*(np.concatenate(part) for part in zip(*found, strict=True)))


def keep_together(manifest: Manifest, alike: NearDuplicates, splits: SplitSettings) -> Manifest:
    """The manifest with the patients of near duplicates in one split.

    Where medsd deals the patients out, they are dealt anew with such patients as one. A split of the source's own is
    not changed: of such patients those in the split that is guarded most stay (test before validation before train),
    and the others are in no split and listed as rejected. A DataError is raised if too few are left to split.
    """
    if not len(alike):
        return manifest
    people, names = pd.factorize(manifest.table["patient"])
    graph = coo_array((np.ones(len(alike)), (people[alike.first], people[alike.second])), shape=(len(names),) * 2)
    count, group_of = connected_components(graph, directed=False)
    groups = group_of[people]  # (N,)
    table = manifest.table.copy()
    if manifest.dealt:
        if count < FEWEST:
            raise DataError(
                f"the images of {len(names)} patients show only {count} that differ; look at near_duplicates.csv, and "
                "set splits.near_duplicates: false where that is meant"
            )
        # The first patient's name stands for the group, so that the order of the rows decides nothing.
        first = pd.Series(names[people]).groupby(groups).transform("min")
        table["split"] = deal(table, list(manifest.findings), splits, people=first.to_numpy(dtype=str))
        return replace(manifest, table=table)
    rank = table["split"].replace(SELECTED, "test").map({name: rank for rank, name in enumerate(SPLITS)})
    aside = (rank < rank.groupby(groups).transform("max")).to_numpy()
    rows = np.arange(len(table)) + 1 if manifest.source_rows is None else manifest.source_rows
    manifest.rejected.extend(rows[aside], table["path"][aside], table["patient"][aside], "near_duplicate")
    table.loc[aside, "split"] = None
    return replace(manifest, table=table)


def write_report(manifest: Manifest, alike: NearDuplicates, path: Path) -> None:
    """Write the pairs with their splits as CSV, the most alike first, without identifiers; log how many there are."""
    table, order = manifest.table, np.argsort(-alike.likeness, kind="stable")
    places, patients, splits = (table[name].to_numpy() for name in ("path", "patient", "split"))
    columns: dict[str, object] = {"likeness": alike.likeness[order].round(4)}
    for number, rows in (("", alike.first[order]), ("_2", alike.second[order])):
        columns[f"path{number}"] = [without_patient(patients[row], places[row]) for row in rows]
        columns[f"split{number}"] = splits[rows]
    with replacing(path) as draft:
        pd.DataFrame(columns).to_csv(draft, index=False)
    if len(alike):
        involved = np.unique(np.concatenate([alike.first, alike.second]))
        people = len(np.unique(patients[involved]))
        message = "%d images look the same as one of another patient; these %d patients are kept in one split; see %s"
        log.warning(message, len(involved), people, path)
