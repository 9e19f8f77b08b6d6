"""A DICOMweb service (PS3.18): images are found by QIDO-RS, fetched by WADO-RS, and results stored by STOW-RS.

``dicomweb://host/path/studies?ModalitiesInStudy=DX`` is a search by HTTPS; ``dicomweb+http://`` is plain HTTP, for
services of this machine alone. Who must show a token names it in the environment, by `TOKEN` or `TOKEN_FILE`, never in
an address. Begin at `Address.of` and `DicomWeb`.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.message import Message
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import parse_qsl, urlsplit

from pydicom import Dataset

from medsd.dicom.policy import GatePolicy
from medsd.dicom.quiet import quiet
from medsd.errors import DataError, DependencyError
from medsd.listening import is_loopback

TOKEN, TOKEN_FILE = "MEDSD_DICOMWEB_TOKEN", "MEDSD_DICOMWEB_TOKEN_FILE"
RADIOGRAPHS = GatePolicy().modalities
_SCHEMES = {"dicomweb": "https", "https": "https", "dicomweb+http": "http", "http": "http"}
UID = r"[0-9][0-9.]{0,63}"  # what is believed to be one
_PATH = re.compile(rf"(.*?)/studies(?:/({UID})(?:/series/({UID})(?:/instances/({UID}))?)?)?/?")
_STUDY, _SERIES, _INSTANCE, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"
_PAGE, _MOST_FOUND = 100, 100_000  # results of one request, and of all of a search
_MOST_BYTES = 64 << 20  # of an answer that is no image
_OVERHEAD = 64 << 10  # of the multipart message around an image
_TIMEOUT_S = (10.0, 60.0)  # to connect, and without a byte
_LONGEST_S = 600.0  # of a whole answer, however it trickles
_TRIES, _PAUSE_S = 3, 1.0
_BUSY = (429, 502, 503, 504)


class DicomWebError(OSError):
    """The service does not do what it is asked for; `strerror` says why, without an identity."""

    def __init__(self, why: str) -> None:
        super().__init__(0, why)


class TooLargeError(DicomWebError):
    """An answer has more bytes than it may."""


class UnansweredError(DicomWebError):
    """The service cannot be reached now."""


@dataclass(frozen=True)
class Address:
    """A resource of a service: its studies, one of them, a series or an instance of it."""

    service: str  # URL of HTTP or HTTPS, without what follows ``/studies``
    study: str = field(default="", repr=False)  # a UID, as the next two; empty where the resource is not in one
    series: str = field(default="", repr=False)
    instance: str = field(default="", repr=False)
    filters: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # of a search for studies

    @classmethod
    def of(cls, text: str) -> Self:
        """Read an address.

        Raises DataError: it is none, names a password, or would send images over a network in the clear. The message
        does not quote it, as a search may name a patient.
        """
        try:
            parts = urlsplit(text)
            host, scheme, _ = parts.hostname or "", _SCHEMES[parts.scheme.lower()], parts.port
        except (ValueError, KeyError):
            host, scheme = "", ""
        found = _PATH.fullmatch(parts.path) if host else None
        if found is None or (parts.query and found[2]):
            raise DataError(
                "this is no address of DICOMweb; write dicomweb://host/path/studies?ModalitiesInStudy=DX, or "
                "dicomweb://host/path/studies/UID"
            )
        if "@" in parts.netloc:
            raise DataError(f"a name or password does not belong into an address of DICOMweb; give a token in {TOKEN}")
        if scheme == "http" and not is_loopback(host):
            raise DataError(f"plain HTTP is for services of this machine; {host} needs HTTPS, dicomweb://")
        _, study, series, instance = (part or "" for part in found.groups())
        filters = tuple(parse_qsl(parts.query))
        return cls(f"{scheme}://{parts.netloc}{found[1]}", study, series, instance, filters)

    @property
    def path(self) -> str:
        """What follows the service."""
        parts = (("", self.study), ("/series", self.series), ("/instances", self.instance))
        return "/studies" + "".join(f"{kind}/{uid}" for kind, uid in parts if uid)

    def __str__(self) -> str:
        """As it is written, without filters."""
        plain = self.service.startswith("http:")
        return f"dicomweb{'+http' if plain else ''}://{self.service.partition('://')[2]}{self.path}"


def is_dicomweb(url: str) -> bool:
    """Whether a URL has a scheme that only DICOMweb has."""
    return url.lower().startswith(("dicomweb://", "dicomweb+http://"))


class DicomWeb:
    """One service, named as in `Address`.

    `authority` is a file with the authority of its certificate, by default those that ``requests`` trusts;
    `certificate` has our certificate and its key, where the service wants one. Raises DependencyError: dicomweb-client
    is not installed.
    """

    def __init__(
        self, service: str, authority: Path | None = None, certificate: tuple[Path, Path] | None = None
    ) -> None:
        try:
            import requests
            from dicomweb_client.api import DICOMwebClient
        except ModuleNotFoundError as error:
            raise DependencyError(f"DICOMweb needs {error.name}; install it with: pip install 'medsd[pacs]'") from None
        self._session = session = requests.Session()
        self._adapter = _bounded_adapter(authority)
        session.adapters.clear()
        session.mount("http", self._adapter)  # and https
        session.trust_env = service.startswith("https:")  # no proxy stands between us and this machine
        session.auth = _authorise
        session.cert = (str(certificate[0]), str(certificate[1])) if certificate else None
        self._service = service
        self._client = DICOMwebClient(service, session, timeout=_TIMEOUT_S, permissive_uid=True)
        self._client.set_http_retry_params(retry=False)  # it would also try again what is too large

    def close(self) -> None:
        self._session.close()

    def find(self, address: Address, modalities: Sequence[str] = RADIOGRAPHS) -> Iterator[Address]:
        """The images of a resource, an address each, of series of these modalities; raises DicomWebError."""
        if address.instance:
            yield address
            return
        client = self._client
        filters = {name: [value for key, value in address.filters if key == name] for name, _ in address.filters}
        studies = [{_STUDY: address.study}]
        if not address.study:
            studies = self._search(client.search_for_studies, _STUDY, search_filters=filters)
        for study in studies:
            series = self._search(client.search_for_series, _SERIES, study[_STUDY])
            wanted = [each[_SERIES] for each in series if each[_MODALITY] in modalities]
            for uid in (each for each in wanted if address.series in ("", each)):
                for found in self._search(client.search_for_instances, _INSTANCE, study[_STUDY], uid):
                    yield replace(address, study=study[_STUDY], series=uid, instance=found[_INSTANCE], filters=())

    def _search(self, ask: Callable[..., Any], key: str, *within: str, **how: Any) -> list[dict[str, str]]:
        """Results as tag → value, each once; services answer page by page, and some know no offset."""
        found: dict[str, dict[str, str]] = {}
        while True:
            with self._asking(_MOST_BYTES):
                page = ask(*within, limit=_PAGE, offset=len(found), **how)
                rows = [{tag: str((row.get(tag, {}).get("Value") or [""])[0]) for tag in (key, _MODALITY)}
                        for row in page]  # fmt: skip
            fresh = {row[key]: row for row in rows if re.fullmatch(UID, row[key]) and row[key] not in found}
            if not fresh:
                return list(found.values())
            found |= fresh
            if len(found) > _MOST_FOUND:
                raise DicomWebError(f"the service answers with more than {_MOST_FOUND} to a search; ask for less")

    def fetch(self, address: Address, most: int) -> bytes:
        """The file of an instance, as the service keeps it.

        dicomweb-client would parse it, and so inflate it without a bound; here the gate gets the bytes. Raises
        TooLargeError: it has more than `most` bytes; DicomWebError: the service does not answer as it should.
        """
        if not address.instance:
            raise DicomWebError("the address is that of no instance")
        accepted = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        with self._asking(most + _OVERHEAD):
            answer = self._session.get(self._service + address.path, headers=accepted, timeout=_TIMEOUT_S)
            answer.raise_for_status()
            content = _only_part(answer.headers.get("Content-Type", ""), answer.content)
        if len(content) > most:
            raise TooLargeError(f"more than {most} bytes")
        return content

    def store(self, objects: Sequence[Dataset]) -> str:
        """Store objects in one request; why not all of them are stored, "" where they are.

        Raises UnansweredError: the service cannot be reached; DicomWebError: it refuses the request.
        """
        with self._asking(_MOST_BYTES):
            answer = self._client.store_instances(objects)
            stored = {str(each.ReferencedSOPInstanceUID) for each in answer.get("ReferencedSOPSequence", [])}
            failed = [f"it answered 0x{int(each.get('FailureReason') or 0):04X}"
                      for each in answer.get("FailedSOPSequence", [])]  # fmt: skip
        if failed:
            return failed[0]
        named = all(str(each.SOPInstanceUID) in stored for each in objects)
        return "" if named else "it does not say that it stored them"

    @contextmanager
    def _asking(self, most: int) -> Iterator[None]:
        """Bound what is answered, and say what goes wrong in words that quote nothing."""
        self._adapter.most = most
        try:
            with quiet():
                yield
        except DicomWebError:
            raise
        except Exception as error:  # each library has its own, and their words quote addresses
            _complain(error)


def _complain(error: Exception) -> NoReturn:
    from requests import ConnectionError as NoConnection
    from requests import HTTPError, Timeout

    if isinstance(error, HTTPError) and error.response is not None:
        status = error.response.status_code
        hint = f"; it wants another token, in {TOKEN}" if status in (401, 403) else ""
        kind = UnansweredError if status in _BUSY else DicomWebError
        raise kind(f"the service answered {status}{hint}") from None
    if isinstance(error, NoConnection | Timeout):
        raise UnansweredError(f"the service cannot be reached ({type(error).__name__})") from None
    raise DicomWebError(f"the service does not answer as DICOMweb does ({type(error).__name__})") from None


def _authorise(request: Any) -> Any:
    """Show the token (RFC 6750), read anew each time, as it may be replaced while a node runs."""
    path = os.environ.get(TOKEN_FILE)
    try:
        token = Path(path).read_text(encoding="ascii").strip() if path else os.environ.get(TOKEN, "")
    except (OSError, ValueError):
        raise DicomWebError(f"the file that {TOKEN_FILE} names cannot be read") from None
    if token:
        request.headers["Authorization"] = f"Bearer {token}"
    return request


def _bounded_adapter(authority: Path | None) -> Any:
    """An adapter of requests that gives up on an answer of more than `most` bytes, however packed, or `_LONGEST_S`.

    It also holds to `authority`: to a session, the environment counts for more than what it is told. And no redirection
    leads it from the host of its first request, or from HTTPS: images and our certificate would go along.
    """
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    class Bounded:
        def __init__(self, raw: Any, most: int) -> None:
            self._raw, self._most = raw, most

        def __getattr__(self, name: str) -> Any:
            return getattr(self._raw, name)

        def stream(self, size: int, decode_content: bool | None = None) -> Iterator[bytes]:
            left, until = self._most, time.monotonic() + _LONGEST_S
            while piece := self._raw.read1(size, decode_content=decode_content):  # what is there; read waits for all
                left -= len(piece)
                if time.monotonic() > until:
                    self._raw.close()
                    raise UnansweredError(f"an answer took longer than {_LONGEST_S:g} s")
                if left < 0:
                    self._raw.close()
                    raise TooLargeError(f"more than {self._most} bytes")
                yield piece

    trusted = {"verify": str(authority)} if authority else {}

    class Adapter(HTTPAdapter):
        most = _MOST_BYTES
        host: tuple[str, str] | None = None

        def send(self, request: Any, *args: Any, **how: Any) -> Any:
            host = urlsplit(request.url)[:2]
            self.host = self.host or host
            if host != self.host:
                raise DicomWebError("the service leads to another host; if it is right, name that one")
            answer = super().send(request, *args, **(how | trusted))
            answer.raw = Bounded(answer.raw, self.most)
            return answer

    busy = Retry(_TRIES, status_forcelist=_BUSY, allowed_methods=["GET"], backoff_factor=_PAUSE_S,
                 respect_retry_after_header=False, raise_on_status=False)  # fmt: skip
    return Adapter(max_retries=busy)


def _only_part(kind: str, content: bytes) -> bytes:
    """The first part of a multipart message (RFC 2046), or the content of one that is none."""
    header = Message()
    header["Content-Type"] = kind
    boundary = header.get_boundary()
    if header.get_content_maintype() != "multipart" or not boundary:
        return content
    begin = content.index(b"\r\n\r\n", content.index(b"--" + boundary.encode())) + 4
    return content[begin : content.index(b"\r\n--" + boundary.encode(), begin)]
