"""Open-i's reports (Demner-Fushman et al., J Am Med Inform Assoc 23, 2016), read from the published archive as it is.

One XML file a report, with the sections as AbstractText elements. The archive is streamed, never extracted; a file
that declares a document type, and so could define entities, is refused.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from medsd.errors import DataError
from medsd.studies.notes.sections import Note, normalise_placeholders

_SECTIONS = {name.upper(): name for name in ("indication", "comparison", "findings", "impression")}
_LARGEST_REPORT = 1_000_000


def read_openi_reports(archive: Path) -> Iterator[tuple[str, Note]]:
    """The reports of `archive` (tar, any compression) in its order, as (``"CXR12"``, note).

    Raises:
        DataError: no such archive, or a report that is no plain XML of this layout.
    """
    try:
        with tarfile.open(archive) as bundle:
            for member in bundle:
                path = PurePosixPath(member.name)
                if member.isfile() and path.suffix == ".xml":
                    yield f"CXR{path.stem}", _parse(_content(bundle, member, archive), f"{archive.name}: {path.name}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive}: cannot read it as a tar archive of reports; fetch it again") from error


def is_held_back(report: str) -> bool:
    """Whether a report belongs to the half that rules were not written on: by a hash of its name, fixed for good."""
    return bool(hashlib.sha256(report.encode()).digest()[0] % 2)


def _content(bundle: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> bytes:
    stream = bundle.extractfile(member)
    if stream is None or member.size > _LARGEST_REPORT:
        raise DataError(f"{archive.name}: {member.name} is no report of at most {_LARGEST_REPORT:,} bytes")
    return stream.read()


def _parse(content: bytes, where: str) -> Note:
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        parser.feed(content)
        root = parser.close()
    except ElementTree.ParseError as error:
        raise DataError(f"{where}: not readable as XML: {error}") from error
    except _DoctypeFound:
        raise DataError(f"{where}: declares a document type, which could define entities; reports have none") from None
    told: dict[str, str] = {}
    for element in root.iter("AbstractText"):
        section = _SECTIONS.get((element.get("Label") or "").upper())
        if section and element.text:
            told[section] = normalise_placeholders(element.text.strip())
    # Open-i has no section of history: its indications hold it.
    return Note(
        indication=told.get("indication", ""),
        comparison=told.get("comparison", ""),
        findings=told.get("findings", ""),
        impression=told.get("impression", ""),
    )


class _DoctypeFound(Exception):
    """Raised from within the parser, before any entity can be expanded."""


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds the tree; stops at a document type declaration."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _DoctypeFound
