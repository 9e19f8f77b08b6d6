"""Radiology reports as data sets publish them: XML of Open-i (Indiana) and of the Computational Medicine Challenge.

An archive is streamed, never unpacked. A file that declares a document type, and so could define entities, is refused.

References:
    Demner-Fushman et al., JAMIA 2016;23:304-310 (Open-i).
    Pestian et al., A shared task involving multi-label classification of clinical free text, BioNLP, ACL 2007:97-104.
"""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError, explained
from medsd.studies.splits import fixed_fifth

CMC2007_FILE = "2007ChallengeTrainData.xml"
FEWEST_REPORTS = 5  # of a code that is dealt out evenly
_LARGEST_REPORT = 1_000_000  # bytes; a report of Open-i has a few thousand


def parse_xml(content: bytes, where: str) -> ElementTree.Element:
    """The root of an XML document from outside; DataError, which says `where`, for no XML and for a document type."""

    class NoDoctype(ElementTree.TreeBuilder):
        def doctype(self, *_: str | None) -> None:  # called before any entity can be expanded
            raise DataError(f"{where} declares a document type, which could define entities; reports have none")

    try:
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=NoDoctype()))
    except ElementTree.ParseError as error:
        raise DataError(f"{where} is no valid XML (line {error.position[0]})") from None


@dataclass(frozen=True)
class OpeniReport:
    name: str  # "CXR12", its uId, or the number of its file where it has none
    sections: Mapping[str, str]  # text by section (indication, comparison, findings, impression), without empty ones
    headings: tuple[str, ...]  # the major MeSH headings, lower case
    images: tuple[str, ...] = ()  # names without an ending


def read_reports(source: Path) -> Iterator[OpeniReport]:
    """The reports of Open-i in a tar archive (any compression), or in a folder of XML files, in their order.

    Raises DataError: there is no such archive or folder, or a report is no plain XML of this layout.
    """
    for path, content in _contents(source):
        yield _openi_report(path, parse_xml(content, f"{source}: {path.name}"))


def _contents(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    if path.is_dir():
        for file in sorted(path.glob("*.xml")):
            _check_size(file.stat().st_size, file.name, path)
            yield PurePosixPath(file.name), file.read_bytes()
        return
    with (
        explained(f"{path}: cannot be read as an archive of reports", OSError, tarfile.TarError, EOFError),
        tarfile.open(path) as archive,
    ):
        for member in archive:
            name = PurePosixPath(member.name)
            stream = archive.extractfile(member) if member.isfile() and name.suffix == ".xml" else None
            if stream is not None:
                _check_size(member.size, name.name, path)
                yield name, stream.read()


def _check_size(size: int, name: str, where: Path) -> None:
    if size > _LARGEST_REPORT:
        raise DataError(f"{where}: {name} is no report of at most {_LARGEST_REPORT:,} bytes")


def _openi_report(path: PurePosixPath, root: ElementTree.Element) -> OpeniReport:
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


@dataclass(frozen=True)
class CodedReport:
    """One report of the Computational Medicine Challenge, of a child."""

    name: str  # the document's number
    text: str  # history and impression in one
    codes: frozenset[str]  # ICD-9-CM, those of the majority of three companies


def read_coded_reports(path: Path) -> list[CodedReport]:
    """The reports of the challenge's file in their order; errors as `parse_xml`."""
    try:
        root = parse_xml(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}); is the data set complete?") from None
    return [
        CodedReport(
            document.get("id", f"{number:06d}"),
            " ".join(text.text or "" for text in document.iter("text")),
            frozenset(code.text or "" for code in document.iter("code") if code.get("origin") == "CMC_MAJORITY"),
        )
        for number, document in enumerate(root.iter("doc"))
    ]


def common_codes(reports: list[CodedReport]) -> tuple[str, ...]:
    """The codes of `FEWEST_REPORTS` reports or more, in their order."""
    every = sorted(set().union(*(report.codes for report in reports)))
    return tuple(code for code in every if sum(code in report.codes for report in reports) >= FEWEST_REPORTS)


def coded(reports: list[CodedReport], codes: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """(N, F) 1 where a report has a code, else 0."""
    return np.array([[code in report.codes for code in codes] for report in reports], dtype=np.float32)


def tested_fifth(reports: list[CodedReport]) -> npt.NDArray[np.bool_]:
    """(N,) True for the fixed fifth that is tested; reports of rare codes alone are never in it."""
    labels = coded(reports, common_codes(reports))
    dealt = labels.any(axis=1)
    chosen = np.zeros(len(reports), dtype=bool)
    chosen[dealt] = fixed_fifth(labels[dealt], np.array([f"{row:06d}" for row in range(int(dealt.sum()))]))
    return chosen
