"""The delivering half of the node: results go to an archive by C-STORE (PS3.4 annex B)."""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import AE, build_context

from medsd.errors import DataError

log = logging.getLogger(__name__)
_SUCCESS, _WARNINGS = 0x0000, range(0xB000, 0xC000)  # PS3.4 table B.2-1: coerced, discarded, no match: stored
_MOST_CONTEXTS = 128  # PS3.8 section 9.3.2.2


class UnreachableError(Exception):
    """The archive takes no association now."""


@dataclass(frozen=True)
class Destination:
    """An archive, as ``AE@host:port``."""

    title: str
    host: str
    port: int
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, text: str, tls: ssl.SSLContext | None = None) -> Destination:
        """Read ``AE@host:port``.

        Raises:
            DataError: it is none.
        """
        found = re.fullmatch(r"([^@\\]{1,16})@\[?([^\[\]@]+?)\]?:(\d{1,5})", text.strip())
        if found is None or not 0 < int(found[3]) < 65536:
            raise DataError(f"'{text}' is no destination; write AE@host:port, for instance ORTHANC@127.0.0.1:4242")
        return cls(found[1].strip(), found[2], int(found[3]), tls)


def deliver(destination: Destination, title: str, batch: Iterable[tuple[str, list[Dataset]]]) -> dict[str, str]:
    """Send the results of some images in one association.

    Args:
        title: our AE title.
        batch: keys of images, and the results of each.

    Returns:
        by key "" where the archive has every result of the image, else why not.

    Raises:
        UnreachableError: no association came about, or it broke before anything was sent.
    """
    batch = list(batch)
    kinds = sorted({(r.SOPClassUID, r.file_meta.TransferSyntaxUID) for _, results in batch for r in results})
    ae = AE(title)
    ae.connection_timeout = ae.acse_timeout = 15
    association = ae.associate(
        destination.host,
        destination.port,
        contexts=[build_context(*kind) for kind in kinds[:_MOST_CONTEXTS]],
        ae_title=destination.title,
        tls_args=(destination.tls, destination.host) if destination.tls else None,
    )
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


def _send(association, result: Dataset) -> str:  # type: ignore[no-untyped-def]
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
