"""What readers say of a model's calls, kept in a folder as a labelled table that `medsd train` reads.

The folder holds `opinions.csv`, to which each opinion is appended as a line; `images/`, the images that somebody gave
an opinion on; `studies.csv`, a row for each image and a column for each finding; and `train.yaml`, a configuration that
trains on it. Where readers contradict each other, a finding is uncertain (−1). Images are pixels without a header;
studies, patients and readers are keyed hashes. Several processes may write at once.
"""

import csv
import hashlib
import io
import os
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image

from medsd.errors import DataError
from medsd.files import replacing
from medsd.findings import FINDING_SETS, FindingSet
from medsd.inference.prediction import Prediction
from medsd.privacy import KeyedHasher
from medsd.scoring.table import write_table

Opinion = Literal["present", "absent"]
WITHDRAWN = "withdrawn"  # stands in the place of an opinion that was taken back

OPINIONS, STUDIES, IMAGES, CONFIG = "opinions.csv", "studies.csv", "images", "train.yaml"
_FIELDS = ("time", "reader", "image", "patient", "finding", "opinion", "call", "probability", "model_sha256")
_LABELS = {"present": 1, "absent": 0}
_CONTRADICTED = -1  # "uncertain" of `medsd.studies.sources.csv`
_LOCK = ".lock"


@dataclass(frozen=True)
class FeedbackFolder:
    """The folder, made if it is missing, and the secret that its keys are made with; DataError if it cannot be made."""

    root: Path
    hasher: KeyedHasher  # of this user or site; never that of a public bundle, whose key everybody has

    def __post_init__(self) -> None:
        try:
            (self.root / IMAGES).mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.root / _LOCK).touch(mode=0o600)
        except OSError as error:
            raise DataError(f"{self.root}: feedback cannot be kept here ({error.strerror}); give another") from None

    def add(self, prediction: Prediction, finding: str, opinion: Opinion | None, *, reader: str = "") -> None:
        """Keep one opinion; a later one of the same reader on the same finding of the same image takes its place.

        None takes it back; an image of which nobody says anything any more is deleted. The prediction's image is kept
        without anything of its header; of the reader only a keyed hash. Raises DataError: there is no image, no such
        finding, or the folder cannot be written.
        """
        if finding not in prediction.findings.names:
            raise DataError(f"feedback: '{finding}' is not a finding of {prediction.findings.key}")
        if prediction.image is None or prediction.refused:
            raise DataError("feedback is kept with its image, and no image was read")
        probability = prediction.probabilities.get(finding)
        image = self._image_key(prediction.image)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "reader": self._key("reader", reader),
            "image": f"{IMAGES}/{image}.png",
            # Hashed again: a folder that is handed on cannot be joined with the tables of `medsd score`.
            "patient": self._key("feedback patient", prediction.patient_key or image),
            "finding": finding,
            "opinion": opinion or WITHDRAWN,
            "call": prediction.said(finding),
            "probability": "" if probability is None else f"{probability:.6f}",
            "model_sha256": prediction.model_sha256,
        }
        try:
            with FileLock(self.root / _LOCK, mode=0o600):
                if not (self.root / line["image"]).exists():
                    pixels = np.rint(prediction.image.clip(0, 1) * 255).astype(np.uint8)
                    with replacing(self.root / line["image"]) as draft:  # without anything else in the file
                        Image.fromarray(pixels).save(draft, "PNG")
                self._append(line)
                rows = labelled(self.root / OPINIONS, prediction.findings)
                write_table(self.root / STUDIES, rows, ["image", "patient", *prediction.findings])
                if all(row["image"] != line["image"] for row in rows):
                    (self.root / line["image"]).unlink(missing_ok=True)
                if not (self.root / CONFIG).exists():
                    (self.root / CONFIG).write_text(_configuration(self.root, prediction.findings), encoding="utf-8")
        except OSError as error:
            raise DataError(f"{self.root}: feedback could not be kept ({error.strerror})") from None

    def opinions_on(self, prediction: Prediction) -> list[dict[str, str]]:
        """The lines on this prediction's image and model, the latest of each reader on each finding."""
        if prediction.image is None or not (self.root / OPINIONS).exists():
            return []
        image = f"{IMAGES}/{self._image_key(prediction.image)}.png"
        found = {
            (line["finding"], line["reader"]): line
            for line in _lines(self.root / OPINIONS)
            if line["image"] == image and line["model_sha256"] == prediction.model_sha256
        }
        return [line for line in found.values() if line["opinion"] != WITHDRAWN]

    def _image_key(self, image: npt.NDArray[np.float32]) -> str:
        # A study may have several images, and a plain picture names no study: the pixels name themselves.
        return self._key("image", hashlib.sha256(image.tobytes()).hexdigest())

    def _key(self, domain: str, value: str) -> str:
        return self.hasher.digest(domain, value).hex()[:16] if value else ""

    def _append(self, line: dict[str, str]) -> None:
        """One write of whole lines at the end; what stands there is never touched."""
        path = self.root / OPINIONS
        text = io.StringIO()
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            text.write("\n")  # the last line of a process that was killed is short, and must not spoil this one
        writer = csv.DictWriter(text, _FIELDS, lineterminator="\n")
        if not path.exists():
            writer.writeheader()
        writer.writerow(line)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            file.write(text.getvalue().encode())
            os.fsync(file.fileno())


def _lines(opinions: Path) -> list[dict[str, str]]:
    try:
        with opinions.open(newline="", encoding="utf-8") as file:
            # the last line of a process that was killed may be short
            return [line for line in csv.DictReader(file) if line["opinion"] in (*_LABELS, WITHDRAWN)]
    except (OSError, KeyError) as error:
        raise DataError(f"{opinions}: cannot be read as opinions ({type(error).__name__})") from None


def labelled(opinions: Path, findings: FindingSet) -> list[dict[str, object]]:
    """A row an image with an opinion: 1 present, 0 absent, −1 where readers contradict each other, else empty."""
    said: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    patients: dict[str, str] = {}
    for line in _lines(opinions):
        about = said[line["image"], line["finding"]]
        patients[line["image"]] = line["patient"]
        if line["opinion"] == WITHDRAWN:
            about.pop(line["reader"], None)
        else:
            about[line["reader"]] = _LABELS[line["opinion"]]
    rows = []
    for image, patient in patients.items():
        row: dict[str, object] = {"image": image, "patient": patient}
        for name in findings:
            labels = set(said.get((image, name), {}).values())
            row[name] = "" if not labels else labels.pop() if len(labels) == 1 else _CONTRADICTED
        if any(row[name] != "" for name in findings):
            rows.append(row)
    return rows


def _configuration(root: Path, findings: FindingSet) -> str:
    # A bundle may bring a vocabulary of its own; the nearest that ships is then for the user to choose.
    key = findings.key if findings.key in FINDING_SETS else "nih14"
    return (
        "# What readers said of a model's calls. All keys are explained in configs/own.yaml and medsd/settings.\n"
        "#   medsd train train.yaml --set data.root=THIS_FOLDER\n"
        f"name: feedback\nfindings: {key}\n"
        f'data:\n  source: csv\n  root: "{root.absolute().as_posix()}"\n  table: {STUDIES}\n  name: feedback\n'
        "  columns: {image: image, patient: patient}\n  uncertain: unknown  # -1: readers contradicted each other\n"
    )
