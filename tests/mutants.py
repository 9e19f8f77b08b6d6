"""Damaged and hostile DICOM files, made of good ones: a seed and an index make the same one again.

`Mutants(originals, seed)[index]` is one file; `generated_films` gives originals where no real data are at hand. Kinds
of mutation are functions of this module, listed in `MUTATIONS`: of bytes, of headers, of structure, of code streams.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydicom import Dataset, config, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medsd.dicom.quiet import quiet
from medsd.studies.phantom import generate_study, write_dicom

Pool = Sequence[bytes]
Mutation = Callable[[bytes, random.Random, Pool], bytes]

_PIXEL_DATA, _ITEM, _DELIMITER = b"\xe0\x7f\x10\x00", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_ENDLESS = b"\xff\xff\xff\xff"
_SIZES = (0, 1, 2, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 1024, 9999, 10_000, 32_768, 65_535)
_NUMBERS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PlanarConfiguration", "PixelPaddingValue",
)  # fmt: skip
_TEXTS = (
    "NumberOfFrames", "PhotometricInterpretation", "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope",
    "RescaleIntercept", "PresentationLUTShape", "PixelSpacing", "ImagerPixelSpacing", "PatientAge", "PatientName",
    "SpecificCharacterSet", "Modality", "BodyPartExamined", "ViewPosition", "StudyInstanceUID",
)  # fmt: skip
_ODD = (
    "", " ", "0", "-1", "1", "3", "255", "99999999999", "1e400", "-1e308", "1e-320", "nan", "inf", "1\\2\\3", "\\",
    "1\\" * 300, "CHEST", "PA", "CR", "LINEAR_EXACT", "SIGMOID", "INVERSE", "MONOCHROME1", "PALETTE COLOR", "RGB",
    "YBR_FULL_422", "\x00", "\x1b$B", "é\udcff", "{0}", "%s%n", "0000Y", "A" * 5000,
)  # fmt: skip
_SYNTAXES = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203", "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.99", "1.2.3", "",
)  # fmt: skip
_VRS = b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV ?? \0\0"


@dataclass(frozen=True)
class Mutant:
    """One file: how it came about, and its content."""

    index: int
    origin: str
    kinds: tuple[str, ...]
    content: bytes

    def __str__(self) -> str:
        return f"mutant {self.index} ({self.origin}: {', '.join(self.kinds)})"


class Mutants:
    """As many mutants of `originals` (content by name) as one asks for."""

    def __init__(self, originals: Mapping[str, bytes], seed: int) -> None:
        self._names, self._pool = list(originals), list(originals.values())
        self._seed = seed

    def __getitem__(self, index: int) -> Mutant:
        rng = random.Random(f"{self._seed} {index}")
        at = rng.randrange(len(self._pool))
        content, kinds = self._pool[at], []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            mutation = rng.choices(*_WEIGHTED)[0]
            with quiet():
                content = mutation(content, rng, self._pool)
            kinds.append(mutation.__name__)
        return Mutant(index, self._names[at], tuple(kinds), content)


def generated_films(side: int = 96) -> dict[str, bytes]:
    """Phantoms as DICOM files in the transfer syntaxes that pydicom writes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "film.dcm"
        write_dicom(generate_study(0, size=side), path, photometric="MONOCHROME2", bits=12)
        native = path.read_bytes()
    films = {"native": native, "bare": native[native.index(b"\x08\x00", 132 + 200) :]}
    for name, syntax in {"rle": RLELossless, "jpeg2000": JPEG2000Lossless, "jpegls": JPEGLSLossless}.items():
        ds = dcmread(io.BytesIO(native))
        ds.compress(syntax, generate_instance_uid=False)
        films[name] = _written(ds)
    for name, syntax in {
        "implicit": ImplicitVRLittleEndian, "deflated": DeflatedExplicitVRLittleEndian, "big": ExplicitVRBigEndian,
    }.items():  # fmt: skip
        films[name] = _rewritten(native, syntax)
    ds = dcmread(io.BytesIO(films["big"]))  # pydicom turns the header around, not the pixels
    ds.PixelData = np.frombuffer(ds.PixelData, np.uint16).byteswap().tobytes()
    films["big"] = _written(ds)
    return films


# ---- bytes


def _region(content: bytes, rng: random.Random) -> tuple[int, int]:
    """Where to strike: the file meta, the header, the begin of the pixel stream, or anywhere."""
    pixels = max(content.rfind(_PIXEL_DATA), 0)
    begin, end = rng.choice(((0, 400), (128, 2000), (128, pixels), (pixels, pixels + 400), (pixels, len(content))))
    end = min(max(end, begin + 1), len(content))
    return min(begin, end - 1), end


def flipped_bits(content: bytes, rng: random.Random, _: Pool) -> bytes:
    changed, (begin, end) = bytearray(content), _region(content, rng)
    for _i in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(begin, end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwritten(content: bytes, rng: random.Random, _: Pool) -> bytes:
    begin, end = _region(content, rng)
    at, count = rng.randrange(begin, end), rng.choice((1, 4, 32, 500, 4096))
    run = rng.choice((bytes(count), b"\xff" * count, rng.randbytes(count)))
    return content[:at] + run + content[at + count :]


def truncated(content: bytes, rng: random.Random, _: Pool) -> bytes:
    begin, end = _region(content, rng)
    return content[: rng.randrange(begin, end)] or content[:1]


def inserted(content: bytes, rng: random.Random, pool: Pool) -> bytes:
    at = rng.randrange(*_region(content, rng))
    count, other = rng.choice((1, 2, 3, 8, 100, 5000)), rng.choice(pool)
    start = rng.randrange(len(other))
    return content[:at] + rng.choice((rng.randbytes(count), other[start : start + count])) + content[at:]


def chunk_moved(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """A chunk removed, doubled, or put somewhere else."""
    begin, end = _region(content, rng)
    at, count = rng.randrange(begin, end), rng.choice((1, 2, 4, 12, 200, 3000))
    chunk, left = content[at : at + count], content[:at] + content[at + count :]
    to = rng.randrange(len(left) + 1)
    return rng.choice((left, content[:at] + chunk + content[at:], left[:to] + chunk + left[to:])) or content


# ---- headers


def _element(content: bytes, keyword: str) -> int:
    """Where the first element `keyword` begins in a little endian file, or −1."""
    tag = tag_for_keyword(keyword) or 0
    return content.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 128)


def numbers_set(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """Numbers that describe the pixels, set to values on and beyond the edge."""
    changed = bytearray(content)
    for keyword in rng.sample(_NUMBERS, rng.choice((1, 1, 2, 4))):
        at = _element(content, keyword)
        if at > 0 and at + 10 <= len(changed):
            changed[at + 8 : at + 10] = struct.pack("<H", rng.choice(_SIZES))
    return bytes(changed)


def texts_set(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """Texts of the header, in place of the standard's words."""
    changes = {keyword: rng.choice(_ODD) for keyword in rng.sample(_TEXTS, rng.choice((1, 1, 2, 5)))}
    for keyword, text in changes.items():
        raw = text.encode("utf-8", "surrogatepass")
        raw += b" " * (len(raw) % 2)
        content = _with_element(content, keyword, rng.choice((b"CS", b"DS", b"IS", b"LO")), raw)
    return content


def _with_element(content: bytes, keyword: str, vr: bytes, value: bytes) -> bytes:
    """`content` with another value of an explicit element, or with that element before the pixels."""
    tag = tag_for_keyword(keyword) or 0
    raw = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
    at = _element(content, keyword)
    if at > 0 and content[at + 4 : at + 6].isalpha():
        length = int.from_bytes(content[at + 6 : at + 8], "little")
        return content[:at] + raw + content[at + 8 + length :]
    return _before_pixels(content, raw)


def _before_pixels(content: bytes, elements: bytes) -> bytes:
    at = content.rfind(_PIXEL_DATA)
    return content[:at] + elements + content[at:] if at > 0 else content + elements


def vr_changed(content: bytes, rng: random.Random, _: Pool) -> bytes:
    at = _element(content, rng.choice((*_NUMBERS, *_TEXTS, "PixelData", "TransferSyntaxUID", "SOPClassUID")))
    return content[: at + 4] + rng.choice(_VRS.split()) + content[at + 6 :] if at > 0 else content


def length_changed(content: bytes, rng: random.Random, _: Pool) -> bytes:
    at = _element(content, rng.choice((*_NUMBERS, *_TEXTS, "PixelData", "PixelData", "FileMetaInformationGroupLength")))
    if at < 0:
        return content
    wide = content[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    start, size = (at + 8, 4) if wide else (at + 6, 2)
    value = rng.choice((0, 1, 3, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, len(content), rng.randrange(2**32)))
    return content[:start] + (value & (256**size - 1)).to_bytes(size, "little") + content[start + size :]


def syntax_changed(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """Another transfer syntax than the pixels have."""
    uid = rng.choice(_SYNTAXES).encode()
    return _with_element(content, "TransferSyntaxUID", b"UI", uid + b"\0" * (len(uid) % 2))


def tables_added(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """Look-up tables whose descriptors and data disagree."""
    ds = _parsed(content)
    for keyword in rng.sample(("ModalityLUTSequence", "VOILUTSequence", "PresentationLUTSequence"), rng.choice((1, 2))):
        item = Dataset()
        entries = rng.choice((0, 1, 2, 16, 256, 4096, 65_536))
        descriptor = [rng.choice((entries & 0xFFFF, *_SIZES)), rng.choice((0, 1, 5000, 65_535)), rng.choice(_SIZES)]
        item.add_new(0x00283002, "US", descriptor[: rng.choice((0, 1, 2, 3, 3, 3, 3, 3))])
        item.add_new(0x00283006, rng.choice(("OW", "OB")), rng.randbytes(entries * rng.choice((1, 2)) // 2 * 2))
        items = [item] * rng.choice((0, 1, 1, 1, 3))
        with contextlib.suppress(Exception):  # as in _parsed: adding looks at other elements
            ds.add_new(tag_for_keyword(keyword) or 0, "SQ", items)
    return _written(ds) or content


def huge_size(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """Absurd or barely allowed sizes, declared alike in the header and, where there is one, in the code stream."""
    rows, columns = rng.choice(
        ((10_000, 10_000), (65_535, 1_500), (1, 65_535), (65_535, 65_535), (20_000, 4_999), (9_999, 64), (64, 65_535))
    )
    changed = bytearray(content)
    for keyword, value in (("Rows", rows), ("Columns", columns)):
        at = _element(content, keyword)
        if 0 < at <= len(changed) - 10:
            changed[at + 8 : at + 10] = struct.pack("<H", value)
    siz, sof = _marker(content, b"\xff\x4f\xff\x51"), _frame_header(content)
    if siz > 0:
        changed[siz + 8 : siz + 16] = struct.pack(">II", columns, rows)
        if rng.random() < 0.5:  # one tile, as large as the image
            changed[siz + 24 : siz + 32] = struct.pack(">II", columns, rows)
    elif sof > 0:
        changed[sof + 5 : sof + 9] = struct.pack(">HH", rows, columns)
    return bytes(changed)


# ---- structure


def nested(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """Sequences in sequences, thousands deep, closed or not."""
    depth = rng.choice((10, 300, 3000, 30_000))
    opened = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + _ITEM + _ENDLESS
    closed = b"\xfe\xff\x0d\xe0" + bytes(4) + _DELIMITER + bytes(4)
    return _before_pixels(content, opened * depth + closed * rng.choice((0, depth, depth // 2)))


def many_items(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """One sequence of very many empty items, or very many elements."""
    count = rng.choice((1000, 20_000, 100_000))
    if rng.random() < 0.5:
        items = (_ITEM + bytes(4)) * count
        return _before_pixels(content, struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, len(items)) + items)
    group = rng.choice((0x0009, 0x0029, 0x6000))
    elements = (struct.pack("<HH2sH", group, 0x1000 + i % 0xEFFF, b"LO", 2) + b"x " for i in range(count))
    return _before_pixels(content, b"".join(elements))


def endless(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """An undefined length where none may be, or an encapsulated stream without its end."""
    at = content.rfind(_PIXEL_DATA)
    if at < 0 or rng.random() < 0.3:
        return content.replace(_DELIMITER + bytes(4), b"")
    return content[: at + 8] + _ENDLESS + content[at + 12 :]


@functools.lru_cache(maxsize=2)
def _bomb(megabytes: int) -> bytes:
    """A raw deflate stream of so many megabytes: an element of private data and zeros."""
    squeeze, block = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS), bytes(2**20)
    head = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, megabytes << 20)
    return b"".join((squeeze.compress(head), *(squeeze.compress(block) for _ in range(megabytes)), squeeze.flush()))


def deflated(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """The data set deflated; now and then a bomb, or damaged within."""
    if rng.random() < 0.15:
        meta = _written(_parsed(content), DeflatedExplicitVRLittleEndian)
        length = 144 + int.from_bytes(meta[140:144], "little")
        return meta[:length] + _bomb(rng.choice((1, 64, 250, 600)))
    packed = bytearray(_written(_parsed(content), DeflatedExplicitVRLittleEndian) or content)
    if rng.random() < 0.5:
        packed[rng.randrange(len(packed) // 2, len(packed))] ^= 1 << rng.randrange(8)
    return bytes(packed)


def other_encoding(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """The header in another encoding, the pixels as they were."""
    return _rewritten(content, rng.choice((ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)))


def pixels_swapped(content: bytes, rng: random.Random, pool: Pool) -> bytes:
    """The header of one file before the pixels of another."""
    other = rng.choice(pool)
    here, there = content.rfind(_PIXEL_DATA), other.rfind(_PIXEL_DATA)
    return content[:here] + other[there:] if here > 0 and there > 0 else content


# ---- code streams


def fragments_broken(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """Items of encapsulated pixels with other lengths, more or fewer of them, or other offsets."""
    begin = content.rfind(_PIXEL_DATA)
    items = [at for at in range(begin + 12, len(content)) if content.startswith(_ITEM, at)][:4] if begin > 0 else []
    if not items or content[begin + 8 : begin + 12] != _ENDLESS:
        return endless(content, rng, ())
    at = rng.choice(items)
    length = int.from_bytes(content[at + 4 : at + 8], "little")
    item = content[at : at + 8 + length]
    value = rng.choice((0, 1, length // 2, length + 1, length + 8, 0x7FFFFFFF, 0xFFFFFFFF)).to_bytes(4, "little")
    return rng.choice(
        (
            content[: at + 4] + value + content[at + 8 :],
            content[:at] + content[at + len(item) :],
            content[:at] + item * rng.choice((2, 50)) + content[at + len(item) :],
            content[:at] + (_ITEM + bytes(4)) * rng.choice((1, 5000)) + content[at:],
            content[:at] + _ITEM + struct.pack("<III", 8, 0, rng.choice((1, 2**31, 2**32 - 1))) + content[at:],
            content[:at] + item[: 8 + length // 2] + _ITEM + item[8 + length // 2 :] + content[at + len(item) :],
        )
    )


def _marker(content: bytes, marker: bytes) -> int:
    return content.find(marker, max(content.rfind(_PIXEL_DATA), 0))


def _frame_header(content: bytes) -> int:
    """Where SOF0…SOF3 or SOF55 begins, or −1."""
    found = [_marker(content, bytes((0xFF, kind))) for kind in (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)]
    return min((at for at in found if at > 0), default=-1)


def stream_changed(content: bytes, rng: random.Random, _: Pool) -> bytes:
    """Values behind the markers of a code stream: sizes, tiles, components, precision, levels, tables, scans."""
    markers = (
        b"\xff\x51", b"\xff\x52", b"\xff\x5c", b"\xff\x90", b"\xff\x53", b"\xff\x55",  # SIZ COD QCD SOT COC TLM
        b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xc4", b"\xff\xda", b"\xff\xdb",  # SOF DHT SOS DQT
        b"\xff\xf7", b"\xff\xf8", b"\xff\xda",  # JPEG-LS: SOF55 LSE SOS
    )  # fmt: skip
    found = [at for at in (_marker(content, marker) for marker in markers) if at > 0]
    if not found:
        return flipped_bits(content, rng, ())
    changed, at = bytearray(content), rng.choice(found)
    for _i in range(rng.choice((1, 1, 2, 3))):
        size = rng.choice((1, 1, 2, 4))
        place = at + 2 + rng.randrange(40)
        value = rng.choice(
            (0, 1, 2, 8, 17, 32, 33, 38, 64, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, rng.randrange(2**32))
        )
        changed[place : place + size] = (value & (256**size - 1)).to_bytes(size, "big")
    return bytes(changed)


def tiny_tiles(content: bytes, rng: random.Random, pool: Pool) -> bytes:
    """JPEG 2000 in very many tiles, components, or a precision that is none."""
    siz = _marker(content, b"\xff\x4f\xff\x51")
    if siz < 0:
        return stream_changed(content, rng, pool)
    changed = bytearray(content)
    field, width, value = rng.choice(
        ((24, 8, rng.choice((b"\0\0\0\1" * 2, bytes(8), b"\0\0\0\7" * 2))), (40, 2, b"\x40\0"), (42, 1, b"\xa5"),
         (16, 8, b"\xff" * 8), (8, 8, b"\xff" * 8), (42, 1, b"\x25"), (43, 2, rng.randbytes(2)))
    )  # fmt: skip
    changed[siz + field : siz + field + width] = value
    return bytes(changed)


# ---- writing


def _parsed(content: bytes) -> Dataset:
    try:
        return dcmread(io.BytesIO(content), force=True)
    except Exception:  # a mutant of a mutant may be beyond reading
        return Dataset()


def _written(ds: Dataset, syntax: str = "") -> bytes:
    """`ds` as a file, whatever it holds; empty where it cannot be written."""
    stream = io.BytesIO()
    try:
        with config.disable_value_validation():
            if syntax:
                ds.file_meta.TransferSyntaxUID = UID(syntax)
            little = ds.file_meta.TransferSyntaxUID != ExplicitVRBigEndian
            implicit = ds.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
            dcmwrite(stream, ds, implicit_vr=implicit, little_endian=little, force_encoding=True)
    except Exception:  # as in _parsed
        return b""
    return stream.getvalue()


def _rewritten(content: bytes, syntax: str) -> bytes:
    return _written(_parsed(content), syntax) or content


MUTATIONS: Mapping[Mutation, int] = {
    flipped_bits: 10, overwritten: 8, truncated: 6, inserted: 6, chunk_moved: 6,
    numbers_set: 10, texts_set: 8, vr_changed: 4, length_changed: 5, syntax_changed: 4, tables_added: 5, huge_size: 4,
    nested: 2, many_items: 1, endless: 2, deflated: 2, other_encoding: 3, pixels_swapped: 4,
    fragments_broken: 6, stream_changed: 12, tiny_tiles: 4,
}  # fmt: skip
"""Every kind of mutation and its share."""
_WEIGHTED = (list(MUTATIONS), list(MUTATIONS.values()))
