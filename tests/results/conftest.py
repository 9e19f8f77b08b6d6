"""The fifty readings, and the validators of DICOM, which Debian has."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import Dataset

from medsd.inference.predict import Predictor
from tests.results.varied import Reading, readings

pytest.importorskip("highdicom", reason="the extra pacs is not installed")
Check = Callable[[Dataset, str], list[str]]


@pytest.fixture(scope="session")
def fifty(predictor: Predictor, fused: Predictor, chest: npt.NDArray[np.float64]) -> list[Reading]:
    found = list(readings(predictor, chest, fused))
    assert len(found) == 50
    return found


@pytest.fixture(scope="session")
def messages(fifty: list[Reading]) -> dict[int, bytes]:
    """The HL7 message of every third of the fifty whose image names a patient, by number; hl7apy takes its time."""
    hl7 = pytest.importorskip("medsd.results.hl7", reason="the extra pacs is not installed")
    made = {
        number: hl7.message(reading.result, reading.source) for number, reading in enumerate(fifty) if number % 3 == 0
    }
    return {number: message for number, message in made.items() if message is not None}


@pytest.fixture
def dciodvfy(tmp_path: Path) -> Check:
    """The errors that David Clunie's validator has for an object."""
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")

    def check(document: Dataset, name: str = "object") -> list[str]:
        path = tmp_path / f"{name}.dcm"
        document.save_as(path, enforce_file_format=True)
        told = subprocess.run(["dciodvfy", path], capture_output=True, text=True, errors="replace").stderr
        return re.findall(r"^Error.*$", told, re.MULTILINE)

    return check


@pytest.fixture
def dsr2html(tmp_path: Path) -> Callable[[Dataset], str]:
    """A report as dcmtk shows it."""
    if not shutil.which("dsr2html"):
        pytest.skip("dsr2html is not installed: apt-get install dcmtk")

    def show(document: Dataset) -> str:
        path, page = tmp_path / "report.dcm", tmp_path / "report.html"
        document.save_as(path, enforce_file_format=True)
        subprocess.run(["dsr2html", path, page], check=True, capture_output=True)
        return page.read_text(encoding="utf-8", errors="replace")

    return show
