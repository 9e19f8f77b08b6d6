"""Open-i's archive is streamed; XML that could define entities is refused."""

import io
import tarfile
from pathlib import Path

import pytest

from medsd.errors import DataError
from tests.studies.openi_notes import is_held_back, read_openi_reports

REPORT = """<?xml version="1.0"?>
<eCitation><Abstract><AbstractText Label="INDICATION">Cough XXXX</AbstractText>
<AbstractText Label="COMPARISON"/><AbstractText Label="FINDINGS">Clear &amp; dry.</AbstractText></Abstract>
</eCitation>"""


def archive(folder: Path, content: str) -> Path:
    path = folder / "reports.tgz"
    with tarfile.open(path, "w:gz") as bundle:
        member = tarfile.TarInfo("ecgen-radiology/7.xml")
        member.size = len(content.encode())
        bundle.addfile(member, io.BytesIO(content.encode()))
    return path


def test_sections_are_read_and_placeholders_made_one(tmp_path: Path) -> None:
    ((name, note),) = read_openi_reports(archive(tmp_path, REPORT))
    assert (name, note.indication, note.comparison, note.findings) == ("CXR7", "Cough ___", "", "Clear & dry.")


def test_nothing_is_extracted(tmp_path: Path) -> None:
    list(read_openi_reports(archive(tmp_path, REPORT)))
    assert [path.name for path in tmp_path.iterdir()] == ["reports.tgz"]


@pytest.mark.parametrize("subset", ['[<!ENTITY a "aa">]', 'SYSTEM "other.dtd"', ""])
def test_a_document_type_is_refused(tmp_path: Path, subset: str) -> None:
    hostile = REPORT.replace("<eCitation>", f"<!DOCTYPE eCitation {subset}><eCitation>", 1)
    with pytest.raises(DataError, match=r"7\.xml declares a document type"):
        list(read_openi_reports(archive(tmp_path, hostile)))


def test_broken_xml_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"7\.xml is no valid XML"):
        list(read_openi_reports(archive(tmp_path, REPORT[:100])))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reports.tgz").write_text("no archive")
    with pytest.raises(DataError, match=r"cannot be read as an archive"):
        list(read_openi_reports(tmp_path / "reports.tgz"))


def test_a_missing_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.tgz"):
        list(read_openi_reports(tmp_path / "absent.tgz"))


def test_the_held_back_half_is_about_a_half_and_fixed() -> None:
    held = [is_held_back(f"CXR{number}") for number in range(4000)]
    assert 1900 < sum(held) < 2100
    assert (is_held_back("CXR2"), is_held_back("CXR3")) == (False, True)
