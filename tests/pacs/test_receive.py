"""`medsd receive` and `medsd report`: what a hospital sends, what its archive gets, and how the node ends."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom import Dataset

pytest.importorskip("pynetdicom", reason="medsd[pacs]")
pytest.importorskip("highdicom", reason="medsd[pacs]")

from pydicom.uid import (
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from typer.testing import CliRunner

from medsd.bundle.layout import Bundle
from medsd.cli import app
from medsd.errors import MedsdError
from tests.certificates import self_signed
from tests.conftest import file_bytes
from tests.pacs.peers import free_port, send, wait_until
from tests.results.read_back import findings_of
from tests.results.varied import radiograph

RESULTS = (
    ComprehensiveSRStorage, SecondaryCaptureImageStorage, EncapsulatedPDFStorage, KeyObjectSelectionDocumentStorage
)  # fmt: skip


@contextmanager
def archive(tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[Dataset]]]:
    """An archive that keeps every object; its port and what it holds."""
    stored: list[Dataset] = []

    def store(event: Any) -> int:
        stored.append(event.dataset)
        return 0

    ae = AE("ARCHIVE")
    for kind in RESULTS:
        ae.add_supported_context(kind)
    server = ae.start_server(("127.0.0.1", 0), block=False, ssl_context=tls, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield server.server_address[1], stored
    finally:
        ae.shutdown()


def test_results_come_into_the_patients_study_once_and_the_node_ends_clean(
    run: Any, tmp_path: Path, image_bundle: Bundle, chest: npt.NDArray[np.float64]
) -> None:
    image, flat = radiograph(chest), radiograph(chest * 0 + 0.5)
    queue = tmp_path / "queue"
    with archive() as (port, stored):
        arguments = (
            image_bundle.folder, "--port", 0, "--forward", f"ARCHIVE@127.0.0.1:{port}", "--queue", queue,
            "--complete-after", 0.2, "--as", "sr,key-image,pdf,kos", "--status-port", 0, "--provider", "cpu",
        )  # fmt: skip
        node = run(*arguments)
        assert send(node.port("on "), [image, flat, image]) == [0, 0, 0]
        wait_until(lambda: len(stored) == 6, 120)
        page = f"http://127.0.0.1:{node.port('status page: http://')}/status.json"
        wait_until(lambda: json.load(urlopen(page, timeout=10))["images done"] == 2)
        assert node.end() == 0
        assert not list((queue / "images").iterdir()) and not list((queue / "results").iterdir())
        again = run(*arguments)
        assert send(again.port("on "), [image]) == [0]
        time.sleep(1)
        assert len(stored) == 6
        assert again.end() == 0
    kinds = sorted(document.SOPClassUID.name for document in stored)
    assert kinds.count("Comprehensive SR Storage") == 2 and kinds.count("Key Object Selection Document Storage") == 1
    for document in stored:
        assert (document.PatientName, document.StudyInstanceUID) == (image.PatientName, image.StudyInstanceUID)
    assert sum(bool(findings_of(each)) for each in stored if each.SOPClassUID == ComprehensiveSRStorage) == 1
    audit = (queue / "audit.jsonl").read_text()
    assert sorted(json.loads(line)["status"] for line in audit.splitlines()) == ["refused", "scored"]
    for secret in ("Phantom", "PH-0042", str(image.SOPInstanceUID), "1.2.3.4"):
        assert secret not in node.told + again.told + audit
        for path in queue.glob("queue.sqlite*"):
            assert secret.encode() not in path.read_bytes()
    assert "scored" in node.told and "refused (flat)" in node.told and "Traceback" not in node.told


@pytest.mark.skipif(not shutil.which("dcmsend"), reason="dcmtk is not installed: apt-get install dcmtk")
def test_dcmtk_sends_the_image_and_stores_its_results(
    run: Any, tmp_path: Path, image_bundle: Bundle, chest: npt.NDArray[np.float64]
) -> None:
    (tmp_path / "image.dcm").write_bytes(file_bytes(radiograph(chest)))
    stored, port = tmp_path / "archive", free_port()
    stored.mkdir()
    archive_at = f"ARCHIVE@127.0.0.1:{port}"
    storescp = Path(str(shutil.which("dcmsend"))).with_name("storescp")  # pynetdicom has a command of this name, too
    with subprocess.Popen([storescp, "--aetitle", "ARCHIVE", "--output-directory", stored, str(port)]) as server:
        try:
            node = run(
                image_bundle.folder, "--port", 0, "--forward", archive_at, "--queue", tmp_path / "queue",
                "--complete-after", 0, "--as", "sr,text,key-image,gsps,pdf", "--provider", "cpu",
            )  # fmt: skip
            sent = ["dcmsend", "--call", "MEDSD", "127.0.0.1", str(node.port("on ")), str(tmp_path / "image.dcm")]
            assert subprocess.run(sent).returncode == 0
            wait_until(lambda: len(list(stored.iterdir())) == 5, 120)
            assert node.end() == 0
        finally:
            server.terminate()
    said = [findings_of(each) for each in map(pydicom.dcmread, stored.iterdir()) if each.Modality == "SR"
            and each.SOPClassUID == ComprehensiveSRStorage]  # fmt: skip
    assert len(said) == 1 and len(said[0]) == len(image_bundle.findings)


def test_images_and_results_travel_by_tls_from_those_who_may_send(
    run: Any, tmp_path: Path, image_bundle: Bundle, chest: npt.NDArray[np.float64]
) -> None:
    certificate, key = self_signed(tmp_path)
    accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    accepting.load_cert_chain(certificate, key)
    accepting.verify_mode = ssl.CERT_REQUIRED
    calling = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=certificate)
    unknown = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=certificate)
    calling.load_cert_chain(certificate, key)
    image = radiograph(chest)
    with archive(accepting) as (port, stored):
        node = run(
            image_bundle.folder, "--port", 0, "--forward", f"ARCHIVE@127.0.0.1:{port}", "--queue", tmp_path / "queue",
            "--complete-after", 0, "--tls-cert", certificate, "--tls-key", key, "--tls-ca", certificate,
            "--forward-tls", "--forward-ca", certificate, "--allow", "CR1", "--provider", "cpu",
        )  # fmt: skip
        listening = node.port("on ")
        assert send(listening, [image]) == [None]
        assert send(listening, [image], tls_args=(unknown, "127.0.0.1")) == [None]
        assert send(listening, [image], tls_args=(calling, "127.0.0.1"), calling="STRANGER") == [None]
        assert send(listening, [image], tls_args=(calling, "127.0.0.1")) == [0]
        wait_until(lambda: stored, 120)
        assert node.end() == 0
    assert stored[0].SOPClassUID == ComprehensiveSRStorage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--forward", "nowhere"), "is no destination; write AE@host:port"),
        (("--forward", "A@h:104", "--as", "sr,docx"), "'docx' is no kind of result"),
        (("--forward", "A@h:104", "--as", "sr,hl7"), "hl7 does not go by C-STORE"),
        (("--forward", "A@h:104", "--host", "0.0.0.0"), "name the AE titles that may send"),
        (("--forward", "A@h:104", "--title", "MUCH TOO LONG TITLE"), "is no AE title"),
        (("--forward", "A@h:104", "--tls-cert", "x.pem"), "--tls-cert and --tls-key belong together"),
        (("--forward", "A@h:104", "--tls-cert", "x.pem", "--tls-key", "y.pem"), "cannot be loaded"),
    ],
)
def test_wrong_options_are_one_line_and_exit_status_2(
    arguments: tuple[str, ...], message: str, image_bundle: Bundle
) -> None:
    said = medsd("receive", image_bundle.folder, *arguments)
    assert said[0] == 2 and message in " ".join(said[2].split())


def test_report_writes_the_objects_and_names_no_file_in_them(
    tmp_path: Path, image_bundle: Bundle, chest: npt.NDArray[np.float64]
) -> None:
    image = tmp_path / "CANARYSON.dcm"
    image.write_bytes(file_bytes(radiograph(chest)))
    asked = ("--as", "sr,key-image,gsps,pdf,kos", "--provider", "cpu", "--json")
    status, out, _ = medsd("report", image_bundle.folder, image, "--out", tmp_path / "a", *asked)
    assert status == 0
    assert json.loads(out)["files"] == ["sr.dcm", "key-image.dcm", "gsps.dcm", "pdf.dcm"]
    assert json.loads(out)["left_out"] == ["kos"]
    image.write_bytes(file_bytes(radiograph(chest * 0 + 0.5)))
    status, out, _ = medsd("report", image_bundle.folder, image, "--out", tmp_path / "b", *asked)
    assert status == 0 and json.loads(out)["files"] == ["sr.dcm", "pdf.dcm", "kos.dcm"]
    written = [*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()]
    assert len(written) == 7 and not any(b"CANARYSON" in path.read_bytes() for path in written)
    earlier = ("--previous", tmp_path / "b" / "sr.dcm")
    where = ("--out", tmp_path / "c", "--provider", "cpu", *earlier)
    assert medsd("report", image_bundle.folder, image, *where)[0] == 0
    assert "PredecessorDocumentsSequence" in pydicom.dcmread(tmp_path / "c" / "sr.dcm")


def test_a_report_on_another_study_is_no_predecessor(
    tmp_path: Path, image_bundle: Bundle, chest: npt.NDArray[np.float64]
) -> None:
    image, other = tmp_path / "image.dcm", tmp_path / "other.dcm"
    image.write_bytes(file_bytes(radiograph(chest)))
    header = radiograph(chest)
    header.StudyInstanceUID, header.Modality = "1.2.3.5", "SR"
    for modality, message in (("SR", "is a report on another study"), ("DX", "is no structured report")):
        header.Modality = modality
        other.write_bytes(file_bytes(header))
        said = medsd("report", image_bundle.folder, image, "--out", tmp_path / "out", "--previous", other)
        assert said[0] == 2 and message in said[2]
    assert not (tmp_path / "out").exists()


def test_report_needs_a_dicom_file(tmp_path: Path, image_bundle: Bundle) -> None:
    png = tmp_path / "image.png"
    png.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    for path, message in ((png, "they need a DICOM file"), (tmp_path / "none.dcm", "No such file")):
        said = medsd("report", image_bundle.folder, path, "--out", tmp_path / "out")
        assert said[0] == 2 and message in said[2]


def medsd(*arguments: object) -> tuple[int, str, str]:
    """Exit status, output and the one line of an error, as of the command."""
    said = CliRunner().invoke(app, [*map(str, arguments)])
    if isinstance(said.exception, MedsdError):
        return 2, "", str(said.exception)
    assert said.exception is None or isinstance(said.exception, SystemExit), said.exception
    return said.exit_code, said.stdout, said.stderr
