"""The receiving half of the node: C-ECHO and C-STORE (PS3.4 annexes A and B, PS3.7 section 9.1) within its limits.

An image is acknowledged when it is safe on disk. What is refused is counted and logged without anything of its content.
"""

import logging
import re
import shutil
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from medsd.dicom.decoders import decodes
from medsd.dicom.identity import read_identity
from medsd.errors import DataError
from medsd.listening import is_loopback
from medsd.pacs.queue import ImageStore
from medsd.privacy import KeyedHasher

log = logging.getLogger(__name__)

IMAGES = (ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation, DigitalXRayImageStorageForProcessing)
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
# Status of C-STORE, PS3.4 table B.2-1.
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
_FLUSH_S = 10.0  # what associations get to end by themselves at a shutdown


@dataclass(frozen=True)
class NodeLimits:
    object_bytes: int = 128 << 20  # of one image, and of one message on the wire
    associations: int = 16  # at once; one more is rejected with "local limit exceeded"
    # Of the messages that all associations have under way; who exceeds it is cut off, to send again.
    memory_bytes: int = 1 << 30
    queue_bytes: int = 50 << 30  # of images that wait
    free_bytes: int = 1 << 30  # what must stay free on the disk of the queue
    silence_s: float = 60.0  # a peer that says nothing for so long is cut off


@dataclass(frozen=True)
class Listening:
    """Where the node listens and to whom.

    Raises DataError: not a loopback address, and nothing says who may call; or an AE title is none.
    """

    title: str = "MEDSD"  # its AE title; an association that calls another is rejected
    host: str = "127.0.0.1"
    port: int = 11112
    # AE titles that may call; empty for any, on a loopback address or behind client certificates alone.
    allowed: tuple[str, ...] = ()
    tls: ssl.SSLContext | None = None  # makes it a TLS port (PS3.15 annex B); it may ask for client certificates

    def __post_init__(self) -> None:
        for title in (self.title, *self.allowed):
            if not re.fullmatch(r"[ -\[\]-~]{1,16}", title) or not title.strip():  # PS3.5 section 6.2
                raise DataError(f"'{title}' is no AE title; it has 1 to 16 letters of ASCII without a backslash")
        known = self.allowed or (self.tls is not None and self.tls.verify_mode == ssl.CERT_REQUIRED)
        if not is_loopback(self.host) and not known:
            raise DataError(
                f"{self.host} can be reached from the network: name the AE titles that may send with --allow, or ask "
                "for client certificates with --tls-ca"
            )


def take(content: bytes, instance: str, store: ImageStore, hasher: KeyedHasher, limits: NodeLimits) -> tuple[str, int]:
    """Put an image, the content of a DICOM file that must have the UID `instance`, into a store, within the limits.

    Returns "accepted", "again" or why it was refused, and the status of C-STORE.
    """
    if len(content) > limits.object_bytes:
        return "too large", OUT_OF_RESOURCES
    identity = read_identity(content)
    if not identity.study_uid or identity.instance_uid != instance:
        return "unreadable header", CANNOT_UNDERSTAND
    key, study = hasher.instance_key(identity.instance_uid), hasher.study_key(identity.study_uid)
    try:
        free = shutil.disk_usage(store.folder).free - len(content)
        if free < limits.free_bytes or store.waiting_bytes() + len(content) > limits.queue_bytes:
            return "disk full", OUT_OF_RESOURCES
        return ("accepted" if store.add(key, study, content) else "again"), SUCCESS
    except (OSError, sqlite3.Error) as error:
        log.error("the images cannot be written: %s", getattr(error, "strerror", None) or type(error).__name__)
        return "disk full", OUT_OF_RESOURCES


def readable_syntaxes() -> list[UID]:
    """The transfer syntaxes whose pixels are decoded here."""
    return [
        *_NATIVE,
        *(uid for uid in AllTransferSyntaxes if uid.is_compressed and uid not in _NATIVE and decodes(uid)),
    ]


class _Unhurried:
    """A context of TLS whose handshake comes with the first read, in the thread of the association.

    pynetdicom's would come in the one thread that accepts: a peer that connects and says nothing kept all others out.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def wrap_socket(self, sock: socket.socket, server_side: bool) -> ssl.SSLSocket:
        return self._context.wrap_socket(sock, server_side, do_handshake_on_connect=False)


class Receiver:
    """Listens, and puts what it takes into the queue.

    `count` is called with an outcome for each image and each association that was turned away: "accepted", "again" (the
    image is known), or why it was refused.
    """

    def __init__(
        self,
        store: ImageStore,
        hasher: KeyedHasher,
        listening: Listening,
        limits: NodeLimits,
        count: Callable[[str], None],
    ) -> None:
        self._images, self._hasher, self._listening, self._limits, self._count = store, hasher, listening, limits, count
        self._ae = AE(listening.title)
        self._ae.require_called_aet = True
        self._ae.require_calling_aet = list(listening.allowed)
        self._ae.maximum_associations = limits.associations
        self._ae.acse_timeout = self._ae.dimse_timeout = self._ae.network_timeout = limits.silence_s
        self._ae.add_supported_context(Verification)
        for image in IMAGES:
            self._ae.add_supported_context(image, readable_syntaxes())
        self._server: Any = None

    def start(self) -> int:
        """Listen; the port is returned, which matters where 0 was asked for. Raises DataError: it cannot be had."""
        stored, opened, rejected = evt.EVT_C_STORE, evt.EVT_CONN_OPEN, evt.EVT_REJECTED
        handlers = [(stored, self._store), (opened, self._bound), (rejected, self._rejected)]
        where, tls = (self._listening.host, self._listening.port), self._listening.tls
        try:
            self._server = self._ae.start_server(
                where, block=False, ssl_context=tls and _Unhurried(tls), evt_handlers=handlers
            )
        except OSError as error:
            raise DataError(f"port {where[1]} of {where[0]}: {error.strerror}; choose another --port") from None
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Take no new association, let those that run come to their end, then cut them off."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        until = time.monotonic() + _FLUSH_S
        while server.active_associations and time.monotonic() < until:
            time.sleep(0.05)
        self._ae.shutdown()

    def _store(self, event: Any) -> int:
        sock = event.assoc.dul.socket  # None as soon as the peer is gone
        try:
            instance = event.request.AffectedSOPInstanceUID
            outcome, status = take(event.encoded_dataset(), instance, self._images, self._hasher, self._limits)
        finally:
            if sock is not None:
                sock.received = 0  # of the next message
        self._count(outcome)
        if status != SUCCESS:
            log.warning("an image from %s was refused: %s", _peer(event), outcome)
        return status

    def _bound(self, event: Any) -> None:
        """Bound what a peer can make this process hold and how long it can hold a place.

        pynetdicom reads whatever length a PDU declares, and keeps a message in memory until it is whole; a socket
        without a timeout would wait in the middle of a PDU for ever.
        """
        sock, most = event.assoc.dul.socket, self._limits.object_bytes + (1 << 20)
        sock.socket.settimeout(self._limits.silence_s)
        read, sock.received = sock.recv, 0

        def bounded(nr_bytes: int) -> bytearray:
            outcome = "too large" if sock.received + nr_bytes > most else None
            if self._under_way() + nr_bytes > self._limits.memory_bytes:
                outcome = outcome or "too much at once"
            if outcome is not None:
                sock.received = 0  # what it declared and will not send keeps nobody else out
                self._count(outcome)
                log.warning("an association from %s was cut off: %s", _peer(event), outcome)
                raise ConnectionAbortedError
            sock.received += nr_bytes
            return bytearray(read(nr_bytes))

        sock.recv = bounded

    def _under_way(self) -> int:
        """Bytes of the messages that are being received, or are on their way to the disk."""
        server = self._server
        sockets = [each.dul.socket for each in server.active_associations] if server else []
        return sum(sock.received for sock in sockets if sock)

    def _rejected(self, event: Any) -> None:
        self._count("association rejected")
        log.warning("an association from %s was rejected: AE title, or too many at once", _peer(event))


def _peer(event: Any) -> str:
    return str(event.assoc.requestor.address)
