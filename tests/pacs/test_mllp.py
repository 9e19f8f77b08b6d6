"""HL7 by MLLP: framed, acknowledged, tried again; and not in the way of the objects."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="medsd[pacs]")

from medsd.errors import DataError
from medsd.listening import client_context
from medsd.pacs import deliver
from medsd.pacs import queue as queue_module
from medsd.pacs.deliver import Destination, Hl7Destination, UnreachableError
from medsd.pacs.node import Node
from medsd.pacs.receive import Listening
from medsd.privacy import KeyedHasher
from tests.certificates import self_signed
from tests.pacs.peers import KEY, Archive, Engine, nothing_said, one_result, send, small_image, wait_until

MESSAGE = b"MSH|^~\\&|MEDSD||||20260504||ORU^R01^ORU_R01|control-7|P|2.5.1\rPID|||PH-0042\r"


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as running:
        yield running


def test_a_message_is_framed_and_its_acknowledgement_is_checked(engine: Engine, monkeypatch) -> None:
    monkeypatch.setattr(deliver, "_TIMEOUT_S", 2.0)
    destination = Hl7Destination.of(f"127.0.0.1:{engine.port}")
    assert destination.send(MESSAGE) == "" and engine.taken == [MESSAGE]
    for answer, expected in (
        (b"MSA|CA|control-7\r", ""), (b"MSH|x\rMSA|AE|control-7|PH-0042\r", "it answered AE"),
        (b"MSA|AR|control-7", "it answered AR"), (b"MSA|AA|control-8", "is of another message"),
        (b"MSA|PH-0042|control-7", "did not accept"), (b"MSA", "is of another message"),
        (b"\xff", "is of another message"),
    ):  # fmt: skip
        engine.answer = lambda control, answer=answer: answer
        said = destination.send(MESSAGE)
        assert said == expected or (expected and expected in said and "PH-0042" not in said)
    engine.answer = lambda control: b""
    with pytest.raises(UnreachableError):
        destination.send(MESSAGE)
    engine.answer, engine.slow_s = lambda control: bytes(50), 0.2  # each byte in time, the whole of it never
    begun = time.monotonic()
    with pytest.raises(UnreachableError):
        destination.send(MESSAGE)
    assert time.monotonic() - begun < 4
    engine.slow_s = 0.0
    engine.answer = lambda control: bytes(200_000)
    with pytest.raises(UnreachableError):
        destination.send(MESSAGE)


def test_a_message_goes_by_tls_to_an_engine_that_is_trusted(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with Engine(context) as engine:
        address = f"127.0.0.1:{engine.port}"
        assert Hl7Destination.of(address, client_context(None, None, str(certificate))).send(MESSAGE) == ""
        with pytest.raises(UnreachableError):
            Hl7Destination.of(address, client_context(None, None, None)).send(MESSAGE)
    assert engine.taken == [MESSAGE]


@pytest.mark.parametrize("text", ["host", "host:0", "host:99999", "http://host:1/x", "AE@host:104"])
def test_an_address_is_checked(text: str) -> None:
    with pytest.raises(DataError, match="write host:port"):
        Hl7Destination.of(text)


def test_each_image_has_one_message_and_the_archive_does_not_wait_for_the_engine(
    engine: Engine, tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(queue_module, "_FIRST_PAUSE_S", 0.2)
    engine.answer = lambda control: b"MSA|AE|" + control
    with Archive() as archive, Node(
        tmp_path / "queue", nothing_said, lambda prediction, content: [*one_result(prediction, content), MESSAGE],
        hasher=KeyedHasher(KEY), destination=Destination.of(str(archive)),
        messages=Hl7Destination.of(f"127.0.0.1:{engine.port}"), listening=Listening(port=0), quiet_s=0.1,
    ) as node:  # fmt: skip
        assert send(node.port, [small_image(0), small_image(1)]) == [0, 0]
        wait_until(lambda: len(engine.taken) >= 4)
        assert len(archive.results) == 2 and node.queue.counts().images["done"] == 0
        archive.results.clear()
        engine.answer = lambda control: b"MSA|AA|" + control
        wait_until(lambda: node.queue.counts().images["done"] == 2)
        assert not archive.results  # what it had was not sent again
        wait_until(lambda: not list((node.queue.folder / "results").iterdir()))
    assert set(engine.taken) == {MESSAGE} and "its HL7 message: it answered AE" in caplog.text
    assert "PH-0042" not in caplog.text
