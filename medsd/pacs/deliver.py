"""The delivering half of the node: objects go to an archive by C-STORE (PS3.4 annex B) or STOW-RS (PS3.18), messages of
HL7 to an integration engine by the Minimal Lower Layer Protocol (MLLP release 1), framed and acknowledged one by one.
"""

import re
import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import AE, Association, build_context
from pynetdicom.presentation import PresentationContext

from medsd.dicom.web import Address, DicomWeb, DicomWebError, UnansweredError
from medsd.errors import DataError
from medsd.listening import host_and_port

_SUCCESS, _WARNINGS = 0x0000, range(0xB000, 0xC000)  # PS3.4 table B.2-1: coerced, discarded, no match: stored
_MOST_CONTEXTS = 128  # PS3.8 section 9.3.2.2
_BEGIN, _END = b"\x0b", b"\x1c\r"  # of a message of HL7
_TIMEOUT_S = 30.0
_MOST = 64 << 10  # bytes of an acknowledgement
_TAKEN = ("AA", "CA")  # HL7 table 0008: accepted by the application, or committed to be
Batched = tuple[str, list[Dataset]]  # the key of an image, and its results


class UnreachableError(Exception):
    """The archive or the engine cannot be reached now."""


@dataclass(frozen=True)
class Destination:
    """An archive, as ``AE@host:port``."""

    title: str
    host: str
    port: int
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, text: str, tls: ssl.SSLContext | None = None) -> Self:
        """Read ``AE@host:port``; raises DataError where it is none."""
        title, _, address = text.strip().partition("@")
        found = host_and_port(address)
        if found is None or not re.fullmatch(r"[^@\\]{1,16}", title):
            raise DataError(f"'{text}' is no destination; write AE@host:port, for instance ORTHANC@127.0.0.1:4242")
        return cls(title.strip(), *found, tls)

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"

    def associate(self, title: str, contexts: list[PresentationContext], wait_s: float | None = None) -> Association:
        """Ask for an association, which may not come about; `wait_s` is how long an answer may take."""
        ae = AE(title)
        ae.connection_timeout = ae.acse_timeout = 15
        if wait_s is not None:
            ae.dimse_timeout = ae.network_timeout = wait_s
        tls = (self.tls, self.host) if self.tls else None
        return ae.associate(self.host, self.port, contexts=contexts, ae_title=self.title, tls_args=tls)

    def deliver(self, title: str, batch: Iterable[Batched]) -> dict[str, str]:
        """Send the results of some images in one association; `title` is our AE title.

        Returns by key "" where the archive has every result of the image, else why not. Raises UnreachableError: no
        association came about, or it broke before anything was sent.
        """
        batch = list(batch)
        kinds = sorted({(r.SOPClassUID, r.file_meta.TransferSyntaxUID) for _, results in batch for r in results})
        association = self.associate(title, [build_context(*kind) for kind in kinds[:_MOST_CONTEXTS]])
        if not association.is_established:
            raise UnreachableError("rejected" if association.is_rejected else "no association")
        said: dict[str, str] = {}
        try:
            for key, results in batch:
                if not association.is_established:
                    break
                said[key] = next((why for result in results if (why := _send(association, result))), "")
        finally:
            if association.is_established:
                association.release()
        if not said:
            raise UnreachableError("the association broke")
        return said


@dataclass(frozen=True)
class WebDestination:
    """An archive, as ``https://host/path/studies``, to which results go by STOW-RS (PS3.18 section 10.5)."""

    address: Address  # of its studies
    authority: Path | None = None  # as for `DicomWeb`, like the certificate
    certificate: tuple[Path, Path] | None = None

    @classmethod
    def of(cls, text: str, authority: Path | None = None, certificate: tuple[Path, Path] | None = None) -> Self:
        """Read the address of an archive's studies.

        Raises DataError: it is none, or one of a study or a search; DependencyError: dicomweb-client is not installed.
        """
        address = Address.of(text)
        if address.study or address.filters:
            raise DataError("results go to https://host/path/studies, without a study and without a search")
        DicomWeb(address.service, authority, certificate).close()
        return cls(address, authority, certificate)

    def __str__(self) -> str:
        return str(self.address)

    def deliver(self, title: str, batch: Iterable[Batched]) -> dict[str, str]:
        """As `Destination.deliver`, with a request for each image."""
        said: dict[str, str] = {}
        with closing(DicomWeb(self.address.service, self.authority, self.certificate)) as service:
            for key, results in batch:
                try:
                    said[key] = service.store(results)
                except UnansweredError as error:
                    if not said:
                        raise UnreachableError(error.strerror) from None
                    break
                except DicomWebError as error:
                    said[key] = error.strerror or "it refuses"
        return said


def _send(association: Association, result: Dataset) -> str:
    """Why the archive did not take this result, "" where it did."""
    what = UID(result.SOPClassUID).name
    try:
        answer = association.send_c_store(result)
    except (RuntimeError, ValueError):  # the association is gone; no accepted context
        return f"it accepts no {what}" if association.is_established else "the association broke"
    if "Status" not in answer:
        return "the association broke"
    if answer.Status == _SUCCESS or answer.Status in _WARNINGS:
        return ""
    return f"it answered 0x{answer.Status:04X} to {what}"


@dataclass(frozen=True)
class Hl7Destination:
    """An integration engine, as ``host:port``."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, text: str, tls: ssl.SSLContext | None = None) -> Self:
        """Read ``host:port``; raises DataError where it is none."""
        found = host_and_port(text.strip())
        if found is None:
            raise DataError(f"'{text}' is no address for HL7; write host:port, for instance engine:2575")
        return cls(*found, tls)

    def send(self, message: bytes) -> str:
        """Send one message; why it was not taken, "" where it was.

        Raises UnreachableError: nobody listens, or no acknowledgement came.
        """
        try:
            with socket.create_connection((self.host, self.port), _TIMEOUT_S) as plain:
                line = self.tls.wrap_socket(plain, server_hostname=self.host) if self.tls else plain
                with line:
                    line.sendall(_BEGIN + message + _END)
                    answer = _answer(line)
        except OSError as error:  # ssl.SSLError is one
            raise UnreachableError(type(error).__name__) from None
        return _refusal(answer, message)


def _answer(line: socket.socket) -> bytes:
    answer, until = b"", time.monotonic() + _TIMEOUT_S
    while not answer.endswith(_END):
        line.settimeout(max(until - time.monotonic(), 0.001))  # of the whole, however it trickles
        piece = line.recv(4096)
        if not piece or len(answer) > _MOST:
            raise ConnectionAbortedError
        answer += piece
    return answer.removeprefix(_BEGIN).removesuffix(_END)


def _refusal(answer: bytes, message: bytes) -> str:
    """Why an acknowledgement is none of this message: by MSA-1 and MSA-2, which has its MSH-10."""
    fields = next((each.split(b"|") for each in answer.split(b"\r") if each.startswith(b"MSA|")), [])
    code, control = (fields[n].decode("ascii", "replace") if n < len(fields) else "" for n in (1, 2))
    if control != message.split(b"\r")[0].split(b"|")[9].decode():
        return "the acknowledgement is of another message"
    return "" if code in _TAKEN else f"it answered {code}" if re.fullmatch("[A-Z]{2}", code) else "it did not accept"
