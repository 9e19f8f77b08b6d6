"""A bundle measured on another set of studies, as another hospital would: without training, and without torch.

Start at `evaluate_bundle`; `medsd.external.studies` reads the studies.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from medsd.bundle.layout import Bundle
from medsd.calibration.conformal import CONFORMAL, read_conformal
from medsd.calibration.fit import calibrated
from medsd.card import PLOTS, write_report
from medsd.cases.case import age_band
from medsd.cases.index import CaseIndex
from medsd.errors import DataError, explained
from medsd.evaluation.against import AGAINST, AgainstReport, compare_models
from medsd.evaluation.distribution import DISTRIBUTION, DistributionReport
from medsd.evaluation.plots import project, save_png, write_plots
from medsd.evaluation.report import EVALUATION, EvaluationReport, beside_of, evaluate
from medsd.evaluation.saved import options_of
from medsd.evaluation.shift import SHIFT, ShiftReport, Side, measure_shift
from medsd.evaluation.space import SPACE, draw_space
from medsd.evaluation.studies_report import STUDIES, compare_with_card
from medsd.evaluation.subgroups import groups_of
from medsd.external.studies import ScoredStudies, read_studies
from medsd.inference.providers import ProviderChoice
from medsd.metrics.retrieval import Cases
from medsd.settings import Settings

log = logging.getLogger(__name__)


def evaluate_bundle(
    bundle: Bundle,
    settings: Settings,
    out: Path,
    *,
    split: str | None = None,
    against: Bundle | None = None,
    provider: ProviderChoice = "auto",
    workers: int = 1,
    progress: bool = False,
) -> ShiftReport | None:
    """Measure a bundle on a set of studies: evaluation.json, shift.json, studies.json, plots, report.md, report.html.

    Patients that the bundle learned from, or was calibrated on, are never measured. All others are; of the very set
    that the bundle learned from the test part, and with `split` the patients of that part alone. With `against`,
    another bundle is compared on the studies that both can score: against.json. Returns what has moved; None where the
    bundle has no cases to compare with.

    Raises:
        DataError: the studies cannot be read, none can be scored, or the folder cannot be written.
    """
    options: dict[str, Any] = {"provider": provider, "workers": workers, "progress": progress}
    reading = read_studies(bundle, settings, split=split, **options)
    cases = _cases(bundle)
    report, shift = measure(reading, cases), None if cases is None else shift_of(reading, cases)
    compared = None
    if against is not None:
        compared = compare_bundles(reading, read_studies(against, settings, split=reading.report.split, **options))
    studies, own = reading.report, bundle.folder / EVALUATION
    if own.is_file():
        studies = studies.model_copy(update={"card": compare_with_card(EvaluationReport.read(own), report)})
    with explained(f"{out}: cannot be written", OSError):
        out.mkdir(parents=True, exist_ok=True)
        studies.write(out / STUDIES)
        report.write(out / EVALUATION)
        for name, other in ((SHIFT, shift), (AGAINST, compared)):
            (out / name).unlink(missing_ok=True)
            if other is not None:
                other.write(out / name)
        draw(reading, out / PLOTS, cases)
        write_report(out)
    return shift


def measure(reading: ScoredStudies, cases: CaseIndex | None = None) -> EvaluationReport:
    """The metrics of a reading; with `cases`, similar ones among them, too."""
    description, manifest = reading.bundle.description, reading.manifest
    path, rows, apart = reading.bundle.folder / CONFORMAL, np.flatnonzero(~reading.apart), np.flatnonzero(reading.apart)
    index = None
    if cases is not None:
        index = Cases(cases.embeddings(), _labels(cases), cases.table()["patient_key"].to_numpy(dtype=str))
    return evaluate(
        reading.bundle.findings,
        reading.logits[rows],
        manifest.labels[rows],
        manifest.patients[rows],
        calibration=description.calibration,
        operating_points=description.operating_points,
        embeddings=reading.embeddings[rows],
        index=index,
        settings=reading.evaluation,
        seed=reading.seed,
        split=reading.name,
        choices=description.calibration_choices,
        conformal=read_conformal(path) if CONFORMAL in description.files else None,
        groups=groups_of(manifest.table.iloc[rows]),
        beside=beside_of(manifest, reading.logits, rows, apart, reading.evaluation),
        not_trained=description.not_trained,
    )


def shift_of(reading: ScoredStudies, cases: CaseIndex) -> ShiftReport:
    """What has moved from the bundle's cases to the studies that were read."""
    bundle, manifest, table = reading.bundle, reading.manifest, cases.table()
    description = bundle.description
    before = Side(
        _labels(cases),
        table["patient_key"].to_numpy(dtype=str),
        cases.embeddings(),
        {"view": _texts(table["view"]), "sex": _texts(table["sex"]), "age": _texts(table["age_band"])},
    )
    groups, points = groups_of(manifest.table), description.operating_points
    ages = np.array([age_band(float(age)) for age in manifest.table["age"].astype("float64")], dtype=np.str_)
    after = Side(
        manifest.labels.astype(np.float64),
        manifest.patients,
        reading.embeddings,
        {"view": groups["view"], "sex": groups["sex"], "age": ages},
    )
    limits, path = description.out_of_distribution, bundle.folder / DISTRIBUTION
    return measure_shift(
        before,
        after,
        [(finding.name, finding.title) for finding in bundle.findings.findings],
        options_of(reading.evaluation, reading.seed),
        probabilities=calibrated(reading.logits, description.calibration, bundle.findings.names),
        priors={name: p.positives / (p.positives + p.negatives) for name, p in points.items() if p.positives},
        beyond=reading.far if limits is not None else None,
        false_alarm_rate=limits.false_alarm_rate if limits is not None else None,
        own=DistributionReport.read(path).told_apart if path.is_file() else None,
        images=description.image,
    )


def compare_bundles(first: ScoredStudies, second: ScoredStudies) -> AgainstReport:
    """The AUROCs of two bundles on the studies of the headline that both have scored.

    Raises:
        DataError: they have no study, or no finding, in common.
    """
    rows = {key: row for row, key in enumerate(_study_keys(second))}
    pairs = [(row, rows[key]) for row, key in enumerate(_study_keys(first)) if key in rows and not first.apart[row]]
    names = [
        name
        for name in first.bundle.findings.names
        if all(name in each.bundle.description.calibration for each in (first, second))
    ]
    if not pairs or not names:
        raise DataError(
            f"{first.bundle.label} and {second.bundle.label} have no {'finding' if pairs else 'study'} in common"
        )
    of_first, of_second = np.array(pairs).T
    columns = [first.bundle.findings.names.index(name) for name in names]
    return compare_models(
        (first.bundle.label, second.bundle.label),
        first.name,
        [first.bundle.findings.findings[column] for column in columns],
        first.manifest.labels[of_first][:, columns].astype(np.float64),
        (_probabilities(first, of_first, names), _probabilities(second, of_second, names)),
        first.manifest.patients[of_first].tolist(),
        options_of(first.evaluation, first.seed),
    )


def draw(reading: ScoredStudies, folder: Path, cases: CaseIndex | None = None) -> None:
    """The plots of a reading, with the prevalences of the bundle's cases beside its own."""
    bundle, rows = reading.bundle, ~reading.apart
    labels, logits, embeddings = reading.manifest.labels[rows], reading.logits[rows], reading.embeddings[rows]
    splits = {} if cases is None else {"cases": _labels(cases)}
    coordinates = project(embeddings, "pca") if len(labels) > 2 else None
    write_plots(
        folder,
        bundle.findings,
        labels,
        calibrated(logits, bundle.description.calibration, bundle.findings.names),
        before=expit(logits),
        coordinates=coordinates,
        splits={**splits, reading.name: labels},
        minimum_positives=reading.evaluation.minimum_positives,
    )
    if coordinates is not None:
        save_png(draw_space(embeddings, labels, coordinates=coordinates), folder / SPACE)


def _cases(bundle: Bundle) -> CaseIndex | None:
    if not bundle.cases_path.is_dir():
        log.warning("%s has no cases: what has moved since its training cannot be said", bundle.label)
        return None
    return CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256)


def _study_keys(scored: ScoredStudies) -> list[tuple[str, str]]:
    """What tells the studies of one source apart: the study and the image."""
    table = scored.manifest.table
    return list(zip(_texts(table["study"]).tolist(), _texts(table["path"]).tolist(), strict=True))


def _probabilities(scored: ScoredStudies, rows: npt.NDArray[np.int64], names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Calibrated probabilities of some rows and findings."""
    columns = [scored.bundle.findings.names.index(name) for name in names]
    return calibrated(scored.logits[rows][:, columns], scored.bundle.description.calibration, names)


def _labels(cases: CaseIndex) -> npt.NDArray[np.float64]:
    return cases.table()[list(cases.findings)].to_numpy(dtype=np.float64)


def _texts(column: pd.Series) -> npt.NDArray[np.str_]:
    return column.fillna("").to_numpy(dtype=str)
