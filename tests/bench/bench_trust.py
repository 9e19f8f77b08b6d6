"""What a bundle's probabilities and calls are worth on its test patients: calibration, conformal coverage, groups.

Run `python -m tests.bench.bench_trust FOLDER`, a bundle or a run, for instance models/nih14: seconds. Prints the
calibration error before and after calibration, the conformal coverage of each finding with 30 test positives or more,
and the warnings of the subgroups. The exit status is 1 where calibration did not lower its error, or where a coverage
lies outside the range that chance leaves it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from medsd.calibration.conformal_fit import ClassCoverage, ConformalFinding
from medsd.evaluation.report import EVALUATION, EvaluationReport

POSITIVES = 30


def within(each: ClassCoverage) -> bool:
    """Whether the measured coverage lies where it may by chance, when validation and test patients are alike."""
    value = each.covered.value
    return value is None or each.expected is None or each.expected[0] <= value <= each.expected[1]


def holds(each: ClassCoverage, coverage: float) -> bool:
    """Whether the interval of the measured coverage holds the named one, or lies above it."""
    return each.covered.high is None or each.covered.high >= coverage


def judged(report: EvaluationReport) -> list[ConformalFinding]:
    """The findings with enough test positives."""
    if report.conformal is None:
        return []
    positives = {finding.name: finding.positives for finding in report.findings}
    return [finding for finding in report.conformal.findings if positives[finding.name] >= POSITIVES]


def calibration_lines(report: EvaluationReport) -> Iterator[str]:
    before, after = report.calibration.before, report.calibration.after
    for name in ("log_loss", "brier", "calibration_error"):
        first, second = getattr(before, name), getattr(after, name)
        if first is not None and second is not None:
            yield f"{name:<18} before {first:.4f}  after {second:.4f}  {'lower' if second < first else 'NOT LOWER'}"
    for finding in report.findings:
        if finding.calibration is not None:
            yield f"{finding.name:<20} {finding.calibration.method:<12} {finding.calibration.reason}"


def coverage_lines(report: EvaluationReport) -> Iterator[str]:
    if report.conformal is None:
        yield "no conformal scores: exported before there were any"
        return
    level = report.conformal.coverage
    yield f"conformal coverage at {level:.0%}, findings with {POSITIVES} test positives or more, by patients"
    yield f"{'finding':<20} {'class':<8} {'calibrated':>10} {'tested':>7}  {'covered (95 %)':<26} {'by chance':<16}"
    for finding in judged(report):
        for name, each in (("present", finding.present), ("absent", finding.absent)):
            chance = "" if each.expected is None else f"{each.expected[0]:.3f} to {each.expected[1]:.3f}"
            verdict = "within" if within(each) else "OUTSIDE"
            verdict += "" if holds(each, level) else ", interval below"
            yield (
                f"{finding.name:<20} {name:<8} {each.calibration_patients:>10} {each.patients:>7}  "
                f"{each.covered!s:<26} {chance:<16} {verdict}"
            )
        yield (
            f"{finding.name:<20} {'all':<8} {'':>10} {'':>7}  {finding.covered!s:<26} "
            f"decided {finding.decided:.0%}, neither {finding.neither:.0%}"
        )
    for group in report.conformal.groups:
        decided = "" if group.decided is None else f", decided {group.decided:.0%}"
        yield (
            f"{group.attribute} {group.value}: {group.patients} patients, covered {group.covered}, "
            f"where present {group.covered_present}{decided}"
        )


def subgroup_lines(report: EvaluationReport) -> Iterator[str]:
    if report.subgroups is None:
        yield "no subgroups: measured before there were any"
        return
    for group in report.subgroups.groups:
        auroc, error = group.figures["auroc"], group.figures["calibration_error"]
        yield (
            f"{group.attribute} {group.value}: {group.images} images of {group.patients} patients, "
            f"{group.over} findings; AUROC {auroc.value}, gap {auroc.gap}; "
            f"calibration error {error.value}, gap {error.gap}"
        )
    yield from (f"warning: {sentence}" for sentence in report.subgroups.warnings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path(__file__).resolve().parents[2] / "models" / "nih14"
    )
    report = EvaluationReport.read(parser.parse_args().folder / EVALUATION)
    for lines in (calibration_lines, coverage_lines, subgroup_lines):
        print("\n".join(lines(report)), end="\n\n")
    before, after = report.calibration.before.calibration_error, report.calibration.after.calibration_error
    lower = before is None or after is None or after < before
    return 0 if lower and all(within(c) for f in judged(report) for c in (f.present, f.absent)) else 1


if __name__ == "__main__":
    sys.exit(main())
