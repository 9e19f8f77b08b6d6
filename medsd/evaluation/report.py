"""The measurement of one split as one document: `evaluate` makes it, `evaluation.json` is where a bundle keeps it."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.special import expit

from medsd.calibration.conformal import ConformalScores
from medsd.calibration.conformal_fit import ConformalReport, measure_conformal
from medsd.calibration.fit import Reliability, calibrated, log_loss, reliability, thresholds_of
from medsd.calibration.types import Calibration, CalibrationChoice, OperatingPoint
from medsd.errors import DataError
from medsd.evaluation import confounding
from medsd.evaluation.radiologists import RadiologistReport, measure_radiologists, read_radiologists
from medsd.evaluation.saved import Measured, options_of
from medsd.evaluation.subgroups import Images, SubgroupReport, measure_subgroups
from medsd.findings import FindingSet
from medsd.metrics import metrics
from medsd.metrics.intervals import Interval, MetricIntervals, metric_intervals
from medsd.metrics.metrics import AT_THRESHOLD, THRESHOLD_FREE, or_none
from medsd.metrics.retrieval import Cases, RetrievalReport, measure_retrieval
from medsd.settings import EvaluationSettings
from medsd.strict import Described
from medsd.studies.manifest import Manifest

EVALUATION = "evaluation.json"


class FindingReport(Described):
    """One finding; an interval without a value means "too few to tell".

    The metrics from sensitivity on are those at `threshold`, and have no value where there is no threshold. A finding
    that was not `trained` has no probability, so that nothing of it is measured.
    """

    name: str
    title: str
    positives: int
    negatives: int
    unknown: int
    too_few: bool
    trained: bool = True
    threshold: float | None
    calibration: CalibrationChoice | None = None
    auroc: Interval = Interval()
    average_precision: Interval = Interval()
    brier: Interval = Interval()
    calibration_error: Interval = Interval()
    sensitivity: Interval = Interval()
    specificity: Interval = Interval()
    ppv: Interval = Interval()
    npv: Interval = Interval()
    f1: Interval = Interval()


class MacroReport(Described):
    """A mean over the findings that can be told (or, for micro_f1, a figure of their summed counts) how many."""

    interval: Interval
    over: int


class CalibrationState(Described):
    """How well probabilities agree with the truth; brier and calibration_error are means over the told findings."""

    log_loss: float | None
    brier: float | None
    calibration_error: float | None
    curve: Reliability


class CalibrationReport(Described):
    """The same logits as plain sigmoids, and with the calibration of the bundle."""

    before: CalibrationState
    after: CalibrationState


class EvaluationReport(Measured):
    """The whole of evaluation.json."""

    schema_version: int = 1
    split: str
    images: int
    patients: int
    minimum_positives: int
    seed: int
    findings: tuple[FindingReport, ...]
    too_few: tuple[str, ...] = Field(description="findings with too few positives or negatives to tell")
    macro: dict[str, MacroReport] = Field(description="by metric, and micro_f1")
    calibration: CalibrationReport
    retrieval: RetrievalReport | None = None
    conformal: ConformalReport | None = None
    subgroups: SubgroupReport | None = None
    views: confounding.ViewReport | None = Field(None, description="null: fewer than two views are stated")
    selected: confounding.PartReport | None = Field(None, description="images that were picked by finding, if any")
    radiologists: tuple[RadiologistReport, ...] = ()
    selection_warning: str = Field("", description="where images that were picked by finding have trained")

    @property
    def parts(self) -> tuple[confounding.PartReport, ...]:
        """What is measured beside the headline: images within each view, and those picked by finding."""
        return (*(self.views.parts if self.views else ()), *((self.selected,) if self.selected else ()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the headline is believed."""
        return (*(self.views.warnings if self.views else ()), *filter(None, [self.selection_warning]))

    def lines(self) -> list[str]:
        """The headline, what stands beside it, and the warnings, a line each."""
        headline = self.macro["auroc"]
        said = [
            f"macro AUROC {headline.interval} over {headline.over} findings, {self.images} images of {self.patients} "
            "patients"
        ]
        for part in self.parts:
            where = f"{part.name} images: " if part is self.selected else f"within {part.name}: "
            beside = f"; these findings over all {part.pooled}, gap {part.gap}" if part.over else ""
            said.append(f"{where}{part.auroc} over {part.over} findings, {part.images} images{beside}")
        said += [
            f"radiologists, {r.name}: {r.auroc}, {r.positives} of {r.images} images; by mined labels {r.mined}"
            for r in self.radiologists
        ]
        return [*said, *(f"warning: {sentence}" for sentence in self.warnings)]


@dataclass(frozen=True)
class Beside:
    """Beside the N studies of the headline, M images of test patients that were picked by finding, and labels."""

    logits: npt.NDArray[np.floating]  # (M, F)
    target: npt.NDArray[np.floating]  # (M, F)
    patients: npt.NDArray[np.str_]  # (M,)
    answers: dict[str, metrics.FloatArray] = field(default_factory=dict)  # radiologists', by question (N + M,)
    picked: int = 0  # training images that were picked by finding
    trained: int = 0  # and all of them


def beside_of(
    manifest: Manifest,
    logits: npt.NDArray[np.floating],
    headline: npt.NDArray[np.int64],
    apart: npt.NDArray[np.int64],
    settings: EvaluationSettings,
    trained: Sequence[int] | npt.NDArray[np.int64] = (),
) -> Beside:
    """What `manifest` has beside its rows `headline`, for a model that learned from the rows `trained`.

    `apart` are rows picked by finding, of patients who did not train; `logits` (N, F) are before calibration.
    `settings` name the folder of the radiologists' labels, if any; errors as `read_radiologists`.
    """
    answers = {}
    if settings.radiologists is not None:
        paths = manifest.table["path"].iloc[np.concatenate([headline, apart])]
        answers = read_radiologists(settings.radiologists, paths)
    count = int(picked(manifest)[list(trained)].sum())
    return Beside(logits[apart], manifest.labels[apart], manifest.patients[apart], answers, count, len(trained))


def picked(manifest: Manifest) -> npt.NDArray[np.bool_]:
    """(N,) True for the images that were picked by finding."""
    return (manifest.table["use"] == "selected").to_numpy(dtype=bool)


def evaluate(
    findings: FindingSet,
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    patients: Sequence[str] | npt.NDArray[np.str_],
    *,
    calibration: Mapping[str, Calibration],
    operating_points: Mapping[str, OperatingPoint],
    embeddings: npt.NDArray[np.floating] | None = None,
    index: Cases | None = None,
    settings: EvaluationSettings | None = None,
    seed: int = 0,
    split: str = "test",
    choices: Mapping[str, CalibrationChoice] | None = None,
    conformal: Mapping[str, ConformalScores] | None = None,
    groups: Mapping[str, npt.ArrayLike] | None = None,
    beside: Beside | None = None,
    not_trained: Container[str] = (),
) -> EvaluationReport:
    """Measure one split.

    Args:
        logits, target, patients: (N, F) before calibration; (N, F) 1, 0 or NaN for unknown; (N,) keys.
        calibration, operating_points, choices, conformal: by finding name; `choices` are for the record.
        embeddings, index: (N, D) of the images, and the cases that are searched.
        groups: (N,) values by attribute, of subgroups that are compared; ``"view"`` is looked at for confounding, too.
        not_trained: findings without a probability: their labels count in retrieval alone.

    Raises:
        DataError: shapes or values that do not fit, a finding without calibration or operating point.
    """
    settings, trained = settings or EvaluationSettings(), findings.without(not_trained)
    labels, logits = metrics.checked(target, logits, probabilities=False)
    names = _checked_names(findings, labels, trained, calibration=calibration, operating_points=operating_points)
    kept, thresholds = np.isin(findings.names, names), thresholds_of(operating_points, names)
    keys = np.asarray(patients, dtype=np.str_)
    images = Images(
        {finding.name: finding.title for finding in trained.findings},
        labels[:, kept],
        calibrated(logits[:, kept], calibration, names),
        keys,
        options_of(settings, seed),
    )
    found = _headline(findings, labels, logits[:, kept], images, thresholds, choices or {})
    if embeddings is not None and index is not None:
        found["retrieval"] = measure_retrieval(
            Cases(embeddings, labels, keys), index, images.options, names=findings.names
        )
    if conformal is not None:
        found["conformal"] = measure_conformal(
            images.probs, images.target, keys, conformal, names, images.options, settings.conformal, groups
        )
    if groups is not None:
        found["subgroups"] = measure_subgroups(images, groups, thresholds=thresholds, margin=settings.subgroup_margin)
        found["views"] = confounding.measure_views(images, np.asarray(groups["view"])) if "view" in groups else None
    if beside is not None:
        found |= _beside(images, beside, kept, calibration)
    return EvaluationReport.of(images.options, split=split, **found)


def _checked_names(
    findings: FindingSet, labels: metrics.FloatArray, trained: FindingSet, **by_finding: Mapping[str, object]
) -> tuple[str, ...]:
    """The names of the findings that were trained, each of which has an entry."""
    for what, given in by_finding.items():
        if missing := [name for name in trained if name not in given]:
            raise DataError(f"{what}: nothing for {', '.join(missing)}; every finding of {trained.key} needs an entry")
    if labels.shape[1] != len(findings):
        raise DataError(f"logits have {labels.shape[1]} columns; {findings.key} has {len(findings)} findings")
    return trained.names


def _headline(
    findings: FindingSet,
    labels: metrics.FloatArray,
    logits: metrics.FloatArray,
    images: Images,
    thresholds: metrics.FloatArray,
    choices: Mapping[str, CalibrationChoice],
) -> dict[str, Any]:
    """Fields of the report: the metrics of the findings that were trained, which are those of `logits` and `images`."""
    target, minimum = images.target, images.options.minimum_positives
    intervals = metric_intervals(target, images.probs, images.patients, images.options, thresholds=thresholds)
    return {
        "images": len(labels),
        "patients": len(np.unique(images.patients)),
        "findings": _finding_reports(findings, labels, images, thresholds, intervals, choices),
        "too_few": tuple(np.array(list(images.titles))[~metrics.enough(target, minimum)].tolist()),
        "macro": {name: MacroReport(interval=m.macro, over=m.over) for name, m in intervals.items()},
        "calibration": CalibrationReport(
            before=_calibration_state(target, expit(logits), minimum),
            after=_calibration_state(target, images.probs, minimum),
        ),
    }


def _beside(
    images: Images, beside: Beside, kept: metrics.BoolArray, calibration: Mapping[str, Calibration]
) -> dict[str, Any]:
    """Fields of the report: selected images against the headline's, and radiologists' labels of both."""
    together, count = images, len(images.patients)
    if len(beside.patients):
        target, logits = metrics.checked(beside.target[:, kept], beside.logits[:, kept], probabilities=False)
        together = replace(
            images,
            target=np.concatenate([images.target, target]),
            probs=np.concatenate([images.probs, calibrated(logits, calibration, list(images.titles))]),
            patients=np.concatenate([images.patients, beside.patients]),
        )
    headline = np.arange(len(together.patients)) < count
    selected = None
    if not headline.all():
        selected = confounding.measure_part("selected", together, ~headline, headline, together.drawn())
    return {
        "selected": selected,
        "radiologists": measure_radiologists(together, beside.answers),
        "selection_warning": confounding.selection_warning(beside.picked, beside.trained),
    }


def _finding_reports(
    findings: FindingSet,
    labels: metrics.FloatArray,
    images: Images,
    thresholds: metrics.FloatArray,
    intervals: Mapping[str, MetricIntervals],
    choices: Mapping[str, CalibrationChoice],
) -> tuple[FindingReport, ...]:
    (positives, negatives), unknown = metrics.class_counts(labels), np.isnan(labels).sum(0)
    columns = {name: column for column, name in enumerate(images.titles)}
    reports = []
    for f, finding in enumerate(findings.findings):
        measured: dict[str, Any] = {"too_few": False, "trained": False, "threshold": None}
        if (column := columns.get(finding.name)) is not None:
            measured = {name: intervals[name].findings[column] for name in THRESHOLD_FREE + AT_THRESHOLD}
            measured |= {
                "too_few": not metrics.enough(labels[:, [f]], images.options.minimum_positives)[0],
                "threshold": or_none(thresholds[column]),
                "calibration": choices.get(finding.name),
            }
        reports.append(
            FindingReport(
                name=finding.name,
                title=finding.title,
                positives=int(positives[f]),
                negatives=int(negatives[f]),
                unknown=int(unknown[f]),
                **measured,
            )
        )
    return tuple(reports)


def _calibration_state(
    target: metrics.FloatArray, probs: metrics.FloatArray, minimum_positives: int
) -> CalibrationState:
    told = {"minimum_positives": minimum_positives}
    return CalibrationState(
        log_loss=or_none(log_loss(target, probs)),
        brier=or_none(metrics.macro(metrics.brier(target, probs, **told))),
        calibration_error=or_none(metrics.macro(metrics.calibration_error(target, probs, **told))),
        curve=reliability(target, probs),
    )
