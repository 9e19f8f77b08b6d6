"""The settings models of configs/*.yaml: every key, its meaning and its default in one place.

`load_settings` reads a YAML file, applies ``--set a.b=c`` overrides and returns a `Settings`. Models are strict: an
unknown key or a wrong type is a `SettingsError` that names the file, the line, the key and the nearest valid key. YAML
is read with the safe loader; nothing in a configuration names code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from medsd.dicom.policy import GatePolicy
from medsd.findings import FINDING_SETS, Uncertain
from medsd.strict import Strict, load_as


class PixelSpec(Strict):
    """How a radiograph becomes the network's input; the same for training and serving, and part of the bundle."""

    size: int = Field(160, ge=32, le=2048, multiple_of=32, description="side of the square input in pixels")
    fit: Literal["stretch", "pad", "crop"] = Field(
        "stretch", description="how a film that is not square is made square"
    )
    contrast: Literal["none", "percentile"] = Field("none", description="percentile: stretch between the two below")
    low_percentile: float = Field(0.5, ge=0, lt=50)
    high_percentile: float = Field(99.5, gt=50, le=100)


class Nih14Source(Strict):
    """NIH ChestX-ray14 in NIH's own files."""

    source: Literal["nih14"]
    root: Path = Field(description="folder with Data_Entry_2017*.csv (or labels.csv) and images/ or images_0NN/")
    official_split: bool = Field(True, description="follow train_val_list.txt and test_list.txt where they are present")
    limit: int | None = Field(None, ge=1, description="take this many patients only, for a quick trial")


class PhantomSource(Strict):
    """Synthetic radiographs with notes, made on the spot."""

    source: Literal["phantom"]
    root: Path = Field(Path("runs/phantom/studies"), description="where the generated files are written")
    count: int = Field(1200, ge=20, description="number of studies")
    image_size: int = Field(384, ge=64, le=4096, description="side of the generated films in pixels")
    seed: int = 0


class CovidSource(Strict):
    """COVID-19 image data collection in its own files."""

    source: Literal["covid"]
    root: Path = Field(description="folder with metadata.csv and images/")
    limit: int | None = Field(None, ge=1, description="take this many patients only, for a quick trial")


class CheXpertSource(Strict):
    """CheXpert in Stanford's own files."""

    source: Literal["chexpert"]
    root: Path = Field(description="folder with train.csv, valid.csv, train/ and valid/")
    frontal_only: bool = Field(True, description="leave lateral films out")
    uncertain: Uncertain = Field("unknown", description="what the label -1 means")
    unmentioned: Literal["absent", "unknown"] = Field("absent", description="what an empty label means")
    official_split: bool = Field(True, description="valid.csv, labelled by radiologists, is the test set")
    limit: int | None = Field(None, ge=1, description="take this many patients only, for a quick trial")


class CheXpertPlusSource(Strict):
    """CheXpert Plus in Stanford AIMI's own files."""

    source: Literal["chexpert_plus"]
    root: Path = Field(description="folder with df_chexpert_plus_*.csv, chexbert_labels/ and the films")
    format: Literal["png", "dicom"] = Field("png", description="which of the two copies of the films is read")
    labels: Literal["impression", "findings", "report"] = Field(
        "impression", description="the part of the report that CheXbert's labels come from"
    )
    frontal_only: bool = Field(True, description="leave lateral films out")
    notes: bool = Field(True, description="the clinical history as the note")
    uncertain: Uncertain = Field("unknown", description="what the label -1 means")
    unmentioned: Literal["absent", "unknown"] = Field("absent", description="what an empty label means")
    official_split: bool = Field(True, description="the rows whose split is valid are the test set")
    limit: int | None = Field(None, ge=1, description="take this many patients only, for a quick trial")


class MimicSource(Strict):
    """MIMIC-CXR (DICOM) or MIMIC-CXR-JPG in PhysioNet's own files."""

    source: Literal["mimic"]
    root: Path = Field(description="folder with mimic-cxr-*-metadata.csv.gz, -chexpert, -split, and files/")
    format: Literal["jpg", "dicom"] = Field("jpg", description="MIMIC-CXR-JPG's films, or MIMIC-CXR's")
    reports: Path | None = Field(
        None, description="folder of the reports' files/, below root; absent: mimic-cxr-reports/, else root"
    )
    frontal_only: bool = Field(True, description="only films whose view is known to be PA or AP")
    labeller: Literal["chexpert", "negbio"] = "chexpert"
    notes: bool = Field(True, description="indication and history out of the reports, where they are there")
    uncertain: Uncertain = Field("unknown", description="what the label -1 means")
    unmentioned: Literal["absent", "unknown"] = Field("absent", description="what an empty label means")
    official_split: bool = Field(True, description="follow the official train, validate and test")
    limit: int | None = Field(None, ge=1, description="take this many patients only, for a quick trial")


class VindrSource(Strict):
    """VinDr-CXR in PhysioNet's own files."""

    source: Literal["vindr"]
    root: Path = Field(description="folder with annotations/, train/ and test/")
    official_split: bool = Field(True, description="the films of image_labels_test.csv are the test set")
    limit: int | None = Field(None, ge=1, description="take this many patients only, for a quick trial")


class PadChestSource(Strict):
    """PadChest in BIMCV's own files."""

    source: Literal["padchest"]
    root: Path = Field(description="folder with PADCHEST_chest_x_ray_images_labels_160K*.csv and the films")
    frontal_only: bool = Field(True, description="leave lateral films out")
    limit: int | None = Field(None, ge=1, description="take this many patients only, for a quick trial")


class OpeniSource(Strict):
    """Open-i's reports, with its films where they are there."""

    source: Literal["openi"]
    root: Path = Field(description="folder with reports.tgz (or ecgen-radiology/) and, if there, findings14.csv")
    labels: Literal["checked", "mesh"] = Field(
        "checked", description="findings14.csv, else «normal» alone (openi14); or the MeSH headings (mesh)"
    )
    films: Path | None = Field(None, description="folder of NLMCXR_png or NLMCXR_dcm, below root; absent: notes alone")
    limit: int | None = Field(None, ge=1, description="take this many patients only, for a quick trial")


class DicomSource(Strict):
    """A tree of DICOM files without labels."""

    source: Literal["dicom"]
    root: Path = Field(description="folder that is searched through")
    frontal_only: bool = Field(True, description="leave films out whose header says lateral or oblique")
    limit: int | None = Field(None, ge=1, description="take this many patients only, for a quick trial")


class CsvColumns(Strict):
    """The columns of the user's own table."""

    image: str = Field("image", description="path of the film below images; an empty cell: a note alone")
    patient: str = "patient"
    study: str | None = Field(None, description="absent: each film is a study")
    view: str | None = None
    age: str | None = Field(None, description="in years")
    sex: str | None = None
    note: str | None = Field(None, description="what was known before the film was read, never the report")
    split: str | None = Field(None, description="train, validation or test; absent: medsd splits by patient")


class CsvSource(Strict):
    """A folder of films with a CSV table of the user's own."""

    source: Literal["csv"]
    root: Path = Field(description="folder that the table and its image paths are relative to")
    table: Path = Field(Path("studies.csv"), description="the table, below root")
    images: Path = Field(Path(), description="folder of the films, below root, where the table has names alone")
    name: str = Field("own", description="what the cases of the bundle say they come from")
    delimiter: str = Field(",", min_length=1, max_length=1)
    columns: CsvColumns = CsvColumns()
    finding_columns: dict[str, str] = Field({}, description="finding: column; empty: columns named like findings")
    finding_list: str | None = Field(None, description="one column that lists what is present, instead")
    separator: str = Field("|", min_length=1, description="between the findings of finding_list")
    finding_names: dict[str, str] = Field({}, description="your word in finding_list: finding")
    unlisted: Literal["absent", "unknown"] = Field("absent", description="what is not in finding_list is")
    uncertain: Uncertain = Field("unknown", description="what the label -1 means")
    limit: int | None = Field(None, ge=1, description="take this many patients only, for a quick trial")


SingleSource = Annotated[
    Nih14Source
    | PhantomSource
    | CovidSource
    | CheXpertSource
    | CheXpertPlusSource
    | MimicSource
    | VindrSource
    | PadChestSource
    | OpeniSource
    | DicomSource
    | CsvSource,
    Field(discriminator="source"),
]


class MergeSource(Strict):
    """Several sources in one training set, in the one finding set of the settings."""

    source: Literal["merge"]
    sources: list[SingleSource] = Field(min_length=2, description="each with its own keys, as it would stand alone")


class SplitSettings(Strict):
    """Shares of the patients; a source's official test list wins over `test` where it is present."""

    train: float = Field(0.7, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.2, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitSettings:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("train, validation and test must add up to 1")
        return self


class ImageSettings(Strict):
    """The image encoder."""

    backbone: Literal["efficientnet-lite0", "densenet121", "densenet-small", "resnet18"] = "efficientnet-lite0"
    weights: Literal["imagenet", "none"] | Path = Field(
        "none", description="imagenet (efficientnet-lite0 only), none, or a safetensors file of the encoder"
    )
    dropout: float = Field(0.2, ge=0, lt=1)


class NoteSettings(Strict):
    """The note encoder: a small BERT whose WordPiece vocabulary is trained on the training notes, or a local folder."""

    model: Literal["small-bert"] | Path = Field(
        "small-bert", description="small-bert, or a folder that transformers wrote"
    )
    vocabulary_size: int = Field(2000, ge=100, le=60000)
    max_tokens: int = Field(96, ge=8, le=512, description="longer notes are cut")
    mask_findings: bool = Field(
        True, description="hide the words that name a finding of the set: a note that has them gives the answer away"
    )
    layers: int = Field(2, ge=1, le=24)
    hidden: int = Field(128, ge=16, le=1024, multiple_of=16)
    heads: int = Field(4, ge=1, le=16)
    dropout: float = Field(0.1, ge=0, lt=1)


class NetworkSettings(Strict):
    """Encoders, and the space in which they meet."""

    image: ImageSettings = ImageSettings()
    note: NoteSettings | None = Field(None, description="absent: images alone")
    embedding: int = Field(256, ge=8, le=4096, description="dimensions of the learned space")
    projection: int = Field(128, ge=8, le=4096, description="dimensions of the pretraining head, dropped afterwards")
    modality_dropout: float = Field(
        0.3, ge=0, lt=1, description="chance that a study loses its image or its note in training"
    )


class LossSettings(Strict):
    """The Similarity-Dissimilarity loss (see medsd.sd)."""

    name: str = Field("sd", description="sd, or a rival: supcon, any, all, mulsupcon, jaccard, probmcl")
    temperature: float = Field(0.1, gt=0, le=10)


class AugmentSettings(Strict):
    """Random changes of the training images; nothing that moves the heart to the other side."""

    rotation_degrees: float = Field(10, ge=0, le=45)
    translation: float = Field(0.05, ge=0, le=0.5, description="share of the side")
    zoom: float = Field(0.1, ge=0, le=0.5)
    contrast: float = Field(0.2, ge=0, le=1)
    noise: float = Field(0.02, ge=0, le=0.5)
    erase: float = Field(0.0, ge=0, le=0.5, description="chance of one erased rectangle")


class StageSettings(Strict):
    """One stage of training."""

    epochs: int = Field(10, ge=0)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    encoder_learning_rate_scale: float = Field(1.0, gt=0, le=1, description="of the encoders, against the new layers")
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with a rising learning rate")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    sd_weight: float = Field(1.0, ge=0, description="weight of the SD term beside the classification term")
    weight_averaging: float = Field(0.0, ge=0, lt=1, description="decay of the exponential moving average; 0: none")
    gradient_clip: float = Field(1.0, gt=0)


class TrainingSettings(Strict):
    """Both stages and what they share."""

    pretrain: StageSettings = StageSettings()
    finetune: StageSettings = StageSettings(sd_weight=0.1)
    augment: AugmentSettings = AugmentSettings()
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(0, ge=0, description="0: as many as the machine has")
    workers: int = Field(1, ge=0, le=64, description="loader processes; the batches do not depend on it")
    device: Literal["auto", "cpu", "cuda"] = "auto"


class EvaluationSettings(Strict):
    """How the test split is measured."""

    bootstrap: int = Field(1000, ge=20, description="patient-level resamples of each interval")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    operating_points: str = Field(
        "f1",
        pattern=r"^(youden|f1|(sensitivity|specificity):0\.\d+)$",
        description="how thresholds are chosen on validation: f1, youden, sensitivity:0.9 or specificity:0.9",
    )
    few: int = Field(10, ge=1, description="fewer positives or negatives than this: too few to tell")


class BundleSettings(Strict):
    """What is published at the end."""

    version: str = "1"
    public: bool = Field(
        False, description="the data are public: keys of cases come from the bundle's name, so that --images finds them"
    )
    thumbnails: bool = Field(
        False, description="keep a picture of each case in the bundle; only where the licence allows"
    )
    note_excerpts: bool = Field(False, description="keep the beginning of each case's note")
    parity_studies: int = Field(64, ge=2, description="test studies on which ONNX must agree with PyTorch")
    description: str = ""
    licence: str = Field("", description="of the data, as the card must name it")
    citation: str = ""


class Settings(Strict):
    """A whole configuration."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    findings: str = Field(description="the finding set, a key of medsd.findings.FINDING_SETS")
    seed: int = 0
    output: Path = Field(Path("runs"), description="the run is <output>/<name>")
    data: Annotated[SingleSource | MergeSource, Field(discriminator="source")]
    splits: SplitSettings = SplitSettings()
    gate: GatePolicy = Field(GatePolicy(), description="which films `medsd prepare` leaves out, see medsd.dicom.policy")
    pixels: PixelSpec = PixelSpec()
    network: NetworkSettings = NetworkSettings()
    loss: LossSettings = LossSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    bundle: BundleSettings = BundleSettings()

    @model_validator(mode="after")
    def _known_finding_set(self) -> Settings:
        if self.findings not in FINDING_SETS:
            raise ValueError(
                f"findings: there is no finding set '{self.findings}'; medsd has {', '.join(FINDING_SETS)}"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """Where this configuration keeps its work."""
        return self.output / self.name


class GateSettings(Strict):
    """What `medsd score`, `similar` and `app` take: the section `gate` alone, as a configuration has it."""

    gate: GatePolicy = GatePolicy()


def load_gate(path: Path | str | None, overrides: Sequence[str] = ()) -> GatePolicy:
    """Read a gate's policy for serving.

    Args:
        path: a YAML file with the section `gate`; None for the defaults.
        overrides: ``gate.view=warn`` each, applied in order.

    Raises:
        SettingsError: the file is missing or no YAML, or a key or a value does not fit.
    """
    return load_as(GateSettings, path, overrides).gate


def load_settings(path: Path | str, overrides: Sequence[str] = ()) -> Settings:
    """Read a configuration.

    Args:
        path: the YAML file.
        overrides: ``a.b=c`` each, applied in order; the value is read as YAML.

    Raises:
        SettingsError: the file is missing or no YAML, or a key or a value does not fit.
    """
    return load_as(Settings, path, overrides)


def save_settings(settings: Settings, path: Path) -> None:
    """Write the resolved settings as YAML; `load_settings` reads them back equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
