"""Phantom images pass the gate that real images pass, and come out of it as they went in."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from medsd.dicom.appearance import Appearance
from medsd.dicom.header import read_header
from medsd.dicom.read import read_radiograph
from medsd.studies.phantom import generate_study, write_dicom


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_gate_admits_phantoms_without_a_concern(tmp_path: Path, photometric: str) -> None:
    for index in range(6):
        study = generate_study(index, size=256)
        write_dicom(study, tmp_path / "film.dcm", photometric=photometric)
        radiograph = read_radiograph(tmp_path / "film.dcm")
        assert not radiograph.concerns
        header = read_header(dcmread(tmp_path / "film.dcm"))
        assert (radiograph.view, header.sex, header.age_years) == (study.view, study.sex, study.age)
        np.testing.assert_allclose(radiograph.pixels, study.pixels, atol=1e-3)


def test_a_phantom_looks_like_a_chest() -> None:
    assert min(Appearance.of(generate_study(index, size=128).pixels).likeness for index in range(20)) > 0.4
