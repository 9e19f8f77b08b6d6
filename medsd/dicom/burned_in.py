"""Text burned into pixels: what the header admits, and what a text detector sees. No image is ever called clean.

Detector and reader are PP-OCR's (Apache-2.0) as the package rapidocr ships them (extra ``deid``), run by medsd's own
ONNX Runtime; nothing is downloaded. What is read serves to tell a marker from other text, and is neither kept nor
logged.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset
from pydicom.pixels import pixel_array

from medsd.dicom.decoders import decoder_of
from medsd.dicom.header import identifier
from medsd.dicom.pixels import present
from medsd.dicom.quiet import quiet
from medsd.dicom.terms import words_listed
from medsd.errors import DependencyError
from medsd.telemetry import import_onnxruntime

Answer = Literal["found", "none_seen", "unknown"]
Box = tuple[int, int, int, int]

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and the multi-frame classes below it
_FEW = 2  # letters of a side marker with its technician's sign, at most
_MAX_SIDE = 1600  # pixels; larger images are scaled down, text of a given share of the image stays readable
_MIN_SIDE = 960  # smaller ones are enlarged, the detector wants letters of about ten pixels
_MIN_SCORE = 0.5  # below it the reader is guessing, and the box counts by its shape alone
_UNREADABLE_SHAPE = 2.5  # width by height from which an unreadable box is a line of text, not a marker
_SQUARE = (0.67, 1.2)  # width by height between which no line of text lies
_LONG, _ALIKE = 7, 0.85  # letters and similarity from which a technical word may be misread in one letter
_HIDDEN = 0.02  # share of pixels at black or white from which text may lie outside of the window
_MAX_FRAMES = 4
_MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class BurnedIn:
    """What is known about text in the pixels of one object."""

    answer: Answer  # "none_seen" does not mean that there is none
    message: str  # the sentence for a person
    boxes: tuple[Box, ...] = ()  # where the detector saw text, on the first frame that has some


def header_risk(ds: Dataset) -> str:
    """Why the header lets one expect burned-in text; "" if it does not."""
    if identifier(ds, "BurnedInAnnotation").upper() == "YES":
        return "(0028,0301) Burned In Annotation is YES"
    if f"{identifier(ds, 'SOPClassUID')}.".startswith(f"{_SECONDARY_CAPTURE}."):
        return "it is a secondary capture"
    if identifier(ds, "ConversionType"):
        return "(0008,0064) Conversion Type says that it was digitised, scanned or drawn"
    if identifier(ds, "Modality").upper() in words_listed("risky_modalities"):
        return "devices of its modality write on the picture"
    return ""


def assess(ds: Dataset) -> BurnedIn:
    """Header and pixels of `ds` together; decodes up to four frames, looks inside and outside of the window.

    The answer is "none_seen" only if every frame was looked at and the header gives no reason to expect text.
    """
    risk = header_risk(ds)
    declared = risk.startswith("(0028,0301)")
    seen, gap = _look_at(ds)
    if seen or declared:
        where = f"text was seen in {len(seen)} places" if seen else f"{risk}; the detector saw no text"
        return BurnedIn("found", f"text in the picture may name the patient: {where}.", seen)
    if gap or risk:
        return BurnedIn(
            "unknown", f"whether the picture holds text is unknown: {gap or f'{risk}, though none was seen'}."
        )
    return BurnedIn("none_seen", "the detector saw no text in the picture; it may have missed some.")


def look_for_text(pixels: npt.NDArray[np.floating]) -> tuple[Box, ...]:
    """Boxes (left, top, right, bottom) of text that may name somebody, in a picture (H, W) with values in 0…1.

    A box counts if it holds three letters or digits or more beside technical words (PORTABLE), or if it is unreadable
    and as long as a line of text. Raises DependencyError: rapidocr is not installed.
    """
    grey = np.clip(pixels * 255.0, 0, 255).astype(np.uint8)
    image, scale = _fitted(grey)
    read = _reader()(np.repeat(np.asarray(image)[:, :, None], 3, axis=2))
    parts = (() if part is None else part for part in (read.boxes, read.txts, read.scores))
    found: list[Box] = []
    for corners, text, score in zip(*parts, strict=True):
        left, top, right, bottom = (float(edge) for edge in (*corners.min(axis=0), *corners.max(axis=0)))
        if _names_somebody(text, float(score), (right - left) / max(bottom - top, 1.0)):
            found.append((round(left / scale), round(top / scale), round(right / scale), round(bottom / scale)))
    return tuple(found)


def _names_somebody(text: str, score: float, shape: float) -> bool:
    if score < _MIN_SCORE:
        return shape >= _UNREADABLE_SHAPE
    if _SQUARE[0] < shape < _SQUARE[1]:  # three letters do not fit: a ring, an electrode, a marker in a frame
        return False
    known = words_listed("marker_words")  # technical; in the longer ones a letter may be misread
    words = [
        word
        for word in re.findall(r"\w+", text.upper())
        if word not in known and not (len(word) >= _LONG and difflib.get_close_matches(word, known, 1, cutoff=_ALIKE))
    ]
    return sum(map(len, words)) > _FEW


def _fitted(grey: npt.NDArray[np.uint8]) -> tuple[Image.Image, float]:
    """The picture at a size that the detector reads well, and by how much it was scaled."""
    longest = max(grey.shape)
    scale = _MAX_SIDE / longest if longest > _MAX_SIDE else max(1.0, _MIN_SIDE / longest)
    size = (max(32, round(grey.shape[1] * scale)), max(32, round(grey.shape[0] * scale)))
    return Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR), scale


def _look_at(ds: Dataset) -> tuple[tuple[Box, ...], str]:
    """Boxes on the first frame that has some, and why the look was incomplete, if it was."""
    try:
        frames = max(1, int(ds.get("NumberOfFrames") or 1))
        if int(ds.Rows) * int(ds.Columns) > _MAX_PIXELS:
            return (), "it is too large to be looked at"
        for grey in _grey_frames(ds, frames):
            if seen := look_for_text(grey):
                return seen, ""
    except DependencyError:
        return (), "the detector is not installed (pip install 'medsd[deid]')"
    except Exception as error:  # decoders and the detector are foreign code fed with foreign bytes
        return (), f"the pixels cannot be decoded ({type(error).__name__})"
    return (), "" if frames <= _MAX_FRAMES else f"{_MAX_FRAMES} of {frames} frames were looked at"


def _grey_frames(ds: Dataset, frames: int) -> Iterator[npt.NDArray[np.floating]]:
    chosen = sorted({round(index) for index in np.linspace(0, frames - 1, min(frames, _MAX_FRAMES))})
    for index in chosen:
        with quiet():
            stored = pixel_array(ds, index=index, decoding_plugin=decoder_of(ds.file_meta.TransferSyntaxUID))
            if stored.ndim == 2 and identifier(ds, "PhotometricInterpretation").startswith("MONOCHROME"):
                yield from _as_shown_and_beyond(stored, present(stored, ds))
            else:  # colour, or indices of a palette, which keep the outlines of letters
                grey = (stored.mean(axis=-1) if stored.ndim == 3 else stored).astype(np.float32)
                yield (grey - grey.min()) / max(float(np.ptp(grey)), 1.0)


def _as_shown_and_beyond(
    stored: npt.NDArray[np.integer], shown: npt.NDArray[np.float32]
) -> Iterator[npt.NDArray[np.floating]]:
    """The picture as its window shows it, and what lies where the window makes much black or white."""
    yield shown
    for hidden in (shown <= 0, shown >= 1):
        if float(hidden.mean()) > _HIDDEN:
            values = stored[hidden].astype(np.float32)
            low, high = float(values.min()), float(values.max())
            if high > low:
                yield np.where(hidden, (stored.astype(np.float32) - low) / (high - low), 0)


@cache
def _reader() -> Any:
    """PP-OCR's detector and reader from the files in rapidocr's own folder, on one thread, silent."""
    if importlib.util.find_spec("rapidocr") is None:
        raise DependencyError("looking for burned-in text needs rapidocr; install it with: pip install 'medsd[deid]'")
    import_onnxruntime()  # before rapidocr imports it
    import rapidocr

    folder = Path(rapidocr.__file__).parent / "models"
    detector, reader = sorted(folder.glob("*_det_*.onnx")), sorted(folder.glob("*_rec_*.onnx"))
    if not detector or not reader:  # without a path rapidocr would fetch the files from the network
        raise DependencyError("rapidocr is here without its models; install it again: pip install 'medsd[deid]'")
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Global.text_score": 0.0,  # unreadable boxes are wanted too
            "Global.max_side_len": _MAX_SIDE,
            "Det.model_path": str(detector[0]),
            "Rec.model_path": str(reader[0]),
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
