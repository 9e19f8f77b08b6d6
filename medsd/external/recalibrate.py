"""A new version of a bundle whose calibration and operating points fit another set of studies; the network is the same.

With enough cases of both classes a finding gets what `medsd calibrate` fits, with few of one class an intercept alone
("recalibration in the large": Vergouwe et al., Statistics in Medicine 36, 2017), and without them it keeps what it had.
The tail of the ONNX graph is exchanged with ONNX's own tools.
"""

import json
import logging
import re
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, logit

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.calibration.conformal import CONFORMAL, ConformalScores, read_conformal, write_conformal
from medsd.calibration.conformal_fit import conformal_scores
from medsd.calibration.fit import PLATT_CASES, calibrated, choose_calibration, choose_operating_points, log_odds
from medsd.calibration.types import Calibration, CalibrationChoice, OperatingPoint, PlattCalibration
from medsd.card import CARD, PAGE, PARITY, PLOTS, write_card
from medsd.cases.index import CaseIndex, create_index
from medsd.errors import BundleError, DataError
from medsd.evaluation.evidence import EVIDENCE
from medsd.evaluation.report import EVALUATION
from medsd.evaluation.saved import options_of
from medsd.evaluation.shift import SHIFT
from medsd.evaluation.sources import SOURCES
from medsd.evaluation.studies_report import RECALIBRATION, STUDIES, RecalibrationReport, compare_probabilities
from medsd.export.tail import compare_graphs, exchange_tail
from medsd.external.evaluate import draw, measure, shift_of
from medsd.external.studies import ScoredStudies
from medsd.files import write_json
from medsd.metrics.metrics import FloatArray
from medsd.scoring.verify import write_reference

log = logging.getLogger(__name__)

# Known labels without which no intercept is fitted, though the rarer class has a case.
INTERCEPT_CASES = 20
_INTERCEPT_SPREAD = 3.0  # standard deviation of the prior on the shift, in log-odds: from 5 % to 50 % is one of it
# Files that speak of the old probabilities; evidence maps do not depend on calibration.
_STALE = ("evaluation*.json", "conformal.json", "recalibration.json", "shift.json", "studies.json")

Rows = npt.NDArray[np.int64]
Halves = tuple[Rows, Rows]


@dataclass(frozen=True)
class Fit:
    """What is new and what stays, by finding.

    Attributes:
        calibration, choices, points, conformal: of every finding that was trained.
        findings: those whose calibration is new.
    """

    calibration: dict[str, Calibration]
    choices: dict[str, CalibrationChoice]
    points: dict[str, OperatingPoint]
    conformal: dict[str, ConformalScores]
    findings: tuple[str, ...]


def recalibrate(
    bundle: Bundle, reading: ScoredStudies, out: Path, *, everyone: bool = False, version: str | None = None
) -> RecalibrationReport:
    """Write a new bundle to `out`, where there must be nothing.

    With `everyone` all patients are fitted, and each half is measured with the fit of the other; otherwise a seeded
    half is fitted and the other is measured. The new `version` is by default one below the old (1 → 1.1 → 1.2).

    Raises:
        BundleError: `out` exists, or the new graph says anything else than the old with another calibration.
        DataError: too few patients, or nothing can be fitted.
    """
    if out.exists():
        raise BundleError(f"{out}: is there already; a recalibrated bundle is a new folder")
    halves, everything = halves_of(reading), np.arange(len(reading.logits))
    fitted, measured = (everything, everything) if everyone else halves
    fit = fit_again(bundle, reading, fitted)
    if not fit.findings:
        raise DataError(
            f"{reading.name}: no finding has {INTERCEPT_CASES} labels with both classes among the patients that are "
            "fitted; nothing can be recalibrated" + ("" if everyone else " (--all fits all of them)")
        )
    report = compare(bundle, reading, fit, halves, everyone, version or next_version(bundle.description.version))
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _copy(bundle, part)
        _write(bundle, reading, fit, report, part, measured)
        part.replace(out)
        log.info("%s: %s %s, from %s", out, bundle.description.name, report.version, bundle.label)
    except OSError as error:
        raise BundleError(f"{out}: cannot be written ({error.strerror or type(error).__name__})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return RecalibrationReport.read(out / RECALIBRATION)


def next_version(version: str) -> str:
    """The version below `version`.

    >>> next_version("1"), next_version("1.1"), next_version("2024-rc")
    ('1.1', '1.2', '2024-rc.1')
    """
    found = re.fullmatch(r"(.*\.)(\d+)", version)
    return f"{found[1]}{int(found[2]) + 1}" if found else f"{version}.1"


def halves_of(reading: ScoredStudies) -> Halves:
    """Rows of two halves of the patients, seeded, with as many of each combination of findings in both.

    Raises:
        DataError: fewer than two patients.
    """
    patients, labels = reading.manifest.patients, reading.manifest.labels
    names = np.unique(patients)
    if len(names) < 2:
        raise DataError(f"{reading.name}: one patient cannot be halved; recalibration needs many")
    drawn = np.random.default_rng(reading.seed).permutation(names)
    found = {name: labels[patients == name] for name in drawn.tolist()}
    # What a patient has, and what the patient is known not to have, so that few negatives are shared out, too.
    kinds = {name: str([(rows == 1).any(0).tolist(), (rows == 0).any(0).tolist()]) for name, rows in found.items()}
    ordered = sorted(drawn.tolist(), key=kinds.__getitem__)  # stable: in the drawn order within a kind
    first = np.isin(patients, ordered[::2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def fit_again(bundle: Bundle, reading: ScoredStudies, rows: Rows) -> Fit:
    """Calibration, operating points and conformal scores from some of the studies; see the module.

    A finding that was not trained gets none, whatever is labelled: no fit makes its logit mean something.
    """
    d, settings = bundle.description, reading.evaluation
    names = bundle.findings.without(d.not_trained).names
    kept = np.isin(bundle.findings.names, names)
    logits, labels = reading.logits[rows][:, kept], reading.manifest.labels[rows][:, kept].astype(np.float64)
    least = settings.minimum_positives
    chosen, reasons = choose_calibration(logits, labels, names, minimum_positives=least, method=settings.calibration)
    calibration, choices, stayed = dict(d.calibration), {}, set()
    for column, name in enumerate(names):
        truth = labels[:, column]
        counts = {"positives": int((truth == 1).sum()), "negatives": int((truth == 0).sum())}
        rarer, known = min(counts.values()), ~np.isnan(truth)
        if rarer >= PLATT_CASES:
            calibration[name], choices[name] = chosen[name], reasons[name]
        elif rarer >= 1 and known.sum() >= INTERCEPT_CASES:
            calibration[name] = _moved(d.calibration[name], logits[known, column], truth[known])
            reason = f"{rarer} of the rarer class, fewer than {PLATT_CASES}: only the intercept moves"
            choices[name] = CalibrationChoice(method="intercept", reason=reason, **counts)
        else:
            reason = f"{counts['positives']} with it and {counts['negatives']} without: too few to fit, as it was"
            stayed.add(name)
            # That of all findings stays the one of all findings, and is named so.
            before = d.calibration_choices.get(name)
            method = before.method if before is not None and before.method in ("pooled", "none") else "kept"
            choices[name] = CalibrationChoice(method=method, reason=reason, **counts)
    fitted = tuple(name for name in names if name not in stayed)
    probabilities = calibrated(logits, calibration, names)
    points = choose_operating_points(
        probabilities, labels, names, minimum_positives=least, rule=settings.operating_points
    )
    points |= {name: _same_call(d, name, calibration[name]) for name in names if points[name].threshold is None}
    scores = conformal_scores(probabilities, labels, reading.manifest.patients[rows], names, seed=reading.seed)
    if CONFORMAL in d.files:
        old = read_conformal(bundle.folder / CONFORMAL)
        scores |= {name: old[name] for name in names if name not in fitted and name in old}
    return Fit(calibration, choices, points, scores, fitted)


def _moved(old: Calibration, logits: FloatArray, truth: FloatArray) -> Calibration:
    """The old calibration with its log-odds moved by one number, which has a normal prior."""
    before = log_odds(logits, old)

    def loss(shift: float) -> float:
        z = before + shift
        return float(np.logaddexp(0, z).sum() - (truth * z).sum() + (shift / _INTERCEPT_SPREAD) ** 2 / 2)

    shift = float(minimize_scalar(loss, bounds=(-20, 20), method="bounded").x)
    if isinstance(old, PlattCalibration):
        return old.model_copy(update={"intercept": old.intercept + shift})
    return old.model_copy(update={"log_odds": tuple(value + shift for value in old.log_odds)})


def _same_call(d: layout.Description, name: str, new: Calibration) -> OperatingPoint:
    """The old operating point at the new probability, so that the calls stay as they were."""
    point = d.operating_points[name]
    if point.threshold is None or new == d.calibration[name] or not 0 < point.threshold < 1:
        return point
    wanted = float(logit(point.threshold))
    at = brentq(lambda z: float(log_odds(np.array([z]), d.calibration[name])[0]) - wanted, -1e4, 1e4)
    threshold = float(expit(log_odds(np.array([at]), new)[0]))
    return point.model_copy(update={"threshold": threshold})


def compare(
    bundle: Bundle, reading: ScoredStudies, fit: Fit, halves: Halves, everyone: bool, version: str
) -> RecalibrationReport:
    """How well old and new probabilities agree with labels that were not fitted."""
    names, columns = bundle.findings.names, [bundle.findings.names.index(name) for name in fit.findings]
    old = calibrated(reading.logits, bundle.description.calibration, names)
    new = calibrated(reading.logits, fit.calibration, names)
    rows = np.concatenate(halves) if everyone else halves[1]
    for fitted, measured in (halves, halves[::-1]) if everyone else ():
        new[measured] = calibrated(reading.logits[measured], fit_again(bundle, reading, fitted).calibration, names)
    labels, patients = reading.manifest.labels, reading.manifest.patients
    options, chosen = options_of(reading.evaluation, reading.seed), np.ix_(rows, np.array(columns))
    return RecalibrationReport.of(
        options,
        bundle=bundle.label,
        model_sha256=bundle.model_sha256,
        version=version,
        studies=reading.name,
        data_hash=reading.report.data_hash,
        fitted_patients=len(set(patients[rows if everyone else halves[0]].tolist())),
        measured_patients=len(set(patients[rows].tolist())),
        crossed=everyone,
        findings=fit.findings,
        labels=int((~np.isnan(labels[chosen])).sum()),
        figures=compare_probabilities(
            labels[chosen].astype(np.float64), old[chosen], new[chosen], patients[rows], options
        ),
    )


def _copy(bundle: Bundle, part: Path) -> None:
    """The old bundle without its pages, its cases and what speaks of the old probabilities."""
    shutil.copytree(
        bundle.folder,
        part,
        ignore=shutil.ignore_patterns(layout.CASES, PLOTS, CARD, PAGE, layout.DESCRIPTION, layout.MODEL, *_STALE),
    )
    for name in (EVIDENCE, SOURCES):  # which say nothing of probabilities
        if (bundle.folder / name).is_file():
            shutil.copyfile(bundle.folder / name, part / name)


def _write(
    bundle: Bundle, reading: ScoredStudies, fit: Fit, report: RecalibrationReport, part: Path, measured: Rows
) -> None:
    """Everything of the new bundle, the card last."""
    old = bundle.description
    differences: dict[str, float] = {}
    for precision in ("float32", *old.variants):
        path = part / layout.GRAPHS[precision]
        exchange_tail(bundle, path, fit.calibration, version=report.version, precision=precision)
        found, readings = compare_graphs(bundle, path, fit.calibration, precision=precision)
        differences = {name: max(value, differences.get(name, 0.0)) for name, value in found.items()}
    report = report.model_copy(update={"outputs": differences, "readings": readings})
    parity = part / PARITY
    told = json.loads(parity.read_text(encoding="utf-8")) if parity.is_file() else {}
    write_json(parity, told | {"recalibrated_from": bundle.model_sha256})
    write_conformal(part / CONFORMAL, fit.conformal)
    report.write(part / RECALIBRATION)
    description = old.model_copy(
        update={
            "version": report.version,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "calibration": fit.calibration,
            "calibration_choices": fit.choices,
            "operating_points": fit.points,
            "recalibrated": layout.Recalibrated(
                bundle=bundle.label,
                model_sha256=bundle.model_sha256,
                studies=reading.name,
                data_hash=reading.report.data_hash,
                patients=report.fitted_patients,
            ),
        }
    )
    description = layout.write_description(part, description)
    made = Bundle(part, description)
    cases = _copy_cases(bundle, made)
    new = _of_new(reading, made, measured, report.crossed)
    new.report.write(part / STUDIES)
    measure(new, cases).write(part / EVALUATION)
    if cases is not None:
        shift_of(reading, CaseIndex.open(bundle.cases_path)).write(part / SHIFT)
    draw(new, part / PLOTS, cases)
    description = write_reference(made).description
    write_card(part, description)
    layout.write_description(part, description)
    Bundle.open(part)  # what is published can be opened


def _of_new(reading: ScoredStudies, made: Bundle, rows: Rows, everyone: bool) -> ScoredStudies:
    """Some of the reading as the new bundle would give it: its logits and embeddings are the same."""
    kept = np.isin(np.arange(len(reading.logits)), rows)
    manifest = reading.manifest.without(np.flatnonzero(~kept).tolist())
    name = f"{reading.report.name} ({'the patients that were fitted' if everyone else 'the half that was held back'})"
    report = reading.report.model_copy(
        update={
            "bundle": made.label,
            "model_sha256": made.model_sha256,
            "name": name,
            "scored": len(manifest),
            "scored_patients": len(set(manifest.patients.tolist())),
        }
    )
    logits, embeddings = reading.logits[kept], reading.embeddings[kept]
    return replace(reading, bundle=made, manifest=manifest, logits=logits, embeddings=embeddings, report=report)


def _copy_cases(bundle: Bundle, made: Bundle) -> CaseIndex | None:
    """The same cases under the new model's sha256: embeddings do not depend on calibration.

    The thresholds of the vote do, so they are left out, and nothing is flagged.
    """
    if not bundle.cases_path.is_dir():
        return None
    old = CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256)
    (cases, vectors), about = zip(*old.records(), strict=True), old.description
    return create_index(
        made.cases_path,
        cases,
        np.stack(vectors),
        model_sha256=made.model_sha256,
        findings=old.findings,
        model=made.label,
        public=about.public,
        scale=about.scale,
        approximate_above=about.approximate_above,
    )
