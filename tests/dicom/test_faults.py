"""Each file of the folder of inputs that went wrong comes out as its table says."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsd.inference.predict import Predictor

ROOT = Path(__file__).parents[2]
# Status, reason and words of the message; what is not refused must look like the picture beside the table.
EXPECTED = {
    "a01_voilut_12in16.dcm": ("warned", "odd_header", "greatest entry is 4095"),
    "c24_voilut_8in10.dcm": ("warned", "odd_header", "greatest entry is 255"),
    "a21_lutdescriptor_missing.dcm": ("warned", "odd_header", "(0028,3002)"),
    "d01_voilut_rescale_neg_implicit.dcm": ("scored", "", ""),
    "a19_rescale_minus10_nowindow.dcm": ("scored", "", ""),
    "c02_window_far_off.dcm": ("warned", "odd_header", "(0028,1050) Window Center 3174"),
    **{f"b{number:02}_body.dcm": ("scored", "", "") for number in (0, 1, 3, 4, 6, 11)},
    "v00_view.dcm": ("refused", "view", "is lateral by (0018,5101)"),
    "c36_modality_dr.dcm": ("scored", "", ""),
    "f04_jpeg_8in16.dcm": ("warned", "odd_header", "(0028,0100) Bits Allocated is 16"),
    "e09_jpeg8_says12.dcm": ("warned", "odd_header", "(0028,0101) Bits Stored is 12"),
    "e01_two_metas_jpegll.dcm": ("warned", "odd_header", "the pixel data are lossless JPEG"),
    "a12_encaps_native_ts.dcm": ("warned", "odd_header", "the pixel data are JPEG 2000"),
    "a26_rgb_grey.dcm": ("scored", "", ""),
    "a27_palette_grey.dcm": ("scored", "", ""),
    "a29_no_samples.dcm": ("warned", "odd_header", "(0028,0002)"),
    "a32_float_pixels.dcm": ("refused", "not_a_radiograph", "(7FE0,0008) Float Pixel Data"),
    "DICOMDIR": ("refused", "no_pixels", "Media Storage Directory"),
}


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder of faults: MEDSD_FAULTS, else ../shared/faults beside the repository; skips where it is absent."""
    root = Path(os.environ.get("MEDSD_FAULTS") or ROOT.parent / "shared" / "faults") / "dicom"
    if not root.is_dir():
        pytest.skip(f"no folder {root}; set MEDSD_FAULTS")
    return root


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(ROOT / "models" / "phantom", provider="cpu")


@pytest.mark.parametrize("file", EXPECTED)
def test_every_fault_comes_out_as_it_should(folder: Path, predictor: Predictor, file: str) -> None:
    status, reason, words = EXPECTED[file]
    prediction = predictor(folder / file)
    assert (prediction.status, prediction.reason) == (status, reason)
    assert words in prediction.message
    assert (prediction.image is None) == (status == "refused")
    if prediction.image is not None:
        truth = np.asarray(Image.open(folder / "truth.png").convert("L"), dtype=np.float64) / 255
        assert np.abs(prediction.image - truth).mean() <= 0.02


def test_the_expectations_cover_every_fault(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} - {"cases.csv", "truth.png"} == set(EXPECTED)
