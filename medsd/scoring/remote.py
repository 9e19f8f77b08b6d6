"""Paths of object stores and other file systems, such as ``s3://bucket/images``, through fsspec, and of DICOMweb.

fsspec is what Ray and pandas read such paths with; each store needs its own package beside it (s3fs, gcsfs, adlfs …),
and takes its address and its key from the settings of that package. A path without a scheme, or with ``file://``, is
one of this machine's own. Images of a DICOMweb service (`medsd.dicom.web`) are named ``dicomweb://``, one each.
"""

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from medsd.dicom.content import Content
from medsd.dicom.policy import concern
from medsd.dicom.web import Address, DicomWeb, DicomWebError, TooLargeError, is_dicomweb
from medsd.errors import DataError, DependencyError, ImageError, explained
from medsd.files import write_whole
from medsd.preprocessing.decode import Decoder
from medsd.scoring.inputs import hidden_member

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # one letter is a drive of Windows
_ROOTED = ("file", "local")  # no host stands behind their two slashes
# An object appears there as a whole or not at all; elsewhere a draft is renamed.
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "memory"}


def url_of(path: Path | str) -> str | None:
    """The URL that a path is, or None; `pathlib` takes slashes out of URLs, which are put back.

    >>> url_of(Path("s3://bucket/image.dcm"))
    's3://bucket/image.dcm'
    """
    found = _URL.fullmatch(str(path))
    if found is None or os.path.exists(path):  # noqa: PTH110
        return None
    return _join(found[1].lower(), found[2])


def place_of(path: Path | str) -> Path | str:
    """A path of this machine's file system as `Path`, any other as its URL."""
    url = url_of(path)
    if url is None:
        return Path(path)
    return Path(url.removeprefix("file://")) if url.startswith("file://") else url


def _join(scheme: str, rest: str) -> str:
    return f"{scheme}://{'/' if scheme in _ROOTED else ''}{rest.lstrip('/')}"


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises DependencyError: the package for it is not installed; DataError: nothing knows this scheme, or its settings
    are wrong.
    """
    from fsspec.core import url_to_fs  # gradio brings it

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise DependencyError(f"{url}: {error}; install it here and on every machine of the cluster") from None
    except Exception as error:  # each store has its own
        raise DataError(f"{url}: cannot be opened ({error or type(error).__name__}); check the address") from None


def names_at(url: str) -> list[str]:
    """The images that a URL means: one, those of a folder and below (sorted, without hidden ones, tables and texts),
    those of a pattern, or the radiographs that a search of DICOMweb finds.

    Raises DataError: there are none, or the store does not answer.
    """
    if is_dicomweb(url):
        return _found_at(Address.of(url))
    files, path = file_system(url)
    with explained(f"{url}: cannot be listed", Exception, then="; check the address and the key"):
        found = _find(files, path)
    if found is None:
        raise DataError(f"{url}: does not exist; give a file, a folder, a pattern or a list")
    if not found:
        what = "the pattern matches no file" if glob.has_magic(path) else "the folder holds no images"
        raise DataError(f"{url}: {what}")
    scheme = url.partition("://")[0]
    return [name if "://" in name else _join(scheme, name) for name in found]


_service = lru_cache(maxsize=8)(DicomWeb)  # its connections are used again


def _found_at(address: Address) -> list[str]:
    try:
        found = [str(each) for each in _service(address.service).find(address)]
    except DicomWebError as error:
        raise DataError(f"{address.service}: {error.strerror}") from None
    if not found:
        raise DataError(f"{address.service}: there are no radiographs of this address")
    return found


def _find(files: Any, path: str) -> list[str] | None:
    if glob.has_magic(path) and not files.exists(path):
        matches = files.glob(path, detail=True)
        return sorted(name for name, info in matches.items() if info["type"] == "file")
    if files.isdir(path):
        root = path.rstrip("/") + "/"
        return sorted(name for name in files.find(path) if not hidden_member(name.removeprefix(root)))
    return [path] if files.exists(path) else None


def fetch(url: str, most: int, name: str = "") -> bytes:
    """The content of a file; raises ImageError, which says `name`, where it cannot be read or has over `most` bytes."""
    try:
        if is_dicomweb(url):
            address = Address.of(url)
            content: bytes | None = _service(address.service).fetch(address, most)
        else:
            files, path = file_system(url)
            with files.open(path, "rb") as file:
                content = file.read(most + 1)
    except TooLargeError:
        content = None
    except OSError as error:
        raise concern("file_error", detail=error.strerror or type(error).__name__).error(name) from None
    if content is None or len(content) > most:
        value, accepted = f"the file has more than {most} bytes", f"{most} bytes"
        raise concern("too_large", value=value, accepted=accepted).error(name)
    return content


class FetchingDecoder(Decoder):
    """A `Decoder` that also reads what a URL leads to, within the same limits."""

    def _content(self, source: Path | Content, name: str) -> Path | Content:
        url = url_of(source) if isinstance(source, Path) else None
        if url is None:
            return super()._content(source, name)
        try:
            return fetch(url, self.policy.max_file_bytes, name)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # each store has its own
            raise concern("file_error", detail=type(error).__name__).error(name) from None


class Store:
    """A folder of small files, each there as a whole or not at all, here or behind a URL; travels between processes.

    The folder is made with the first file. What cannot be done raises OSError.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder

    def write(self, name: str, content: bytes) -> None:
        if isinstance(self.folder, Path):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / name, content)
            return
        with _written(f"{self.folder}/{name}") as (files, path):
            files.pipe_file(path, content)

    def read(self, name: str) -> bytes:
        if isinstance(self.folder, Path):
            return (self.folder / name).read_bytes()
        files, path = file_system(f"{self.folder}/{name}")
        return bytes(files.cat_file(path))

    def names(self) -> set[str]:
        if isinstance(self.folder, Path):
            return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        files, path = file_system(self.folder)
        files.invalidate_cache()
        try:
            return {Path(str(name)).name for name in files.ls(path, detail=False)}
        except FileNotFoundError:
            return set()

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if isinstance(self.folder, Path):
                    (self.folder / name).unlink()
                else:
                    files, path = file_system(f"{self.folder}/{name}")
                    files.rm_file(path)

    def remove_folder(self) -> None:
        """Remove the folder when it is empty; object stores have none."""
        with contextlib.suppress(Exception):
            if isinstance(self.folder, Path):
                self.folder.rmdir()
            else:
                files, path = file_system(self.folder)
                files.rmdir(path)


def upload(here: Path, url: str) -> None:
    """Copy a file to a URL, where it appears as a whole; raises OSError."""
    with _written(url) as (files, path):
        files.put_file(str(here), path)


def download(url: str, here: Path) -> bool:
    """Copy a file from a URL to `here`; False where there is none."""
    files, path = file_system(url)
    if not files.exists(path):
        return False
    files.get_file(path, str(here))
    return True


@contextlib.contextmanager
def _written(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL, and where in it a file is written so that it appears at the URL as a whole."""
    files, path = file_system(url)
    protocols = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
    if _WHOLE.intersection(protocols):
        yield files, path
        return
    folder, _, name = path.rpartition("/")
    files.makedirs(folder, exist_ok=True)
    draft = f"{folder}/.{name}.{os.getpid()}.draft"
    yield files, draft
    files.mv(draft, path)
