"""Fifty readings that differ in what a form can trip over: calls, reasons, vocabularies, headers, character sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from medsd.bundle.layout import Bundle
from medsd.cases.case import Case, SimilarCase
from medsd.inference.predict import Predictor
from medsd.results import sr
from medsd.results.result import Result
from medsd.results.source import Source
from tests.conftest import dx_dataset, file_bytes

WHEN = datetime(2026, 5, 4, 10, 30, tzinfo=UTC)
STUDY = {"StudyDate": "20260504", "StudyTime": "101500", "StudyID": "7", "PatientBirthDate": "19470203"}
HEADERS: tuple[dict[str, object], ...] = (
    {"AccessionNumber": "ACC7741902C", "ReferringPhysicianName": "Vogelsteller^Vinzenz"},
    {},
    {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"},
    {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Wang^XiaoDong=王^小东"},
    {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
    {"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Люкceмбypг"},
    {"SpecificCharacterSet": "GB18030", "PatientName": "Wang^XiaoDong=王^小东"},
    {"PatientName": "A" * 64, "PatientID": "9" * 64, "StudyID": "7" * 16, "AccessionNumber": "8" * 16},
    {"PatientName": "", "PatientID": "", "PatientSex": "", "StudyDate": "", "StudyTime": ""},
    {"PatientSize": "1.7", "PatientWeight": "70", "StudyDescription": "Chest", "PatientComments": "none"},
)


@dataclass(frozen=True)
class Reading:
    """One of the fifty."""

    result: Result
    source: Source
    content: bytes = field(repr=False)

    def report(self, kind: sr.Kind = "sr") -> Dataset:
        """The structured report; made once, as highdicom takes a third of a second, so nobody may change it."""
        return _report(self.result, self.source, kind)


# By identity, as results have no hash; each is kept, so that no other one can come to have its identity.
_MADE: dict[tuple[int, str], tuple[Result, Dataset]] = {}


def _report(result: Result, source: Source, kind: sr.Kind) -> Dataset:
    key = (id(result), kind)
    if key not in _MADE:
        _MADE[key] = result, sr.report(result, source, kind)
    return _MADE[key][1]


def similar_case(bundle: Bundle) -> SimilarCase:
    """A case with an identity that no form may carry."""
    names = bundle.findings.names
    case = Case("CANARYSTUDY", "CANARYPATIENT", findings=names[:2], note_excerpt="CANARYNOTE")
    return SimilarCase(case, 0.91237, "overlap", names[:1], names[1:2], names[2:3], 0.5, 0.5, 88.25)


def radiograph(chest: npt.NDArray[np.float64], **header: object) -> Dataset:
    """A DX image of `chest` with a study around it."""
    stored = np.round(chest * 4095).astype(np.uint16)
    return dx_dataset(stored, 12, **{**STUDY, "WindowCenter": 2048, "WindowWidth": 4096, **header})


def readings(predictor: Predictor, chest: npt.NDArray[np.float64], notes: Predictor | None = None) -> Iterator[Reading]:
    """Five kinds of reading for each of ten headers."""
    for number, header in enumerate(HEADERS):
        shade = np.clip(chest * (0.7 + 0.03 * number), 0, 1)
        content = file_bytes(radiograph(shade, **header))
        source, bundle = Source.read(content), predictor.bundle
        scored = predictor(content)
        values = np.array(scored.values)
        values[1] = np.nan
        undecided = replace(scored, calls=dict.fromkeys(bundle.findings, "undecided"))
        told = [
            Result.of(scored, bundle, [similar_case(bundle)] * (number % 3), when=WHEN),
            Result.of(undecided, bundle, when=WHEN),
            Result.of(replace(scored, values=values, status="warned", reason="lateral_look", message="Looks lateral – "
                              "read with care."), bundle, when=WHEN),
            Result.of(replace(scored, coverage=0.9, conformal_sets=dict.fromkeys(bundle.findings, "both"),
                              calls=dict.fromkeys(bundle.findings, "undecided")), bundle, when=WHEN),
            Result.of(predictor(file_bytes(radiograph(shade * 0 + 0.5))), bundle, when=WHEN)
            if notes is None or number % 2 else Result.of(notes(content, "short of breath"), notes.bundle, when=WHEN),
        ]  # fmt: skip
        yield from (Reading(result, source, content) for result in told)
