"""The folder of a run: where each step keeps what it made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsd.bundle.layout import OperatingPoint, PlattCalibration
from medsd.errors import DataError
from medsd.settings import Settings


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
    def evaluation(self) -> Path:
        return self.folder / "evaluation.json"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    def read_calibration(self) -> tuple[dict[str, PlattCalibration], dict[str, OperatingPoint]]:
        """What `calibrate` chose, by finding.

        Raises:
            DataError: the file is missing or damaged.
        """
        try:
            tree = json.loads(self.calibration.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(f"{self.calibration}: missing or damaged; run `medsd calibrate` again") from None
        calibration = {name: PlattCalibration(**value) for name, value in tree["calibration"].items()}
        return calibration, {name: OperatingPoint(**value) for name, value in tree["operating_points"].items()}


def public_settings(settings: Settings) -> dict[str, Any]:
    """The settings without what is nobody's business: where files lie on one machine, and which server keeps curves."""
    config: dict[str, Any] = settings.model_dump(mode="json")
    config.pop("output")
    config["training"].pop("mlflow")
    for source in (config["data"], *config["data"].get("sources", ())):
        source.pop("root", None)  # a merge has none of its own
    return config
