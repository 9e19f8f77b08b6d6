"""The node: exactly one result an image, whatever happens; and what it refuses."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from pydicom.uid import CTImageStorage

pytest.importorskip("pynetdicom", reason="medsd[pacs]")

from medsd.errors import DataError
from medsd.inference.predict import Predictor
from medsd.listening import client_context, server_context
from medsd.pacs import queue as queue_module
from medsd.pacs import receive, status
from medsd.pacs.deliver import Destination
from medsd.pacs.node import Node
from medsd.pacs.queue import ImageQueue
from medsd.pacs.receive import Listening, NodeLimits
from medsd.privacy import KeyedHasher
from tests.certificates import self_signed
from tests.conftest import dx_dataset
from tests.pacs.peers import (
    ARCHIVE,
    KEY,
    Archive,
    Process,
    associate,
    duplicates,
    free_port,
    nothing_said,
    one_result,
    send,
    small_image,
    wait_until,
)

StartNode = Callable[..., Node]


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as running:
        yield running


@pytest.fixture
def start(tmp_path: Path, archive: Archive) -> Iterator[StartNode]:
    nodes: list[Node] = []

    def begin(*, allowed: tuple[str, ...] = (), predict=nothing_said, results_of=one_result, **settings) -> Node:
        node = Node(
            tmp_path / "queue",
            predict,
            results_of,
            hasher=KeyedHasher(KEY),
            destination=Destination(ARCHIVE, "127.0.0.1", archive.port),
            listening=Listening(port=0, allowed=allowed),
            **{"quiet_s": 0.2, "status_port": 0, **settings},
        )
        nodes.append(node)
        return node

    yield begin
    for node in nodes:
        node.stop()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch) -> None:
    monkeypatch.setattr(queue_module, "_FIRST_PAUSE_S", 0.2)


def test_each_image_gets_one_result_however_often_it_is_sent(start: StartNode, archive: Archive):
    node = start()
    images = [small_image(n, n // 3) for n in range(6)]
    assert send(node.port, images + images) == [0] * 12
    wait_until(lambda: node.queue.counts().images["done"] == 6)
    assert send(node.port, images) == [0] * 6
    time.sleep(0.6)
    assert len(archive.results) == 6 and not duplicates(archive)
    assert not list((node.queue.folder / "images").iterdir()) and not list((node.queue.folder / "results").iterdir())


def test_a_study_is_read_when_it_is_complete(tmp_path: Path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(queue_module.time, "time", lambda: now)
    with ImageQueue(tmp_path) as queue:
        queue.add("one", "study", b"1")
        now = 1029.0
        queue.add("two", "study", b"2")
        queue.add("other", "another study", b"3")
        now = 1031.0
        queue.add("one", "study", b"1")  # sent again, which is nothing new
        assert queue.next_to_read(30) is None
        now = 1059.0
        assert {queue.next_to_read(30) for _ in range(4)} == {"one", "two", "other", None}


def test_killed_again_and_again_every_image_has_one_result(tmp_path: Path, archive: Archive):
    port = free_port()
    left = {n: small_image(n, n // 4) for n in range(24)}
    for round_ in range(3):
        node = Process(tmp_path / "queue", port, str(archive))
        sending = threading.Thread(target=_send_all, args=(port, left))
        sending.start()
        time.sleep(0.2 + 0.3 * round_)
        node.kill()
        sending.join()
    archive.stop()
    node = Process(tmp_path / "queue", port, str(archive))
    _send_all(port, left)
    assert not left
    time.sleep(1)
    archive.start()
    wait_until(lambda: len(archive.results) == 24, 60)
    time.sleep(0.5)
    assert not duplicates(archive)
    assert node.terminate() == 0


def _send_all(port: int, left: dict[int, object]) -> None:
    """Send what was not acknowledged yet, as a modality does."""
    for number in list(left):
        try:
            if send(port, [left[number]]) != [0]:
                return
        except (RuntimeError, ValueError):  # killed in the middle of this one
            return
        del left[number]


def test_an_image_that_was_taken_away_stops_no_other_and_is_read_when_it_is_sent_again(
    start: StartNode, archive: Archive
):
    node = start(quiet_s=1.0)
    assert send(node.port, [small_image(0), small_image(1)]) == [0, 0]
    sorted((node.queue.folder / "images").iterdir())[0].unlink()
    wait_until(lambda: node.queue.counts().images == {"waiting": 0, "read": 0, "done": 1, "failed": 1})
    assert send(node.port, [small_image(0), small_image(1)]) == [0, 0]
    wait_until(lambda: node.queue.counts().images["done"] == 2)
    assert len(archive.results) == 2 and not duplicates(archive)
    assert node.queue.waiting_bytes() == 0


def test_an_archive_that_refuses_is_asked_again(start: StartNode, archive: Archive):
    archive.status = 0xA700
    node = start()
    send(node.port, [small_image(0)])
    wait_until(lambda: "refused" in _page(node, "metrics"))
    archive.status = 0
    wait_until(lambda: 'medsd_node_sent_total{outcome="delivered"} 1.0' in _page(node, "metrics"))
    assert len(archive.results) == 1


def test_an_image_that_cannot_be_read_stops_no_other_and_is_given_up(start, archive, monkeypatch):
    monkeypatch.setattr(queue_module, "_FIRST_PAUSE_S", 0.001)

    def fails_on_the_first(prediction, content):
        if b"1.2.826.0.1.99.0" in content:
            raise RuntimeError("PH-0042")
        return one_result(prediction, content)

    node = start(results_of=fails_on_the_first)
    send(node.port, [small_image(n) for n in range(3)])
    wait_until(lambda: node.queue.counts().images == {"waiting": 0, "read": 0, "done": 2, "failed": 1})
    assert send(node.port, [small_image(0)]) == [0]
    assert node.queue.counts().images["failed"] == 0  # sent again, tried again


def test_strangers_and_other_objects_are_refused_without_identity(start: StartNode, caplog):
    caplog.set_level(logging.DEBUG)
    node = start(allowed=("CR1",))
    assert send(node.port, [small_image(0)], calling="STRANGER") == [None]
    assert send(node.port, [small_image(0)], called="OTHER") == [None]
    ct = small_image(1, SOPClassUID=CTImageStorage)
    association = associate(node.port, [ct])
    assert [cx.abstract_syntax for cx in association.rejected_contexts] == [CTImageStorage]
    association.release()
    wrong = small_image(2)
    del wrong.StudyInstanceUID
    assert send(node.port, [wrong, small_image(3)]) == [receive.CANNOT_UNDERSTAND, 0]
    assert caplog.text.count("was rejected: AE title") == 2
    for secret in ("Phantom", "PH-0042", "1.2.826.0.1.99", "STRANGER"):
        assert secret not in caplog.text


def test_limits_of_objects_and_disk(start: StartNode, monkeypatch):
    node = start(limits=NodeLimits(object_bytes=4000, queue_bytes=20_000), quiet_s=60)
    large = small_image(9, ImageComments="x" * 5000)
    assert send(node.port, [large]) == [receive.OUT_OF_RESOURCES]
    statuses = send(node.port, [small_image(n) for n in range(30)])
    assert statuses[0] == 0 and statuses[-1] == receive.OUT_OF_RESOURCES
    assert node.queue.counts().bytes <= 20_000

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(queue_module, "write_whole", full)
    monkeypatch.setattr(node.queue, "counts", lambda: queue_module.Counts({}, 0, None))
    assert send(node.port, [small_image(50)]) == [receive.OUT_OF_RESOURCES]


def test_a_message_without_end_is_cut_off_and_a_truncated_one_forgotten(start: StartNode, caplog):
    node = start(limits=NodeLimits(object_bytes=4000))
    assert send(node.port, [small_image(1, ImageComments="x" * (3 << 20)), small_image(2)]) == [None, None]
    with socket.create_connection(("127.0.0.1", node.port)) as peer:
        peer.sendall(b"\x04\x00\x7f\xff\xff\xff")  # a P-DATA of 2 GB is declared
        assert not peer.recv(100)
    assert "too much at once" not in caplog.text  # what was declared counts for nobody else
    association = associate(node.port, [small_image(3)])
    association.dul.socket.socket.sendall(b"\x04\x00\x00\x00\x10\x00" + b"half")
    association.dul.socket.socket.close()
    assert send(node.port, [small_image(4)]) == [0]
    assert sum(node.queue.counts().images.values()) == 1


def test_who_connects_by_tls_and_says_nothing_keeps_nobody_out(tmp_path: Path):
    certificate, key = self_signed(tmp_path)
    listening = Listening(port=0, tls=server_context(certificate, key, None))
    receiver = receive.Receiver(
        ImageQueue(tmp_path / "queue"), KeyedHasher(KEY), listening, NodeLimits(silence_s=2.0), lambda _: None
    )
    port = receiver.start()
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as silent:
            trusting = client_context(None, None, certificate)
            assert send(port, [small_image(1)], tls_args=(trusting, "127.0.0.1")) == [0]
            assert send(port, [small_image(2)]) == [None]
            assert not silent.recv(1)  # cut off in the end
    finally:
        receiver.stop()


def test_what_a_peer_declares_and_does_not_send_counts_for_nobody_else(tmp_path: Path):
    queue = ImageQueue(tmp_path / "queue")
    limits = NodeLimits(object_bytes=4000)
    receiver = receive.Receiver(queue, KeyedHasher(KEY), Listening(port=0), limits, lambda _: None)
    sockets = [SimpleNamespace(socket=socket.socket(), recv=bytes) for _ in range(2)]
    asked = SimpleNamespace(address="")
    peers = [SimpleNamespace(dul=SimpleNamespace(socket=each), requestor=asked) for each in sockets]
    receiver._server = SimpleNamespace(active_associations=peers)  # the first one's end is not noticed yet
    for each in peers:
        receiver._bound(SimpleNamespace(assoc=each))
    with pytest.raises(ConnectionAbortedError):
        sockets[0].recv(2 << 30)
    assert len(sockets[1].recv(100)) == 100


def test_the_messages_of_all_associations_together_are_bounded(start: StartNode, caplog):
    node = start(limits=NodeLimits(memory_bytes=6000))
    waiting = associate(node.port, [small_image(1)])
    waiting.dul.socket.socket.sendall(b"\x04\x00\x00\x00\x13\x88" + b"half")  # a P-DATA of 5,000 bytes begins
    time.sleep(0.3)
    assert send(node.port, [small_image(2, ImageComments="x" * 3000)]) == [None]
    assert "too much at once" in caplog.text
    waiting.dul.socket.socket.close()
    time.sleep(0.3)
    assert send(node.port, [small_image(2, ImageComments="x" * 3000)]) == [0]


def test_a_node_that_cannot_listen_leaves_nothing_behind(start: StartNode, tmp_path: Path, archive: Archive):
    logger, free = logging.getLogger("pynetdicom"), free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DataError, match="choose another --port"):
            Node(
                tmp_path / "queue",
                nothing_said,
                one_result,
                hasher=KeyedHasher(KEY),
                destination=Destination(ARCHIVE, "127.0.0.1", archive.port),
                listening=Listening(port=taken.getsockname()[1]),
                status_port=free,
            )
    assert logger.propagate
    start(status_port=free)  # neither its port nor the queue is held
    assert not logger.propagate and [type(each) for each in logger.handlers] == [logging.NullHandler]


def test_fifty_at_once_are_served_or_turned_away(start: StartNode):
    node = start(limits=NodeLimits(associations=8))
    answers: list[int | None] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.extend(send(node.port, [small_image(n, n)]))) for n in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {0, None} and len(answers) == 50
    assert sum(node.queue.counts().images.values()) == answers.count(0) > 0
    assert send(node.port, [small_image(99)]) == [0]


def test_the_status_page_counts_and_names_nobody(start: StartNode):
    node = start()
    send(node.port, [small_image(0)])
    wait_until(lambda: json.loads(_page(node, "status.json"))["images done"] == 1)
    assert "<td>images done<td>1" in _page(node, "")
    metrics = _page(node, "metrics")
    assert 'medsd_node_received_total{outcome="accepted"} 1.0' in metrics
    assert 'medsd_node_images{state="done"} 1.0' in metrics
    assert "Phantom" not in metrics + _page(node, "")


def test_visitors_of_the_status_page_that_say_nothing_keep_no_other_waiting(start: StartNode, monkeypatch, capfd):
    monkeypatch.setattr(status._Silent, "timeout", 1.0)
    node = start()
    visitors = [socket.create_connection(("127.0.0.1", node.status.port)) for _ in range(9)]
    begun = time.monotonic()
    assert _page(node, "metrics") and time.monotonic() - begun < 5
    assert not any(visitor.recv(1) for visitor in visitors)
    assert not capfd.readouterr().err


def _page(node: Node, path: str) -> str:
    with urlopen(f"http://127.0.0.1:{node.status.port}/{path}", timeout=10) as answer:
        return answer.read().decode()


def test_a_real_model_reads_and_the_queue_holds_no_identity(start: StartNode, archive, predictor: Predictor, chest):
    node = start(predict=lambda content: predictor(content), quiet_s=60)
    stored = (chest * 4000).astype("uint16")
    ds = dx_dataset(stored, 12)
    assert send(node.port, [ds]) == [0]
    for path in node.queue.folder.iterdir():
        if path.is_file():
            assert b"PH-0042" not in path.read_bytes() and b"1.2.3.4" not in path.read_bytes()
    assert node.queue.folder.stat().st_mode & 0o077 == 0
    node._quiet_s = 0.1
    wait_until(lambda: len(archive.results) == 1)


def test_two_nodes_do_not_share_a_queue(tmp_path: Path):
    with ImageQueue(tmp_path), pytest.raises(DataError, match="another node uses this queue"):
        ImageQueue(tmp_path)


def test_an_open_port_names_who_may_send():
    with pytest.raises(DataError, match="name the AE titles"):
        Listening(host="0.0.0.0")
    assert Listening(host="0.0.0.0", allowed=("CR1",)).allowed


@pytest.mark.parametrize("text", ["host:104", "AE@host", "AE@host:0", "A" * 17 + "@h:1"])
def test_a_destination_is_checked(text: str):
    with pytest.raises(DataError, match="is no destination"):
        Destination.of(text)
    assert Destination.of("ORTHANC@[::1]:4242") == Destination("ORTHANC", "::1", 4242)


def test_one_image_from_many_associations_at_once_is_kept_once(tmp_path: Path):
    with ImageQueue(tmp_path) as queue, ThreadPoolExecutor(8) as senders:
        for number in range(20):
            kept = list(senders.map(lambda _, key=f"{number}": queue.add(key, "study", bytes(300_000)), range(8)))
            assert kept.count(True) == 1
            assert len(queue.content(f"{number}")) == 300_000
