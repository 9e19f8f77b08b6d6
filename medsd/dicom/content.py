"""The bytes of a file before pydicom sees them: read within the policy's limits, recognised, and safe to inflate."""

import io
import mmap
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, overload

from pydicom import Dataset
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medsd.dicom.policy import GatePolicy, concern

if TYPE_CHECKING:
    from typing_extensions import Buffer

Content = bytes | mmap.mmap
"""What a file holds; mapped memory need not be copied, and nobody else may shorten it meanwhile."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
KNOWN_BY = ("SOPClassUID", "Modality", "Rows", "PixelData", "StudyInstanceUID")  # a data set has one of them
_META_BYTES = 2**20  # a file meta group has some 500


class UnreadableError(ValueError):
    """Why an image cannot be decoded, in words that may be shown: tags and numbers, never the text of a header."""


class _Mapped(io.RawIOBase):
    """Mapped memory as a file that can be sought beyond its ends, as `io.BytesIO` can and `mmap` cannot.

    Headers that lie make pydicom do so, and what it says of them should not depend on where they lie.
    """

    name = ""

    def __init__(self, content: mmap.mmap) -> None:
        self._view, self._place = memoryview(content), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET and offset < 0:
            raise ValueError(f"negative seek value {offset}")
        self._place = max(0, (0, self._place, len(self._view))[whence] + offset)
        return self._place

    def readinto(self, buffer: "Buffer", /) -> int:
        room = memoryview(buffer)
        found = self._view[self._place : self._place + len(room)]
        room[: len(found)] = found
        self._place += len(found)
        return len(found)


def opened(content: Content) -> BinaryIO:
    """A file of `content`."""
    return io.BytesIO(content) if isinstance(content, bytes) else io.BufferedReader(_Mapped(content))


@overload
def read_content(source: Path | bytes, policy: GatePolicy, name: str) -> bytes: ...
@overload
def read_content(source: Path | Content, policy: GatePolicy, name: str) -> Content: ...
def read_content(source: Path | Content, policy: GatePolicy, name: str) -> Content:
    """The content of a file of a size that the policy reads; raises ImageError: `file_error` or `too_large`."""
    try:
        size = len(source) if isinstance(source, Content) else _size(source)
        if size > policy.max_file_bytes:
            found = f"the file has {size} bytes"
            raise concern("too_large", value=found, accepted=f"{policy.max_file_bytes} bytes").error(name)
        return source if isinstance(source, Content) else source.read_bytes()
    except OSError as error:
        raise concern("file_error", detail=error.strerror or "unknown error").error(name) from None
    except UnreadableError as error:
        raise concern("file_error", detail=str(error)).error(name) from None
    except ValueError:
        raise concern("file_error", detail="its path holds a zero byte").error(name) from None


def _size(path: Path) -> int:
    """The bytes of a file; raises UnreadableError for what is not a regular file."""
    status = path.stat()
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    if stat.S_ISDIR(status.st_mode):
        next(path.iterdir(), None)  # raises the OSError that says why it could not be listed
        raise UnreadableError("it is a folder that could not be listed")
    kind = "pipe" if stat.S_ISFIFO(status.st_mode) else "socket" if stat.S_ISSOCK(status.st_mode) else "device"
    raise UnreadableError(f"it is a {kind}, not a file")


def looks_like_dicom(content: Content) -> bool:
    """A preamble, or a first element of group 0002 or 0008 in either byte order."""
    return content[128:132] == b"DICM" or content[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


def inner_file(content: Content) -> Content:
    """The file behind a second preamble, if a whole file was put behind a file meta group; else `content`."""
    if content[128:132] != b"DICM":
        return content
    stream = opened(content)
    read_preamble(stream, force=False)
    try:
        _read_file_meta_info(stream)
    except Exception:  # a hostile group is for the parser to refuse
        return content
    end = stream.tell()
    return content[end:] if content[end + 128 : end + 132] == b"DICM" else content


def syntax_without_meta(ds: Dataset) -> UID:
    """The transfer syntax of a data set whose file names none, as pydicom found it to be encoded."""
    implicit, little = ds.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little in (True, None) else ExplicitVRBigEndian


def bound_inflation(content: Content, policy: GatePolicy, name: str) -> None:
    """Refuse a deflated file that inflates beyond the limit; pydicom would inflate it all at once."""
    if _DEFLATED not in content[:_META_BYTES]:
        return
    stream, limit = opened(content), policy.max_file_bytes // 2  # pydicom holds it four times over
    read_preamble(stream, force=True)
    _read_file_meta_info(stream)  # pydicom inflates what follows, whatever the group's length says
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflater.decompress(content[stream.tell() :], limit)
    except zlib.error:
        raise concern("cannot_decode", detail="the deflated data are damaged").error(name) from None
    if inflater.unconsumed_tail:
        raise concern("too_large", value="the file inflates", accepted=f"{limit} bytes").error(name)


def brief(error: BaseException) -> str:
    """The kind of failure without its text, which may quote header values, unless the text is ours."""
    if isinstance(error, UnreadableError):
        return str(error)
    kinds: dict[type[BaseException], str]
    kinds = {RecursionError: "nested too deeply", EOFError: "it ends too early", NotImplementedError: "not supported"}
    return kinds.get(type(error), type(error).__name__)
