"""The gate's look at pictures: how often it takes a frontal film for a lateral one or for no chest, and what it finds.

Run `python -m tests.bench.bench_gate --data FOLDER`; it prints Markdown tables. The tables and limits of
`medsd.dicom.appearance` come from one half of the patients and of the generated laterals (`--fit` prints them); figures
are those of the other half. Laterals to fit on, hands, skulls and noise are generated.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image

from medsd.dicom.appearance import GRID, Appearance, FloatImage, grey_ranks
from medsd.dicom.gate import GatePolicy, admit
from tests.dicom.drawings import hand_image, lateral_image, noise_image, skull_image

LATERALS = 300
DRAWN = 60
RIDGE = 10.0
FALSE_ALARMS = {"lateral": 0.001, "no chest": 0.0025}  # on the half that the limits come from
BROAD = GatePolicy(
    modalities=("CR", "CT", "DX", "MR", "OT", "US", "XA"), body_part="accept", view="accept", not_human="accept"
)


def frontal_films(data: Path) -> Iterator[tuple[str, Path]]:
    """(patient, path) of every frontal film."""
    for folder, table, name, patient in (
        ("nih_cxr", "labels.csv", "Image Index", "Patient ID"),
        ("covid_pairs", "metadata.csv", "filename", "patientid"),
    ):
        with (data / folder / table).open(encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines):
                yield f"{folder} {row[patient]}", data / folder / "images" / row[name]


def read_sketch(path: Path, policy: GatePolicy | None = None) -> FloatImage | None:
    """The sketch of a film that can be read."""
    radiograph = admit(path, policy).radiograph
    return None if radiograph is None else Appearance.of(radiograph.pixels).small


def cropped(small: FloatImage, rng: np.random.Generator) -> FloatImage:
    """A sketch whose borders are cut by up to a sixth, as collimation does."""
    left, right, top, bottom = rng.integers(0, 11, 4)
    part = np.ascontiguousarray(small[top // 2 : 64 - bottom // 2, left : 64 - right])
    return np.asarray(Image.fromarray(part).resize((64, 64), Image.Resampling.BILINEAR))


def discriminant(frontals: npt.NDArray[np.float32], laterals: npt.NDArray[np.float32]) -> FloatImage:
    """Fisher's linear discriminant of ranks (N, 16, 16), with a ridge, made symmetrical."""
    groups = [np.concatenate([g, g[:, :, ::-1]]).reshape(-1, GRID * GRID) for g in (frontals, laterals)]
    spread = sum(np.cov(group.T) for group in groups) + RIDGE * np.eye(GRID * GRID)
    weights = np.linalg.solve(spread, groups[1].mean(0) - groups[0].mean(0)).reshape(GRID, GRID)
    return np.asarray(weights + weights[:, ::-1], dtype=np.float32)


def fit(frontals: list[FloatImage], laterals: list[FloatImage]) -> None:
    """Print chests.yaml."""
    rng = np.random.default_rng(1)
    straight = np.array([grey_ranks(small) for small in frontals])
    cut = np.array([grey_ranks(cropped(small, rng)) for small in frontals])
    seen = np.array([grey_ranks(small) for small in laterals])
    seen_cut = np.array([grey_ranks(cropped(small, rng)) for _ in range(4) for small in laterals])
    weights = discriminant(np.concatenate([straight, cut]), np.concatenate([seen, seen_cut]))
    for name, table in (("lateral", weights), ("frontal", straight.mean(0) + straight.mean(0)[:, ::-1])):
        left = np.rint((table - table.mean()) / np.abs(table - table.mean()).max() * 99).astype(int)[:, : GRID // 2]
        print(f"{name}: |2\n" + "\n".join("  " + " ".join(f"{value:3d}" for value in row) for row in left))


def limits(looks: list[Appearance]) -> None:
    """Print the limits of `medsd.dicom.appearance`."""
    print(
        "_LATERAL_LIMIT =",
        round(float(np.quantile([look.laterality for look in looks], 1 - FALSE_ALARMS["lateral"])), 3),
    )
    print(
        "_SCHEMATIC_LIMIT =",
        round(float(np.quantile([abs(look.likeness) for look in looks], FALSE_ALARMS["no chest"])), 3),
    )
    print(
        "_FRONTAL_LIMIT =", round(float(np.quantile([look.frontality for look in looks], FALSE_ALARMS["no chest"])), 3)
    )


def others(data: Path, frontals: list[FloatImage]) -> Iterator[tuple[str, list[FloatImage]]]:
    """Named groups of pictures that are no upright frontal chests."""
    yield "frontal, upside down", [small[::-1] for small in frontals]
    yield "frontal, negative", [1 - small for small in frontals]
    yield "frontal, rotated by 90°", [np.rot90(small, turn) for turn in (1, 3) for small in frontals]
    for name, draw in (("hands", hand_image), ("skulls", skull_image), ("noise", noise_image)):
        yield f"{name}, generated", [Appearance.of(draw(index).astype(np.float32)).small for index in range(DRAWN)]
    yield "photographs, in crops", list(photographs())
    for folder in ("covid_lateral", "nih_rotated90", "ood_ct", "ood_mednist64"):
        found = (read_sketch(path, BROAD) for path in sorted((data / folder / "images").iterdir()))
        yield folder, [one for one in found if one is not None]
    carried = Path(pydicom.__file__).parent / "data" / "test_files"
    small = (read_sketch(path, BROAD) for path in sorted(carried.glob("*.dcm")))
    yield "pydicom's test images (CT, MR, …)", [one for one in small if one is not None]
    hip = read_sketch(data / "dicom" / "rg_jpeg_extended.dcm", BROAD)
    yield "a hip", [] if hip is None else [hip]
    dog = admit(data / "dicom" / "dx_thorax_animal.dcm", BROAD).radiograph
    yield (
        "a dog's lateral thorax, head up and down",
        (
            []
            if dog is None
            else [Appearance.of(np.ascontiguousarray(np.rot90(dog.pixels, turn))).small for turn in (1, 3)]
        ),
    )


def photographs() -> Iterator[FloatImage]:
    """scikit-learn's two photographs in grey, in 40 crops each."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for image in load_sample_images().images:
        grey = (image.mean(axis=2) / 255).astype(np.float32)
        for _ in range(40):
            side = int(rng.uniform(0.3, 0.95) * min(grey.shape))
            top, left = (int(rng.integers(0, length - side + 1)) for length in grey.shape)
            yield Appearance.of(np.ascontiguousarray(grey[top : top + side, left : left + side])).small


def print_row(name: str, pictures: list[FloatImage]) -> None:
    """One line: how many, and in how many hundred the checks speak."""
    looks = [Appearance(np.ascontiguousarray(small)) for small in pictures]
    shares = [np.mean([test(look) for look in looks]) if looks else float("nan") for test in _TESTS]
    print(f"| {name} | {len(looks)} | " + " | ".join(f"{100 * share:.1f} %" for share in shares) + " |")


_TESTS = (
    lambda look: look.lateral,
    lambda look: look.no_chest,
    lambda look: not look.no_chest and look.likeness < 0,
)


def main() -> None:
    """Fit, or measure."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDSD_DATA") or beside))
    parser.add_argument("--fit", action="store_true", help="print the tables, from one half of the patients")
    parser.add_argument("--limits", action="store_true", help="print the limits, from one half of the patients")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"no folder {options.data}; set MEDSD_DATA")
        return
    films = [(patient, read_sketch(path)) for patient, path in frontal_films(options.data) if path.exists()]
    patients = sorted({patient for patient, _ in films})
    chosen = set(np.random.default_rng(0).permutation(patients)[: len(patients) // 2].tolist())
    halves: dict[bool, list[FloatImage]] = {True: [], False: []}
    for patient, small in films:
        if small is not None:
            halves[patient in chosen].append(small)
    laterals = [Appearance.of(lateral_image(index).astype(np.float32)).small for index in range(LATERALS)]
    if options.fit:
        fit(halves[True], laterals[: LATERALS // 2])
        return
    if options.limits:
        limits([Appearance(small) for small in halves[True]])
        return
    rng = np.random.default_rng(2)
    print("\n| pictures | number | looks lateral | no chest | looks inverted |\n|---|---|---|---|---|")
    print_row("frontal, half that was fitted on", halves[True])
    print_row("frontal, other half", halves[False])
    print_row("frontal, other half, cropped", [cropped(small, rng) for small in halves[False]])
    print_row("lateral, generated, not fitted on", laterals[LATERALS // 2 :])
    print_row("the same, cropped", [cropped(small, rng) for small in laterals[LATERALS // 2 :]])
    for name, pictures in others(options.data, halves[False]):
        print_row(name, pictures)


if __name__ == "__main__":
    main()
