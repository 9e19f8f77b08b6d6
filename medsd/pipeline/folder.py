"""The folder of a run: where each step keeps what it made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from medsd.calibration.conformal import CONFORMAL, ConformalScores, read_conformal
from medsd.calibration.types import Calibration, CalibrationChoice, OperatingPoint
from medsd.errors import DataError
from medsd.settings import Settings
from medsd.strict import read_json

_CALIBRATION: TypeAdapter[dict[str, Calibration]] = TypeAdapter(dict[str, Calibration])


@dataclass(frozen=True)
class Run:
    """The folder of a run and the files in it."""

    settings: Settings

    @property
    def folder(self) -> Path:
        return self.settings.run_folder

    @property
    def manifest(self) -> Path:
        return self.folder / "studies.parquet"

    @property
    def rejected(self) -> Path:
        """Rows of the source that are in no manifest, and why."""
        return self.folder / "rejected.csv"

    @property
    def pixels(self) -> Path:
        return self.folder / "pixels.npy"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def model(self) -> Path:
        """Weights of the fine-tuned model."""
        return self.folder / "model.safetensors"

    @property
    def outputs(self) -> Path:
        """Logits and embeddings of every study."""
        return self.folder / "outputs.safetensors"

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.json"

    @property
    def evidence_head(self) -> Path:
        """What draws the evidence maps; of a model of images."""
        return self.folder / "evidence_head.safetensors"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.json"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def conformal(self) -> Path:
        return self.folder / CONFORMAL

    def read_calibration(self) -> tuple[dict[str, Calibration], dict[str, OperatingPoint]]:
        """What `calibrate` chose, by finding.

        Raises:
            DataError: the file is missing or damaged.
        """
        tree = self._calibration_tree()
        calibration = _CALIBRATION.validate_python(tree["calibration"])
        return calibration, {name: OperatingPoint(**value) for name, value in tree["operating_points"].items()}

    def read_choices(self) -> dict[str, CalibrationChoice]:
        """Which calibration each finding has, and why; empty in a run of before there was a choice.

        Raises:
            DataError: the file is missing or damaged.
        """
        found = self._calibration_tree().get("choices", {})
        return {name: CalibrationChoice(**value) for name, value in found.items()}

    def read_conformal(self) -> dict[str, ConformalScores] | None:
        """The conformal scores of each finding; None in a run of before there were any."""
        return read_conformal(self.conformal) if self.conformal.exists() else None

    def _calibration_tree(self) -> dict[str, Any]:
        try:
            tree: dict[str, Any] = read_json(self.calibration.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(f"{self.calibration}: missing or damaged; run `medsd calibrate` again") from None
        return tree


def public_settings(settings: Settings) -> dict[str, Any]:
    """The settings without what is nobody's business: where files lie on one machine, and which server keeps curves."""
    config: dict[str, Any] = settings.model_dump(mode="json")
    config.pop("output")
    config["training"].pop("mlflow")
    config["evaluation"].pop("radiologists")
    for source in (config["data"], *config["data"].get("sources", ())):
        source.pop("root", None)  # a merge has none of its own
    return config
