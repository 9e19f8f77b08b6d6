"""The tab Model: half a page on what the model is, its facts, and its card as it ships with the bundle."""

import re
from typing import TYPE_CHECKING

from medsd.apps.web.html import fill
from medsd.bundle.layout import Bundle
from medsd.errors import DataError
from medsd.markdown import to_html
from medsd.results.result import DISCLAIMER, SYNTHETIC

if TYPE_CHECKING:
    from medsd.evaluation.report import FindingReport

CARD = "README.md"
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def summary(bundle: Bundle, cases: int) -> str:
    """What the model reads and says, from what it learned, and how well it did there, as HTML; of so many cases."""
    about, titles = bundle.description, {finding.name: finding.title for finding in bundle.findings.findings}
    measured = _measured(bundle)
    rows = [
        {
            "title": titles[name],
            "point": about.operating_points.get(name),
            "not_trained": about.not_trained.get(name, ""),
            "auroc": str(measured[name].auroc) if name in measured else "",
        }
        for name in bundle.findings
    ]
    reads = [words for words, on in (("chest radiographs", about.image), ("clinical notes", about.note)) if on]
    return fill(
        "summary",
        about=about,
        reads=" and ".join(reads),
        rows=rows,
        cases=cases,
        studies=about.provenance.studies,
        patients=sum(about.provenance.patients.values()),
        synthetic=SYNTHETIC if about.synthetic else "",
        measured=bool(measured),
        disclaimer=DISCLAIMER,
    )


def _measured(bundle: Bundle) -> "dict[str, FindingReport]":
    """What was measured of each finding on images that the model did not learn from; empty where nothing was."""
    from medsd.evaluation.report import EVALUATION, EvaluationReport

    try:
        report = EvaluationReport.read(bundle.folder / EVALUATION)
    except DataError:
        return {}
    return {finding.name: finding for finding in report.findings if finding.trained}


def facts(bundle: Bundle, provider: str, precision: str = "") -> str:
    """Name, version, processor, data and hash of the model, as an HTML description list."""
    about = bundle.description
    studies = ", ".join(f"{split} {count:,}" for split, count in about.provenance.studies.items())
    rows = {
        "Model": about.name,
        "Version": about.version,
        "Exported": about.created,
        "Computed by": provider or "not started",
        "Precision": precision,
        "Trained on": about.provenance.data,
        "Studies": studies,
        "Licence of the data": about.provenance.licence,
        "Please cite": about.provenance.citation,
        "Reads notes": "yes" if about.note else "no, images only",
        "sha256 of model.onnx": bundle.model_sha256,
    }
    return fill("facts", rows=rows)


def card_html(bundle: Bundle) -> str:
    """The bundle's card, which anybody may have written, as HTML that neither fetches nor runs anything."""
    try:
        text = (bundle.folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = "This bundle ships no card."
    return to_html(_FRONT_MATTER.sub("", text), bundle.folder)
