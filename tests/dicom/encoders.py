"""Encoders for tests and benches that neither pydicom nor its plugins bring: lossless JPEG, all seven predictors."""

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLossless, JPEGLosslessSV1

# Code lengths of the categories 0…16 of differences: short ones for small differences, none of all ones.
_LENGTHS = np.array([3] * 7 + list(range(4, 14)))
_CODES = np.array([*range(7), *(2**length - 2 for length in range(4, 14))])


def jpeg_lossless(stored: npt.NDArray[np.unsignedinteger], bits: int, predictor: int = 1) -> bytes:
    """One lossless JPEG code stream (ISO/IEC 10918-1, annex H) of (H, W) values of `bits` bits."""
    difference = _differences(stored.astype(np.int64), bits, predictor).ravel()
    size = np.ceil(np.log2(np.abs(difference) + 1)).astype(np.int64)  # the category, SSSS
    extra = np.where(size == 16, 0, size)
    code = (_CODES[size] << extra) | np.where(extra > 0, (difference - (difference < 0)) & ((1 << extra) - 1), 0)
    scan = _pack(code, _LENGTHS[size] + extra).replace(b"\xff", b"\xff\x00")
    rows, columns = stored.shape
    frame = bytes([bits, *rows.to_bytes(2), *columns.to_bytes(2), 1, 1, 0x11, 0])
    table = bytes([0, *(np.count_nonzero(length == _LENGTHS) for length in range(1, 17)), *range(17)])
    header = _segment(0xC3, frame) + _segment(0xC4, table) + _segment(0xDA, bytes([1, 1, 0, predictor, 0, 0]))
    return b"\xff\xd8" + header + scan + b"\xff\xd9"


def compress_jpeg_lossless(ds: Dataset, stored: npt.NDArray[np.unsignedinteger], predictor: int = 1) -> None:
    """Put `stored` into `ds` as lossless JPEG, process 14; with predictor 1 as its selection value 1."""
    ds.PixelData = encapsulate([jpeg_lossless(stored, int(ds.BitsStored), predictor)])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1 if predictor == 1 else JPEGLossless


def _differences(values: npt.NDArray[np.int64], bits: int, predictor: int) -> npt.NDArray[np.int64]:
    """What each value differs by from its prediction (table H.1), modulo 2¹⁶ in −32767…32768."""
    a, b, c = values[1:, :-1], values[:-1, 1:], values[:-1, :-1]  # left, above, above left
    rules = (a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1)
    prediction = np.empty_like(values)
    prediction[0, 0] = 1 << (bits - 1)
    prediction[0, 1:] = values[0, :-1]
    prediction[1:, 0] = values[:-1, 0]
    prediction[1:, 1:] = rules[predictor - 1]
    difference = (values - prediction) & 0xFFFF
    return np.where(difference > 0x8000, difference - 0x10000, difference)


def _pack(codes: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> bytes:
    """Codes one after another, most significant bit first, filled up with ones."""
    ends = np.cumsum(lengths)
    bits = np.ones(-(-int(ends[-1]) // 8) * 8, dtype=np.uint8)
    for place in range(int(lengths.max())):  # counted from the last bit of each code
        has = lengths > place
        bits[ends[has] - 1 - place] = (codes[has] >> place) & 1
    return np.packbits(bits).tobytes()


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content
