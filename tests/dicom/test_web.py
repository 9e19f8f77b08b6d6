"""DICOMweb: what is asked, what is believed of an answer, and that no token and no identity is told."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import certifi
import numpy as np
import pytest
from pydicom import Dataset

pytest.importorskip("dicomweb_client", reason="medsd[pacs]")

from medsd.dicom import web
from medsd.dicom.web import Address, DicomWeb, DicomWebError, TooLargeError, UnansweredError
from medsd.errors import DataError
from tests.certificates import self_signed
from tests.conftest import dx_dataset
from tests.dicom.service import IMAGE, Service

TOKEN = "a-token-nobody-may-read"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(web, "_PAUSE_S", 0.0)
    running = Service()
    yield running
    running.close()


def found(service: Service, asked: str = "/studies") -> list[str]:
    address = Address.of(service.address + asked)
    return [each.study for each in DicomWeb(address.service).find(address)]


@pytest.mark.parametrize("text", [
    "dicomweb://host/studies/1.2/series/1.3?Modality=DX", "dicomweb://host", "dicomweb:///studies",
    "ftp://host/studies",
    "dicomweb://host/studies/../../etc", "dicomweb://user:PH-0042@host/studies", "dicomweb+http://host.example/studies",
    "http://10.0.0.1/studies", "dicomweb://host:port/studies",
])  # fmt: skip
def test_an_address_is_checked_and_not_quoted(text: str) -> None:
    with pytest.raises(DataError) as error:
        Address.of(f"{text}{'&' if '?' in text else '?'}PatientID=PH-0042")
    assert "PH-0042" not in str(error.value)


def test_an_address_says_what_it_means() -> None:
    search = Address.of("dicomweb://host:8443/a/b/studies?ModalitiesInStudy=DX&StudyDate=20260101-")
    assert search.service == "https://host:8443/a/b"
    assert search.filters == (("ModalitiesInStudy", "DX"), ("StudyDate", "20260101-"))
    image = Address.of("dicomweb+http://localhost/studies/1.2/series/1.3/instances/1.4")
    assert (image.study, image.series, image.instance) == ("1.2", "1.3", "1.4")
    assert Address.of(str(image)) == image
    assert "1.4" not in repr(image)


def test_every_page_is_read_whatever_the_service_makes_of_offsets(service: Service) -> None:
    service.page = 2
    assert found(service) == service.uids
    service.knows_offset = False
    assert found(service) == service.uids[:2]
    service.page = 1000
    assert found(service) == service.uids


def test_filters_go_to_the_search_of_studies(service: Service) -> None:
    found(service, "/studies?ModalitiesInStudy=DX&ModalitiesInStudy=CR&PatientName=A%26B*")
    first = parse_qs(service.asked[0]["QUERY_STRING"])
    assert first["ModalitiesInStudy"] == ["DX", "CR"] and first["PatientName"] == ["A&B*"]


def test_what_is_no_radiograph_or_no_uid_is_left_out(service: Service) -> None:
    service.uids = ["../../admin", "1.2.3", ""]
    assert found(service) == ["1.2.3"]
    service.modality = "CT"
    assert found(service) == []


def test_an_image_comes_as_it_is_kept_and_within_its_bound(service: Service) -> None:
    image = Address.of(f"{service.address}/studies/1.2/series/1.3/instances/1.4")
    client = DicomWeb(image.service)
    assert client.fetch(image, len(IMAGE)) == IMAGE
    assert "transfer-syntax=*" in service.asked[0]["HTTP_ACCEPT"]
    with pytest.raises(TooLargeError):
        client.fetch(image, len(IMAGE) - 1)
    service.image = bytes(1 << 20)
    with pytest.raises(TooLargeError):
        client.fetch(image, len(IMAGE))


def test_the_token_comes_from_the_environment_or_a_file_and_is_told_nobody(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(web.TOKEN, TOKEN)
    found(service, "/studies?PatientID=PH-0042")
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}-2\n")
    monkeypatch.setenv(web.TOKEN_FILE, str(file))
    found(service)
    shown = [each.get("HTTP_AUTHORIZATION") for each in service.asked]
    assert shown[0] == f"Bearer {TOKEN}" and shown[-1] == f"Bearer {TOKEN}-2"
    assert all(TOKEN not in each["PATH_INFO"] + each["QUERY_STRING"] for each in service.asked)
    service.status = "401 Unauthorized"
    with pytest.raises(DicomWebError, match="401; it wants another token") as error:
        found(service, "/studies?PatientID=PH-0042")
    file.unlink()
    with pytest.raises(DicomWebError, match="cannot be read"):
        found(service)
    for secret in (TOKEN, "PH-0042", "1.2.3"):
        assert secret not in caplog.text + str(error.value)


def test_a_service_shows_a_certificate_that_is_trusted_and_leads_to_no_plain_http(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(web.TOKEN, TOKEN)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())  # which counts for less than what a command says
    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    secure = Service(context)
    try:
        address = Address.of(f"{secure.address}/studies")
        with pytest.raises(UnansweredError, match="SSLError"):
            list(DicomWeb(address.service).find(address))
        client = DicomWeb(address.service, Path(certificate))
        assert [each.study for each in client.find(address)] == secure.uids
        secure.status, secure.moved_to = "302 Found", f"{service.address}/studies"
        with pytest.raises(DicomWebError, match="leads to another host"):
            list(client.find(address))
    finally:
        secure.close()
    assert not service.asked


def test_an_answer_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_LONGEST_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            with contextlib.suppress(OSError), listening.accept()[0] as peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: 400\r\n\r\n")
                for _ in range(400):
                    peer.sendall(b" ")
                    time.sleep(0.05)

        threading.Thread(target=trickle, daemon=True).start()
        address = Address.of(f"http://127.0.0.1:{listening.getsockname()[1]}/studies")
        begun = time.monotonic()
        with pytest.raises(UnansweredError, match="longer than 1 s"):
            list(DicomWeb(address.service).find(address))
    assert time.monotonic() - begun < 10


def test_results_and_searches_are_led_to_no_other_host(service: Service) -> None:
    other = Service()
    service.status, service.moved_to = "307 Temporary Redirect", f"{other.address}/studies"
    try:
        for ask in (lambda: found(service), lambda: DicomWeb(service.address).store([dx_dataset(np.zeros((4, 4)))])):
            with pytest.raises(DicomWebError, match="leads to another host"):
                ask()
    finally:
        other.close()
    assert not other.asked
    service.moved_to = f"{service.address}/studies/moved"
    with pytest.raises(DicomWebError, match="TooManyRedirects"):
        found(service)


def test_a_search_without_end_ends(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_MOST_FOUND", 20)
    service.uids, service.page = [f"1.2.{n}" for n in range(1000)], 8
    with pytest.raises(DicomWebError, match="more than 20 to a search"):
        found(service)
    assert len(service.asked) == 3


def test_a_busy_service_is_asked_again_and_a_dead_one_is_named(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.status = "503 Service Unavailable"
    with pytest.raises(UnansweredError, match="503"):
        found(service)
    assert len(service.asked) == 1 + web._TRIES
    with pytest.raises(UnansweredError, match="cannot be reached"):
        list(DicomWeb("http://127.0.0.1:1").find(Address("http://127.0.0.1:1")))
    assert not caplog.text


def test_a_result_is_stored_when_the_service_says_so(service: Service) -> None:
    result = dx_dataset(np.zeros((4, 4), np.uint16))
    client = DicomWeb(service.address)

    def answer(**sequences: str) -> None:
        told = Dataset()
        for keyword, uid in sequences.items():
            item = Dataset()
            item.ReferencedSOPInstanceUID = uid
            if keyword == "FailedSOPSequence":
                item.FailureReason = 0xA700
            setattr(told, keyword, [item])
        service.stored = told.to_json().encode()

    answer(ReferencedSOPSequence=result.SOPInstanceUID)
    assert client.store([result]) == ""
    assert result.SOPInstanceUID.encode() in service.asked[-1]["content"]
    answer(FailedSOPSequence=result.SOPInstanceUID)
    assert client.store([result]) == "it answered 0xA700"
    failure = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US"}}]}}  # without a reason
    service.stored = json.dumps(failure).encode()
    assert client.store([result]) == "it answered 0x0000"
    answer(ReferencedSOPSequence="1.2.3")
    assert client.store([result]) == "it does not say that it stored them"
    service.status = "409 Conflict"
    with pytest.raises(DicomWebError, match="answered 409"):
        client.store([result])
