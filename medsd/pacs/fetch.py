"""Images that are pulled instead of pushed: found by C-FIND or QIDO-RS, brought by C-MOVE or WADO-RS.

Begin at `fetch_images`. They go into the queue of a node, or into a folder, and are checked like images that are sent.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pynetdicom import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove

from medsd.dicom.quiet import quiet
from medsd.dicom.web import UID, DicomWeb, DicomWebError, UnansweredError
from medsd.errors import DataError
from medsd.pacs.deliver import Destination, WebDestination
from medsd.pacs.queue import ImageFolder, ImageQueue, ImageStore
from medsd.pacs.receive import Listening, NodeLimits, Receiver, take
from medsd.privacy import KeyedHasher

log = logging.getLogger(__name__)

_PENDING, _UNKNOWN_DESTINATION = (0xFF00, 0xFF01), 0xA801  # PS3.4 tables C.4-1 and C.4-2
_PATIENCE_S = 300.0  # an archive may have to fetch what it sends from a tape
_MOST_FOUND = 100_000  # answers to one search
_GOOD = ("accepted", "again", "moved")


@dataclass(frozen=True)
class Query:
    """Which studies are wanted."""

    dates: str = ""  # a day or a range of Study Date, ``20260101-20260131``; empty for any
    modalities: tuple[str, ...] = ("CR", "DX")  # of the series that are brought
    matching: tuple[tuple[str, str], ...] = ()  # further keywords of DICOM, and what they must be

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(\d{8}(-(\d{8})?)?|-\d{8})?", self.dates):
            raise DataError(f"'{self.dates}' is no day or range of days; write 20260101-20260131")
        tags = {keyword: tag_for_keyword(keyword) for keyword, _ in self.matching}
        unknown = [keyword for keyword, tag in tags.items() if tag is None or dictionary_VR(tag) == "SQ"]
        if unknown:
            raise DataError(f"'{unknown[0]}' is no keyword of DICOM that can be matched, such as StationName")

    def searches(self) -> Iterator[dict[str, str]]:
        """What is matched in a search for studies, once for each modality: archives differ in what they make of two."""
        told = {**({"StudyDate": self.dates} if self.dates else {}), **dict(self.matching)}
        return ({**told, "ModalitiesInStudy": modality} for modality in self.modalities)


@dataclass(frozen=True)
class Fetched:
    """What became of the images: "accepted", "again" (was there), "moved" (to another), or why it did not come."""

    outcomes: dict[str, int]

    @property
    def failed(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome not in _GOOD)

    def as_dict(self) -> dict[str, Any]:
        return {"outcomes": self.outcomes, "failed": self.failed}

    def line(self) -> str:
        return ", ".join(f"{outcome} {count}" for outcome, count in self.outcomes.items()) or "no images were found"


def fetch_images(
    source: Destination | WebDestination,
    query: Query,
    listening: Listening,
    limits: NodeLimits,
    *,
    out: Path | None = None,
    queue: Path | None = None,
    move_to: str | None = None,
) -> Fetched:
    """Bring the images that match into the folder `out`, or into the `queue` of a node that does not run now; or have
    them sent to the AE title `move_to`.

    The address of a DICOMweb `source` may be of a study or a search; `listening` has our AE title and, for C-MOVE,
    where the archive finds us and who may send. Raises DataError: the archive cannot be reached or does not do what it
    is asked, or the queue is in use.
    """
    if isinstance(source, Destination) and move_to:
        return Fetched(dict(_move_all(source, query, listening.title, move_to)))
    if move_to or (out is None) == (queue is None):
        raise DataError("name one place for the images; a service of DICOMweb sends to no AE title")
    hasher = KeyedHasher.from_environment()
    with ImageQueue(queue) if queue else nullcontext(ImageFolder(out or Path())) as store:
        if isinstance(source, WebDestination):
            return _from_web(source, query, store, hasher, limits)
        return _from_archive(source, query, store, hasher, listening, limits)


def _from_web(
    source: WebDestination, query: Query, store: ImageStore, hasher: KeyedHasher, limits: NodeLimits
) -> Fetched:
    """One at a time; what the store knows is not asked for."""
    address = source.address
    if address.study and (query.dates or query.matching):
        raise DataError("the address names a study, so nothing is searched; leave out --date and --match")
    outcomes, seen = Counter[str](), set[str]()
    with closing(DicomWeb(address.service, source.authority, source.certificate)) as service:
        for keys in [{}] if address.study else query.searches():
            try:
                wanted = replace(address, filters=(*address.filters, *keys.items()))
                images = list(service.find(wanted, query.modalities))
            except DicomWebError as error:
                raise DataError(f"{address.service}: {error.strerror}") from None
            for image in (each for each in images if each.instance not in seen):
                seen.add(image.instance)
                key = hasher.instance_key(image.instance)
                if store.knows(key):
                    outcomes["again"] += 1
                    continue
                try:
                    content = service.fetch(image, limits.object_bytes)
                    outcomes[take(content, image.instance, store, hasher, limits)[0]] += 1
                except UnansweredError as error:
                    raise DataError(f"{address.service}: {error.strerror}; what came is kept, try again") from None
                except DicomWebError as error:
                    log.warning("image %s: %s", key, error.strerror)
                    outcomes["not sent"] += 1
    return Fetched(dict(outcomes))


def _from_archive(
    archive: Destination, query: Query, store: ImageStore, hasher: KeyedHasher, listening: Listening, limits: NodeLimits
) -> Fetched:
    outcomes = Counter[str]()
    receiver = Receiver(store, hasher, listening, limits, lambda outcome: outcomes.update([outcome]))
    with quiet():
        receiver.start()
        try:
            told = _move_all(archive, query, listening.title, listening.title)
        finally:
            receiver.stop()
    outcomes["not sent"] += max(0, told["not sent"] - Fetched(dict(outcomes)).failed)
    return Fetched({outcome: count for outcome, count in outcomes.items() if count})


def _move_all(archive: Destination, query: Query, title: str, target: str) -> Counter[str]:
    """Have an archive send to `target`, whose address it knows: how many are "moved" and "not sent"."""
    models = (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove)
    with quiet():
        association = archive.associate(title, list(map(build_context, models)), _PATIENCE_S)
        if not association.is_established:
            why = "it rejects us" if association.is_rejected else "no association"
            raise DataError(f"{archive} cannot be searched ({why}); does it know the AE title {title}?")
        try:
            done = Counter[str]()
            for study, series in sorted(_found(association, query)):
                done += _move(association, target, study, series)
            return done
        except (RuntimeError, ValueError) as error:  # the association is gone, or C-FIND or C-MOVE is not accepted
            raise DataError(f"{archive} does not answer the search ({type(error).__name__})") from None
        finally:
            if association.is_established:
                association.release()


def _found(association: Any, query: Query) -> set[tuple[str, str]]:
    """UIDs of studies and their series of the modalities."""
    studies = {
        study for keys in query.searches() for study, _ in _find(association, "STUDY", StudyInstanceUID="", **keys)
    }
    found = {
        (study, str(row.get("SeriesInstanceUID", "")))
        for study in studies
        if re.fullmatch(UID, study)  # to C-MOVE, none or a * would mean all
        for _, row in _find(association, "SERIES", StudyInstanceUID=study, SeriesInstanceUID="", Modality="")
        if row.get("Modality") in query.modalities
    }
    return {(study, series) for study, series in found if re.fullmatch(UID, series)}


def _find(association: Any, level: str, **keys: str) -> Iterator[tuple[str, Dataset]]:
    """What matches: the UID of its study, and the answer."""
    found = 0
    for status, row in _asked(association.send_c_find, level, keys, StudyRootQueryRetrieveInformationModelFind):
        if status.Status in _PENDING and row is not None:
            yield str(row.get("StudyInstanceUID", "")), row
            if (found := found + 1) > _MOST_FOUND:
                raise DataError(f"the archive answers with more than {_MOST_FOUND} to a search; name a shorter --date")
        elif status.Status:
            raise DataError(f"the archive answered 0x{status.Status:04X} to C-FIND")


def _move(association: Any, target: str, study: str, series: str) -> Counter[str]:
    keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
    *_, (status, _) = _asked(
        association.send_c_move, "SERIES", keys, target, StudyRootQueryRetrieveInformationModelMove
    )
    if status.Status == _UNKNOWN_DESTINATION:
        raise DataError(f"the archive does not know the AE title {target}; enter it there, with our address and port")
    told = [int(status.get(f"NumberOf{kind}Suboperations", 0) or 0) for kind in ("Completed", "Warning", "Failed")]
    if status.Status and not any(told):  # of one series; the others may come
        log.warning("a series does not come: 0x%04X to C-MOVE; does the archive know %s?", status.Status, target)
        told[2] = 1
    return Counter({"moved": told[0] + told[1], "not sent": told[2]})


def _asked(ask: Callable[..., Any], level: str, keys: dict[str, str], *how: Any) -> Iterator[tuple[Dataset, Any]]:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    if not "".join(keys.values()).isascii():
        identifier.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    for status, row in ask(identifier, *how):
        if "Status" not in status:
            raise DataError("the archive went away during the search")
        yield status, row
