"""Every reason code has a file that leads to it, and a row in the table of the gate with its sentence and default."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsd.dicom.gate import admit
from medsd.dicom.policy import REASONS, GatePolicy
from medsd.settings import load_gate
from tests.dicom.drawings import lateral_image, noise_image

ROOT = Path(__file__).parents[2]
Build = Callable[..., bytes]

# Header elements that lead to a reason, with the action of the policy where that is not the default.
BY_HEADER: dict[str, dict[str, object]] = {
    "no_pixels": {"PixelData": None},
    "cannot_decode": {"BitsStored": 33},
    "not_a_radiograph": {"PhotometricInterpretation": "PALETTE COLOR"},
    "modality": {"Modality": "MG"},
    "body_part": {"BodyPartExamined": "SKULL"},
    "view": {"ViewPosition": "LL"},
    "not_human": {"PatientSpeciesDescription": "Felis catus"},
    "frames": {"NumberOfFrames": 2},
    "too_small": {"Rows": 20},
    "too_large": {"Rows": 60000, "Columns": 60000},
    "odd_header": {"SamplesPerPixel": None},
    "for_processing": {"PresentationIntentType": "FOR PROCESSING"},
    "burned_in": {"BurnedInAnnotation": "YES"},
    "inverted_look": {"PhotometricInterpretation": "MONOCHROME1"},
}
# What comes of running a model and of helper processes is tested there, by the same codes.
IN_INFERENCE = ("out_of_distribution", "no_image", "no_note", "model_failed", "too_slow")


def png(pixels: np.ndarray, mode: str = "L", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray((pixels * 255).astype(np.uint8)).convert(mode).save(stream, "PNG", exif=exif)
    return stream.getvalue()


BY_CONTENT: dict[str, bytes] = {
    "not_dicom": b"no image at all",
    "not_an_image": b"%PDF-1.7",
    "not_a_chest": png(noise_image(5)),
    "view": png(lateral_image(1000)),
    "flat": png(np.full((96, 80), 0.4)),
}


def image(build_dx: Build, chest: np.ndarray, reason: str) -> bytes:
    return build_dx(np.rint(chest * 4095).astype(np.uint16), 12, **BY_HEADER[reason])


@pytest.mark.parametrize("reason", BY_HEADER)
def test_a_header_leads_to_its_reason(build_dx: Build, chest: np.ndarray, reason: str) -> None:
    policy = GatePolicy.model_validate({reason: "refuse"} if reason in GatePolicy.model_fields else {})
    admission = admit(image(build_dx, chest, reason), policy)
    assert (admission.status, admission.reason) == ("refused", reason)


@pytest.mark.parametrize(
    "reason",
    ["modality", "body_part", "view", "not_human", "odd_header", "for_processing", "burned_in", "inverted_look"],
)
@pytest.mark.parametrize(("action", "status", "said"), [("warn", "warned", True), ("accept", "accepted", False)])
def test_the_policy_decides_what_comes_of_it(
    build_dx: Build, chest: np.ndarray, reason: str, action: str, status: str, said: bool
) -> None:
    admission = admit(image(build_dx, chest, reason), GatePolicy.model_validate({reason: action}))
    assert (admission.status, admission.reason) == (status, reason if said else "")


@pytest.mark.parametrize("reason", BY_CONTENT)
def test_a_picture_leads_to_its_reason(reason: str) -> None:
    assert admit(BY_CONTENT[reason]).reason == reason


def test_a_picture_that_is_stored_turned_leads_to_its_reason(chest: np.ndarray) -> None:
    assert admit(png(chest[::-1, ::-1], orientation=3)).reason == "turned"


def test_a_file_that_is_not_there_leads_to_its_reason(tmp_path: Path) -> None:
    assert admit(tmp_path / "none.dcm").reason == "file_error"


def test_every_reason_is_tested() -> None:
    assert {*BY_HEADER, *BY_CONTENT, "file_error", "turned", *IN_INFERENCE} == set(REASONS)
    rooms = [ROOT / "tests" / room for room in ("inference", "preprocessing", "scoring")]
    tests = "".join(path.read_text(encoding="utf-8") for room in rooms for path in room.glob("test_*.py"))
    assert [reason for reason in IN_INFERENCE if f'"{reason}"' not in tests] == []


def test_the_shipped_policy_spells_out_the_defaults() -> None:
    text = (ROOT / "configs" / "gate" / "default.yaml").read_text(encoding="utf-8")
    assert load_gate(ROOT / "configs" / "gate" / "default.yaml") == GatePolicy()
    assert [name for name in GatePolicy.model_fields if f"\n  {name}:" not in text] == []
