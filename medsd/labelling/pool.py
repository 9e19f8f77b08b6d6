"""`medsd suggest`: a list of what to label next, of images read by a bundle or of the studies of a run.

`suggest_images` reads images through the bundle's ONNX graph and needs no torch. `suggest_studies` takes what a
training run has written of its own studies.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice, starmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.bundle.layout import Bundle
from medsd.cases.index import CaseIndex
from medsd.cases.manage import hasher_of
from medsd.dicom.gate import GatePolicy
from medsd.errors import DataError
from medsd.findings import FindingSet
from medsd.inference.predict import Predictor, Study
from medsd.inference.prediction import Prediction
from medsd.inference.providers import ProviderChoice
from medsd.labelling.suggest import Pool, Suggestion, finding_uncertainty, suggest
from medsd.pipeline.folder import Run
from medsd.preprocessing.decode import Decoder, decode_all
from medsd.privacy import KeyedHasher
from medsd.progress import Progress
from medsd.scoring.batch import read_safely
from medsd.scoring.inputs import expand_inputs
from medsd.scoring.table import printable, row, write_table
from medsd.settings import Settings
from medsd.studies.manifest import Manifest
from medsd.training.pseudo_labels import is_labelled

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
COLUMNS = ("rank", "path", "score", "uncertainty", "diversity", "rarity", "unsure", "study_key", "patient_key")
SKIPPED_COLUMNS = ("path", "reason", "message")
LABELLED = "labelled"  # a reason beside those of the gate
_UNSURE = 3  # findings named at most
_BATCH = 8
Candidate = tuple[Path | str, Prediction]  # where a study is and what is said of it; a refused one is left out


@dataclass(frozen=True)
class ListSummary:
    """What became of a list: its file, the table of what was left out ("" for none), and numbers of studies."""

    out: str
    skipped: str
    suggested: int
    pool: int
    labelled: int
    refused: int

    def line(self) -> str:
        left = f"; left out: {self.labelled} labelled, {self.refused} refused, see {self.skipped}"
        return f"{self.suggested} of {self.pool} studies suggested in {self.out}{left if self.skipped else ''}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Cases:
    """What a bundle's index has of the labelled: label sets (M, F), places (M, D), and keys."""

    labels: FloatArray
    embeddings: FloatArray
    studies: frozenset[str] = field(default_factory=frozenset)
    patients: frozenset[str] = field(default_factory=frozenset)


def suggest_images(
    bundle: Bundle | Path | str,
    inputs: Sequence[Path],
    out: Path,
    *,
    count: int,
    labelled: Path | None = None,
    seed: int = 0,
    workers: int = 1,
    provider: ProviderChoice = "auto",
    policy: GatePolicy | None = None,
    hasher: KeyedHasher | None = None,
    progress: bool = False,
) -> ListSummary:
    """Write which of `inputs` to label next, at most one study of a patient.

    Args:
        bundle: its cases, where it has some, are what is labelled.
        out: .csv; what was left out, and why, goes beside it as `<name>.skipped.csv`.
        labelled: a text list (.txt, .lst) of images, or one image or folder, labelled beside the cases. They are read
            so that what is suggested lies far from them, and never suggested; their findings count as predicted.
        inputs, workers, provider, policy, hasher, progress: as in `medsd.scoring.request.ScoringRequest`.

    Raises:
        DataError: an input does not exist, the output cannot be used, or nothing is left to choose from.
        BundleError: no bundle, or an altered one, or cases of another model.
    """
    _check_output(out)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    known_paths = expand_inputs([labelled]) if labelled else []
    resolved = {path.resolve() for path in known_paths}
    paths = expand_inputs(list(inputs), leave_out=[out, skipped_path(out)])
    paths = [path for path in paths if path.resolve() not in resolved]
    about = opened.description
    own = hasher or hasher_of(opened)
    cases = _read_cases(opened)
    predictor = Predictor(opened, provider=provider, policy=policy)
    decoder = Decoder(about.pixels, predictor.policy, own)
    with Progress(len(known_paths) + len(paths), wanted=progress) as shown:
        listed = list(_read(predictor, decoder, known_paths, workers, shown))
        studies = list(_read(predictor, decoder, paths, workers, shown))
    patients = cases.patients | {key for _, said in listed for key in said.patient_keys if key}
    studies = [(path, _judged(path, said, cases.studies, patients, own)) for path, said in studies]
    beside = [each for each in listed if not each[1].refused and not _is_case(*each, cases.studies, own)]
    labels, places = _stacked(beside, len(opened.findings), about.embedding_size)
    labelled_too = _Cases(np.concatenate([cases.labels, labels]), np.concatenate([cases.embeddings, places]))
    return _write(out, studies, labelled_too, opened.findings, count=count, seed=seed)


def suggest_studies(settings: Settings, out: Path, *, count: int, seed: int = 0) -> ListSummary:
    """Write which unlabelled training studies of a calibrated run to label next; arguments as for `suggest_images`.

    Labelled are the training studies of which at least one finding is known. Raises DataError if the run has not come
    that far, or no training study is unlabelled.
    """
    from safetensors.numpy import load_file

    from medsd.calibration.fit import calibrated

    _check_output(out)
    run = Run(settings)
    manifest, outputs = Manifest.read(run.manifest), load_file(run.outputs)
    probs = calibrated(outputs["logits"], run.read_calls().calibration, manifest.findings.names)
    rows = manifest.rows("train")
    known = is_labelled(manifest.labels[rows])
    table, taught = manifest.table, rows[known]
    patients = set(manifest.patients[taught])
    keys = [(str(table["study"][row]), str(table["patient"][row])) for row in rows[~known]]
    studies: list[Candidate] = [
        (
            str(table["path"][row]),
            Prediction(
                manifest.findings,
                "scored",
                study_key=study,
                patient_key=patient,
                values=probs[row],
                embedding=outputs["embeddings"][row],
            ),
        )
        for row, (study, patient) in zip(rows[~known], keys, strict=True)
        if patient not in patients
    ]
    labelled = _Cases(manifest.labels[taught].astype(np.float64), outputs["embeddings"][taught].astype(np.float64))
    return _write(out, studies, labelled, manifest.findings, count=count, seed=seed)


def skipped_path(out: Path) -> Path:
    """Where the images that were left out are listed."""
    return out.with_name(f"{out.stem}.skipped.csv")


def _check_output(out: Path) -> None:
    if out.suffix.lower() != ".csv":
        raise DataError(f"{out}: the list is written as CSV; give the output the ending .csv")


def _read_cases(bundle: Bundle) -> _Cases:
    """The bundle's cases; a bundle without an index has none."""
    size, findings = bundle.description.embedding_size, list(bundle.findings)
    if not bundle.cases_path.is_dir():
        log.warning("%s has no cases: only what --labelled names counts as labelled", bundle.label)
        return _Cases(np.zeros((0, len(findings))), np.zeros((0, size)))
    index = CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256)
    table = index.table()
    labels = table[findings].to_numpy(dtype=np.float64)
    keys = (frozenset(table[column]) - {""} for column in ("study_key", "patient_key"))
    return _Cases(labels, index.embeddings().astype(np.float64), *keys)


def _read(
    predictor: Predictor, decoder: Decoder, paths: Sequence[Path], workers: int, shown: Progress
) -> Iterator[tuple[Path, Prediction]]:
    images = decode_all(paths, decoder, workers=workers, ahead=2 * _BATCH)
    while portion := list(islice(images, _BATCH)):
        predictions = read_safely(predictor, [Study(image) for _, image in portion])
        shown.advance(len(portion))
        for (path, _), said in zip(portion, predictions, strict=True):
            yield path, replace(said, evidence_maps=None, regions=None)


def _judged(
    path: Path, said: Prediction, labelled: frozenset[str], patients: frozenset[str], hasher: KeyedHasher
) -> Prediction:
    """What is `said` of a study, refused where it or its patient is labelled already."""
    if said.refused:
        return said
    if _is_case(path, said, labelled, hasher):
        message = "This study is among the labelled ones."
    elif not patients.isdisjoint(said.patient_keys):
        message = "A study of this patient is among the labelled ones."
    else:
        return said
    return replace(said, status="refused", reason=LABELLED, message=message)


def _is_case(path: Path, said: Prediction, labelled: frozenset[str], hasher: KeyedHasher) -> bool:
    """By the header's study, or, as for the app's --images, by the name of the file."""
    return not labelled.isdisjoint({*said.study_keys, *hasher.study_keys(Path(printable(path)).stem)})


def _stacked(studies: Sequence[Candidate], findings: int, size: int) -> tuple[FloatArray, FloatArray]:
    """Probabilities (N, F) and embeddings (N, D)."""
    probs = np.array([said.values for _, said in studies], dtype=np.float64).reshape(-1, findings)
    return probs, np.array([said.embedding for _, said in studies], dtype=np.float64).reshape(-1, size)


def _write(
    out: Path, read: Sequence[Candidate], labelled: _Cases, findings: FindingSet, *, count: int, seed: int
) -> ListSummary:
    """Choose, and write the list and what was left out."""
    studies, skipped = ([each for each in read if each[1].refused is refused] for refused in (False, True))
    beside = skipped_path(out)
    if skipped:
        told = starmap(row, skipped)
        write_table(beside, [{name: each[name] for name in SKIPPED_COLUMNS} for each in told], SKIPPED_COLUMNS)
    else:
        beside.unlink(missing_ok=True)
    if not studies:
        why = f"all {len(skipped)} are labelled or refused, see {beside}" if skipped else "every one is labelled"
        raise DataError(f"there is no study to choose from: {why}")
    probs, embeddings = _stacked(studies, len(findings), labelled.embeddings.shape[1])
    taught = ~np.isnan(probs).all(axis=0)  # the model knows nothing of the other findings
    names: list[str] = np.array(findings.names)[taught].tolist()
    probs = probs[:, taught]
    patients = np.array([said.patient_key for _, said in studies], dtype=str)
    pool = Pool(probs, embeddings, patients, labelled.labels[:, taught], labelled.embeddings)
    chosen, unsure = suggest(pool, count, seed=seed), finding_uncertainty(probs)
    rows = [_row(rank, each, studies[each.row], unsure[each.row], names) for rank, each in enumerate(chosen, start=1)]
    write_table(out, rows, COLUMNS)
    known = sum(said.reason == LABELLED for _, said in skipped)
    left_out = str(beside) if skipped else ""
    return ListSummary(str(out), left_out, len(rows), len(studies), known, len(skipped) - known)


def _row(rank: int, chosen: Suggestion, study: Candidate, unsure: FloatArray, names: Sequence[str]) -> dict[str, Any]:
    most = np.argsort(-unsure, kind="stable")[:_UNSURE]
    numbers = {name: round(getattr(chosen, name), 6) for name in ("score", "uncertainty", "diversity", "rarity")}
    path, said = study
    return {
        "rank": rank,
        "path": printable(path),
        **numbers,
        "unsure": "|".join(names[f] for f in most),
        "study_key": said.study_key,
        "patient_key": said.patient_key,
    }
