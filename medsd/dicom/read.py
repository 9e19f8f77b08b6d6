"""Read a radiograph, DICOM or plain image, into presentation-ready grey values.

What a file is, is recognised by its content. The header is judged by the policy before any pixel is decoded.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medsd.dicom.appearance import look_concerns, sketch_step
from medsd.dicom.content import (
    KNOWN_BY,
    Content,
    UnreadableError,
    bound_inflation,
    brief,
    inner_file,
    looks_like_dicom,
    opened,
    read_content,
    syntax_without_meta,
)
from medsd.dicom.decoders import decoder_of
from medsd.dicom.greys import Stored, StoredGreys
from medsd.dicom.header import clinical_concerns, colour_concern, costly_concerns, identifier, identities, read_header
from medsd.dicom.pixels import align_bits, beyond_bits, grey_of_colours, stored_greys
from medsd.dicom.plain import BEGINNING, is_plain_image, plain_format, read_plain
from medsd.dicom.policy import Concern, GatePolicy, concern
from medsd.dicom.quiet import quiet
from medsd.dicom.settle import frame_stream, settle
from medsd.dicom.stream import Stream
from medsd.errors import ImageError
from medsd.privacy import register_identities

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
_MAX_BITS = 16
_MOST_PIXELS_A_BYTE = 1000  # radiographs compressed with much loss hold some 50 pixels in a byte
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


@dataclass(frozen=True)
class Radiograph:
    """One radiograph, ready for the eye and for `medsd.preprocessing.pixels.to_pixels`."""

    shown: npt.NDArray[np.float32] | None = field(default=None, repr=False)  # `pixels`, where there are no `greys`
    view: str = ""  # "PA", "AP", "FRONTAL" (one of them), "LATERAL", "OTHER" (oblique, decubitus); "" if unknown
    spacing_mm: tuple[float, float] | None = None  # distance of rows and of columns
    spacing_from: str = ""  # the attribute that says so: "Pixel Spacing" or "Imager Pixel Spacing"
    concerns: tuple[Concern, ...] = ()  # what the policy wants warned about
    study_uid: str = field(default="", repr=False)  # the identities are for `medsd.privacy.KeyedHasher`, never shown
    patient_id: str = field(default="", repr=False)
    instance_uid: str = field(default="", repr=False)
    # Of a DICOM file: `to_pixels` makes the model's pixels of these, without the full picture.
    greys: StoredGreys | None = field(default=None, repr=False)

    @cached_property
    def pixels(self) -> npt.NDArray[np.float32]:
        """(H, W) in 0…1, dark air and bright bone; of a DICOM file, they are made when somebody asks for them."""
        if self.shown is not None:
            return self.shown
        assert self.greys is not None
        return self.greys.picture()


ImageSource = Path | Content | npt.NDArray[np.floating] | Radiograph


def read_radiograph(source: ImageSource, *, policy: GatePolicy | None = None, name: str = "") -> Radiograph:
    """Read and judge one radiograph: a file or its content, DICOM (also without preamble or file meta), PNG, JPEG.

    An array (H, W) in 0…1 with dark air is judged by what can be judged without a header; a `Radiograph` was judged.
    `name` is how messages call the image, by default as its file. What `policy` only warns about stands in `concerns`.
    Raises ImageError: it cannot be read or must not be scored; `reason` is a code of `medsd.dicom.policy.REASONS`.
    """
    policy = policy or GatePolicy()
    name = name or (source.name if isinstance(source, Path) else "")
    if isinstance(source, Radiograph):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, policy, name)
    content = read_content(source, policy, name)
    with quiet():
        try:
            plain = is_plain_image(content[:BEGINNING])
            return _from_plain(content[:], policy, name) if plain else _from_dicom(content, policy, name)
        except ImageError:
            raise
        except MemoryError:
            refusal = concern("too_large", value="the image needs more memory than there is", accepted="this machine")
        except BaseException as error:  # decoders are foreign code fed with foreign bytes; what they raise is a reason
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of a decoder in Rust
                raise
            refusal = concern("cannot_decode", detail=brief(error))
        raise refusal.error(name)


def _admitted(found: list[Concern], policy: GatePolicy, name: str) -> tuple[Concern, ...]:
    """Refuse by the first concern that the policy refuses, naming all of those; return those to be warned about."""
    refused = [item for item in found if policy.action(item) == "refuse"]
    if refused:
        raise Concern(refused[0].reason, " Also: ".join(item.message for item in refused)).error(name)
    return tuple(item for item in found if policy.action(item) == "warn")


def _from_array(array: npt.NDArray[np.floating], policy: GatePolicy, name: str) -> Radiograph:
    if array.ndim != 2 or array.dtype.kind not in "fiub" or 0 in array.shape:
        detail = f"an array of shape {array.shape} and type {array.dtype}; give (H, W) grey values in 0…1"
        raise concern("not_an_image", detail=detail).error(name)
    pixels = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        raise concern("not_an_image", detail="grey values outside of 0…1; scale them first").error(name)
    if min(pixels.shape) < policy.min_side:
        size = f"{pixels.shape[1]} × {pixels.shape[0]}"
        raise concern("too_small", value=size, accepted=policy.min_side).error(name)
    return Radiograph(pixels, concerns=_admitted(_look(pixels, policy), policy, name))


def _from_plain(content: bytes, policy: GatePolicy, name: str) -> Radiograph:
    pixels, concerns = read_plain(content, policy, name)
    return Radiograph(pixels, concerns=_admitted(concerns + _look(pixels, policy), policy, name))


def _look(pixels: npt.NDArray[np.float32], policy: GatePolicy) -> list[Concern]:
    return [concern("flat")] if pixels.min() == pixels.max() else look_concerns(pixels, policy)


def _from_dicom(content: Content, policy: GatePolicy, name: str) -> Radiograph:
    ds, stored = _parse(content, policy, name)
    register_identities(identities(ds))
    missing = None if stored is not None else _no_pixels(ds)
    if missing:
        raise missing.error(name)
    notes, lacks = settle(ds)
    header = read_header(ds)
    concerns = _admitted(costly_concerns(header, policy) + lacks, policy, name)
    stored, coloured = _decode(ds, notes) if stored is None else stored, False
    if stored.ndim == 3:
        stored, coloured = grey_of_colours(stored, ds)
    greys = stored_greys(stored, ds)
    few = greys.every(sketch_step(greys.shape))
    flat = few.min() == few.max() and greys.is_flat()
    look = [concern("flat")] if flat else look_concerns(few, policy, view=header.view)
    found = clinical_concerns(header, policy) + look
    if coloured or greys.coloured:
        found.insert(0, colour_concern(header))
    if notes or greys.notes:
        found.append(concern("odd_header", detail="; ".join([*notes, *greys.notes])))
    concerns += _admitted(found, policy, name)
    return Radiograph(
        greys=greys,
        view=header.view,
        spacing_mm=header.spacing_mm,
        spacing_from=header.spacing_from,
        concerns=concerns,
        study_uid=identifier(ds, "StudyInstanceUID"),
        patient_id=identifier(ds, "PatientID"),
        instance_uid=identifier(ds, "SOPInstanceUID"),
    )


def _parse(content: Content, policy: GatePolicy, name: str) -> tuple[Dataset, Stored | None]:
    """The data set of a DICOM file, with a file meta that names a transfer syntax.

    Where the stored values (H, W) lie in the file as NumPy would lay them out, they come as a view of it and the data
    set comes without them, which saves copying them three times.
    """
    if not looks_like_dicom(content):
        kind = plain_format(content[:BEGINNING])
        if kind or name.lower().endswith(_IMAGE_SUFFIXES):
            raise concern("not_an_image", detail=kind or "its content is unknown").error(name)
        raise concern("not_dicom").error(name)
    bound_inflation(content, policy, name)
    content = inner_file(content)
    damaged = "the header is damaged"
    try:
        stream = opened(content)
        ds = dcmread(stream, force=True, stop_before_pixels=True)
        stored = _view(ds, content, stream.tell())
        if content[stream.tell() : stream.tell() + 4] == _PIXEL_DATA:
            damaged = "the file ends within (7FE0,0010) Pixel Data"
        if stored is None:
            ds = dcmread(opened(content), force=True)
        known = any(keyword in ds for keyword in (*KNOWN_BY, "DirectoryRecordSequence"))
    except MemoryError:
        raise
    except Exception as error:  # a hostile header can fail anywhere in the parser
        raise concern("cannot_decode", detail=f"{damaged}, {brief(error)}").error(name) from None
    if not known:
        is_dicom = content[128:132] == b"DICM"
        raise (concern("cannot_decode", detail=damaged) if is_dicom else concern("not_dicom")).error(name)
    if "TransferSyntaxUID" not in ds.file_meta:
        ds.file_meta.TransferSyntaxUID = syntax_without_meta(ds)
    return ds, stored


def _view(ds: Dataset, content: Content, place: int) -> Stored | None:
    """The stored values in the Pixel Data element at `place`, or None if they are not bare, whole and the last."""
    syntax = ds.file_meta.get("TransferSyntaxUID") or syntax_without_meta(ds)
    implicit, little = ds.original_encoding
    if content[place : place + 4] != _PIXEL_DATA or not little or syntax != _NATIVE[bool(implicit)]:
        return None
    start = place + (8 if implicit else 12)  # tag, then a length of 4 bytes; or VR and 2 reserved bytes before that
    length = int.from_bytes(content[start - 4 : start], "little")
    numbers = [ds.get(keyword) for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored")]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        return None
    rows, columns, allocated, bits = cast(list[int], numbers)
    sign, samples = ds.get("PixelRepresentation"), ds.get("SamplesPerPixel")
    plain = allocated in (8, 16) and bits <= allocated and ds.get("HighBit") == bits - 1 and sign in (0, 1)
    size = rows * columns * allocated // 8
    whole = length in (size, size + size % 2) and start + length == len(content)
    if not (plain and whole and samples == 1 and ds.get("NumberOfFrames") in (None, 1)):
        return None
    dtype = np.dtype(f"<{'ui'[sign]}{allocated // 8}")
    return np.frombuffer(content, dtype, rows * columns, start).reshape(rows, columns)


def _no_pixels(ds: Dataset) -> Concern | None:
    """Why a DICOM file holds no image, or None."""
    computed = {"FloatPixelData": "(7FE0,0008) Float", "DoubleFloatPixelData": "(7FE0,0009) Double Float"}
    for keyword, name in computed.items():
        if keyword in ds:
            return concern("not_a_radiograph", detail=f"{name} Pixel Data: computed values, not those of a detector")
    if ds.get("PixelData"):
        return None
    kind = UID(str(ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID") or ""))
    known = f"{kind.name}: " if kind.type == "SOP Class" else ""
    state = "empty" if "PixelData" in ds else "missing"
    return concern("no_pixels", detail=f"{known}(7FE0,0010) Pixel Data is {state}")


def _decode(ds: Dataset, notes: list[str]) -> npt.NDArray[np.integer]:
    """The stored values of the first frame, (H, W), or (H, W, 3) in colour; adds to `notes` what was assumed."""
    if not 1 <= int(ds.BitsStored) <= int(ds.BitsAllocated) <= _MAX_BITS:
        raise UnreadableError(
            f"(0028,0101) Bits Stored is {ds.BitsStored}, (0028,0100) Bits Allocated {ds.BitsAllocated}; "
            f"{_MAX_BITS} bits at most are read"
        )
    if not ds.get("NumberOfFrames"):
        ds.NumberOfFrames = 1
    compressed = ds.file_meta.TransferSyntaxUID.is_compressed and not ds.file_meta.TransferSyntaxUID.is_deflated
    if compressed:
        stream = _bounded_stream(ds)
        decoder = decoder_of(ds.file_meta.TransferSyntaxUID)
        stored = pixel_array(ds, index=0, decoding_plugin=decoder, correct_unused_bits=False)
        if stream.kind != "RLE" and stream.bits > int(ds.BitsStored) and beyond_bits(stored, ds):
            # A code stream holds nothing but samples, so these bits belong to the values.
            notes.append(f"(0028,0101) Bits Stored is {ds.BitsStored}, and the code stream has {stream.bits} bits")
            ds.BitsStored = stream.bits
    else:
        misplaced = int(ds.get("HighBit", ds.BitsStored - 1)) != ds.BitsStored - 1
        stored = pixel_array(ds, index=0, correct_unused_bits=False)  # see `stored_greys`
        stored = align_bits(stored, ds) if misplaced else stored
    if stored.ndim != (3 if ds.SamplesPerPixel == 3 else 2) or not np.issubdtype(stored.dtype, np.integer):
        raise UnreadableError("the pixels are not one frame of whole numbers")
    return stored


def _bounded_stream(ds: Dataset) -> Stream:
    """The code stream, held to the header: decoders allocate what the stream declares, not what the header does."""
    stream, rows, columns = frame_stream(ds), int(ds.Rows), int(ds.Columns)
    if stream.rows and (stream.rows, stream.columns) != (rows, columns):
        raise UnreadableError(
            f"the code stream declares {stream.columns} × {stream.rows} pixels, the header {columns} × {rows}"
        )
    frame = get_frame(ds.PixelData, 0, number_of_frames=int(ds.NumberOfFrames))
    if rows * columns > _MOST_PIXELS_A_BYTE * len(frame):  # decoders may fill up what is not there
        raise UnreadableError("the code stream is too short for its size")
    return stream
