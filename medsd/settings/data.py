"""What is read: the sources of studies, how images become pixels, and how patients are split."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medsd.findings import Uncertain
from medsd.strict import Strict

UncertainLabel = Annotated[Uncertain, Field(description="How the label -1 (uncertain) is read.")]
OfficialSplit = Annotated[bool, Field(description="Use the split that the data set publishes, where it has one.")]


class PixelSpec(Strict):
    """How a radiograph becomes the network's input; the same for training and serving, and part of the bundle."""

    size: int = Field(160, ge=32, le=2048, multiple_of=32, description="Side of the square input, in pixels.")
    fit: Literal["stretch", "pad", "crop"] = Field("stretch", description="How an image is made square.")
    contrast: Literal["none", "percentile"] = Field(
        "none", description="percentile: stretch the grey values between low_percentile and high_percentile."
    )
    low_percentile: float = Field(0.5, ge=0, lt=50, description="Percentile of the grey values that becomes black.")
    high_percentile: float = Field(99.5, gt=50, le=100, description="Percentile that becomes white.")


class LimitedSource(Strict):
    """A source of which only some patients can be read."""

    source: str
    root: Path
    limit: int | None = Field(None, ge=1, description="Read only this many patients, for a quick trial.")


class CheXpertLabels(LimitedSource):
    """A source with the labels of CheXpert's kind: 1, 0, -1 for uncertain, or empty."""

    frontal_only: bool = Field(True, description="Leave lateral images out.")
    uncertain: UncertainLabel = "unknown"
    unmentioned: Literal["absent", "unknown"] = Field("absent", description="How an empty label is read.")


class Nih14Part(Strict):
    """A folder with a part of NIH ChestX-ray14."""

    folder: Path = Field(description="Folder below data.root with a table and images/.")
    use: Literal["all", "train", "selected"] = Field(
        "all",
        description="all: split the patients. train: the images only train. selected: the images were picked by "
        "finding; they train, or are measured apart from the headline figures.",
    )


class Nih14Source(LimitedSource):
    """NIH ChestX-ray14 in NIH's own files."""

    source: Literal["nih14"]
    root: Path = Field(
        description="Folder with Data_Entry_2017*.csv (or labels.csv, sample_labels.csv) and images/ or images_0NN/."
    )
    parts: list[Nih14Part] = Field(
        [],
        description="Folders below root with a table and images each; patients may be in several. Empty: root alone.",
    )
    official_split: OfficialSplit = True


class PhantomSource(Strict):
    """Synthetic radiographs with notes, generated when they are needed."""

    source: Literal["phantom"]
    root: Path = Field(Path("runs/phantom/studies"), description="Folder for the generated files.")
    count: int = Field(1200, ge=20, description="Number of studies.")
    image_size: int = Field(384, ge=64, le=4096, description="Side of the generated images, in pixels.")
    seed: int = Field(0, description="Seed of the generator.")


class CovidSource(LimitedSource):
    """COVID-19 image data collection in its own files."""

    source: Literal["covid"]
    root: Path = Field(description="Folder with metadata.csv and images/.")


class CheXpertSource(CheXpertLabels):
    """CheXpert in Stanford's own files."""

    source: Literal["chexpert"]
    root: Path = Field(description="Folder with train.csv, valid.csv and their folders (or batches), or the one above.")
    official_split: bool = Field(True, description="Test on valid.csv, which radiologists labelled.")


class CheXpertPlusSource(CheXpertLabels):
    """CheXpert Plus in Stanford AIMI's own files."""

    source: Literal["chexpert_plus"]
    root: Path = Field(description="Folder with df_chexpert_plus_*.csv, chexbert_labels/ and the images.")
    format: Literal["png", "dicom"] = Field("png", description="Which of the two copies of the images is read.")
    labels: Literal["impression", "findings", "report"] = Field(
        "impression", description="Part of the report that CheXbert's labels come from."
    )
    notes: bool = Field(True, description="Use the clinical history as the note.")
    official_split: bool = Field(True, description="Test on the rows whose split is valid.")


class MimicSource(CheXpertLabels):
    """MIMIC-CXR (DICOM) or MIMIC-CXR-JPG in PhysioNet's own files."""

    source: Literal["mimic"]
    root: Path = Field(description="Folder with mimic-cxr-*-metadata.csv.gz, -chexpert, -split, and files/.")
    format: Literal["jpg", "dicom"] = Field("jpg", description="Read the images of MIMIC-CXR-JPG or of MIMIC-CXR.")
    reports: Path | None = Field(
        None, description="Folder below root with the reports' files/. Absent: mimic-cxr-reports/, else root."
    )
    frontal_only: bool = Field(True, description="Read only images whose view is known to be PA or AP.")
    labeller: Literal["chexpert", "negbio"] = Field("chexpert", description="Program whose labels are read.")
    notes: bool = Field(True, description="Use the reports' indication and history as the note.")
    official_split: OfficialSplit = True


class VindrSource(LimitedSource):
    """VinDr-CXR in PhysioNet's own files, or Kaggle's."""

    source: Literal["vindr"]
    root: Path = Field(description="Folder with annotations/, train/ and test/, or with Kaggle's train.csv.")
    official_split: bool = Field(True, description="Test on the images of image_labels_test.csv.")


class PadChestSource(LimitedSource):
    """PadChest in BIMCV's own files."""

    source: Literal["padchest"]
    root: Path = Field(description="Folder with PADCHEST_chest_x_ray_images_labels_160K*.csv and the images.")
    frontal_only: bool = Field(True, description="Leave lateral images out.")


class OpeniSource(LimitedSource):
    """Open-i's reports, with their images if they are there."""

    source: Literal["openi"]
    root: Path = Field(description="Folder with reports.tgz (or ecgen-radiology/) and, if there, findings14.csv.")
    labels: Literal["checked", "mesh"] = Field(
        "checked", description='checked: findings14.csv, else the heading "normal" alone. mesh: the MeSH headings.'
    )
    note: Literal["indication", "report"] = Field(
        "indication", description="indication: what was known before. report: findings and impression, to classify it."
    )
    images: Path | None = Field(None, description="Folder of NLMCXR_png or NLMCXR_dcm, below root. Absent: no images.")


class Cmc2007Source(LimitedSource):
    """The 2007 Computational Medicine Challenge: reports with ICD-9-CM codes, without images."""

    source: Literal["cmc2007"]
    root: Path = Field(description="Folder with 2007ChallengeTrainData.xml.")


class DicomSource(LimitedSource):
    """A tree of DICOM files without labels."""

    source: Literal["dicom"]
    root: Path = Field(description="Folder that is searched with all its subfolders.")
    frontal_only: bool = Field(True, description="Leave images out whose header says lateral or oblique.")


class CsvColumns(Strict):
    """The columns of the user's own table."""

    image: str = Field("image", description="Path of the image below images. An empty cell: a note alone.")
    patient: str = Field("patient", description="Key of the patient.")
    study: str | None = Field(None, description="Key of the study. Absent: each image is a study.")
    view: str | None = Field(None, description="View of the image, such as PA or AP.")
    age: str | None = Field(None, description="Age in years.")
    sex: str | None = Field(None, description="Sex of the patient, such as F or M.")
    note: str | None = Field(None, description="What was known before the image was read, never the report.")
    split: str | None = Field(None, description="train, validation (val, valid, dev) or test. Absent: medsd splits.")


class CsvSource(LimitedSource):
    """A folder of images with a CSV table of the user's own."""

    source: Literal["csv"]
    root: Path = Field(description="Folder that the table and its image paths are relative to.")
    table: Path = Field(Path("studies.csv"), description="The table, below root.")
    images: Path = Field(Path(), description="Folder of the images below root, if the table has file names alone.")
    name: str = Field("own", description="Name of the source, shown with the bundle's cases.")
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="Character between cells. Absent: comma, semicolon, tab or |."
    )
    columns: CsvColumns = Field(CsvColumns(), description="Names of the table's columns.")
    finding_columns: dict[str, str] = Field({}, description="Column of each finding. Empty: columns are named alike.")
    finding_list: str | None = Field(None, description="One column that lists the present findings instead.")
    separator: str = Field("|", min_length=1, description="Text between the findings of finding_list.")
    finding_names: dict[str, str] = Field({}, description="The finding that each word of finding_list means.")
    unlisted: Literal["absent", "unknown"] = Field("absent", description="What a finding not in finding_list is.")
    uncertain: UncertainLabel = "unknown"


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
    sources: list[SingleSource] = Field(min_length=2, description="The sources, each with the keys it has alone.")


class SplitSettings(Strict):
    """Shares of the patients; a source's official test list takes precedence over `test`."""

    train: float = Field(0.7, gt=0, lt=1, description="Share of the patients that train.")
    validation: float = Field(0.1, gt=0, lt=1, description="Share of the patients on which choices are made.")
    test: float = Field(0.2, gt=0, lt=1, description="Share of the patients that are measured at the end.")
    seed: int = Field(0, description="Seed of the split.")
    near_duplicates: bool = Field(True, description="Keep patients whose images look the same in one split.")

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("train, validation and test must add up to 1")
        return self
