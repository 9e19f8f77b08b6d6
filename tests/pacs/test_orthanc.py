"""The node beside a real archive: what modalities send to Orthanc comes back to it as a result in the same study."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from pydicom import Dataset
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage

pytest.importorskip("pynetdicom", reason="medsd[pacs]")
pytest.importorskip("highdicom", reason="medsd[pacs]")
pytest.importorskip("dicomweb_client", reason="medsd[pacs]")

from dicomweb_client.api import DICOMwebClient
from typer.testing import CliRunner

from medsd.bundle.layout import Bundle
from medsd.cli import app
from tests.pacs import orthanc
from tests.pacs.orthanc import Orthanc
from tests.pacs.peers import Engine, Process, free_port, send, small_image, wait_until
from tests.results.varied import radiograph

pytestmark = orthanc.NEEDED


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[tuple[Orthanc, int]]:
    """Orthanc, and the port at which it expects the node."""
    node = free_port()
    with Orthanc(tmp_path / "orthanc", node) as running:
        yield running, node


def test_results_come_back_into_the_study_and_are_found_by_qido(
    archive: tuple[Orthanc, int],
    run: Any,
    tmp_path: Path,
    image_bundle: Bundle,
    chest: npt.NDArray[np.float64],
) -> None:
    pacs, port = archive
    image, client = radiograph(chest), DICOMwebClient(pacs.address)

    def found() -> dict[str, dict[str, Any]]:
        told = client.search_for_instances(image.StudyInstanceUID, fields=["PatientID"])
        return {str(each["00080016"]["Value"][0]): each for each in told}

    with Engine() as engine:
        node = run(
            image_bundle.folder, "--port", port, "--forward", f"{orthanc.TITLE}@127.0.0.1:{pacs.port}", "--allow",
            orthanc.TITLE, "--queue", tmp_path / "queue", "--complete-after", 0.2, "--as", "sr,key-image",
            "--hl7", f"127.0.0.1:{engine.port}", "--provider", "cpu",
        )  # fmt: skip
        assert send(pacs.port, [image], called=orthanc.TITLE) == [0]
        wait_until(lambda: len(found()) == 3 and engine.taken, 120)
    results = found()
    assert set(results) == {image.SOPClassUID, ComprehensiveSRStorage, SecondaryCaptureImageStorage}
    assert [each["00100020"]["Value"] for each in results.values()] == [[image.PatientID]] * 3
    series = {each["0020000E"]["Value"][0] for each in results.values()}
    assert len(series) == 3 and image.SeriesInstanceUID in series
    assert str(image.PatientID).encode() in engine.taken[0] and str(image.PatientID) not in node.told


def sent_until_read(pacs: Orthanc, port: int, folder: Path, count: int, kills: int, outage_s: float) -> None:
    """Images go from Orthanc to a node that is killed again and again, and back while Orthanc is away for a while."""
    images: list[Dataset] = [small_image(number, number // 4) for number in range(count)]
    node = Process(folder, port, f"{orthanc.TITLE}@127.0.0.1:{pacs.port}")
    sending = threading.Thread(target=send, args=(pacs.port, images), kwargs={"called": orthanc.TITLE})
    sending.start()
    for _ in range(kills):
        time.sleep(1)
        node.kill()
        node = Process(folder, port, f"{orthanc.TITLE}@127.0.0.1:{pacs.port}")
    sending.join()
    kept = pacs.find("DX")
    assert len(kept) == count
    pacs.stop()
    time.sleep(outage_s)
    pacs.start()
    for _ in range(60):  # the archive keeps asking, as nothing tells it which of its images were acknowledged
        pacs.forward(kept)
        time.sleep(max(2.0, count / 50))
        if len(pacs.results()) == count:
            break
    time.sleep(2)
    assert pacs.results() == dict.fromkeys((str(each.SOPInstanceUID) for each in images), 1)
    assert node.terminate() == 0


def test_a_node_that_is_killed_and_an_archive_that_goes_away_leave_one_result_an_image(
    archive: tuple[Orthanc, int], tmp_path: Path
) -> None:
    sent_until_read(*archive, tmp_path / "queue", count=12, kills=2, outage_s=2)


@pytest.mark.bench
def test_five_hundred_images_ten_kills_and_a_minute_without_the_archive(
    archive: tuple[Orthanc, int], tmp_path: Path
) -> None:
    sent_until_read(*archive, tmp_path / "queue", count=500, kills=10, outage_s=60)


def test_images_are_scored_from_dicomweb_and_the_table_is_that_of_their_files(
    archive: tuple[Orthanc, int], tmp_path: Path, image_bundle: Bundle, chest: npt.NDArray[np.float64]
) -> None:
    pacs, _ = archive
    images = [radiograph(chest * shade, StudyInstanceUID=f"1.2.3.{n}") for n, shade in enumerate((1, 0.9, 0))]
    other = small_image(7, Modality="CT", SeriesInstanceUID="1.2.3.9")
    other.StudyInstanceUID = images[0].StudyInstanceUID
    assert send(pacs.port, [*images, other], called=orthanc.TITLE) == [0] * 4
    folder = tmp_path / "files"
    folder.mkdir()
    for number, image in enumerate(images):
        image.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    search = f"dicomweb+{pacs.address}/studies?StudyDate={images[0].StudyDate}&ModalitiesInStudy=DX"
    tables = [score(image_bundle, tmp_path / f"{n}.csv", source) for n, source in enumerate((search, folder))]
    assert all(path.startswith(f"dicomweb+{pacs.address}/studies/1.2.3.") for path in tables[0].pop("path"))
    tables[1].pop("path")
    by_key = [table.sort_values("instance_key", ignore_index=True) for table in tables]
    assert len(by_key[0]) == 3 and by_key[0].equals(by_key[1])


def score(bundle: Bundle, out: Path, source: object) -> pd.DataFrame:
    said = CliRunner().invoke(app, ["score", str(bundle.folder), str(source), "--out", str(out), "--provider", "cpu"])
    assert said.exit_code == 0, said.output
    return pd.read_csv(out)


def test_results_go_to_dicomweb(archive: tuple[Orthanc, int], tmp_path: Path) -> None:
    pacs, port = archive
    node = Process(tmp_path / "queue", port, f"{pacs.address}/studies")
    images = [small_image(number) for number in range(3)]
    assert send(pacs.port, images, called=orthanc.TITLE) == [0] * 3
    wait_until(lambda: len(pacs.results()) == 3, 60)
    assert pacs.results() == dict.fromkeys((str(each.SOPInstanceUID) for each in images), 1)
    assert node.terminate() == 0
