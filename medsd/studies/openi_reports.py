"""Open-i's radiology reports (Indiana University) as they are published; the only reader of them in medsd.

One XML file a report, with the sections as AbstractText elements. An archive is streamed, never unpacked; a file that
declares a document type, and so could define entities, is refused. Demner-Fushman et al., JAMIA 2016;23:304–310.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from medsd.errors import DataError

_LARGEST_REPORT = 1_000_000  # bytes; a report has a few thousand


@dataclass(frozen=True)
class OpeniReport:
    """One report.

    Attributes:
        name: ``"CXR12"``, its uId, or the number of its file where it has none.
        sections: text by section, lower case (indication, comparison, findings, impression); empty ones are left out.
        headings: the major MeSH headings, lower case.
        images: names of its films, without an ending.
    """

    name: str
    sections: Mapping[str, str]
    headings: tuple[str, ...]
    images: tuple[str, ...] = ()


def read_reports(source: Path) -> Iterator[OpeniReport]:
    """The reports of a tar archive (any compression), or of a folder of XML files, in their order.

    Raises:
        DataError: there is no such archive or folder, or a report is no plain XML of this layout.
    """
    contents = _from_folder(source) if source.is_dir() else _from_archive(source)
    for path, content in contents:
        yield _parse(path, content, f"{source}: {path.name}")


def _from_folder(folder: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    for path in sorted(folder.glob("*.xml")):
        _check_size(path.stat().st_size, path.name, folder)
        yield PurePosixPath(path.name), path.read_bytes()


def _from_archive(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                stream = archive.extractfile(member) if member.isfile() and name.suffix == ".xml" else None
                if stream is not None:
                    _check_size(member.size, name.name, path)
                    yield name, stream.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as an archive of reports ({type(error).__name__})") from None


def _check_size(size: int, name: str, where: Path) -> None:
    if size > _LARGEST_REPORT:
        raise DataError(f"{where}: {name} is no report of at most {_LARGEST_REPORT:,} bytes")


def _parse(path: PurePosixPath, content: bytes, where: str) -> OpeniReport:
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        parser.feed(content)
        root = parser.close()
    except ElementTree.ParseError as error:
        raise DataError(f"{where} is no valid XML (line {error.position[0]})") from None
    except _DoctypeFound:
        raise DataError(f"{where} declares a document type, which could define entities; reports have none") from None
    sections: dict[str, str] = {}
    for element in root.iter("AbstractText"):
        section, text = (element.get("Label") or "").lower(), (element.text or "").strip()
        if section and text:
            sections[section] = f"{sections[section]} {text}" if section in sections else text
    identifier = root.find(".//uId")
    name = (identifier.get("id") if identifier is not None else None) or f"CXR{path.stem}"
    headings = tuple((element.text or "").strip().lower() for element in root.iterfind(".//MeSH/major"))
    images = tuple(element.get("id") or "" for element in root.iterfind(".//parentImage"))
    return OpeniReport(name, sections, headings, images)


class _DoctypeFound(Exception):
    """Raised from within the parser, before any entity can be expanded."""


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds the tree; stops at a document type declaration."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _DoctypeFound
