"""`Result`: one prediction in the words and numbers that every form of it has. Start at `Result.of`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self, cast

import numpy as np
import numpy.typing as npt
from pydicom.sr.coding import Code

from medsd.bundle.layout import Bundle
from medsd.calibration.conformal import ConformalSet
from medsd.cases.case import SimilarCase
from medsd.cases.described import RelationWord
from medsd.cases.explain import relation_line
from medsd.errors import DataError
from medsd.inference.prediction import Prediction, Said
from medsd.inference.words import called_by, notice_words
from medsd.results.codes import finding_code
from medsd.results.render import EVIDENCE_SIDE, fit_side, scale_evidence

DISCLAIMER = "Research software, no medical device. Not for diagnosis or treatment."
SYNTHETIC = "Trained on synthetic phantoms; not a medical result."
DECIMALS = 6  # as in the table
_MOST_POINTS = 100  # of an outline, about
REGION_FROM = 0.5  # of the range of an evidence map; from here on a place belongs to the region


@dataclass(frozen=True)
class FindingResult:
    name: str
    title: str
    code: Code  # SNOMED CT, RadLex or private
    probability: float | None  # to six decimals; None where the finding was not trained
    call: Said
    # The probability from which it is called present, to six decimals; None for a conformal call.
    operating_point: float | None = None
    conformal_set: ConformalSet | None = None  # of a conformal call
    # (N, 2) column and row of a closed outline around the evidence in the image, in pixels from the upper left corner;
    # only of a finding that is called present.
    region: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    def sentence(self) -> str:
        """One line: ``Pleural effusion: 62.3 %, present (called present from 50.0 %)``."""
        if self.probability is None:
            return f"{self.title}: {self.call}"
        words = f"{self.title}: {self.probability * 100:.1f} %, {self.call}"
        if self.operating_point is not None:
            words += f" (called present from {self.operating_point * 100:.1f} %)"
        return words


@dataclass(frozen=True)
class CaseResult:
    """A similar case without anything that names it: likeness, relation, and findings as codes."""

    similarity: float
    percentile: float | None
    relation: RelationWord
    shared: tuple[Code, ...]
    extra: tuple[Code, ...]
    missing: tuple[Code, ...]
    sentence: str


@dataclass(frozen=True)
class Result:
    """One prediction for other systems."""

    prediction: Prediction = field(repr=False)  # what it was made of
    model: str  # name of the bundle
    version: str
    model_sha256: str
    findings: tuple[FindingResult, ...]  # most probable first, the untrained last; none where the image was refused
    coverage: float | None  # what conformal calls promise
    cases: tuple[CaseResult, ...]
    disclaimer: str  # that this is no diagnosis
    message: str  # why the image was refused, or is to be read with care; names no file
    when: datetime  # when it was read, with a time zone
    calls: str  # where the calls come from, in a sentence

    @classmethod
    def of(
        cls, prediction: Prediction, bundle: Bundle, cases: Sequence[SimilarCase] = (), *, when: datetime | None = None
    ) -> Self:
        """The result of a prediction by `bundle`'s model, with the similar `cases` to tell of, read now by default."""
        about = bundle.description
        if prediction.model_sha256 not in ("", bundle.model_sha256):
            raise DataError("the prediction is of another model than the bundle")
        codes = {finding.name: finding_code(finding) for finding in prediction.findings.findings}
        return cls(
            prediction,
            about.name,
            about.version,
            bundle.model_sha256,
            tuple(_finding(prediction, bundle, name, codes[name]) for name in prediction.ranked),
            prediction.coverage,
            tuple(_case(case, codes, prediction) for case in cases),
            f"{SYNTHETIC} {DISCLAIMER}" if about.synthetic else DISCLAIMER,
            prediction.message,
            when or datetime.now(UTC),
            called_by(prediction.coverage),
        )

    @property
    def refused(self) -> bool:
        """Whether there are no findings, as the image was refused."""
        return self.prediction.refused

    @property
    def present(self) -> tuple[FindingResult, ...]:
        return tuple(finding for finding in self.findings if finding.call == "present")

    def lines(self) -> list[str]:
        """The result in plain lines: notice, findings, where the calls come from."""
        title, message = notice_words(self.prediction)
        notice = [f"{title}: {message}"] if message else []
        if self.refused:
            return notice
        return [*notice, *(finding.sentence() for finding in self.findings), self.calls]


def _finding(prediction: Prediction, bundle: Bundle, name: str, code: Code) -> FindingResult:
    probability, point = prediction.probabilities.get(name), bundle.description.operating_points.get(name)
    threshold = point.threshold if point and prediction.coverage is None and probability is not None else None
    return FindingResult(
        name,
        prediction.findings.title(name),
        code,
        None if probability is None else round(probability, DECIMALS),
        prediction.said(name),
        None if threshold is None else round(threshold, DECIMALS),
        prediction.conformal_sets.get(name),
        _region(prediction, name) if prediction.said(name) == "present" else None,
    )


def _case(case: SimilarCase, codes: dict[str, Code], prediction: Prediction) -> CaseResult:
    shared, extra, missing = (tuple(codes[name] for name in getattr(case, p)) for p in ("shared", "extra", "missing"))
    percentile = None if case.percentile is None else round(case.percentile, 1)
    words = relation_line(case, prediction.findings)
    return CaseResult(round(case.similarity, 4), percentile, case.relation, shared, extra, missing, words)


def _region(prediction: Prediction, name: str) -> npt.NDArray[np.float32] | None:
    """The outline of where most speaks for a finding: the level set around the map's highest point.

    None without an image or evidence, or where the map is flat.
    """
    from contourpy import contour_generator

    if prediction.evidence_maps is None or prediction.image is None:
        return None
    height, width = prediction.image.shape
    scaled = scale_evidence(fit_side(prediction.evidence(name), EVIDENCE_SIDE))
    if scaled is None:
        return None
    rows, columns = scaled.shape
    peak = np.array(np.unravel_index(int(scaled.argmax()), scaled.shape))[::-1]  # column, row
    lines = contour_generator(z=np.pad(scaled, 1)).lines(REGION_FROM)  # the padding closes those that leave the image
    around = [line - 1 for line in cast(list[npt.NDArray[np.float64]], lines) if _inside(peak + 1, line)]
    if not around:
        return None
    longest = max(around, key=len)
    outline = longest[:: max(1, len(longest) // _MOST_POINTS)]
    points = (outline + 0.5) * (width / columns, height / rows)
    points = np.clip(points, 0, (width, height)).astype(np.float32)
    return np.vstack([points, points[:1]]) if (points[0] != points[-1]).any() else points


def _inside(point: npt.NDArray[np.integer], outline: npt.NDArray[np.float64]) -> bool:
    from matplotlib.path import Path

    return len(outline) > 3 and bool(Path(outline).contains_point((float(point[0]), float(point[1])), radius=1e-6))
