"""The gate: every reason, and every real file by its expected outcome."""

import csv
import logging
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsd.dicom.appearance import Appearance
from medsd.dicom.gate import admit
from medsd.dicom.policy import REASONS, GatePolicy
from medsd.dicom.quiet import quiet
from medsd.preprocessing.pixels import to_pixels
from medsd.settings import PixelSpec

Build = Callable[..., bytes]

# What each file of the real folder must come to; cases.csv says the same in words.
EXPECTED = {
    "cr_chest_mono1_j2k_lossy.dcm": ("accepted", ""),
    "cr_chest_mono1_jpegls.dcm": ("accepted", ""),
    "cr_chest_mono2_jpeg.dcm": ("accepted", ""),
    "cr_chest_false_mono1.dcm": ("warned", "inverted_look"),
    "dx_nih_1.dcm": ("accepted", ""),
    "dx_nih_2.dcm": ("accepted", ""),
    "dx_nih_3.dcm": ("accepted", ""),
    "dx_nih_4.dcm": ("refused", "body_part"),
    "dx_nih_5.dcm": ("refused", "modality"),
    "dx_nih_6.dcm": ("accepted", ""),
    "dx_thorax_animal.dcm": ("refused", "not_human"),  # (0018,1400) speaks of a dog
    "rg_jpeg_extended_malformed.dcm": ("refused", "cannot_decode"),
    "rg_jpeg_extended.dcm": ("refused", "body_part"),
    "cr_no_pixels_japanese.dcm": ("refused", "no_pixels"),
    "not_dicom.dcm": ("refused", "not_dicom"),
    "xa_96_frames.dcm": ("refused", "modality"),
    "sc_rgb_big_endian.dcm": ("refused", "not_a_radiograph"),
    "ot_palette_face.dcm": ("refused", "not_a_radiograph"),
}


@pytest.fixture
def stored(chest: np.ndarray) -> np.ndarray:
    return np.rint(chest * 4095).astype(np.uint16)


@pytest.mark.parametrize("file", EXPECTED)
def test_every_real_file_ends_as_expected(data_root: Path, file: str, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        admission = admit(data_root / "dicom" / file)
    assert (admission.status, admission.reason) == EXPECTED[file]
    assert (admission.radiograph is None) == (admission.status == "refused")
    assert capfd.readouterr().err == ""


def test_the_expectations_cover_every_real_file(data_root: Path) -> None:
    with (data_root / "dicom" / "cases.csv").open(encoding="utf-8") as table:
        assert {row["file"] for row in csv.DictReader(table)} == set(EXPECTED)


def test_one_chest_in_two_encodings_gives_nearly_the_same_pixels(data_root: Path) -> None:
    images = [admit(data_root / "dicom" / f"cr_chest_mono1_{kind}.dcm").radiograph for kind in ("j2k_lossy", "jpegls")]
    squares = [to_pixels(image, PixelSpec(size=224)).astype(int) for image in images if image]
    assert np.abs(squares[0] - squares[1]).max() <= 2


def test_real_images_look_right_and_their_negatives_inverted(data_root: Path) -> None:
    paths = (
        sorted((data_root / "nih_cxr" / "images").iterdir())[::40]
        + sorted((data_root / "covid_pairs" / "images").iterdir())[::10]
    )
    for path in paths:
        image = admit(path).radiograph
        assert image is not None
        assert Appearance.of(image.pixels).likeness > 0, path.name
        assert Appearance.of(1 - image.pixels).likeness < 0, path.name


@pytest.mark.parametrize(
    ("elements", "status", "reason"),
    [
        ({}, "accepted", ""),
        ({"Modality": "MG"}, "refused", "modality"),
        ({"Modality": None}, "refused", "modality"),
        ({"BodyPartExamined": "SKULL"}, "refused", "body_part"),
        ({"BodyPartExamined": "CHEST ABDOMEN"}, "accepted", ""),
        ({"BodyPartExamined": None}, "accepted", ""),
        ({"ViewPosition": "LL"}, "refused", "view"),
        ({"ViewPosition": "RLD"}, "refused", "view"),
        ({"ViewPosition": None, "PatientOrientation": ["A", "F"]}, "refused", "view"),
        ({"ViewPosition": None, "PatientOrientation": ["L", "F"]}, "accepted", ""),
        ({"NumberOfFrames": 2}, "refused", "frames"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "warned", "for_processing"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "refused", "not_a_radiograph"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "warned", "inverted_look"),
        ({"Rows": 60000, "Columns": 60000}, "refused", "too_large"),
        ({"Rows": 20}, "refused", "too_small"),
        ({"PixelData": None}, "refused", "no_pixels"),
        ({"BitsStored": 33}, "refused", "cannot_decode"),
    ],
)
def test_each_header_comes_to_its_reason(
    build_dx: Build, stored: np.ndarray, elements: dict[str, object], status: str, reason: str
) -> None:
    admission = admit(build_dx(stored, 12, **elements), name="image")
    assert (admission.status, admission.reason) == (status, reason)
    assert admission.message.startswith("image: ") == bool(reason)


def test_a_flat_image_is_refused(build_dx: Build) -> None:
    assert admit(build_dx(np.full((96, 80), 7, dtype=np.uint8))).reason == "flat"


@pytest.mark.parametrize(("action", "status"), [("refuse", "refused"), ("warn", "warned"), ("accept", "accepted")])
def test_the_policy_decides(build_dx: Build, stored: np.ndarray, action: str, status: str) -> None:
    policy = GatePolicy(view=action)  # type: ignore[arg-type]
    assert admit(build_dx(stored, 12, ViewPosition="LATERAL"), policy).status == status


def test_a_message_names_every_reason_to_refuse(build_dx: Build, stored: np.ndarray) -> None:
    admission = admit(build_dx(stored, 12, Modality="XA", NumberOfFrames=3))
    assert admission.reason == "modality"
    assert "3 frames" in admission.message


def test_frames_and_sizes_are_refused_without_decoding(
    build_dx: Build, stored: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsd.dicom.read.pixel_array", lambda *_, **__: pytest.fail("decoded"))
    for elements in ({"NumberOfFrames": 96}, {"Modality": "XA"}, {"Rows": 60000, "Columns": 60000}):
        assert admit(build_dx(stored, 12, **elements)).status == "refused"


def test_header_values_that_are_no_known_words_are_not_repeated(build_dx: Build, stored: np.ndarray) -> None:
    admission = admit(build_dx(stored, 12, BodyPartExamined="DOE JANE", Modality="JANEDOE"))
    assert admission.status == "refused"
    assert "JANE" not in admission.message


def test_pydicoms_warnings_reach_neither_caller_nor_log(
    build_dx: Build, stored: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    content = build_dx(stored, 12).replace(b"061Y", b"?61?")
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        assert admit(content).status == "accepted"
    assert caplog.records == []


def test_quiet_leaves_warnings_as_they_were_though_threads_overlap() -> None:
    before = list(warnings.filters)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet():
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    with quiet():
        thread.start()
        inside.wait(5)
    leave.set()
    thread.join()
    assert list(warnings.filters) == before


def test_damaged_files_always_come_to_a_known_reason(build_dx: Build, stored: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    content = build_dx(stored, 12, WindowCenter=2000, WindowWidth=4000)
    for _ in range(300):
        mutated = bytearray(content)
        for place in rng.integers(0, 900, 8):
            mutated[place] = rng.integers(256)
        admission = admit(bytes(mutated))
        assert admission.reason in {"", *REASONS}


def test_likeness_changes_its_sign_with_the_negative(chest: np.ndarray) -> None:
    image = chest.astype(np.float32)
    assert Appearance.of(image).likeness > 0.5
    assert Appearance.of(1 - image).likeness == pytest.approx(-Appearance.of(image).likeness, abs=1e-4)
    assert Appearance.of(np.full((50, 50), 0.3, dtype=np.float32)).likeness == 0.0
