"""Paths that are no files of the usual kind: each is one row, or one clear line, at once."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import MediaStorageDirectoryStorage

from medsd.bundle.layout import Bundle
from medsd.errors import DataError
from medsd.scoring.batch import score
from medsd.scoring.inputs import name_inputs
from medsd.scoring.lock import open_locked
from medsd.scoring.request import ScoringRequest
from tests.command import medsd
from tests.interrupted import KEY, ROOT, start

SOON = 60  # seconds, on a machine that is busy


@pytest.fixture(autouse=True)
def site_key(monkeypatch) -> None:
    for name, value in KEY.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """End a test that hangs."""
    signal.alarm(2 * SOON)
    yield
    signal.alarm(0)


def _rows(bundle: Bundle, *inputs: Path, lists: tuple[Path, ...] = (), out: Path) -> dict[str, dict[str, str]]:
    score(ScoringRequest(bundle, list(inputs), out, lists=lists))
    with out.open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_what_is_no_file_is_a_row_that_says_what_it_is(image_bundle: Bundle, tmp_path: Path):
    folder = tmp_path / "odd"
    folder.mkdir()
    os.mkfifo(folder / "pipe.dcm")
    os.mkfifo(folder / "pipe.zip")
    (folder / "broken.dcm").symlink_to(folder / "nowhere")
    (folder / "circle.dcm").symlink_to(folder / "circle.dcm")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket.dcm"))
        rows = _rows(image_bundle, folder, Path("/dev/zero"), out=tmp_path / "out.csv")
    said = {Path(path).name: row["message"] for path, row in rows.items()}
    assert {row["reason"] for row in rows.values()} == {"file_error"}
    assert "it is a pipe" in said["pipe.dcm"] and "it is a pipe" in said["pipe.zip"]
    assert "it is a socket" in said["socket.dcm"] and "it is a device" in said["zero"]
    assert "No such file" in said["broken.dcm"] and "symbolic links" in said["circle.dcm"]


def test_paths_that_no_file_can_have_are_rows(image_bundle: Bundle, tmp_path: Path):
    (tmp_path / "list").write_text(f"{'x' * 300}\n{'y/' * 3000}z.zip!a.dcm\n/dev/zero\n")
    (tmp_path / "list.csv").write_bytes(b'path\n"zero\0byte.dcm"\n')
    lists = (tmp_path / "list", tmp_path / "list.csv")
    rows = _rows(image_bundle, lists=lists, out=tmp_path / "out.csv")
    assert [row["reason"] for row in rows.values()] == ["file_error"] * 4
    assert "File name too long" in rows["x" * 300]["message"] and "zero byte" in rows["zero\\x00byte.dcm"]["message"]
    with pytest.raises(DataError, match="File name too long"):
        name_inputs([Path("x" * 300)])


@pytest.mark.parametrize("given", ["/dev/zero", "pipe"])
def test_a_list_that_never_ends_or_never_begins_is_one_line(tmp_path: Path, given: str):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="cannot be read as a list of paths"):
        name_inputs([], lists=[tmp_path / given])
    with Path("/dev/zero").open("rb") as zeros, pytest.raises(DataError, match="it is a device"):
        name_inputs([Path("-")], stdin=zeros)


def test_a_list_may_come_through_a_pipe_whose_writer_is_slow(films: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        with (tmp_path / "pipe").open("w") as file:
            time.sleep(0.3)
            file.write(f"{films}/film_1.png\n")

    writer = threading.Thread(target=write)
    writer.start()
    assert name_inputs([], lists=[tmp_path / "pipe"]).names == [f"{films}/film_1.png"]
    writer.join()


def test_a_folder_that_cannot_be_listed_is_a_row(image_bundle: Bundle, films: Path, tmp_path: Path, monkeypatch):
    scandir = os.scandir

    def denied(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("deeper"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", denied)
        rows = _rows(image_bundle, films, out=tmp_path / "out.csv")
    row = rows[f"{films}/deeper"]
    assert (row["status"], row["reason"], len(rows)) == ("refused", "file_error", 7)


NOBODY = """
import os, sys
from pathlib import Path
from medsd.dicom.gate import admit
from medsd.scoring.inputs import name_inputs
admit(b"")  # imports what it needs
os.setgid(65534); os.setuid(65534)
for name in name_inputs([Path(sys.argv[1])]).names:
    print(admit(Path(name)).message)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="changes the user")
def test_a_folder_that_another_user_may_not_list_is_a_row_that_says_so(tmp_path: Path):
    top = Path("/tmp") / f"medsd-test-{os.getpid()}"
    (top / "closed").mkdir(parents=True)
    try:
        (top / "film.dcm").write_bytes(b"none")
        (top / "closed").chmod(0o700)
        top.chmod(0o755)
        run = subprocess.run([sys.executable, "-c", NOBODY, top], capture_output=True, text=True, cwd=ROOT, check=False)
    finally:
        shutil.rmtree(top)
    assert "closed: the file cannot be opened (Permission denied)" in run.stdout, run.stderr
    assert len(run.stdout.splitlines()) == 2


def test_links_to_folders_are_followed_once_and_circles_end(films: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(films / "deeper", elsewhere)
    (films / "again").symlink_to(films / "deeper")
    (films / "up").symlink_to(films)
    (elsewhere / "back").symlink_to(films)
    (films / "linked").symlink_to(elsewhere)
    names = [name.removeprefix(f"{films}/") for name in name_inputs([films]).names]
    assert names[-2:] == ["linked/film_5.png", "linked/film_6.png"] and len(names) == 10
    found = name_inputs([films / "**" / "film_5.png"]).names
    assert found == [f"{films}/deeper/film_5.png", f"{films}/linked/film_5.png"]


def test_members_with_names_that_lead_elsewhere_are_read_in_memory(image_bundle: Bundle, films: Path, tmp_path: Path):
    members = ("../out.png", "/tmp/absolute.png", ".hidden.png", ".folder/film.png", "a/../../b.png")
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        for member in members:
            archive.write(films / "film_1.png", member)
        archive.writestr(zipfile.ZipInfo("/absolute.png"), (films / "film_1.png").read_bytes())
    rows = _rows(image_bundle, tmp_path / "films.zip", out=tmp_path / "out.csv")
    assert len(rows) == len(members) + 1 and {row["status"] for row in rows.values()} <= {"scored", "warned"}
    assert not (tmp_path.parent / "out.png").exists()


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir", "Dicomdir"])
def test_the_directory_of_a_medium_is_known_in_any_case(
    image_bundle: Bundle, tmp_path: Path, chest, build_dx, name: str
):
    from io import BytesIO

    from pydicom import dcmread, dcmwrite
    from pydicom.sequence import Sequence

    ds = dcmread(BytesIO(build_dx((chest * 255).astype("uint8"))))
    for element in list(ds):
        del ds[element.tag]
    ds.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    ds.DirectoryRecordSequence = Sequence()
    (tmp_path / "disc").mkdir()
    dcmwrite(tmp_path / "disc" / name, ds)
    (tmp_path / "disc" / "IM1").write_bytes(build_dx((chest * 255).astype("uint8")))
    assert [Path(found).name for found in name_inputs([tmp_path / "disc"]).names] == ["IM1"]
    (row,) = _rows(image_bundle, tmp_path / "disc" / name, out=tmp_path / "out.csv").values()
    assert row["reason"] == "no_pixels" and "Media Storage Directory" in row["message"]


@pytest.mark.parametrize("out", ["/proc/x.csv", "/dev/null/x.csv"])
def test_an_output_where_nobody_can_write_is_one_line(out: str):
    with pytest.raises(DataError, match=r"cannot be written .*choose another output"):
        open_locked(Path(f"{out}.parts"), Path(out))


def test_a_working_folder_that_was_removed_is_one_line(image_bundle: Bundle, tmp_path: Path):
    (tmp_path / "gone").mkdir()
    code = f"import os; os.chdir({str(tmp_path / 'gone')!r}); os.rmdir({str(tmp_path / 'gone')!r})\n"
    code += "from medsd.cli import main; main()"
    words = ["score", image_bundle.folder, ".", "--out", "out.csv"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=SOON, env=environment
    )
    assert run.returncode == 2
    assert run.stderr == "medsd: the working folder was removed; change to one that exists\n"


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.6, 1.2])
def test_ctrl_c_while_helpers_start_prints_no_traceback(
    image_bundle: Bundle, films: Path, tmp_path: Path, seconds: float
):
    """The terminal sends the signal to the whole process group, the helpers that are importing included."""
    words = (image_bundle.folder, films, "--workers", 4, "--out", tmp_path / "out.csv")
    run = start(*words, start_new_session=True)
    while not _children(run.pid) and run.poll() is None:  # the first helper, or the process that keeps them tidy
        time.sleep(0.005)
    time.sleep(seconds)
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGINT)
    said, complained = run.communicate(timeout=SOON)
    assert "Traceback" not in complained and "KeyboardInterrupt" not in complained, complained
    assert run.returncode in (0, 130), (said, complained)


def _children(process: int) -> list[str]:
    place = Path(f"/proc/{process}/task/{process}/children")
    try:
        threads = place.parent.parent.iterdir()
        return [child for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []


def test_every_way_of_the_command_line_ends_with_a_line(image_bundle: Bundle, films: Path):
    run = medsd("score", image_bundle.folder, films, "--out", "/proc/x.csv")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1) and "cannot be written" in run.stderr


def test_a_link_in_a_circle_does_not_slow_the_walk(tmp_path: Path):
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
    for name in "abcdefgh":
        for other in "abcdefgh":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
        (tmp_path / name / "film.dcm").write_bytes(b"x")
    assert len(name_inputs([tmp_path]).names) == 8
