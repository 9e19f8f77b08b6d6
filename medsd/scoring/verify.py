"""Does this installation give what a bundle gave when it was made? `medsd verify`.

A bundle carries reference readings: phantoms that medsd draws itself, as pixels, rows and embeddings of each of its
graphs. `write_reference` makes them on the CPU when a bundle is exported; `verify` draws, reads and scores the same
phantoms here and compares. Neither needs data or PyTorch.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from medsd.bundle import layout
from medsd.bundle.layout import Bundle, Precision
from medsd.dicom.gate import GatePolicy
from medsd.errors import BundleError, MedsdError
from medsd.files import write_json
from medsd.inference.predict import Predictor, Study
from medsd.inference.prediction import Prediction
from medsd.inference.providers import (
    CPU,
    CUDA,
    OPENVINO,
    PrecisionChoice,
    ProviderChoice,
    cuda_driver_present,
    providers_at_hand,
)
from medsd.preprocessing.image import DecodedImage, read_image
from medsd.scoring import table
from medsd.scoring.table import Row
from medsd.strict import Described, read_json
from medsd.studies.phantom import PhantomStudy, generate_study, write_dicom
from medsd.telemetry import import_onnxruntime

SEED = 1
# Sides of the phantoms as multiples of the model's: the last is large enough for means of blocks before the resize.
SCALES = (2.5, 2.5, 2.5, 4.1)
# Every phantom is scored, however unlike the training images it is: its numbers are compared, not believed.
POLICY = GatePolicy(out_of_distribution="accept", inverted_look="accept")
_CHOICES: dict[str, ProviderChoice] = {CPU: "cpu", CUDA: "cuda", OPENVINO: "openvino"}


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that count as agreement."""

    probability: float  # calibrated
    embedding: float  # 1 − cosine of two embeddings
    out_of_distribution: float  # of the ratio to its limit, as a share of the ratio where that is above 1


# Processors add up in other orders, and a GPU computes float16 where a CPU only stores it: that much is normal.
TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(1e-3, 1e-4, 1e-2),
    "float16": Tolerance(5e-3, 1e-3, 2e-2),
    "int8": Tolerance(2e-2, 5e-3, 5e-2),
}
PIXELS = "pixels"
PIXEL_LARGEST, PIXEL_MEAN = 1.0, 0.02  # of 255 grey levels, of one image


class ReferenceInput(Described):
    """One reference study: number `index` of the phantoms of `SEED`, drawn `size` pixels wide."""

    index: int
    size: int
    image: bool
    note: bool
    drawn: str = ""  # sha256 of the phantom in 8 bits: tells another drawing from another preprocessing


class ReferenceReadings(Described):
    """reference.json: what was read and which rows each graph gave; pixels and embeddings are in the arrays' file."""

    inputs: tuple[ReferenceInput, ...]
    graphs: dict[Precision, str]  # sha256
    rows: dict[Precision, tuple[Row, ...]]


@dataclass(frozen=True)
class Agreement:
    """One comparison with the reference; it agrees if every difference is within its tolerance."""

    what: str  # "pixels", or the provider and the precision
    agrees: bool
    differences: Mapping[str, tuple[float, float]]  # the largest, and its tolerance, by the words for it
    other: tuple[str, ...] = ()  # rows whose status, reason or calls are others

    def line(self) -> str:
        found = [f"{name} {value:.2g} (at most {most:g})" for name, (value, most) in self.differences.items()]
        return f"{self.what}: {'agrees' if self.agrees else 'DIFFERS'}; {', '.join([*found, *self.other])}"


@dataclass(frozen=True)
class Verification:
    bundle: str  # name and version
    agreements: tuple[Agreement, ...]  # of the pixels, and of each provider and precision
    same_phantoms: bool  # whether they were drawn as they were for the reference

    @property
    def agrees(self) -> bool:
        """Whether this installation gives what the bundle gave when it was made."""
        return all(each.agrees for each in self.agreements)

    def text(self) -> str:
        lines = [f"{self.bundle}: every file is as it was exported", *(each.line() for each in self.agreements)]
        if self.agrees:
            return "\n".join([*lines, "This installation gives what the bundle gave when it was made."])
        lines.append("This installation does not give what the bundle gave when it was made.")
        if any(each.what == PIXELS and not each.agrees for each in self.agreements):
            why = "reading or resizing is another" if self.same_phantoms else "the phantoms are drawn otherwise"
            lines.append(f"The pixels differ before the model reads them: {why}. Look at the versions in bundle.json.")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return {"agrees": self.agrees, **asdict(self)}


def write_reference(bundle: Bundle) -> Bundle:
    """Read the phantoms with every graph of `bundle` on the CPU and add what comes out to its files and description."""
    inputs = _inputs(bundle)
    studies, drawn = _draw(bundle, inputs)
    arrays: dict[str, npt.NDArray[Any]] = {"pixels": _pixels(bundle, studies)}
    rows: dict[Precision, tuple[Row, ...]] = {}
    for precision in _precisions(bundle):
        predictor = Predictor(bundle, provider="cpu", precision=precision, policy=POLICY)
        predictions = predictor.read(studies)
        rows[precision] = tuple(map(_row, predictions))
        arrays[f"embedding_{precision}"] = _embeddings(bundle, predictions)
    reference = ReferenceReadings(
        inputs=tuple(each.model_copy(update={"drawn": digest}) for each, digest in zip(inputs, drawn, strict=True)),
        graphs={precision: layout.file_sha256(bundle.graph_path(precision)) for precision in rows},
        rows=rows,
    )
    from safetensors.numpy import save

    write_json(bundle.folder / layout.REFERENCE, reference.model_dump(mode="json"))
    (bundle.folder / layout.REFERENCE_ARRAYS).write_bytes(save(arrays))
    return Bundle(bundle.folder, layout.write_description(bundle.folder, bundle.description))


def verify(
    folder: Path | str, *, provider: ProviderChoice = "auto", precision: PrecisionChoice = "auto"
) -> Verification:
    """Score the reference inputs of a bundle here and compare with what it carries; "auto" stands for each of them.

    Raises BundleError: a file of the bundle was changed, or it carries no reference; MedsdError: `provider` does not
    work on this machine.
    """
    bundle = Bundle.open(folder)
    reference, arrays = _read_reference(bundle)
    studies, drawn = _draw(bundle, reference.inputs)
    found = [_compare_pixels(_pixels(bundle, studies), arrays["pixels"])] if bundle.description.image else []
    at_hand = providers_at_hand(import_onnxruntime().get_available_providers(), cuda_driver_present)
    for name in [_CHOICES[each] for each in reversed(at_hand)] if provider == "auto" else [provider]:
        for numbers in _precisions(bundle) if precision == "auto" else (precision,):
            predictor = Predictor(bundle, provider=name, precision=numbers, policy=POLICY)
            running = predictor.session.provider
            if _CHOICES.get(running, name) != name:  # the session has said why
                if provider == "auto":
                    continue
                raise MedsdError(f"provider '{name}' does not work on this machine; see medsd doctor")
            found.append(_compare(bundle, reference, arrays, numbers, running, predictor.read(studies)))
    return Verification(bundle.label, tuple(found), drawn == [each.drawn for each in reference.inputs])


def _precisions(bundle: Bundle) -> tuple[Precision, ...]:
    return ("float32", *bundle.description.variants)


# ---- the inputs


def _inputs(bundle: Bundle) -> list[ReferenceInput]:
    """Images, and of a model that reads both also both together and a note alone."""
    image, note = bundle.description.image, bundle.description.note is not None
    sizes = [round(scale * bundle.description.pixels.size) for scale in SCALES]
    kinds = [(image, note)] * len(sizes)
    if image and note:
        kinds[1:3] = [(True, False), (False, True)]
    return [
        ReferenceInput(index=index, size=max(64, size), image=kind[0], note=kind[1])
        for index, (size, kind) in enumerate(zip(sizes, kinds, strict=True))
    ]


def _draw(bundle: Bundle, inputs: Sequence[ReferenceInput]) -> tuple[list[Study], list[str]]:
    """The inputs, read as DICOM files are, and a digest of each phantom."""
    studies, drawn = [], []
    with tempfile.TemporaryDirectory(prefix="medsd-") as folder:
        for each in inputs:
            phantom = _phantom(SEED, each.index, each.size)
            image: DecodedImage | None = None
            if each.image:
                path = Path(folder) / f"reference_{each.index}.dcm"
                write_dicom(phantom, path)
                image = read_image(path, bundle.description.pixels, policy=POLICY, keep_image=False)
            studies.append(Study(image, phantom.note or "" if each.note else ""))
            drawn.append(hashlib.sha256(np.rint(phantom.pixels * 255).astype(np.uint8).tobytes()).hexdigest())
    return studies, drawn


@lru_cache(maxsize=16)
def _phantom(seed: int, index: int, size: int) -> PhantomStudy:
    return generate_study(index, seed=seed, size=size)


def _pixels(bundle: Bundle, studies: Sequence[Study]) -> npt.NDArray[np.uint8]:
    """What the model sees of the images (N, S, S); zeros where one was refused."""
    side = bundle.description.pixels.size
    images = [study.image for study in studies if study.image is not None]
    empty = np.zeros((side, side), np.uint8)
    return np.array([empty if image.pixels is None else image.pixels for image in images], np.uint8)


def _row(prediction: Prediction) -> Row:
    """A row of the table of results without what names the input and the model."""
    found = table.row("", prediction)
    left_out = {"path", "message", "study_key", "patient_key", "instance_key", "model", "model_sha256"}
    return {name: value for name, value in found.items() if name not in left_out}


def _embeddings(bundle: Bundle, predictions: Sequence[Prediction]) -> npt.NDArray[np.float32]:
    empty = np.full(bundle.description.embedding_size, np.nan, np.float32)
    return np.stack([empty if each.embedding is None else each.embedding for each in predictions])


# ---- the comparison


def _read_reference(bundle: Bundle) -> tuple[ReferenceReadings, dict[str, npt.NDArray[Any]]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    paths = [bundle.folder / name for name in (layout.REFERENCE, layout.REFERENCE_ARRAYS)]
    if any(path.name not in bundle.description.files for path in paths):
        raise BundleError(
            f"{bundle.folder}: this bundle carries no reference readings; add them on the machine that made it with: "
            f"medsd export --bundle {bundle.folder} --reference"
        )
    try:
        tree = read_json(paths[0].read_text(encoding="utf-8"))
        reference, arrays = ReferenceReadings.model_validate(tree), load_file(str(paths[1]))
        images = sum(each.image for each in reference.inputs)
        size, side = bundle.description.embedding_size, bundle.description.pixels.size
        shapes: dict[str, tuple[int, ...]] = {
            f"embedding_{name}": (len(reference.inputs), size) for name in reference.rows
        }
        if bundle.description.image:
            shapes["pixels"] = (images, side, side)
        fits = all(arrays[name].shape == shape for name, shape in shapes.items())
        whole = set(reference.rows) == set(reference.graphs) >= set(_precisions(bundle))
        if not fits or not whole or any(len(rows) != len(reference.inputs) for rows in reference.rows.values()):
            raise ValueError("its parts do not fit")
    except (OSError, ValueError, KeyError, ValidationError, SafetensorError) as error:
        raise BundleError(f"{paths[0]}: cannot be read ({type(error).__name__}); copy the bundle again") from None
    return reference, arrays


def _compare_pixels(found: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> Agreement:
    gaps = np.abs(found.astype(np.int16) - expected)
    largest, mean = float(gaps.max()), float(gaps.mean(axis=(1, 2)).max())
    return Agreement(
        PIXELS,
        largest <= PIXEL_LARGEST and mean <= PIXEL_MEAN,
        {"largest difference in grey levels": (largest, PIXEL_LARGEST), "mean": (mean, PIXEL_MEAN)},
    )


def _compare(
    bundle: Bundle,
    reference: ReferenceReadings,
    arrays: Mapping[str, npt.NDArray[Any]],
    precision: Precision,
    provider: str,
    predictions: Sequence[Prediction],
) -> Agreement:
    """What one provider and precision gives against the reference of that precision."""
    rows, expected, tolerance = [*map(_row, predictions)], reference.rows[precision], TOLERANCES[precision]
    names = [f"probability_{name}" for name in bundle.findings]
    strange = ["out_of_distribution"]
    scale = max((row[strange[0]] for row in expected if row[strange[0]] is not None), default=1.0)
    cosines = (_embeddings(bundle, predictions) * arrays[f"embedding_{precision}"]).sum(1)
    differences = {
        "probabilities differ by": (_largest_gap(rows, expected, names), tolerance.probability),
        "embeddings by": (float(np.max(1 - cosines)), tolerance.embedding),
        "out of distribution by": (
            _largest_gap(rows, expected, strange) / max(scale, 1.0),
            tolerance.out_of_distribution,
        ),
    }
    other = [
        f"input {number}: {', '.join(said)}"
        for number, said in enumerate(_other(bundle, rows, reference, precision))
        if said
    ]
    same_graph = layout.file_sha256(bundle.graph_path(precision)) == reference.graphs[precision]
    if not same_graph:
        other.append("the graph is not the one that the reference was made with")
    agrees = not other and all(value <= most for value, most in differences.values())
    return Agreement(f"{provider} {precision}", agrees, differences, tuple(other))


def _other(bundle: Bundle, rows: Sequence[Row], reference: ReferenceReadings, precision: Precision) -> list[list[str]]:
    """By input, the columns of text that are others; a call may be where the probability is next to its threshold."""
    points, most = bundle.description.operating_points, TOLERANCES[precision].probability
    free = set[tuple[int, str]]()
    for number, row in enumerate(reference.rows[precision]):
        for name, point in points.items():
            value = row[f"probability_{name}"]
            if value is not None and point.threshold is not None and abs(value - point.threshold) <= most:
                free.add((number, f"call_{name}"))
    return [
        [n for n in row if not table.is_number(n) and row[n] != expected.get(n) and (number, n) not in free]
        for number, (row, expected) in enumerate(zip(rows, reference.rows[precision], strict=True))
    ]


def _largest_gap(found: Sequence[Row], expected: Sequence[Row], names: Sequence[str]) -> float:
    """The largest difference in these columns; infinite where only one of two has a number."""
    first, second = (np.array([[row[name] for name in names] for row in rows], float) for rows in (found, expected))
    if not np.array_equal(np.isnan(first), np.isnan(second)):
        return float("inf")
    return float(np.nan_to_num(np.abs(first - second)).max())
