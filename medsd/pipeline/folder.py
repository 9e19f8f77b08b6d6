"""The folder of a run: where each step keeps what it made."""

from typing import Any

from medsd.calibration.conformal import CONFORMAL
from medsd.calibration.types import Calibration, CalibrationChoice, OperatingPoint
from medsd.errors import DataError
from medsd.settings import Settings
from medsd.strict import Described, read_json


class FittedCalls(Described):
    """What turns logits into probabilities and calls, by finding, as calibration.json keeps it."""

    calibration: dict[str, Calibration]
    choices: dict[str, CalibrationChoice]
    operating_points: dict[str, OperatingPoint]


class Run:
    """The folder of a run and the files in it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.run_folder
        self.manifest = self.folder / "studies.parquet"
        self.rejected = self.folder / "rejected.csv"  # rows of the source that are in no manifest, and why
        self.pixels = self.folder / "pixels.npy"
        self.tokenizer = self.folder / "tokenizer.json"
        self.history = self.folder / "history.json"
        self.pretrained = self.folder / "pretrain.safetensors"
        self.model = self.folder / "model.safetensors"  # of fine-tuning
        self.outputs = self.folder / "outputs.safetensors"  # logits and embeddings of every study
        self.calibration = self.folder / "calibration.json"
        self.conformal = self.folder / CONFORMAL
        self.evidence_head = self.folder / "evidence_head.safetensors"
        self.evaluation = self.folder / "evaluation.json"
        self.bundle = self.folder / "bundle"

    def read_calls(self) -> FittedCalls:
        """What `calibrate` chose; a missing or damaged file is a DataError."""
        try:
            return FittedCalls.model_validate(read_json(self.calibration.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise DataError(f"{self.calibration}: missing or damaged; run `medsd calibrate` again") from None


def public_settings(settings: Settings) -> dict[str, Any]:
    """The settings without private ones: where files lie on this machine, and which server keeps curves."""
    config: dict[str, Any] = settings.model_dump(mode="json")
    config.pop("output")
    config["training"].pop("mlflow")
    config["evaluation"].pop("radiologists")
    for source in (config["data"], *config["data"].get("sources", ())):
        source.pop("root", None)  # a merge has none of its own
    return config
