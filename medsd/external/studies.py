"""The studies of another hospital as a bundle reads them; start at `read_studies`.

What the gate refuses is refused here, too, and counted. Labels are carried into the bundle's vocabulary, and what the
set never labels stays unknown.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.bundle.layout import VALIDATION, Bundle
from medsd.cases.index import CaseIndex
from medsd.cases.manage import hasher_of
from medsd.errors import DataError, explained
from medsd.evaluation.report import picked
from medsd.evaluation.studies_report import StudiesReport
from medsd.inference.predict import Predictor, Study
from medsd.inference.prediction import Prediction
from medsd.inference.providers import ProviderChoice
from medsd.metrics.intervals import patient_means
from medsd.preprocessing.decode import Decoder, decode_all
from medsd.progress import Progress
from medsd.settings import CsvColumns, EvaluationSettings, Settings, load_settings
from medsd.strict import as_yaml, load_as, read_json, top_level_keys
from medsd.studies.manifest import SELECTED, SPLITS, Manifest
from medsd.studies.sources import in_findings, read_source

log = logging.getLogger(__name__)

_TABLES = (".csv", ".gz", ".parquet")
_CHUNK = 16  # studies in one run of the graph
_LISTED = "findings"  # a column of this name lists what is present, where no column is a finding


@dataclass(frozen=True)
class ScoredStudies:
    """N studies that a bundle has read, labelled in its vocabulary.

    Attributes:
        logits, embeddings: (N, F) before calibration; (N, D) of unit length.
        far: (P,) the share of each patient's images beyond the out-of-distribution limit, of all images that the check
            has judged, refused ones too.
        report: what was read and what was left out.
        evaluation, seed: how to measure.
    """

    bundle: Bundle
    manifest: Manifest
    logits: npt.NDArray[np.float64]
    embeddings: npt.NDArray[np.float32]
    far: npt.NDArray[np.float64]
    report: StudiesReport
    evaluation: EvaluationSettings
    seed: int

    @property
    def name(self) -> str:
        """The set, as figures are named after it."""
        report = self.report
        return report.name if report.split is None else f"the {report.split} part of {report.name}"

    @property
    def apart(self) -> npt.NDArray[np.bool_]:
        """(N,) images that were picked by finding, and are in no figure of the headline; unless all were."""
        chosen = picked(self.manifest)
        return chosen & ~chosen.all()


def load_studies(path: Path, bundle: Bundle, overrides: Sequence[str] = ()) -> Settings:
    """The settings of a set of studies.

    `path` is a configuration with the section `data`, all else optional; or a table (CSV, Parquet) with the columns of
    `configs/own.yaml` under their own names (image, patient, and perhaps study, view, age, sex, note, split), and a
    column a finding, or one called "findings" that lists what is present. Labels are in the vocabulary of `bundle`,
    unless the configuration names another. `overrides` are ``a.b=c`` each.

    Raises:
        SettingsError: as `medsd.settings.load_settings`.
        DataError: no such table.
    """
    own = [f"findings={as_yaml(bundle.description.finding_set)}"]
    if path.suffix.lower() in _TABLES:
        return load_as(Settings, None, [*own, *_table_settings(path, bundle), *overrides])
    keys = top_level_keys(path)
    own = [*([] if "findings" in keys else own), *([] if "name" in keys else [f"name={as_yaml(path.stem)}"])]
    return load_settings(path, [*own, *overrides])


def read_studies(
    bundle: Bundle,
    settings: Settings,
    *,
    split: str | None = None,
    provider: ProviderChoice = "auto",
    workers: int = 1,
    progress: bool = False,
) -> ScoredStudies:
    """Read the studies; arguments and errors as `evaluate_bundle`."""
    if split is not None and split not in SPLITS:
        raise DataError(f"there is no split '{split}'; choose one of {', '.join(SPLITS)}, or leave it out")
    source = read_source(settings)
    manifest = in_findings(source, bundle.findings)
    own, learned_from = _own(bundle, manifest, settings)
    if split is None and learned_from:
        split = "test"
        log.info("%s is what %s learned from: its test patients are measured", settings.name, bundle.label)
    if split is not None:
        wanted = manifest.table["split"].isin([split, *([SELECTED] if split == "test" else [])]).to_numpy()
        manifest, own = manifest.without(np.flatnonzero(~wanted).tolist()), own[wanted]
    foreign = manifest.without(np.flatnonzero(own).tolist())
    predictor = Predictor(bundle, provider=provider, policy=settings.gate)
    with Progress(len(foreign), name="evaluate", unit="image", wanted=progress) as shown:
        predictions = list(_predictions(predictor, foreign, workers, shown.advance))
    told = [said for said in predictions if not said.refused]
    counts = {status: Counter(p.reason for p in predictions if p.status == status) for status in ("refused", "warned")}
    if not told:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts["refused"].items())
        raise DataError(f"{settings.name}: none of its {len(foreign)} studies can be scored ({reasons or 'no study'})")
    kept = foreign.without([row for row, said in enumerate(predictions) if said.refused])
    labels = kept.labels
    report = StudiesReport(
        bundle=bundle.label,
        model_sha256=bundle.model_sha256,
        name=settings.name,
        source=settings.data.source,
        split=split,
        data_hash=manifest.data_hash(),
        finding_set=bundle.findings.key,
        images=len(manifest),
        patients=len(set(manifest.patients.tolist())),
        own=int(own.sum()),
        rejected=dict(Counter(reason for _, _, reason, _ in source.rejected.entries).most_common()),
        **{status: dict(reasons.most_common()) for status, reasons in counts.items()},
        scored=len(kept),
        scored_patients=len(set(kept.patients.tolist())),
        unlabelled=tuple(f.title for i, f in enumerate(bundle.findings.findings) if np.isnan(labels[:, i]).all()),
    )
    logits = np.stack([said.logits for said in told if said.logits is not None]).astype(np.float64)
    embeddings = np.stack([said.embedding for said in told if said.embedding is not None])
    judged = [row for row, said in enumerate(predictions) if said.out_of_distribution is not None]
    beyond = np.array([(predictions[row].out_of_distribution or 0) > 1 for row in judged], dtype=np.float64)
    far = patient_means(beyond, foreign.patients[judged])
    return ScoredStudies(bundle, kept, logits, embeddings, far, report, settings.evaluation, settings.seed)


def _table_settings(path: Path, bundle: Bundle) -> list[str]:
    """What a table by itself says of itself, as overrides."""
    with explained(f"{path}: cannot be read as a table", OSError, ValueError):
        header = list(pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, nrows=0))
    columns = [name for name in CsvColumns.model_fields if name in header]
    listed = _LISTED in header and not set(header) & set(bundle.findings)
    return [
        f"name={as_yaml(path.name.split('.')[0])}",
        "data.source=csv",
        f"data.root={as_yaml(str(path.parent))}",
        f"data.table={as_yaml(path.name)}",
        *(f"data.columns.{name}={name}" for name in columns),
        *([f"data.finding_list={_LISTED}"] if listed else []),
    ]


def _own(bundle: Bundle, manifest: Manifest, settings: Settings) -> tuple[npt.NDArray[np.bool_], bool]:
    """Which rows (N,) the bundle learned from or was calibrated on, and whether it learned from this very set.

    Own are cases of the bundle, and images of the patients of its training and validation. Patients are compared within
    a source only: another source may give the same number to somebody else. It is the bundle's set where half of its
    training patients, or more, are in it.
    """
    if not bundle.cases_path.is_dir():
        return np.zeros(len(manifest), dtype=bool), False
    table, hasher = CaseIndex.open(bundle.cases_path).table(), hasher_of(bundle)
    studies = set(table["study_key"]) - {""}
    trained: set[str] = set()
    if settings.data.source == bundle.description.provenance.data:
        trained = set(table["patient_key"]) - {""}
    chosen_on: set[str] = set()
    if trained and VALIDATION in bundle.description.files:
        chosen_on = set(read_json((bundle.folder / VALIDATION).read_text(encoding="utf-8")))
    keys = {name: set(hasher.patient_keys(name)) for name in set(manifest.patients.tolist())}
    found = sum(not trained.isdisjoint(each) for each in keys.values())
    known = {name for name, each in keys.items() if not each.isdisjoint(trained | chosen_on)}
    rows = zip(manifest.table["study"], manifest.patients.tolist(), strict=True)
    own = [name in known or not studies.isdisjoint(hasher.study_keys(str(study))) for study, name in rows]
    return np.array(own, dtype=bool), bool(trained) and 2 * found >= len(trained)


def _predictions(
    predictor: Predictor, manifest: Manifest, workers: int, advance: Callable[[], object]
) -> Iterator[Prediction]:
    """The predictions of the rows in their order, a chunk of images at a time."""
    paths, notes = manifest.table["path"].tolist(), manifest.table["note"].tolist()
    spec = predictor.bundle.description.pixels
    seen = [isinstance(path, str) and predictor.takes_images for path in paths]
    given = (manifest.root / path for path, there in zip(paths, seen, strict=True) if there)
    decoder = Decoder(spec, predictor.policy)
    with closing(decode_all(given, decoder, workers=workers, ahead=_CHUNK)) as decoded:
        studies = (
            Study(next(decoded)[1] if there else None, note if isinstance(note, str) else "")
            for there, note in zip(seen, notes, strict=True)
        )
        while chunk := list(islice(studies, _CHUNK)):
            for prediction in predictor.read(chunk):
                advance()
                yield replace(prediction, evidence_maps=None, regions=None)
