from __future__ import annotations

import csv
import io
import struct
import zipfile
from pathlib import Path

import pytest

from medsd.bundle.layout import Bundle
from medsd.dicom.gate import GatePolicy
from medsd.errors import ImageError
from medsd.preprocessing import archives
from medsd.preprocessing.archives import names_in, read_member, split_member
from medsd.scoring.batch import score
from medsd.scoring.inputs import name_inputs
from medsd.scoring.request import ScoringRequest

POLICY = GatePolicy()


@pytest.fixture(autouse=True)
def site_key(monkeypatch) -> None:
    monkeypatch.setenv("MEDSD_KEY", "a key for tests alone")


def _zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as files:
        for name, content in members.items():
            files.writestr(name, content)
    return path


def _refusal(path: Path, member: str = "film.dcm", policy: GatePolicy = POLICY) -> tuple[str, str]:
    with pytest.raises(ImageError) as refused:
        read_member(str(path), member, policy, member)
    return refused.value.reason, str(refused.value)


@pytest.fixture
def packed(films: Path) -> Path:
    """The invented films in an archive, with what lies beside films in a folder."""
    more = {"films/.hidden.png": b"x", "films/list.txt": b"x", "__MACOSX/film_0.png": b"x", "films/deeper/": b""}
    members = {
        f"films/{path.relative_to(films)}": path.read_bytes() for path in films.rglob("*.png") if path.stem[0] != "."
    }
    return _zip(films.parent / "films.zip", more | members)


def test_an_archive_is_its_films_in_the_order_of_their_names(packed: Path):
    names = name_inputs([packed]).names
    assert names == [
        f"{packed}!films/.hidden.png",
        *(f"{packed}!films/deeper/film_{n}.png" for n in (5, 6)),
        *(f"{packed}!films/film_{n}.png" for n in range(5)),
    ]  # fmt: skip


def test_members_score_as_the_files_they_were(image_bundle: Bundle, packed: Path, films: Path, tmp_path: Path):
    tables = []
    for inputs in (packed, films):
        score(ScoringRequest(image_bundle, [inputs], tmp_path / "out.csv"))
        with (tmp_path / "out.csv").open(newline="") as file:
            rows = {Path(row.pop("path")).name: row for row in csv.DictReader(file)}
        tables.append({name: row for name, row in rows.items() if name.endswith(".png") and name != ".hidden.png"})
    assert tables[0] == tables[1] and len(tables[0]) == 7


def test_an_archive_in_a_folder_and_a_single_member_are_read(packed: Path, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    moved = packed.rename(tmp_path / "folder" / "films.zip")
    assert len(name_inputs([tmp_path / "folder"]).names) == 8
    member = Path(f"{moved}!films/film_1.png")
    assert name_inputs([member]).names == [str(member)]


def test_a_file_whose_name_looks_like_a_member_is_a_file(tmp_path: Path):
    (tmp_path / "odd.zip!one.png").write_bytes(b"x")
    assert split_member(str(tmp_path / "odd.zip!one.png")) is None
    assert split_member(str(tmp_path / "Odd.ZIP!two!.png")) == (str(tmp_path / "Odd.ZIP"), "two!.png")


def test_what_no_archive_may_hold_is_a_row_each(image_bundle: Bundle, films: Path, tmp_path: Path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as files:
        files.writestr("film.png", b"x")
    good = (films / "film_0.png").read_bytes()
    path = _zip(tmp_path / "odd.zip", {"bomb.dcm": bytes(20_000_000), "inner.zip": inner.getvalue(), "good.png": good})
    _encrypt(_zip(tmp_path / "secret.zip", {"film.png": good}))
    (tmp_path / "torn.zip").write_bytes(path.read_bytes()[:-40])
    _zip(tmp_path / "empty.zip", {})
    score(ScoringRequest(image_bundle, [tmp_path / "*.zip"], tmp_path / "out.csv", workers=2))
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = {row["path"].rpartition("/")[2]: (row["reason"], row["message"]) for row in csv.DictReader(file)}
    assert {name: reason for name, (reason, _) in rows.items()} == {
        "odd.zip!bomb.dcm": "too_large", "odd.zip!inner.zip": "not_an_image", "odd.zip!good.png": "",
        "secret.zip!film.png": "file_error", "torn.zip": "cannot_decode", "empty.zip": "not_an_image",
    }  # fmt: skip
    assert "encrypted" in rows["secret.zip!film.png"][1]
    assert "an archive within an archive" in rows["odd.zip!inner.zip"][1]


def _encrypt(path: Path) -> Path:
    """Say of the first member that it is encrypted, in both of its headers."""
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


def test_a_member_larger_than_the_gate_reads_is_not_inflated(tmp_path: Path):
    path = _zip(tmp_path / "a.zip", {"film.dcm": bytes(range(256)) * 40}, zipfile.ZIP_STORED)
    reason, message = _refusal(path, policy=GatePolicy(max_file_bytes=10_000))
    assert (reason, "10240 bytes" in message) == ("too_large", True)


def test_a_member_that_inflates_too_far_is_refused_at_the_ratio(tmp_path: Path):
    path = _zip(tmp_path / "a.zip", {"film.dcm": bytes(5_000_000)})
    reason, message = _refusal(path)
    assert reason == "too_large" and "inflates to 5000000 bytes" in message


def test_a_member_that_is_more_than_it_says_is_damaged(tmp_path: Path):
    path = _zip(tmp_path / "a.zip", {"film.dcm": bytes(1000)})
    content = path.read_bytes().replace(struct.pack("<I", 1000), struct.pack("<I", 10))
    path.write_bytes(content)
    assert _refusal(path)[0] == "cannot_decode"


def test_too_many_members_are_refused_before_they_are_listed(tmp_path: Path, monkeypatch):
    path = _zip(tmp_path / "a.zip", {f"{n}.dcm": b"x" for n in range(6)})
    monkeypatch.setattr(archives, "MOST_MEMBERS", 5)
    monkeypatch.setattr(archives.zipfile, "ZipFile", lambda *_: pytest.fail("it was listed"))
    with pytest.raises(ImageError, match="the archive lists 6 members") as refused:
        names_in(str(path))
    assert refused.value.reason == "too_large"


def test_members_that_share_their_bytes_are_refused(tmp_path: Path):
    path = _zip(tmp_path / "a.zip", {f"{n}.dcm": bytes(range(200)) for n in range(3)}, zipfile.ZIP_STORED)
    content, directory = path.read_bytes(), path.read_bytes().find(b"PK\x01\x02")
    sizes = struct.pack("<I", 200)
    path.write_bytes(content[:directory] + content[directory:].replace(sizes, struct.pack("<I", 700)))
    with pytest.raises(ImageError, match="members are larger than itself"):
        names_in(str(path))


def test_a_member_that_is_not_there_is_said_so(tmp_path: Path):
    path = _zip(tmp_path / "a.zip", {"film.dcm": b"x"})
    assert _refusal(path, "gone.dcm") == (
        "file_error",
        "gone.dcm: the file cannot be opened (the archive holds no such member). Check that it exists and may be read.",
    )


def test_no_name_stands_in_a_message_of_the_table(image_bundle: Bundle, tmp_path: Path):
    """The name of a file may be a patient's; `path` alone has it."""
    path = _zip(tmp_path / "Phantom_Thora.zip", {"Phantom.dcm": bytes(5_000_000), "in/Phantom.zip": b"PK\x03\x04"})
    (tmp_path / "Phantom_torn.zip").write_bytes(path.read_bytes()[:-40])
    lost = tmp_path / "list.txt"
    lost.write_text(f"{path}!gone/Phantom.dcm\n")
    score(ScoringRequest(image_bundle, [tmp_path / "*.zip", lost], tmp_path / "out.csv"))
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(row["reason"] for row in rows)
    assert not [row["message"] for row in rows if "Phantom" in row["message"]]
