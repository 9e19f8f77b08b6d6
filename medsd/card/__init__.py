"""The card of a bundle: what the model is, how it was measured, and what it is not for; as README.md and card.html.

`write_card` is called after every other file of the bundle is written and before `layout.write_description`: the card
lists the hashes of the others. Every figure in it comes from the description and from the JSON files of the bundle, so
that `medsd card` makes it again, byte by byte. `write_report` is the same page over another set of studies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medsd.bundle import layout
from medsd.card import about, beside, films, measured, outside
from medsd.card.films import PLOTS
from medsd.card.markdown import joined, without_machine_paths
from medsd.card.page import html_page
from medsd.errors import BundleError
from medsd.evaluation.distribution import DISTRIBUTION, DistributionReport
from medsd.evaluation.evidence import EVIDENCE, EvidenceReport
from medsd.evaluation.modalities import MODALITIES, ModalityReport
from medsd.evaluation.report import EVALUATION, EvaluationReport
from medsd.evaluation.robustness import ROBUSTNESS, RobustnessReport
from medsd.evaluation.shift import SHIFT, ShiftReport
from medsd.evaluation.sources import SOURCES, SourcesReport
from medsd.evaluation.studies_report import RECALIBRATION, STUDIES, RecalibrationReport, StudiesReport
from medsd.strict import read_json

__all__ = ["CARD", "PAGE", "PARITY", "PLOTS", "different_pages", "pages", "without_machine_paths", "write_card",
           "write_report"]  # fmt: skip

CARD, PAGE = "README.md", "card.html"
PARITY = "parity.json"
REPORT = ("report.md", "report.html")
_READINGS = {"image alone": "evaluation_image.json", "note alone": "evaluation_note.json"}

Read = TypeVar("Read")


@dataclass(frozen=True)
class _Measured:
    """What the JSON files of a folder say; None where there is no such file."""

    report: EvaluationReport
    readings: dict[str, EvaluationReport]
    modalities: ModalityReport | None
    evidence: EvidenceReport | None
    robustness: RobustnessReport | None
    distribution: DistributionReport | None
    sources: SourcesReport | None
    shift: ShiftReport | None
    studies: StudiesReport | None
    recalibration: RecalibrationReport | None

    @classmethod
    def read(cls, folder: Path) -> _Measured:
        """Read the files of a folder.

        Raises:
            DataError: evaluation.json is missing, or one of the files is not as this medsd writes it.
        """

        def optional(name: str, read: Callable[[Path], Read]) -> Read | None:
            return read(folder / name) if (folder / name).is_file() else None

        readings = {what: optional(name, EvaluationReport.read) for what, name in _READINGS.items()}
        return cls(
            report=EvaluationReport.read(folder / EVALUATION),
            readings={what: report for what, report in readings.items() if report is not None},
            modalities=optional(MODALITIES, ModalityReport.read),
            evidence=optional(EVIDENCE, EvidenceReport.read),
            robustness=optional(ROBUSTNESS, RobustnessReport.read),
            distribution=optional(DISTRIBUTION, DistributionReport.read),
            sources=optional(SOURCES, SourcesReport.read),
            shift=optional(SHIFT, ShiftReport.read),
            studies=optional(STUDIES, StudiesReport.read),
            recalibration=optional(RECALIBRATION, RecalibrationReport.read),
        )


def write_card(folder: Path, description: layout.Description) -> None:
    """Write the card into the bundle in `folder`, as Markdown and as a page.

    Args:
        folder: the bundle, with everything but README.md, card.html and bundle.json; pictures of plots/*.png are shown.
        description: what bundle.json will say.

    Raises:
        DataError: evaluation.json is missing, or a file is not as this medsd writes it.
    """
    for name, text in pages(folder, description).items():
        (folder / name).write_text(text, encoding="utf-8")


def pages(folder: Path, description: layout.Description) -> dict[str, str]:
    """The card by file name; arguments and errors as `write_card`."""
    m = _Measured.read(folder)
    sections = [
        about.head(description),
        about.use(description),
        about.data(description),
        outside.recalibration(m.recalibration),
        outside.studies(m.studies),
        outside.shift(m.shift),
        *_measured_sections(m, description.evidence_from_boxes),
        films.distribution(description, m.distribution),
        films.plots(folder),
        about.limits(description, m.report),
        about.agreement(_parity(folder)),
        about.variants(description),
        about.making(description),
        about.hashes(about.without_pages(folder, (CARD, PAGE))),
        about.signature(),
    ]
    return _both(sections, folder, (CARD, PAGE), f"{description.name} {description.version}")


def write_report(folder: Path) -> None:
    """Write report.md and report.html of a bundle measured on other studies, from the JSON files and plots in `folder`.

    Raises:
        DataError: studies.json or evaluation.json is missing, or a file is not as this medsd writes it.
    """
    m = _Measured.read(folder)
    studies = m.studies or StudiesReport.read(folder / STUDIES)
    sections = [
        outside.report_head(studies),
        outside.studies(studies),
        outside.shift(m.shift),
        *_measured_sections(m),
        films.plots(folder),
        about.signature(),
    ]
    for name, text in _both(sections, folder, REPORT, f"{studies.bundle} on {studies.name}").items():
        (folder / name).write_text(text, encoding="utf-8")


def different_pages(bundle: layout.Bundle) -> list[str]:
    """The pages of a bundle that are not what its JSON files say, to the byte."""
    made = pages(bundle.folder, bundle.description)
    paths = {name: bundle.folder / name for name in made}
    return [
        name for name, path in paths.items() if not path.is_file() or path.read_text(encoding="utf-8") != made[name]
    ]


def _measured_sections(m: _Measured, boxed: tuple[str, ...] = ()) -> list[str]:
    return [
        measured.discrimination(m.report),
        beside.section(m.report),
        measured.calls(m.report),
        measured.calibration(m.report),
        measured.conformal(m.report),
        measured.subgroups(m.report),
        measured.retrieval(m.report),
        measured.readings(m.report, m.readings),
        measured.modalities(m.modalities),
        films.evidence(m.evidence, boxed),
        films.robustness(m.robustness),
        films.sources(m.sources),
    ]


def _both(sections: list[str], folder: Path, names: tuple[str, str], title: str) -> dict[str, str]:
    text = without_machine_paths(joined(*sections) + "\n")
    return {names[0]: text, names[1]: html_page(text, folder, title=title)}


def _parity(folder: Path) -> dict[str, Any]:
    path = folder / PARITY
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = read_json(path.read_text(encoding="utf-8"))
    except ValueError:
        raise BundleError(f"{path}: not valid JSON; copy the bundle again") from None
    return found
