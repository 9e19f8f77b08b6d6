"""What stands around a node in the tests: senders, an archive that records what it gets, and a node in a process.

Run as a program it is a node whose predictions cost nothing:
``python -m tests.pacs.peers FOLDER PORT ARCHIVE``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from medsd.findings import finding_set
from medsd.inference.prediction import Prediction
from medsd.pacs.deliver import Destination, WebDestination
from medsd.pacs.node import Node
from medsd.pacs.receive import Listening
from medsd.privacy import KeyedHasher
from tests.conftest import dx_dataset

ROOT = Path(__file__).parents[2]
KEY = b"a key for tests alone"
ARCHIVE = "ARCHIVE"


def small_image(number: int = 0, study: int = 0, **elements: object) -> Dataset:
    """A tiny DX image; the same number gives the same SOP Instance UID."""
    stored = np.random.default_rng(number).integers(0, 4096, (16, 16)).astype(np.uint16)
    ds = dx_dataset(stored, 12, **elements)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.99.{number}"
    ds.StudyInstanceUID = f"1.2.826.0.1.98.{study}"
    return ds


def nothing_said(content: bytes) -> Prediction:
    """A prediction that takes no time."""
    return Prediction(finding_set("nih14"), "scored")


def one_result(prediction: Prediction, content: bytes) -> list[Dataset]:
    """One small object in the image's study, with a UID of its own each time it is made."""
    source = dcmread(BytesIO(content))
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = BasicTextSRStorage, generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.PatientName, ds.PatientID, ds.StudyInstanceUID = source.PatientName, source.PatientID, source.StudyInstanceUID
    ds.SeriesInstanceUID, ds.Modality = generate_uid(), "SR"
    ds.ReferencedSOPInstanceUID = source.SOPInstanceUID  # where no module puts it: the archive of the tests looks here
    return [ds]


class Archive:
    """An SCP that remembers every object by UID; it can be stopped and started, and can refuse."""

    def __init__(self) -> None:
        self.results: dict[str, set[str]] = {}  # UID of the image: UIDs of its results
        self.status = 0x0000
        self._ae = AE(ARCHIVE)
        self._ae.require_called_aet = True
        self._ae.maximum_associations = 50
        self._ae.add_supported_context(BasicTextSRStorage, ExplicitVRLittleEndian)
        self._server: Any = None
        self.port = 0
        self.start()

    def start(self) -> None:
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._server = self._ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        self._ae.shutdown()

    def __str__(self) -> str:
        return f"{ARCHIVE}@127.0.0.1:{self.port}"

    def _store(self, event: Any) -> int:
        if self.status == 0:
            ds = event.dataset
            self.results.setdefault(str(ds.ReferencedSOPInstanceUID), set()).add(str(ds.SOPInstanceUID))
        return self.status

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Engine:
    """An integration engine that answers as it is told: b"" says nothing at all."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.taken: list[bytes] = []
        self.answer: Callable[[bytes], bytes] = lambda control: b"MSH|^~\\&|\rMSA|AA|" + control + b"\r"
        self.slow_s = 0.0  # after each byte
        self._socket, self._tls = socket.create_server(("127.0.0.1", 0)), tls
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:  # closed
                return
            with contextlib.suppress(OSError), peer:  # who does not trust it hangs up
                self._take(self._tls.wrap_socket(peer, server_side=True) if self._tls else peer)

    def _take(self, peer: socket.socket) -> None:
        framed = b""
        while not framed.endswith(b"\x1c\r"):
            if not (piece := peer.recv(4096)):
                return
            framed += piece
        message = framed.removeprefix(b"\x0b").removesuffix(b"\x1c\r")
        self.taken.append(message)
        if answer := self.answer(message.split(b"|")[9]):
            framed = b"\x0b" + answer + b"\x1c\r"
            for piece in [framed] if not self.slow_s else [framed[n : n + 1] for n in range(len(framed))]:
                peer.sendall(piece)
                time.sleep(self.slow_s)
        peer.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def associate(port: int, images: list[Dataset], *, calling: str = "CR1", called: str = "MEDSD", **more: Any) -> Any:
    ae = AE(calling)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 10
    for kind in sorted({(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in images}):
        ae.add_requested_context(*kind)
    ae.add_requested_context(Verification)
    return ae.associate("127.0.0.1", port, ae_title=called, **more)


def send(port: int, images: list[Dataset], **how: Any) -> list[int | None]:
    """The status of each; None where no answer came."""
    association = associate(port, images, **how)
    if not association.is_established:
        return [None] * len(images)
    answers = []
    for ds in images:
        if not association.is_established:
            answers.append(None)
            continue
        answers.append(association.send_c_store(ds).get("Status"))
    association.release()
    return answers


def wait_until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Process:
    """A node in a process of its own, to be killed."""

    def __init__(self, folder: Path, port: int, archive: str) -> None:
        command = [sys.executable, "-m", "tests.pacs.peers", str(folder), str(port), archive]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == "listening"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def terminate(self) -> int:
        self._process.terminate()
        return self._process.wait(20)


class Running:
    """A running `medsd receive`."""

    def __init__(self, log: Path, *arguments: object) -> None:
        self.log = log
        command = [sys.executable, "-m", "medsd.cli", "receive", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MEDSD_KEY": "a key for the tests of medsd"}
        with log.open("w") as stream:
            self._process = subprocess.Popen(command, env=environment, stderr=stream, stdout=stream)
        wait_until(lambda: self._process.poll() is not None or "listens as" in self.told, 120)
        assert self._process.poll() is None, self.told

    @property
    def told(self) -> str:
        return self.log.read_text()

    def port(self, before: str) -> int:
        found = re.search(rf"{before}127\.0\.0\.1:(\d+)", self.told)
        assert found
        return int(found[1])

    def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def duplicates(archive: Archive) -> dict[str, int]:
    """Images that have more than one result."""
    return {image: n for image, n in Counter({k: len(v) for k, v in archive.results.items()}).items() if n != 1}


def main(folder: str, port: str, archive: str) -> None:
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    with Node(
        Path(folder),
        nothing_said,
        one_result,
        hasher=KeyedHasher(KEY),
        destination=WebDestination.of(archive) if "://" in archive else Destination.of(archive),
        listening=Listening(port=int(port)),
        quiet_s=0.2,
    ):
        print("listening", flush=True)
        ending.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
