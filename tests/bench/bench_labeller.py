"""The rule-based labeller against the hand-checked labels of Open-i: F1 a finding, micro and macro, errors by kind.

Run `python tests/bench/bench_labeller.py --data FOLDER`; it prints Markdown tables for the half of the reports that the
rules were written on and for the half that was held back. Intervals resample reports (Open-i has one study a patient).
"""

from __future__ import annotations

import argparse
import csv
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsd.findings import FindingSet, finding_set
from medsd.metrics.intervals import Interval, Resamples, bootstrap
from medsd.studies.notes.labeller import ReportLabels, Status, label_report
from medsd.studies.notes.sections import Note
from tests.studies.openi_notes import called as called_in
from tests.studies.openi_notes import is_held_back, read_openi_reports

NIH14 = finding_set("nih14")
FEW = 10
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def read_checked(table: Path, findings: FindingSet) -> Mapping[str, Bools]:
    """The checked labels (F,) of each report."""
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {row["filename"]: np.array([row[name] == "1" for name in findings]) for row in rows}


def f1_intervals(target: Bools, called: Bools, often: Bools) -> tuple[Interval, ...]:
    """F1 of each finding (F), then micro and macro over the findings `often` (F,), with intervals over reports."""
    hit, wrong = (target & called).astype(float), (target ^ called).astype(float)

    def scores(weights: Floats) -> Floats:
        hits, misses = weights @ hit, weights @ wrong  # (R, F)
        with np.errstate(invalid="ignore"):
            each = 2 * hits / (2 * hits + misses)
            micro = 2 * hits[:, often].sum(1) / (2 * hits[:, often].sum(1) + misses[:, often].sum(1))
        return np.column_stack([each, micro, each[:, often].mean(1)])

    return bootstrap(scores, Resamples.draw([str(row) for row in range(len(target))]), bounds=(0.0, 1.0))


def error_kind(labels: ReportLabels, finding: str, expected: bool) -> str:
    """What went wrong, as far as the rules can tell by themselves."""
    status = labels[finding]
    if not expected:
        if status is Status.ALTERNATIVE:
            return "uncertainty: 'A or B' that the table leaves out"
        said = {m.status for m in labels.mentions if m.finding == finding}
        mixed = Status.ABSENT in said or Status.UNCERTAIN in said
        return "negation or doubt: told both ways" if mixed else "convention: stated, and not in the table"
    return {
        Status.NOT_MENTIONED: "missed phrase",
        Status.ABSENT: "negation: read as absent",
        Status.UNCERTAIN: "uncertainty: read as open",
    }[status]


def print_part(title: str, notes: Mapping[str, Note], checked: Mapping[str, Bools]) -> None:
    """The tables of one half."""
    labels = {name: label_report(note) for name, note in notes.items()}
    target = np.array([checked[name] for name in notes])
    called = np.array([called_in(labels[name]) for name in notes])
    often = target.sum(0) >= FEW
    *each, micro, macro = f1_intervals(target, called, often)
    print(f"\n### {title}: {len(notes)} reports\n\n| finding | positives | hits | false | missed | F1 (95% interval) |")
    print("|---|---|---|---|---|---|")
    counts = zip(
        target.sum(0), (target & called).sum(0), (~target & called).sum(0), (target & ~called).sum(0), strict=True
    )
    for name, (positives, hits, false, missed), interval in zip(NIH14, counts, each, strict=True):
        print(f"| {name} | {positives} | {hits} | {false} | {missed} | {shown(interval)} |")
    for name, interval in (("micro", micro), ("macro", macro)):
        print(f"| **{name}**, {often.sum()} findings with {FEW} or more | | | | | {shown(interval)} |")
    strict = np.array([called_in(labels[name], alternatives=False) for name in notes])
    *_, micro, macro = f1_intervals(target, strict, often)
    print(f"\n'A or B' counted as open instead of present: micro {shown(micro)}, macro {shown(macro)}.")
    print_errors(labels, checked, [name for name, seen in zip(NIH14, often, strict=True) if seen])


def print_errors(labels: Mapping[str, ReportLabels], checked: Mapping[str, Bools], findings: list[str]) -> None:
    """Errors by kind, over the findings that count."""
    kinds: Counter[str] = Counter()
    where: dict[str, Counter[str]] = {}
    for name, said in labels.items():
        for finding, expected, called in zip(NIH14, checked[name], called_in(said), strict=True):
            if finding in findings and bool(expected) != bool(called):
                kind = error_kind(said, finding, bool(expected))
                kinds[kind] += 1
                where.setdefault(kind, Counter())[finding] += 1
    print("\n| errors of kind | number | findings |\n|---|---|---|")
    for kind, number in kinds.most_common():
        print(f"| {kind} | {number} | {', '.join(f'{f} {n}' for f, n in where[kind].most_common())} |")


def shown(interval: Interval) -> str:
    """A value with its interval, or a dash."""
    if interval.value is None or interval.low is None or interval.high is None:
        return "–" if interval.value is None else f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f}–{interval.high:.3f})"


def main() -> None:
    """Score the halves that are asked for."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDSD_DATA") or beside))
    parser.add_argument("--part", choices=("development", "held-back", "both"), default="both")
    options = parser.parse_args()
    folder = options.data / "openi_reports"
    if not folder.is_dir():
        print(f"no folder {folder}; set MEDSD_DATA")
        return
    checked = read_checked(folder / "findings14.csv", NIH14)
    reports = {name: note for name, note in read_openi_reports(folder / "reports.tgz") if name in checked}
    for part, held in (("development", False), ("held-back", True)):
        if options.part in (part, "both"):
            print_part(f"{part} half", {n: r for n, r in reports.items() if is_held_back(n) == held}, checked)


if __name__ == "__main__":
    main()
