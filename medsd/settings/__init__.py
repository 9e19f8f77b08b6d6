"""The settings models of configs/*.yaml: every key, its meaning and its default in one place.

`load_settings` reads a YAML file, applies ``--set a.b=c`` overrides and returns a `Settings`. Models are strict: an
unknown key or a wrong type is a `SettingsError` that names the file, the line, the key and the nearest valid key. YAML
is read with the safe loader; nothing in a configuration names code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

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

__all__ = [
    "AugmentSettings",
    "BundleSettings",
    "CheXpertPlusSource",
    "CheXpertSource",
    "Cmc2007Source",
    "CovidSource",
    "CsvColumns",
    "CsvSource",
    "DicomSource",
    "EvaluationSettings",
    "FinetuneSettings",
    "GateSettings",
    "ImageSettings",
    "LossSettings",
    "MergeSource",
    "MimicSource",
    "NetworkSettings",
    "Nih14Source",
    "NoteSettings",
    "ObjectiveSettings",
    "OpeniSource",
    "PadChestSource",
    "PhantomSource",
    "PixelSpec",
    "PseudoLabelSettings",
    "Settings",
    "SplitSettings",
    "StageSettings",
    "TrainingSettings",
    "VindrSource",
    "load_gate",
    "load_settings",
    "save_settings",
]


class EvaluationSettings(Strict):
    """How the test split is measured."""

    bootstrap: int = Field(1000, ge=20, description="patient-level resamples of each interval")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    operating_points: str = Field(
        "f1",
        pattern=r"^(youden|f1|(sensitivity|specificity):0\.\d+)$",
        description="how thresholds are chosen on validation: f1, youden, sensitivity:0.9 or specificity:0.9",
    )
    minimum_positives: int = Field(10, ge=1, description="fewer positives or negatives than this: too few to tell")
    calibration: str = Field(
        "by_size",
        pattern="^(by_size|platt)$",
        description="by_size: temperature, Platt or isotonic, by the validation cases of each finding; or platt",
    )
    conformal: float = Field(
        0.9, gt=0, lt=1, description="coverage at which conformal calls are measured; a bundle serves any"
    )
    subgroup_margin: float = Field(
        0.05, ge=0, lt=1, description="a group that reads worse than the others by more is warned of"
    )
    radiologists: Path | None = Field(
        None,
        description="folder with radiologists' labels of NIH's images (rsna_class.csv, google4.csv), which test images "
        "are measured against; they never train",
    )


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
    parity_studies: int = Field(200, ge=2, description="test studies on which ONNX must agree with PyTorch")
    precisions: list[Literal["float32", "float16", "int8"]] = Field(
        ["float32"],
        description="graphs to put in; float32 always is, the others only if they cost little (parity.json)",
    )
    quantisation_studies: int = Field(128, ge=2, description="training studies that the ranges of int8 are taken from")
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

    @model_validator(mode="after")
    def _both_to_contrast(self) -> Settings:
        if self.loss.cross_modal_weight and (self.network.image is None or self.network.note is None):
            raise ValueError("loss.cross_modal_weight: contrasts images with notes; give network.note, or set it to 0")
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
    path.write_text(to_yaml(settings.model_dump(mode="json")), encoding="utf-8")
