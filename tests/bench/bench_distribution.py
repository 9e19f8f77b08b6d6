"""What a bundle refuses and warns of, folder by folder; and its out-of-distribution check beside published scores.

Run `python -m tests.bench.bench_distribution models/nih14 --data FOLDER`; it prints Markdown. With `--only-folders`, it
prints the first table alone: gate and out-of-distribution limits as `medsd score` applies them. FOLDER is `data.root`
of the bundle's training, and holds `FOLDERS` too. The test radiographs are those of the bundle's own test patients.
Checks, weights and limits were chosen on validation images and on other pictures than these: drawn hands and skulls,
noise, generated laterals (`tests/dicom/drawings.py`), other photographs, and images turned by other angles, mirrored
top to bottom, and cut to a part.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.stats import binomtest

from medsd.bundle.layout import Bundle
from medsd.dicom.gate import GatePolicy
from medsd.errors import MedsdError
from medsd.inference import out_of_distribution
from medsd.inference.out_of_distribution import CHECKS, Reference
from medsd.inference.predict import Predictor
from medsd.preprocessing.image import read_image
from medsd.preprocessing.pixels import to_batch, to_pixels
from medsd.settings import Settings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import read_source
from tests.bench.generated_bodies import hand, skull

Pixels = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]
Score = Callable[["Read"], Doubles]

GENERATED = 60
RESAMPLES = 500
BATCH = 16
SEED = 20
BROAD = GatePolicy(
    modalities=("CR", "CT", "DX", "MR", "OT", "RG", "US", "XA"),
    max_frames=1000,
    **dict.fromkeys(("body_part", "view", "not_human", "frames", "not_a_radiograph"), "accept"),
)
FOLDERS = (
    "nih_rotated90",
    "ood_ct",
    "ood_mednist64",
    "covid_lateral",
    "covid_frontal",
    "covid_pairs",
    "nih_320",
)
# Of the refused DICOM files, those whose pixels can be read and are no upright frontal chest; two others hold the
# pixels of a chest under a header that is refused, the rest hold none that can be read.
NO_CHEST = ("dx_thorax_animal", "rg_jpeg_extended", "xa_96_frames", "ot_palette_face")


@dataclass(frozen=True)
class Read:
    """Pictures as the model reads them: pixels (N, S, S), embeddings (N, D), logits (N, F), and whose they are."""

    pixels: Pixels
    embeddings: Doubles
    logits: Doubles
    patients: npt.NDArray[Any]


@dataclass(frozen=True)
class Films:
    """The films of a split, and the labels (N, F)."""

    read: Read
    labels: npt.NDArray[np.float32]


def read_pictures(predictor: Predictor, pixels: Pixels, patients: npt.NDArray[Any] | None = None) -> Read:
    """Run the graph over squares (N, S, S)."""
    outputs = [
        predictor.session.run({"pixels": to_batch(list(pixels[start : start + BATCH]))})
        for start in range(0, len(pixels), BATCH)
    ]
    embeddings, logits = (np.concatenate([getattr(o, name) for o in outputs]) for name in ("embedding", "logits"))
    whose = np.arange(len(pixels)) if patients is None else patients
    return Read(pixels, embeddings.astype(np.float64), logits.astype(np.float64), whose)


def read_manifest(bundle: Bundle, data: Path) -> Manifest:
    """The studies that the bundle was made from, in its own splits.

    Raises:
        SystemExit: another medsd drew the splits.
    """
    config = dict(bundle.description.provenance.config)
    config["data"] = dict(config["data"]) | {"root": str(data)}
    manifest = read_source(Settings.model_validate(config))
    if manifest.split_hash() != bundle.description.provenance.split_hash:
        raise SystemExit("the bundle's splits are not those that this medsd draws of these films: export it again")
    return manifest


def read_split(predictor: Predictor, manifest: Manifest, split: str) -> Films:
    rows, spec = manifest.rows(split), predictor.bundle.description.pixels
    films = [read_image(manifest.root / manifest.table["path"].iloc[row], spec, keep_image=False) for row in rows]
    kept = np.array([film.pixels is not None for film in films])
    pixels = np.stack([film.pixels for film in films if film.pixels is not None])
    return Films(read_pictures(predictor, pixels, manifest.patients[rows][kept]), manifest.labels[rows][kept])


def groups(predictor: Predictor, test: Read, data: Path) -> Iterator[tuple[str, Read]]:
    """Named groups of pictures that are no upright frontal chest radiographs."""
    spec = predictor.bundle.description.pixels

    def square(image: npt.ArrayLike) -> Pixels:
        return to_pixels(np.ascontiguousarray(image, dtype=np.float32), spec)

    named = ((name, read_image(data / "dicom" / f"{name}.dcm", spec, policy=BROAD).pixels) for name in NO_CHEST)
    yield "DICOM files that hold no chest", read_pictures(predictor, np.stack([p for _, p in named if p is not None]))
    pictures = np.stack([square(picture) for picture in photographs()])
    yield "photographs and other pictures, in grey", read_pictures(predictor, pictures)
    for name, draw in (("hands, generated", hand), ("skulls, generated", skull)):
        films = np.stack([square(draw(index, SEED)) for index in range(GENERATED)])
        yield name, read_pictures(predictor, films)
    yield "blank films", read_pictures(predictor, blank_films(spec.size))
    for name, change in CHANGES:
        yield name, read_pictures(predictor, np.stack([change(film) for film in test.pixels]), test.patients)


def photographs() -> Iterator[npt.NDArray[np.floating]]:
    """The pictures that scikit-image and scikit-learn bring, in grey; scikit-image is left out where it is missing."""
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(package)
        places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
        for path in sorted(p for place in places for p in (place / folder).iterdir()):
            if path.suffix in {".png", ".jpg"}:
                yield np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255


def blank_films(size: int) -> Pixels:
    """Films of nothing: one grey, or a slope of grey with noise, or the open field between shutters."""
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    films = []
    for number in range(GENERATED):
        grey, slope, grain = rng.uniform(10, 245), rng.normal(0, 30, 2), rng.uniform(0.5, 8)
        film = np.full((size, size), grey)
        if number % 3:
            film += slope[0] * y + slope[1] * x + rng.normal(0, grain, film.shape)
        if number % 3 == 2:
            left, right, top, bottom = rng.integers(1, size // 4, 4)
            shutters = np.ones(film.shape, dtype=bool)
            shutters[top : size - bottom, left : size - right] = False
            film[shutters] = 0
        films.append(np.clip(film, 0, 255).astype(np.uint8))
    return np.stack(films)


def _turned(degrees: int, *, corners: bool = True) -> Callable[[Pixels], Pixels]:
    def turn(film: Pixels) -> Pixels:
        size = film.shape[0]
        image = Image.fromarray(film).rotate(degrees, resample=Image.Resampling.BILINEAR)
        if not corners:
            margin = round(size * (1 - np.sqrt(0.5)) / 2)
            box = (margin, margin, size - margin, size - margin)
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(image)

    return turn


CHANGES: tuple[tuple[str, Callable[[Pixels], Pixels]], ...] = (
    ("turned by 90°", _turned(90)),
    ("turned by 180°", _turned(180)),
    ("turned by 270°", _turned(270)),
    ("turned by 45°, black corners", _turned(45)),
    ("turned by 45°, corners cut off", _turned(45, corners=False)),
    ("inverted", lambda film: np.asarray(255 - film)),
)


def mahalanobis(train: Films) -> Score:
    """Distance to the nearest class mean under one covariance (Lee et al., NeurIPS 2018); higher is stranger.

    The classes of several labels are the positives of each finding, and the films without any.
    """
    known = np.nan_to_num(train.labels) > 0
    classes = [*known.T, ~known.any(axis=1)]
    embeddings = train.read.embeddings
    means = np.stack([embeddings[rows].mean(axis=0) for rows in classes if rows.any()])
    centred = np.concatenate([embeddings[rows] - embeddings[rows].mean(axis=0) for rows in classes if rows.any()])
    precision = np.linalg.pinv(np.cov(centred.T), rcond=1e-6, hermitian=True)

    def score(read: Read) -> Doubles:
        away = read.embeddings[:, None] - means
        return np.asarray(np.einsum("ncd,de,nce->nc", away, precision, away).min(axis=1))

    return score


def nearest(train: Films, count: int) -> Score:
    """Distance to the training film that is the `count`-th nearest (Sun et al., ICML 2022)."""

    def score(read: Read) -> Doubles:
        return np.asarray(1 - np.partition(read.embeddings @ train.read.embeddings.T, -count, axis=1)[:, -count])

    return score


def scores(reference: Reference, train: Films) -> dict[str, Score]:
    """Every score by its name; of all, higher is stranger."""

    def one(check: str) -> Score:
        return lambda read: reference.strangeness(read.pixels, read.embeddings)[check].astype(np.float64)

    return {
        "**medsd**": lambda read: reference.values(read.pixels, read.embeddings).astype(np.float64),
        "medsd, film alone": lambda read: reference.values(read.pixels, None).astype(np.float64),
        **{f'"{name}"': one(name) for name in CHECKS},
        "Mahalanobis": mahalanobis(train),
        "deep 10-NN": nearest(train, 10),
        "deep 50-NN": nearest(train, 50),
        "energy": lambda read: -np.logaddexp.reduce(read.logits, axis=1),  # Liu et al., NeurIPS 2020
        "joint energy": lambda read: -np.logaddexp(0, read.logits).sum(axis=1),  # Wang et al., NeurIPS 2021
        "maximum logit": lambda read: -read.logits.max(axis=1),  # Hendrycks et al., ICML 2022
    }


def auroc(usual: Doubles, strange: Doubles) -> float:
    """Chance that a strange picture scores higher than a usual one, ties by half."""
    ordered = np.sort(usual)
    below, upto = np.searchsorted(ordered, strange, "left"), np.searchsorted(ordered, strange, "right")
    return float((below + upto).mean() / (2 * len(ordered)))


def drawn(patients: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows of as many patients, drawn with replacement."""
    names, number = np.unique(patients, return_inverse=True)
    rows = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])
    return np.concatenate([rows[one] for one in rng.integers(0, len(names), len(names))])


def interval(usual: Doubles, strange: Doubles, test: Read, group: Read) -> tuple[float, float]:
    """95 % interval of `auroc` over resampled patients; a test film and what was made of it stay together."""
    rng, found = np.random.default_rng(0), []
    paired = len(group.patients) == len(test.patients) and (group.patients == test.patients).all()
    for _ in range(RESAMPLES):
        rows = drawn(test.patients, rng)
        found.append(auroc(usual[rows], strange[rows if paired else drawn(group.patients, rng)]))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def print_folders(predictor: Predictor, manifest: Manifest, data: Path, most: int) -> None:
    """What becomes of images, gate and checks together; the exact 95 % intervals take them as independent."""
    test = manifest.table["path"].iloc[manifest.rows("test")]
    images = {"test split": [manifest.root / path for path in test]}
    images |= {name: sorted((data / name / "images").iterdir()) for name in FOLDERS}
    print("\n| images | number | refused | warned | reasons |\n|---|---|---|---|---|")
    for name, paths in images.items():
        chosen = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), most)).astype(int))
        found = [predictor(paths[row]) for row in chosen]
        status = Counter(one.status for one in found)
        shares = []
        for kind in ("refused", "warned"):
            low, high = binomtest(status[kind], len(found)).proportion_ci()
            shares.append(f"{status[kind] / len(found):.1%} ({low:.1%} to {high:.1%})")
        reasons = Counter(one.reason for one in found if one.reason).most_common()
        print(f"| {name} | {len(found)} | {' | '.join(shares)} | {', '.join(f'{n} {r}' for r, n in reasons)} |")


def print_files(predictor: Predictor, data: Path) -> None:
    """What becomes of the DICOM files, gate and checks together."""
    print("\n| DICOM file | value | status | reason |\n|---|---|---|---|")
    for path in sorted((data / "dicom").glob("*.dcm")):
        said = predictor(path)
        value = "–" if said.out_of_distribution is None else f"{said.out_of_distribution:.2f}"
        print(f"| {path.name} | {value} | {said.status} | {said.reason or '–'} |")


def print_stability(train: Films, validation: Films, resamples: int) -> None:
    """How far the limit moves with the patients it is taken from, beside the quantile of the validation films."""
    rng, fitted, empirical = np.random.default_rng(0), [], []
    for _ in range(resamples):
        a, b = drawn(train.read.patients, rng), drawn(validation.read.patients, rng)
        one, other = train.read, validation.read
        description, arrays = out_of_distribution.fit(
            one.pixels[a], one.embeddings[a], other.pixels[b], other.embeddings[b], patients=one.patients[a]
        )
        fitted.append(description.limits["all"])
        values = Reference.from_arrays(description, arrays).values(other.pixels[b], other.embeddings[b])
        empirical.append(np.quantile(values, 1 - description.false_alarm_rate) * description.limits["all"])
    for name, limits in (("fitted tail, all films", fitted), ("empirical quantile, validation films", empirical)):
        print(
            f"- limit by {name}: moves by {np.std(limits) / np.mean(limits):.1%} with the patients ({resamples} draws)"
        )


def main() -> None:
    """Measure one bundle."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "bundle", type=Path, nargs="?", default=Path(__file__).resolve().parents[2] / "models" / "nih14"
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDSD_DATA") or beside))
    parser.add_argument("--stability", type=int, default=0, help="fit so many times over drawn patients")
    parser.add_argument("--most", type=int, default=20_000, help="images of a folder in the first table")
    parser.add_argument("--only-folders", action="store_true", help="the first table alone")
    options = parser.parse_args()
    try:
        bundle = Bundle.open(options.bundle)
        predictor, manifest = Predictor(bundle, provider="cpu"), read_manifest(bundle, options.data)
        print_folders(predictor, manifest, options.data, options.most)
        if not options.only_folders:
            measure(predictor, manifest, options.data, options.stability)
    except MedsdError as error:
        raise SystemExit(str(error)) from None


def measure(predictor: Predictor, manifest: Manifest, data: Path, stability: int) -> None:
    """Print the tables of scores."""
    bundle = predictor.bundle
    reference = out_of_distribution.load(bundle)
    if not isinstance(reference, Reference):
        raise SystemExit("the bundle carries the statistics of medsd 0.1, or none: export it again")
    test, train = read_split(predictor, manifest, "test").read, read_split(predictor, manifest, "train")
    chosen = scores(reference, train)
    usual = {name: score(test) for name, score in chosen.items()}
    print(f"{bundle.label}: {len(test.pixels)} test radiographs of {len(set(test.patients.tolist()))} patients; AUC")
    print(f"\n| pictures | number | refused | {' | '.join(chosen)} |\n|{'---|' * (len(chosen) + 3)}")
    for name, group in groups(predictor, test, data):
        cells = []
        for key, score in chosen.items():
            strange = score(group)
            low, high = interval(usual[key], strange, test, group)
            cells.append(f"{auroc(usual[key], strange):.3f} ({low:.3f}–{high:.3f})")
        beyond = np.mean(reference.values(group.pixels, group.embeddings) > 1)
        print(f"| {name} | {len(group.pixels)} | {beyond:.0%} | {' | '.join(cells)} |", flush=True)
    print_files(predictor, data)
    if stability:
        print_stability(train, read_split(predictor, manifest, "validation"), stability)


if __name__ == "__main__":
    main()
