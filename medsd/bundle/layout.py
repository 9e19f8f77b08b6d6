"""What a bundle is on disk: `bundle.json`, the files beside it, and the checks made before any of them is used.

A bundle is the only thing that passes from training to serving. `Bundle.open` verifies the schema version and the
sha256 of every listed file; `write_description` is what export calls last, so a folder without `bundle.json` is no
bundle.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from medsd.calibration.types import Calibration, CalibrationChoice, OperatingPoint
from medsd.errors import BundleError
from medsd.files import write_json
from medsd.findings import Finding, FindingSet
from medsd.settings import PixelSpec
from medsd.strict import Described, read_json

SCHEMA_VERSION = 1
DESCRIPTION = "bundle.json"
MODEL = "model.onnx"
Precision = Literal["float32", "float16", "int8"]
# Graphs of other numbers have the same inputs and outputs as model.onnx, all float32 too, and are the same model:
# `model_sha256`, and with it the case index, is that of model.onnx whichever of them computes.
GRAPHS: dict[Precision, str] = {"float32": MODEL, "float16": "model.fp16.onnx", "int8": "model.int8.onnx"}
# The graph's inputs: pixels float32 [B,1,S,S] in 0…1 and, with a note encoder, has_image float32 [B], note_ids and
# note_mask int64 [B,L], has_note float32 [B] (1 given, 0 missing); of a model of notes alone, note_ids and note_mask.
# Its outputs: probabilities [B,F], which are NaN for a finding that was not trained, logits [B,F], embedding [B,D] of
# unit length and, where it reads images, evidence [B,F,h,w], which adds up over h and w to the image's part of the
# logit, less what is the same for every image, and regions [B,D,h,w], whose mean over h and w, with what the note adds,
# is the embedding, so that the product with another embedding says which places make two studies alike; all float32.
INTEGERS = ("note_ids", "note_mask")
INPUTS_IMAGE = ("pixels",)
INPUTS_NOTE = ("note_ids", "note_mask")
INPUTS_FUSED = ("pixels", "has_image", "note_ids", "note_mask", "has_note")
OUTPUTS = ("probabilities", "logits", "embedding", "evidence", "regions")
OUTPUTS_NOTE = ("probabilities", "logits", "embedding")
TOKENIZER = "tokenizer.json"
OUT_OF_DISTRIBUTION = "out_of_distribution.safetensors"
CASES = "cases"
REFERENCE = "reference.json"  # what each graph gave for phantoms when the bundle was made (`medsd verify`)
REFERENCE_ARRAYS = "reference.safetensors"
VALIDATION = "validation_patients.json"  # keys of the patients that chose thresholds and calibration: never measured


class FindingEntry(Described):
    """A finding as the bundle carries it, so that a reader needs no vocabulary of its own."""

    name: str
    title: str
    snomed: str = ""
    radlex: str = ""


class NoteInput(Described):
    """How a note becomes `note_ids` and `note_mask`.

    Where `window` is given, a note is cut into overlapping windows of that many tokens, each with its own marks, which
    stand side by side in the `max_tokens` of the graph's input; the graph reads each by itself and pools.
    """

    max_tokens: int = Field(ge=8, description="length L of the graph's input")
    pad_id: int = 0
    window: int | None = Field(None, ge=8, description="absent: a note is one piece")
    stride: int | None = Field(None, ge=1, description="tokens from the start of one window to that of the next")
    mask: tuple[str, ...] = Field(
        (), description="phrases that name a finding, in the language of medsd/studies/notes/phrases, hidden from it"
    )

    @model_validator(mode="after")
    def _whole_windows(self) -> Self:
        if self.window is not None and self.max_tokens % self.window:
            raise ValueError(f"max_tokens {self.max_tokens} is no multiple of window {self.window}")
        return self


class OutOfDistributionCheck(Described):
    """Where the distances of suitable images lie: their median, and the deviation of those above it."""

    centre: float
    spread: float = Field(gt=0)


class OutOfDistribution(Described):
    """Scales and limits of `medsd.inference.out_of_distribution`; the arrays are in the safetensors file.

    A limit is what a share `false_alarm_rate` of suitable images exceeds by all checks together ("all"), or by those
    that look at the image itself ("image").
    """

    false_alarm_rate: float = Field(gt=0, lt=1)
    limits: dict[str, float]
    checks: dict[str, OutOfDistributionCheck]

    @model_validator(mode="after")
    def _limits_are_there(self) -> Self:
        if not ({"all", "image"} <= set(self.limits) and {"greys", "edges"} <= set(self.checks)):
            raise ValueError("the limits 'all' and 'image' and the checks 'greys' and 'edges' are needed")
        return self


class Provenance(Described):
    """Where the model comes from."""

    data: str
    data_hash: str = Field(description="sha256 over the manifest's rows")
    split_hash: str = Field(description="sha256 over the sorted pairs of patient key and split")
    studies: dict[str, int] = Field(description="images in each split")
    patients: dict[str, int]
    licence: str = ""
    citation: str = ""
    config: dict[str, Any]
    git_commit: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    training_seconds: float = 0.0


class Recalibrated(Described):
    """What a bundle was made from whose calibration alone is new (`medsd.external.recalibrate`)."""

    bundle: str = Field(description="name and version")
    model_sha256: str
    studies: str = Field(description="the set that it was fitted on")
    data_hash: str = Field(description="sha256 over the set's rows")
    patients: int = Field(description="that it was fitted on")


class Variant(Described):
    """A graph of other numbers beside model.onnx, and what they cost on the studies of parity.json."""

    file: str
    auroc_difference: float | None = Field(description="macro AUROC less that of PyTorch; null: too few labels")
    embedding_cosine: float = Field(description="mean cosine of its embeddings and PyTorch's")


class Description(Described):
    """The whole of bundle.json."""

    schema_version: int
    name: str
    version: str
    created: str = Field(description="UTC, ISO 8601")
    description: str = ""
    synthetic: bool = Field(False, description="learned from phantoms: never to be read as a medical result")
    public: bool = Field(False, description="case keys are made with the bundle's name, not with a site's secret key")
    finding_set: str
    findings: tuple[FindingEntry, ...]
    image: bool = Field(True, description="whether it reads images; a model of notes alone has no evidence")
    note: NoteInput | None = None
    pixels: PixelSpec
    embedding_size: int
    evidence_grid: tuple[int, int] | None = Field(description="h, w of the evidence maps; null without images")
    evidence_from_boxes: tuple[str, ...] = Field(
        (), description="findings whose maps learned from boxes that radiologists drew where the finding lies"
    )
    calibration: dict[str, Calibration]
    not_trained: dict[str, str] = Field(
        default_factory=dict,
        description="findings without an example to learn from, and why: they have no probability and no calibration",
    )
    calibration_choices: dict[str, CalibrationChoice] = Field(default_factory=dict)
    operating_points: dict[str, OperatingPoint]
    out_of_distribution: OutOfDistribution | None = None
    provenance: Provenance
    recalibrated: Recalibrated | None = None
    variants: dict[Precision, Variant] = Field(default_factory=dict, description="graphs beside model.onnx, if any")
    files: dict[str, str] = Field(default_factory=dict, description="sha256 of each file, by its path in the bundle")

    @model_validator(mode="after")
    def _reads_something(self) -> Self:
        if not self.image and self.note is None:
            raise ValueError("a model that reads neither images nor notes")
        if self.image != (self.evidence_grid is not None):
            raise ValueError("evidence_grid belongs to a model of images, and to no other")
        if sorted([*self.calibration, *self.not_trained]) != sorted(finding.name for finding in self.findings):
            raise ValueError("each finding has a calibration, or is in not_trained, and not both")
        return self

    def calibration_words(self) -> str:
        """Which probabilities are not calibrated by cases of their own finding, in a sentence; "" where all are."""
        words = {"pooled": "Calibrated with all findings together, as these have too few cases of their own",
                 "none": "Not calibrated, as all findings together have too few cases"}  # fmt: skip
        titles = {finding.name: finding.title for finding in self.findings}
        borrowed = {
            said: [titles[name] for name, choice in self.calibration_choices.items() if choice.method == method]
            for method, said in words.items()
        }
        return " ".join(f"{said}: {', '.join(names)}." for said, names in borrowed.items() if names)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The graph's inputs."""
        if not self.image:
            return INPUTS_NOTE
        return INPUTS_IMAGE if self.note is None else INPUTS_FUSED

    @property
    def outputs(self) -> tuple[str, ...]:
        """The graph's outputs."""
        return OUTPUTS if self.image else OUTPUTS_NOTE

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of an input or output for one study, without the batch."""
        count, grid = len(self.findings), self.evidence_grid or ()
        shapes: dict[str, tuple[int, ...]] = {
            "pixels": (1, self.pixels.size, self.pixels.size),
            "probabilities": (count,),
            "logits": (count,),
            "embedding": (self.embedding_size,),
            "evidence": (count, *grid),
            "regions": (self.embedding_size, *grid),
        }
        if self.note is not None:
            shapes |= dict.fromkeys(INTEGERS, (self.note.max_tokens,))
        return shapes.get(name, ())


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle."""

    folder: Path
    description: Description

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> Self:
        """Open the bundle in `folder`; with `verify`, the sha256 of every listed file is compared first.

        Raises:
            BundleError: there is no bundle, it is newer than this medsd, or a file was changed, is missing or lies
                elsewhere.
        """
        folder = Path(folder)
        description = _read_description(folder)
        graphs = {MODEL, *(GRAPHS[precision] for precision in description.variants)}
        for name in {*description.files, *graphs}:
            _check_inside(folder, name)
        if verify:
            if unlisted := graphs - set(description.files):
                raise BundleError(f"{folder}: {DESCRIPTION} has no sha256 of {min(unlisted)}; copy the bundle again")
            for name, expected in description.files.items():
                path = folder / name
                if not path.is_file():
                    raise BundleError(f"{folder}: {name} is missing; copy the whole bundle again")
                if file_sha256(path) != expected:
                    raise BundleError(f"{folder}: {name} was changed after export (sha256 differs); copy it again")
        return cls(folder, description)

    @property
    def model_path(self) -> Path:
        return self.folder / MODEL

    def graph_path(self, precision: Precision) -> Path:
        """The graph of these numbers; raises BundleError where this bundle has none."""
        there: tuple[Precision, ...] = ("float32", *self.description.variants)
        if precision not in there:
            raise BundleError(
                f"{self.folder}: no {precision} graph in this bundle, only {', '.join(there)}; export it again with "
                f"--set 'bundle.precisions=[float32, {precision}]', or ask for another precision"
            )
        return self.folder / GRAPHS[precision]

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER

    @property
    def cases_path(self) -> Path:
        return self.folder / CASES

    @cached_property
    def findings(self) -> FindingSet:
        """The bundle's own vocabulary, in output order."""
        entries = self.description.findings
        return FindingSet(
            self.description.finding_set,
            tuple(Finding(entry.name, entry.title, entry.snomed, entry.radlex) for entry in entries),
        )

    @property
    def label(self) -> str:
        """Name and version, as the tables show it."""
        return f"{self.description.name} {self.description.version}"

    @cached_property
    def model_sha256(self) -> str:
        """sha256 of model.onnx in hex."""
        return self.description.files.get(MODEL) or file_sha256(self.model_path)


def _check_inside(folder: Path, name: str) -> None:
    """Refuse a file that is not in the bundle's folder: an absolute path, one through "..", a link that leads out."""
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a null character, a name too long, links in a circle
        inside = False
    if not inside or "\\" in name:  # on Windows a backslash leads elsewhere than here
        raise BundleError(f"{folder}: lists {name[:200]!r}, which leads out of the bundle; take another copy")


def _read_description(folder: Path) -> Description:
    path = folder / DESCRIPTION
    try:
        tree = read_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder}: no bundle here (there is no {DESCRIPTION}); give the folder of a bundle"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read ({type(error).__name__}); copy the bundle again") from None
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(f"{folder}: schema {version}; this medsd reads up to {SCHEMA_VERSION}: upgrade medsd")
    try:
        return Description.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: '{key}': {first['msg'].lower()}; this is no bundle that medsd wrote") from None


def finding_entries(findings: FindingSet) -> tuple[FindingEntry, ...]:
    """The vocabulary as bundle.json carries it."""
    return tuple(FindingEntry(name=f.name, title=f.title, snomed=f.snomed, radlex=f.radlex) for f in findings.findings)


def file_sha256(path: Path) -> str:
    """sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`, but for bundle.json and the case index, which has checksums of its own."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    return {n: file_sha256(p) for p, n in names.items() if n != DESCRIPTION and not n.startswith(f"{CASES}/")}


def write_description(folder: Path, description: Description) -> Description:
    """Hash the files of `folder` and write bundle.json atomically; returns the description with the hashes."""
    complete = description.model_copy(update={"files": hash_files(folder)})
    write_json(folder / DESCRIPTION, complete.model_dump(mode="json"))
    return complete
