"""The last step of a run: its training studies become the cases of the bundle, with what was measured of them."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import load_file

from medsd.bundle import layout
from medsd.calibration.fit import calibrated
from medsd.cases import pictures
from medsd.cases.case import Case, age_band
from medsd.cases.described import VoteRule
from medsd.cases.exact import distinct
from medsd.cases.index import create_index
from medsd.cases.scale import fit_scale
from medsd.cases.vote import weighted_shares
from medsd.dicom.gate import GatePolicy, admit
from medsd.findings import FindingSet
from medsd.metrics.metrics import auroc, macro
from medsd.pipeline.folder import Run
from medsd.pipeline.publish import check_protected
from medsd.privacy import KeyedHasher, public_hasher
from medsd.sd.relations import LabelPairs
from medsd.settings import Settings
from medsd.studies.manifest import Manifest
from medsd.studies.protect import protect

log = logging.getLogger(__name__)

EXCERPT = 160  # characters of a note kept with a case
THUMBNAIL = 256  # pixels
VOTERS = (8, 16, 32, 64)  # numbers of cases to choose from
RULE = (
    "the vote calls a finding present from the share above which as many validation studies lie as the model calls; "
    "a call is flagged where the vote's differs from the model's"
)


def index_cases(run: Run) -> None:
    """Write the training studies as cases into the bundle's index, with the bundle's embeddings of them."""
    settings, manifest, outputs = run.settings, Manifest.read(run.manifest), load_file(run.outputs)
    check_protected(settings, manifest)
    bundle, embeddings, rows = layout.Bundle.open(run.bundle), outputs["embeddings"], manifest.rows("train")
    create_index(
        bundle.cases_path,
        _cases(settings, manifest, rows),
        embeddings[rows],
        model_sha256=bundle.model_sha256,
        findings=manifest.findings,
        model=bundle.label,
        public=settings.bundle.public,
        replace=True,
        scale=fit_scale(embeddings[rows], manifest.labels[rows], manifest.patients[rows].tolist(), seed=settings.seed),
        vote=_vote_rule(run, manifest, embeddings, outputs["logits"]),
    )
    log.info("cases: %d in %s", len(rows), bundle.cases_path)


def _vote_rule(
    run: Run, manifest: Manifest, embeddings: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]
) -> VoteRule | None:
    train, validation = manifest.rows("train"), manifest.rows("validation")
    calls = run.read_calls()
    return choose_vote_rule(
        manifest.findings,
        calibrated(logits[validation], calls.calibration, manifest.findings.names),
        embeddings[validation],
        manifest.labels[validation],
        {name: point.threshold for name, point in calls.operating_points.items()},
        embeddings[train],
        manifest.labels[train],
        manifest.table["study"].to_numpy(dtype=str)[train].tolist(),
        minimum_positives=run.settings.evaluation.minimum_positives,
    )


def choose_vote_rule(
    findings: FindingSet,
    probs: npt.NDArray[np.float64],
    embeddings: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float32],
    thresholds: Mapping[str, float | None],
    case_embeddings: npt.NDArray[np.float32],
    case_labels: npt.NDArray[np.float32],
    case_studies: Sequence[str],
    *,
    minimum_positives: int = 10,
) -> VoteRule | None:
    """How many cases vote, and from which share the vote is a call; None if there are too few studies to choose.

    The number is that of `VOTERS` with the largest macro AUROC of the shares. A threshold needs no labels: the vote
    calls a finding as often as the model does on the same studies, so that the two disagree about studies and not about
    how often a finding is called.

    Validation studies have `probs` (Q, F), calibrated, `embeddings` (Q, D) of unit length and `labels` (Q, F); training
    cases likewise. `thresholds` are those of the model's calls; None: it makes none.
    """
    if not len(probs) or not len(case_embeddings):
        return None
    shares = neighbour_shares(probs, embeddings, case_embeddings, case_labels, case_studies, VOTERS)
    least = minimum_positives
    areas = {k: macro(auroc(labels, np.nan_to_num(share), minimum_positives=least)) for k, share in shares.items()}
    k = max(areas, key=lambda each: np.nan_to_num(areas[each], nan=-1))
    if np.isnan(areas[k]):
        return None
    log.info("vote of the %d nearest cases: macro AUROC %.3f on validation patients", k, areas[k])
    chosen = {
        name: _matching_threshold(shares[k][:, column], probs[:, column], thresholds.get(name))
        for column, name in enumerate(findings)
    }
    return VoteRule(k=k, thresholds=chosen, rule=RULE)


def neighbour_shares(
    probs: npt.NDArray[np.float64],
    embeddings: npt.NDArray[np.float32],
    case_embeddings: npt.NDArray[np.float32],
    case_labels: npt.NDArray[np.float32],
    case_studies: Sequence[str],
    voters: Sequence[int],
) -> dict[int, npt.NDArray[np.float64]]:
    """The votes (Q, F) of the k nearest cases for each k, as `medsd.cases.index.CaseIndex.vote` gives them."""
    most = max(voters)
    votes: dict[int, list[npt.NDArray[np.float64]]] = {k: [] for k in voters}
    for probability, embedding in zip(probs, embeddings, strict=True):
        cosines = case_embeddings @ embedding
        first = np.argsort(-cosines, kind="stable")[: 4 * most]
        near = first[distinct([case_studies[row] for row in first], case_embeddings[first], most)]
        fit = LabelPairs(probability[None].astype(np.float32), case_labels[near]).counts()
        weights = np.clip(cosines[near], 0, None) * np.asarray(fit.similarity() * fit.dissimilarity())[0]
        for k in voters:
            votes[k].append(weighted_shares(weights[:k].astype(np.float64), case_labels[near[:k]]))
    return {k: np.stack(rows) for k, rows in votes.items()}


def _matching_threshold(
    shares: npt.NDArray[np.float64], probs: npt.NDArray[np.float64], threshold: float | None
) -> float | None:
    """Between the shares of the last study that is called and of the first that is not."""
    if threshold is None:
        return None
    descending = np.sort(shares[~np.isnan(shares)])[::-1]
    called = min(int((probs >= threshold).sum()), len(descending))
    if called == 0:
        return None
    following = descending[called] if called < len(descending) else descending[called - 1]
    return float((descending[called - 1] + following) / 2)


def _cases(settings: Settings, manifest: Manifest, rows: npt.NDArray[np.int64]) -> Iterator[Case]:
    # A run that was prepared as public has no keys of this site yet.
    manifest = manifest if settings.bundle.public else protect(manifest, KeyedHasher.from_environment())
    public = public_hasher(settings.name)
    table, labels = manifest.table, manifest.labels
    for row in rows:
        study = table.iloc[int(row)]
        note = None if pd.isna(study["note"]) else str(study["note"])
        yield Case(
            study_key=study["study"] if manifest.keyed else public.study_key(str(study["study"])),
            patient_key=study["patient"] if manifest.keyed else public.patient_key(str(study["patient"])),
            labels=labels[row],
            view=study["view"] or "",
            sex=study["sex"] or "",
            age_band=age_band(float(study["age"])),
            source=study["source"] or "",
            split=study["split"],
            thumbnail=_thumbnail(manifest, study["path"], settings.gate) if settings.bundle.thumbnails else None,
            note_excerpt=note[:EXCERPT] if note and settings.bundle.note_excerpts else None,
        )


def _thumbnail(manifest: Manifest, path: object, policy: GatePolicy) -> bytes | None:
    """The image of a case, small but sharper than the model's pixels."""
    if not isinstance(path, str):
        return None
    radiograph = admit(manifest.root / path, policy).radiograph
    return None if radiograph is None else pictures.encode_thumbnail(radiograph.pixels, THUMBNAIL)
