"""The vote of the nearest cases as a classifier, and what the flag of disagreement is worth, on new patients.

Run `python -m tests.bench.bench_vote [models/nih14]`; data as for the tests. Validation patients choose the number of
voters and the thresholds (`medsd.pipeline.case_index.choose_vote_rule`), unless the bundle's index has them; test
patients are measured, with a bootstrap over patients. Printed are the macro AUROC of the head, of the vote weighted by
likeness and K_s·K_d, and of the plain share; then how often calls are wrong that are flagged, and that are not.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsd.bundle.layout import Bundle
from medsd.cases.described import VoteRule
from medsd.cases.index import CaseIndex
from medsd.cases.manage import hasher_of
from medsd.cases.vote import ballot
from medsd.inference.predict import Predictor
from medsd.inference.prediction import Prediction
from medsd.metrics.intervals import IntervalOptions, Resamples, bootstrap, metric_intervals
from medsd.pipeline.case_index import choose_vote_rule
from medsd.settings import load_settings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import read_source

ROOT = Path(__file__).parents[2]
FEW, RESAMPLES = 10, 1000
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Read:
    """Studies as the model reads them; those that the gate refuses are left out.

    Attributes:
        predictions: N of them.
        probs: (N, F); labels: (N, F); patients: (N,).
    """

    predictions: list[Prediction]
    probs: Floats
    labels: npt.NDArray[np.float32]
    patients: npt.NDArray[np.str_]


def read(predictor: Predictor, manifest: Manifest, split: str) -> Read:
    rows = manifest.rows(split)
    predictions: list[Prediction] = []
    for start in range(0, len(rows), 16):
        paths = [manifest.root / manifest.table["path"][row] for row in rows[start : start + 16]]
        predictions += predictor.batch([(path, None) for path in paths])
        print(f"\r{split}: {len(predictions)} of {len(rows)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    kept = [place for place, said in enumerate(predictions) if not said.refused]
    said = [predictions[place] for place in kept]
    values = np.stack([np.asarray(each.values, np.float64) for each in said])
    return Read(said, values, manifest.labels[rows[kept]], manifest.patients[rows[kept]])


def without_cases(manifest: Manifest, index: CaseIndex, bundle: Bundle) -> Manifest:
    """The manifest without patients who are cases, where the bundle was trained on other splits than today's."""
    hasher, cases = hasher_of(bundle), set(index.table()["patient_key"])
    gone = [row for row, patient in enumerate(manifest.patients) if hasher.patient_key(str(patient)) in cases]
    taken = int(np.isin(gone, np.concatenate([manifest.rows("validation"), manifest.rows("test")])).sum())
    print(
        f"{bundle.label} was trained on other splits than today's: {taken} films of validation and test patients are "
        "left out, as their patients are cases; some of the test patients may have chosen its thresholds",
        file=sys.stderr,
    )
    return manifest.without(gone)


def rule_of(index: CaseIndex, predictor: Predictor, manifest: Manifest) -> VoteRule:
    """The index's own rule, or one chosen as `medsd index` would."""
    if index.description.vote:
        return index.description.vote
    validation, table = read(predictor, manifest, "validation"), index.table()
    thresholds = {name: point.threshold for name, point in predictor.bundle.description.operating_points.items()}
    rule = choose_vote_rule(
        index.findings,
        validation.probs,
        np.stack([np.asarray(each.embedding) for each in validation.predictions]),
        validation.labels,
        thresholds,
        index.embeddings(),
        table[list(index.findings)].to_numpy(np.float32),
        table["study_key"].tolist(),
        minimum_positives=FEW,
    )
    assert rule is not None, "there are validation studies"
    return rule


def measure(index: CaseIndex, test: Read, rule: VoteRule) -> tuple[list[str], list[str]]:
    """Rows of the two tables."""
    similar = [index.similar(each, rule.k, exclude_patient=None) for each in test.predictions]
    votes = [ballot(each, cases, rule) for each, cases in zip(test.predictions, similar, strict=True)]
    shares = np.nan_to_num([[vote.share for vote in row] for row in votes])
    plain = np.stack([np.nan_to_num(np.stack([case.case.labels for case in cases])).mean(0) for cases in similar])
    rows = []
    for name, scores in (("head", test.probs), ("vote, by likeness and K_s·K_d", shares), ("plain share", plain)):
        options = IntervalOptions(RESAMPLES, minimum_positives=FEW)
        area = metric_intervals(test.labels, scores, test.patients, options)["auroc"].macro
        less = metric_intervals(test.labels, scores, test.patients, options, other=test.probs)["auroc"].macro
        rows.append(f"| {name} | {area} | {'' if scores is test.probs else less} |")
    return rows, flag_rows(test, votes)


def flag_rows(test: Read, votes: list) -> list[str]:
    """Error rates of the calls that are flagged, of those that are not, and of all that could be."""
    call = np.array([[vote.call for vote in row] for row in votes])
    judged = np.array([[vote.share_call != "undecided" for vote in row] for row in votes]) & (call != "undecided")
    judged &= ~np.isnan(test.labels)
    flagged = np.array([[vote.disagrees for vote in row] for row in votes]) & judged
    wrong = ((call == "present") != (test.labels == 1)) & judged
    drawn = Resamples.draw(test.patients, RESAMPLES, 0)

    def rate(chosen: npt.NDArray[np.bool_], of: npt.NDArray[np.bool_]) -> str:
        hit, all_of = chosen.sum(1).astype(float), of.sum(1).astype(float)  # (N,) each
        return str(bootstrap(lambda w: ((w @ hit) / np.maximum(w @ all_of, 1))[:, None], drawn, bounds=(0, 1))[0])

    rows = []
    for kind, part in (
        ("all calls", judged),
        ("called present", judged & (call == "present")),
        ("called absent", judged & (call == "absent")),
    ):
        on, off = flagged & part, part & ~flagged
        cells = (
            f"{part.sum()}",
            rate(on, part),
            rate(wrong & part, part),
            rate(wrong & on, on),
            rate(wrong & off, off),
        )
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", default=ROOT / "models" / "nih14")
    parser.add_argument("--data", type=Path, help="folder of ChestX-ray14; by default as for the tests")
    parser.add_argument("--run", type=Path, help="folder of the run that made the bundle, for its own splits")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "nih14.yaml")
    options = parser.parse_args()
    data = options.data or (None if options.run else _data_root() / "nih_cxr")
    predictor = Predictor(options.bundle, provider="cpu")
    if options.run:
        manifest = Manifest.read(options.run / "studies.parquet")
    else:
        manifest = read_source(load_settings(options.config, [f"data.root={data}"]))
    index = CaseIndex.open(predictor.bundle.cases_path, model_sha256=predictor.bundle.model_sha256)
    if manifest.split_hash() != predictor.bundle.description.provenance.split_hash:
        manifest = without_cases(manifest, index, predictor.bundle)
    rule = rule_of(index, predictor, manifest)
    test = read(predictor, manifest, "test")
    areas, flags = measure(index, test, rule)
    print(f"Vote of the {rule.k} nearest of {len(index)} cases, {len(test.probs)} test films of "
          f"{len(np.unique(test.patients))} patients\n")  # fmt: skip
    print("| scores | macro AUROC | against the head |\n|---|---:|---:|", *areas, sep="\n")
    print(
        "\n| calls | number | flagged | wrong | wrong where flagged | wrong where not |\n|---|---:|---:|---:|---:|---:|"
    )
    print(*flags, sep="\n")


def _data_root() -> Path:
    import os

    root = Path(os.environ.get("MEDSD_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        sys.exit(f"real data: no folder {root}; set MEDSD_DATA")
    return root


if __name__ == "__main__":
    main()
