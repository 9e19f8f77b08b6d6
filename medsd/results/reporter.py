"""`Reporter`: the content of a DICOM file in, the forms of its result out; what `report` and `receive` stand on."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread, dcmwrite

from medsd.bundle.layout import Bundle
from medsd.cases.index import CaseIndex
from medsd.cases.manage import hasher_of
from medsd.dicom.content import read_content
from medsd.dicom.gate import GatePolicy
from medsd.errors import DataError, explained
from medsd.files import replacing, write_whole
from medsd.inference.predict import Predictor
from medsd.inference.prediction import Prediction
from medsd.inference.words import impression
from medsd.preprocessing.decode import Decoder
from medsd.results.assessment import Opinion, assessment
from medsd.results.audit import AuditLog
from medsd.results.objects import KINDS, Form, Kind, Message, messages, objects
from medsd.results.result import Result
from medsd.results.source import Source


class Reporter(AbstractContextManager["Reporter"]):
    """A bundle that reads images into results; a context manager that ends its helper process.

    `k` is how many similar cases are told of; `policy` and `how` (provider, precision, coverage) are as for
    `Predictor`. Raises BundleError: no bundle, an altered one, or no cases although `k` asks for some; DataError: the
    model reads no images.
    """

    def __init__(
        self, folder: Path, forms: Sequence[Form] = ("sr",), *, k: int = 0, policy: GatePolicy | None = None, **how: Any
    ) -> None:
        self.bundle = bundle = Bundle.open(folder)
        if not bundle.description.image:
            raise DataError(f"{bundle.label} reads no images, so there is no image to report on")
        self.forms, self._k, self.policy = tuple(forms), k, policy or GatePolicy()
        self._cases = CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256) if k else None
        self.hasher = hasher_of(bundle)
        # A process of its own decodes: what others send can be stopped, and may go down, without this one.
        self._helper = Decoder(bundle.description.pixels, self.policy, self.hasher, keep_image=True).helper()
        self.predict = Predictor(bundle, policy=self.policy, hasher=self.hasher, decode=self._helper, **how)

    def __exit__(self, *_: object) -> None:
        self._helper.close()

    def results(
        self, prediction: Prediction, source: Source, previous: Sequence[Dataset] = (), *, when: datetime | None = None
    ) -> tuple[dict[Kind, Dataset], dict[Message, bytes]]:
        """The DICOM objects and the messages of a prediction, as `medsd.results.objects` makes them."""
        cases = [] if self._cases is None else self._cases.similar(prediction, self._k)
        result = Result.of(prediction, self.bundle, cases, when=when)
        kinds = [form for form in KINDS if form in self.forms]
        return objects(result, self.bundle, source, kinds, cases, previous), messages(result, source, self.forms)


@dataclass(frozen=True)
class Written:
    """What was written of one image; names no file but our own."""

    folder: Path
    forms: tuple[str, ...]
    left_out: tuple[Form, ...]
    prediction: Prediction

    def as_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "files": list(map(file_name, self.forms)),
            "left_out": list(self.left_out),
            "status": self.prediction.status,
            "reason": self.prediction.reason,
            "message": self.prediction.message,
        }

    def line(self) -> str:
        said = self.prediction.message or impression(self.prediction)
        files = ", ".join(map(file_name, self.forms)) or "nothing"
        left = f"; not for this image: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{self.prediction.status}: {said}\n{self.folder}: {files}{left}"


def file_name(form: str) -> str:
    """Of a result: ``sr.dcm``, ``oru.hl7``, ``fhir.json``."""
    return {"hl7": "oru.hl7", "fhir": "fhir.json"}.get(form, f"{form}.dcm")


def write_report(
    reporter: Reporter,
    path: Path,
    out: Path,
    *,
    note: str | None = None,
    previous: Sequence[Path] = (),
    audit: Path | None = None,
    opinions_on: Callable[[Prediction], Sequence[Opinion]] | None = None,
) -> Written:
    """Read one DICOM file and write the forms of its result into the folder `out`, each by its `file_name`.

    The new structured report follows those that are `previous`. `audit` is a log that gets a line. Where readers said
    something of the prediction (`opinions_on`), a record of it is written, too. Raises ImageError: the file cannot be
    read; DataError: it is no DICOM file, or lacks an identifier; an earlier report is of another study; or there are
    opinions, and no structured report that they are on.
    """
    content = read_content(path, reporter.policy, path.name)
    source = Source.read(content)  # before the model is asked
    earlier = [_earlier(each, str(source.bare.StudyInstanceUID)) for each in previous]
    log = AuditLog(audit, reporter.hasher) if audit is not None else None
    if log is not None:
        log.prepare()
    prediction, when = reporter.predict(content, note), datetime.now(UTC)
    documents, told = reporter.results(prediction, source, earlier, when=when)
    written: dict[str, Dataset] = dict(documents.items())
    if opinions_on is not None and (said := opinions_on(prediction)):
        report = documents.get("sr") or next(iter(earlier[::-1]), None)
        if report is None:
            raise DataError("an assessment refers to a structured report; ask for --as sr, or name one with --previous")
        result = Result.of(prediction, reporter.bundle, when=when)
        written["assessment"] = assessment(result, source, said, report)
    made = tuple(form for form in (*reporter.forms, "assessment") if form in written or form in told)
    if log is not None:
        log.append(content, prediction, made, when)
    out.mkdir(parents=True, exist_ok=True)
    for kind, document in written.items():
        with replacing(out / file_name(kind)) as draft:
            dcmwrite(draft, document, enforce_file_format=True)
    for form, text in told.items():
        write_whole(out / file_name(form), text)
    return Written(out, made, tuple(form for form in reporter.forms if form not in made), prediction)


def _earlier(path: Path, study: str) -> Dataset:
    with explained(f"{path}: cannot be read as an earlier report", Exception):  # foreign bytes
        document = dcmread(path)
        kind, of_study = document.Modality, document.StudyInstanceUID
    if kind != "SR":
        raise DataError(f"{path}: is no structured report")
    if of_study != study:
        raise DataError(f"{path}: is a report on another study; name one on the study of this image")
    return document
