"""Burned-in text: what the header admits, what the detector sees on phantoms and images, what it may not say."""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont

from medsd.dicom import burned_in
from medsd.dicom.burned_in import assess, header_risk, look_for_text
from medsd.errors import DependencyError
from medsd.studies.phantom import generate_study
from tests.conftest import dx_dataset

pytest.importorskip("rapidocr", reason="the extra deid is not installed")

Grey = npt.NDArray[np.float32]
NAME = "MILLER ANNA 1958"


@pytest.fixture(scope="module")
def image() -> Grey:
    """A synthetic chest, 512 pixels; a side marker may stand on it."""
    return generate_study(7).pixels.astype(np.float32)


def written_on(image: Grey, text: str, at: tuple[int, int], size: int = 18, contrast: float = 0.6) -> Grey:
    """`image` with `text`, brighter than what it lies on or, where that is bright, darker."""
    mask = Image.new("L", (image.shape[1], image.shape[0]))
    ImageDraw.Draw(mask).text(at, text, fill=255, font=ImageFont.load_default(size=size))
    share = np.asarray(mask, dtype=np.float32) / 255
    under = float(image[share > 0.5].mean())
    level = under + contrast if under < 0.5 else under - contrast
    return np.clip(image * (1 - share) + level * share, 0, 1).astype(np.float32)


def stored(image: Grey) -> npt.NDArray[np.uint16]:
    return np.rint(image * 4095).astype(np.uint16)


def test_nothing_is_seen_on_a_phantom_as_it_is(image: Grey) -> None:
    assert look_for_text(image) == ()


@pytest.mark.parametrize(("at", "size", "contrast"), [((10, 8), 12, 0.9), ((180, 480), 18, 0.6), ((120, 220), 24, 0.4)])
def test_a_name_is_found_where_it_stands(image: Grey, at: tuple[int, int], size: int, contrast: float) -> None:
    boxes = look_for_text(written_on(image, NAME, at, size, contrast))
    assert any(
        left < at[0] + 4 * size and right > at[0] + 2 * size and top < at[1] + size and bottom > at[1] + size / 3
        for left, top, right, bottom in boxes
    )


@pytest.mark.parametrize("marker", ["L", "R", "PORTABLE", "AP ERECT"])
def test_side_markers_and_technical_words_do_not_count(image: Grey, marker: str) -> None:
    assert look_for_text(written_on(image, marker, (30, 30), 28, 0.8)) == ()


@pytest.mark.parametrize(
    ("text", "score", "shape", "counts"),
    [
        ("L", 0.9, 1.0, False),
        ("PORTASLE", 0.8, 3.2, False),  # misread in one letter
        ("AP PORTABLE MILLER", 0.9, 6.0, True),
        ("???", 0.1, 5.0, True),  # unreadable, but as long as a line of text
        ("?", 0.1, 1.0, False),
    ],
)
def test_what_counts_as_text_that_may_name_somebody(text: str, score: float, shape: float, counts: bool) -> None:
    assert burned_in._names_somebody(text, score, shape) is counts


def test_text_outside_of_the_window_is_found(image: Grey) -> None:
    values = stored(image * 0.2 + 0.7)
    values[:60] = stored(written_on(np.zeros_like(image), NAME, (150, 20), 20, 0.2))[:60]
    ds = dx_dataset(values, 12, WindowCenter=3300, WindowWidth=900)  # which makes the strip black, text and all
    assert assess(ds).answer == "found"


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, ""),
        ({"BurnedInAnnotation": "NO"}, ""),
        ({"BurnedInAnnotation": "YES"}, "is YES"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"ConversionType": "DF"}, "digitised"),
        ({"Modality": "US"}, "modality"),
    ],
)
def test_the_header_tells_which_pictures_to_suspect(elements: dict[str, str], expected: str, image: Grey) -> None:
    risk = header_risk(dx_dataset(stored(image), 12, **elements))
    assert expected in risk and bool(risk) == bool(expected)


@pytest.mark.parametrize(
    ("elements", "answer"),
    [({}, "none_seen"), ({"BurnedInAnnotation": "YES"}, "found"), ({"ConversionType": "DF"}, "unknown")],
)
def test_header_and_detector_together_give_three_answers(elements: dict[str, str], answer: str, image: Grey) -> None:
    known = assess(dx_dataset(stored(image), 12, **elements))
    assert known.answer == answer and "clean" not in known.message
    if answer == "none_seen":
        assert "may have missed" in known.message


def test_what_cannot_be_decoded_is_unknown(image: Grey) -> None:
    ds = dx_dataset(stored(image), 12, BurnedInAnnotation="NO")
    ds.PixelData = ds.PixelData[:100]
    assert assess(ds).answer == "unknown"


def test_frames_that_were_not_looked_at_are_unknown() -> None:
    ds = dx_dataset(np.zeros((64, 64), np.uint16), 12, NumberOfFrames=40)
    ds.PixelData = ds.PixelData * 40
    known = assess(ds)
    assert known.answer == "unknown" and "4 of 40 frames" in known.message


def test_without_the_detector_nothing_is_claimed(image: Grey, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise DependencyError("not here")

    monkeypatch.setattr(burned_in, "_reader", absent)
    known = assess(dx_dataset(stored(image), 12))
    assert known.answer == "unknown" and "medsd[deid]" in known.message


def test_what_is_read_is_neither_kept_nor_logged(image: Grey, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        known = assess(dx_dataset(stored(written_on(image, NAME, (150, 20), 20)), 12))
    assert known.answer == "found"
    assert "MILLER" not in repr(known).upper() and "MILLER" not in caplog.text.upper()


def test_names_on_real_images_are_found_and_images_as_they_are_mostly_pass(data_root: Path) -> None:
    paths = sorted((data_root / "nih_cxr").rglob("*.png"))[100::600]
    images = [np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255 for path in paths]
    alarms = sum(bool(look_for_text(image)) for image in images)
    found = sum(bool(look_for_text(written_on(image, "DOE JANE", (110, 290), 12, 0.8))) for image in images)
    assert found == len(images) and alarms <= 1
