"""Images in ZIP archives: a member is named `archive.zip!member`, as a path, and read in memory.

`names_in` lists what an archive holds, `read_member` inflates one member. Both are bounded before anything is inflated,
by what the archive says of itself and by what it really holds; nothing is ever written.
"""

import lzma
import os
import struct
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

from medsd.dicom.policy import GatePolicy, concern
from medsd.errors import ImageError

SUFFIX = ".zip"
MARK = "!"  # between an archive and its member, as in a URL of Java's jar
MOST_MEMBERS = 1_000_000
MOST_RATIO = 250  # a radiograph deflates to a third; black corners count little, and deflate ends at 1,032
_FREE = 2**20  # bytes that a member may inflate to at whatever ratio
_MOST_DIRECTORY = 256 * 2**20  # bytes of the list of members, which is held in memory
_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")

# What zipfile and its decompressors raise at damaged archives; RuntimeError covers NotImplementedError.
_DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)


def is_archive(path: str) -> bool:
    return path[-len(SUFFIX) :].lower() == SUFFIX


def split_member(path: str) -> tuple[str, str] | None:
    """Archive and member of a path such as ``images.zip!2026/one.dcm``; None where it is a file of its own.

    >>> split_member("images.zip!2026/one.dcm")
    ('images.zip', '2026/one.dcm')
    """
    at = path.lower().find(SUFFIX + MARK)
    if at < 0 or os.path.exists(path):  # noqa: PTH110  # Path.exists raises where a name is too long
        return None
    end = at + len(SUFFIX)
    return path[:end], path[end + len(MARK) :]


def names_in(archive: str) -> list[str]:
    """The members of an archive in the order of their names, folders left out.

    Raises ImageError: it is no ZIP archive, it is damaged, or it is built to overwhelm (`too_large`).
    """
    try:
        return sorted({info.filename for info in _open(archive, Path(archive).name).infolist() if not info.is_dir()})
    except _DAMAGED as error:
        raise _unreadable(Path(archive).name, error) from None


def holds(archive: str, member: str) -> bool:
    """Whether an archive can be read and has this member."""
    try:
        _open(archive, "").getinfo(member)
    except (KeyError, ImageError, *_DAMAGED):
        return False
    return True


def read_member(archive: str, member: str, policy: GatePolicy, name: str = "") -> bytes:
    """The content of one member, of a size that the policy reads.

    Raises ImageError: it is not there, encrypted, damaged, too large, inflates too far, or is an archive itself.
    """
    try:
        content = _inflate(archive, member, policy, name)
    except KeyError:
        raise concern("file_error", detail="the archive holds no such member").error(name) from None
    except _DAMAGED as error:
        raise _unreadable(name, error) from None
    if content.startswith(_MAGIC):
        raise concern("not_an_image", detail="an archive within an archive; unpack it first").error(name)
    return content


def refuse_archive(path: Path, name: str) -> None:
    """Say why an archive gave no images; an image whose name ends like an archive's is left alone.

    Raises ImageError: it is an archive.
    """
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            begins = file.read(4)
    except OSError:
        return  # who reads it as an image says so
    if begins not in _MAGIC:
        return
    members = names_in(str(path))
    what = "an archive without images" if not members else "an archive, and only what is in it can be read"
    raise concern("not_an_image", detail=what).error(name)


def _inflate(archive: str, member: str, policy: GatePolicy, name: str) -> bytes:
    files = _open(archive, name)
    info = files.getinfo(member)
    if info.flag_bits & 0x1:
        raise concern("file_error", detail="it is encrypted; unpack the archive with its password first").error(name)
    if info.file_size > policy.max_file_bytes:
        value, accepted = f"the member has {info.file_size} bytes", f"{policy.max_file_bytes} bytes"
        raise concern("too_large", value=value, accepted=accepted).error(name)
    if info.file_size > max(_FREE, MOST_RATIO * info.compress_size):
        value = f"the member inflates to {info.file_size} bytes from {info.compress_size}"
        raise concern("too_large", value=value, accepted=f"{MOST_RATIO} times").error(name)
    with files.open(info) as stream:
        return stream.read()  # no more than file_size, and its checksum is compared


@lru_cache(maxsize=2)
def _opened(archive: str, size: int, changed_ns: int) -> zipfile.ZipFile:
    """An archive stays open, so that its list of members is read once and not for every member."""
    entries, directory = _directory(archive)
    if directory > _MOST_DIRECTORY or entries > MOST_MEMBERS:
        raise _too_many(entries)
    files = zipfile.ZipFile(archive)
    members = files.infolist()
    if len(members) > MOST_MEMBERS:
        raise _too_many(len(members))
    if sum(info.compress_size for info in members) > size:  # a bomb of members that overlap
        value = "the archive's members are larger than itself"
        raise concern("too_large", value=value, accepted=f"{size} bytes").error("")
    return files


def _open(archive: str, name: str) -> zipfile.ZipFile:
    """The archive, its list of members read and bounded; refusals speak of `name`."""
    status = Path(archive).stat()
    try:
        return _opened(archive, status.st_size, status.st_mtime_ns)
    except ImageError as error:
        raise ImageError(error.reason, f"{name}: {error}" if name else str(error)) from None


def _directory(archive: str) -> tuple[int, int]:
    """How many members the archive says that it has, and how many bytes their list takes."""
    with Path(archive).open("rb") as file:
        record = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # read before the list itself is
    if record is None:
        raise zipfile.BadZipFile("no end of central directory")
    return record[zipfile._ECD_ENTRIES_TOTAL], record[zipfile._ECD_SIZE]  # type: ignore[attr-defined]


def _too_many(entries: int) -> ImageError:
    value = f"the archive lists {entries} members"
    return concern("too_large", value=value, accepted=f"{MOST_MEMBERS}").error("")


def _unreadable(name: str, error: BaseException) -> ImageError:
    """One line for what zipfile and its decompressors raise; their words may quote the names of members."""
    if isinstance(error, OSError) and error.strerror:
        return concern("file_error", detail=error.strerror).error(name)
    if isinstance(error, NotImplementedError):
        return concern("not_an_image", detail="a ZIP compression that is not read").error(name)
    return concern("cannot_decode", detail="the ZIP archive is damaged").error(name)
