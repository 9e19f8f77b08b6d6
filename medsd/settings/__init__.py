"""The settings models of configs/*.yaml: every key, its meaning and its default in one place.

Models are strict: an unknown key or a wrong type is a `SettingsError` that names the file, the line, the key and the
nearest valid key. YAML is read with the safe loader; nothing in a configuration names code.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medsd.dicom.policy import GatePolicy
from medsd.findings import FINDING_SETS
from medsd.settings.data import (
    CheXpertPlusSource,
    CheXpertSource,
    Cmc2007Source,
    CovidSource,
    CsvColumns,
    CsvSource,
    DicomSource,
    MergeSource,
    MimicSource,
    Nih14Source,
    OpeniSource,
    PadChestSource,
    PhantomSource,
    PixelSpec,
    SingleSource,
    SplitSettings,
    VindrSource,
)
from medsd.settings.network import ImageSettings, NetworkSettings, NoteSettings
from medsd.settings.training import (
    AugmentSettings,
    FinetuneSettings,
    LossSettings,
    ObjectiveSettings,
    PseudoLabelSettings,
    StageSettings,
    TrainingSettings,
)
from medsd.strict import Strict, load_as, to_yaml

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of runs and comparisons: it becomes a folder


class EvaluationSettings(Strict):
    """How the test studies are measured."""

    bootstrap: int = Field(1000, ge=20, description="Resamples of the patients for each interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of the intervals.")
    operating_points: str = Field(
        "f1",
        pattern=r"^(youden|f1|(sensitivity|specificity):0\.\d+)$",
        description="How thresholds are chosen on validation: f1, youden, sensitivity:0.9 or specificity:0.9.",
    )
    minimum_positives: int = Field(10, ge=1, description="With fewer positives or negatives: no threshold, no figure.")
    calibration: str = Field(
        "by_size",
        pattern="^(by_size|platt)$",
        description="by_size: temperature, Platt or isotonic, by the number of validation cases; or platt.",
    )
    conformal: float = Field(
        0.9, gt=0, lt=1, description="Coverage at which conformal calls are measured; a bundle serves any."
    )
    subgroup_margin: float = Field(
        0.05, ge=0, lt=1, description="Warn of a group that is read worse than the others by more than this."
    )
    radiologists: Path | None = Field(
        None,
        description="Folder with radiologists' labels of NIH's images (rsna_class.csv, google4.csv), against which "
        "test images are measured; they never train.",
    )


class BundleSettings(Strict):
    """What is published at the end."""

    version: str = Field("1", description="Version of the bundle.")
    public: bool = Field(
        False,
        description="The data are public: keys of cases come from the bundle's name, so that --images finds them.",
    )
    thumbnails: bool = Field(False, description="Keep a picture of each case; only if the data's licence allows it.")
    note_excerpts: bool = Field(False, description="Keep the beginning of each case's note.")
    parity_studies: int = Field(200, ge=2, description="Test studies on which ONNX must agree with PyTorch.")
    precisions: list[Literal["float32", "float16", "int8"]] = Field(
        ["float32"],
        description="Precisions to publish: float32 always, the others only if they cost little (parity.json).",
    )
    quantisation_studies: int = Field(128, ge=2, description="Training studies that give the ranges of int8.")
    description: str = Field("", description="What the bundle is for, shown on its card.")
    licence: str = Field("", description="Licence of the data, shown on the card.")
    citation: str = Field("", description="How to cite the data, shown on the card.")


class Settings(Strict):
    """A whole configuration."""

    name: str = Field(pattern=NAME, description="Name of the run and of its bundle.")
    findings: str = Field(description="The finding set, a key of medsd.findings.FINDING_SETS.")
    seed: int = Field(0, description="Seed of the weights, the batches and the resamples.")
    output: Path = Field(Path("runs"), description="The run's folder is <output>/<name>.")
    data: Annotated[SingleSource | MergeSource, Field(discriminator="source", description="Where studies come from.")]
    splits: SplitSettings = Field(SplitSettings(), description="How patients are split.")
    gate: GatePolicy = Field(GatePolicy(), description="Which images are refused; see medsd.dicom.policy.")
    pixels: PixelSpec = Field(PixelSpec(), description="How images become pixels.")
    network: NetworkSettings = Field(NetworkSettings(), description="The encoders and the learned space.")
    loss: LossSettings = Field(LossSettings(), description="The contrastive loss.")
    training: TrainingSettings = Field(TrainingSettings(), description="The stages of training.")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="How the test studies are measured.")
    bundle: BundleSettings = Field(BundleSettings(), description="What is published.")

    @model_validator(mode="after")
    def _known_finding_set(self) -> Self:
        if self.findings not in FINDING_SETS:
            raise ValueError(
                f"findings: there is no finding set '{self.findings}'; medsd has {', '.join(FINDING_SETS)}"
            )
        return self

    @model_validator(mode="after")
    def _both_to_contrast(self) -> Self:
        if self.loss.cross_modal_weight and (self.network.image is None or self.network.note is None):
            raise ValueError("loss.cross_modal_weight: contrasts images with notes; give network.note, or set it to 0")
        return self

    @property
    def run_folder(self) -> Path:
        """Where this configuration keeps its work."""
        return self.output / self.name


class GateSettings(Strict):
    """What `medsd score`, `similar` and `app` take: the section `gate` alone, as a configuration has it."""

    gate: GatePolicy = Field(GatePolicy(), description="Which images are refused.")


def load_gate(path: Path | str | None, overrides: Sequence[str] = ()) -> GatePolicy:
    """The gate's policy for serving, from a YAML file with the section `gate`, or the defaults; see `load_settings`."""
    return load_as(GateSettings, path, overrides).gate


def load_settings(path: Path | str, overrides: Sequence[str] = ()) -> Settings:
    """Read a configuration, with overrides ``a.b=c`` applied in order.

    Raises:
        SettingsError: the file is missing or no YAML, or a key or a value does not fit.
    """
    return load_as(Settings, path, overrides)


def save_settings(settings: Settings, path: Path) -> None:
    """Write the resolved settings as YAML; `load_settings` reads them back equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(settings.model_dump(mode="json")), encoding="utf-8")
