"""What is read: the sources of studies, how films become pixels, and how patients are split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from medsd.findings import Uncertain
from medsd.strict import Strict


class PixelSpec(Strict):
    """How a radiograph becomes the network's input; the same for training and serving, and part of the bundle."""

    size: int = Field(160, ge=32, le=2048, multiple_of=32, description="side of the square input in pixels")
    fit: Literal["stretch", "pad", "crop"] = Field(
        "stretch", description="how a film that is not square is made square"
    )
    contrast: Literal["none", "percentile"] = Field("none", description="percentile: stretch between the two below")
    low_percentile: float = Field(0.5, ge=0, lt=50)
    high_percentile: float = Field(99.5, gt=50, le=100)


class Nih14Part(Strict):
    """A folder with a part of NIH ChestX-ray14."""

    folder: Path = Field(description="below data.root, with a table and images/")
    use: Literal["all", "train", "selected"] = Field(
        "all",
        description="all: its patients are split. selected: its images were picked by finding; they train, or are "
        "measured apart from the headline figures. train: its images only train",
    )


class Nih14Source(Strict):
    """NIH ChestX-ray14 in NIH's own files."""

    source: Literal["nih14"]
    root: Path = Field(
        description="folder with Data_Entry_2017*.csv (or labels.csv, sample_labels.csv) and images/ or images_0NN/"
    )
    parts: list[Nih14Part] = Field(
        [],
        description="folders below root, each with a table and images; a patient may stand in several. Empty: root "
        "itself is the one folder",
    )
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
    root: Path = Field(
        description="folder with train.csv, valid.csv, train/ and valid/ or the batches of the download; or one above"
    )
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
    """VinDr-CXR in PhysioNet's own files, or Kaggle's."""

    source: Literal["vindr"]
    root: Path = Field(description="folder with annotations/, train/ and test/; or with Kaggle's train.csv")
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
    note: Literal["indication", "report"] = Field(
        "indication", description="what was known before; or findings and impression, to classify the report itself"
    )
    films: Path | None = Field(None, description="folder of NLMCXR_png or NLMCXR_dcm, below root; absent: notes alone")
    limit: int | None = Field(None, ge=1, description="take this many patients only, for a quick trial")


class Cmc2007Source(Strict):
    """The 2007 Computational Medicine Challenge: reports with ICD-9-CM codes, without films."""

    source: Literal["cmc2007"]
    root: Path = Field(description="folder with 2007ChallengeTrainData.xml")
    limit: int | None = Field(None, ge=1, description="take this many reports only, for a quick trial")


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
    split: str | None = Field(
        None, description="train, validation (or val, valid, dev) or test; absent: medsd splits by patient"
    )


class CsvSource(Strict):
    """A folder of films with a CSV table of the user's own."""

    source: Literal["csv"]
    root: Path = Field(description="folder that the table and its image paths are relative to")
    table: Path = Field(Path("studies.csv"), description="the table, below root")
    images: Path = Field(Path(), description="folder of the films, below root, where the table has names alone")
    name: str = Field("own", description="what the cases of the bundle say they come from")
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="between the cells; absent: comma, semicolon, tab or |, found out"
    )
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
    | Cmc2007Source
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
    near_duplicates: bool = Field(
        True, description="look for images of different patients that look the same, and keep those patients together"
    )

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitSettings:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("train, validation and test must add up to 1")
        return self
