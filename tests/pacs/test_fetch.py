"""`medsd fetch`: images that are pulled, from Orthanc and from an archive that misbehaves."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom import Dataset
from typer.testing import CliRunner

pytest.importorskip("pynetdicom", reason="medsd[pacs]")
pytest.importorskip("dicomweb_client", reason="medsd[pacs]")

from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from medsd.bundle.layout import Bundle
from medsd.cli import app
from medsd.errors import MedsdError
from tests import canary
from tests.conftest import file_bytes
from tests.dicom.service import Service
from tests.pacs import orthanc
from tests.pacs.orthanc import Orthanc
from tests.pacs.peers import KEY, Process, free_port, send, small_image, wait_until
from tests.results.varied import radiograph

DAY = "20260504"


def medsd(*arguments: object) -> tuple[int, Any]:
    """Exit status, and the JSON or the words."""
    said = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if isinstance(said.exception, MedsdError):
        return 2, str(said.exception)
    assert said.exception is None or isinstance(said.exception, SystemExit), said.exception
    return said.exit_code, json.loads(said.stdout) if said.exit_code < 2 else said.output


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[tuple[Orthanc, int]]:
    """Orthanc with three images of the day, one of another, and a CT; and the port at which it expects us."""
    port = free_port()
    with Orthanc(tmp_path / "orthanc", port, forwards=False) as running:
        days = (DAY, DAY, DAY, "20250101")
        images = [small_image(n, n, StudyDate=day, SeriesInstanceUID=f"1.2.3.{n}") for n, day in enumerate(days)]
        images.append(small_image(4, 0, StudyDate=DAY, Modality="CT", SeriesInstanceUID="1.2.3.9"))
        assert send(running.port, images, called=orthanc.TITLE) == [0] * 5
        yield running, port


def names(folder: Path) -> list[str]:
    return sorted(str(pydicom.dcmread(path).SOPInstanceUID) for path in folder.iterdir())


OF_THE_DAY = [f"1.2.826.0.1.99.{n}" for n in range(3)]


@orthanc.NEEDED
def test_images_of_a_day_come_by_c_move_and_by_dicomweb_and_once(archive: tuple[Orthanc, int], tmp_path: Path) -> None:
    pacs, port = archive
    by_title = (f"{orthanc.TITLE}@127.0.0.1:{pacs.port}", "--port", port)
    for number, source in enumerate((by_title, (f"{pacs.address}/studies",))):
        folder = tmp_path / str(number)
        asked = ("fetch", *source, "--date", DAY, "--out", folder)
        assert medsd(*asked) == (0, {"outcomes": {"accepted": 3}, "failed": 0})
        assert names(folder) == OF_THE_DAY
        assert not any("1.2.826" in path.name for path in folder.iterdir())
        assert medsd(*asked) == (0, {"outcomes": {"again": 3}, "failed": 0})
    assert medsd("fetch", *by_title, "--match", "PatientID=NOBODY", "--out", tmp_path / "none")[1]["outcomes"] == {}
    assert medsd("fetch", *by_title, "--max-image-mb", 1, "--min-free-gb", 1e9, "--out", tmp_path / "full") == (
        1, {"outcomes": {"disk full": 4}, "failed": 4}
    )  # fmt: skip


@orthanc.NEEDED
def test_a_node_gets_what_is_pulled_and_its_results_go_back(
    archive: tuple[Orthanc, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSD_KEY", KEY.decode())
    pacs, port = archive
    source, queue = f"{orthanc.TITLE}@127.0.0.1:{pacs.port}", tmp_path / "queue"
    assert medsd("fetch", f"{pacs.address}/studies", "--date", DAY, "--queue", queue)[1]["outcomes"] == {"accepted": 3}
    node = Process(queue, port, source)
    assert medsd("fetch", source, "--move-to", "MEDSD")[1]["outcomes"] == {"moved": 4}
    wait_until(lambda: len(pacs.results()) == 4, 60)
    time.sleep(1)
    assert set(pacs.results().values()) == {1}
    assert medsd("fetch", source, "--move-to", "STRANGER") == (1, {"outcomes": {"not sent": 4}, "failed": 4})
    assert medsd("fetch", f"{pacs.address}/studies", "--queue", queue)[0] == 2  # the node has it
    assert node.terminate() == 0


def test_an_archive_that_fails_is_told_in_one_line_without_identity(tmp_path: Path) -> None:
    fails, moved = True, []

    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        found = Dataset()
        found.StudyInstanceUID, found.SeriesInstanceUID, found.Modality = "1.2.3", "1.2.4", "DX"
        if fails:
            yield 0xC001, None
            return
        yield 0xFF00, found
        level = event.identifier.QueryRetrieveLevel
        for uid in ("", "*", ["1.2.5", "1.2.6"]):  # to C-MOVE, it would be all or many
            found.SeriesInstanceUID = uid
            if level == "STUDY":
                found.StudyInstanceUID = uid
            yield 0xFF00, found

    def move(event: Any) -> Iterator[tuple[None, None]]:
        moved.append((event.identifier.StudyInstanceUID, event.identifier.SeriesInstanceUID))
        yield None, None  # the destination is unknown

    ae = AE("ARCHIVE")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    handlers = [(evt.EVT_C_FIND, find), (evt.EVT_C_MOVE, move)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    address = f"ARCHIVE@127.0.0.1:{server.server_address[1]}"
    asked = ("--match", "PatientName=Phäntom*", "--port", 0, "--out", tmp_path / "out")
    try:
        told = [medsd("fetch", address, *asked)]
        fails = False
        told.append(medsd("fetch", address, *asked))
    finally:
        ae.shutdown()
    told.append(medsd("fetch", f"ARCHIVE@127.0.0.1:{free_port()}", *asked))
    told.append(medsd("fetch", f"http://127.0.0.1:{free_port()}/studies", *asked))
    for (code, words), expected in zip(
        told, ("0xC001", "does not know the AE title MEDSD", "no association", "cannot be reached"), strict=True
    ):
        assert code == 2 and expected in words and "Ph" not in words
    assert moved == [("1.2.3", "1.2.4")]


def test_a_canary_is_in_her_images_and_in_the_addresses_of_a_table_alone(
    tmp_path: Path, image_bundle: Bundle, chest: npt.NDArray[np.float64], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    film = tmp_path / "film.dcm"
    film.write_bytes(file_bytes(radiograph(chest)))
    service = Service()
    service.uids, service.instance, service.image = [canary.STUDY_UID], canary.INSTANCE_UID, canary.film(film, every=60)
    search = f"dicomweb+{service.address}/studies?PatientName={canary.FAMILY}*"
    told, rows = [], []
    try:
        for status in ("200 OK", "404 Not Found"):
            service.status = status
            told.append(medsd("fetch", search, "--out", tmp_path / "out", "--match", f"PatientID={canary.NUMBER}"))
            table = tmp_path / f"{status[:3]}.jsonl"
            told.append(
                medsd("score", image_bundle.folder, search, "--out", table, "--workers", 1, "--provider", "cpu")
            )
            rows += [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
    finally:
        service.close()
    assert [code for code, _ in told] == [0, 0, 2, 2] and len(rows) == 1
    assert rows[0].pop("path").endswith(canary.INSTANCE_UID)
    (image,) = (tmp_path / "out").iterdir()
    assert canary.traces_in(image.read_bytes())
    said = f"{caplog.text} {told} {rows} {image.name}".replace(str(tmp_path), "")
    assert canary.traces_in(said.encode()) == set()


@pytest.mark.parametrize("wrong", [
    ("--date", "2026"), ("--match", "Nothing=1"), ("--match", "PatientID"), ("--queue", "q"), ("--move-to", "X"),
])  # fmt: skip
def test_what_is_asked_is_checked(tmp_path: Path, wrong: tuple[str, str]) -> None:
    assert medsd("fetch", "http://127.0.0.1:1/studies", "--out", tmp_path, *wrong)[0] == 2
