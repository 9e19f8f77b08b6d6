"""The tab Model: half a page on what the model is, its facts, and its card as it ships with the bundle."""

import re

from medsd.apps.web.html import fill
from medsd.bundle.layout import Bundle
from medsd.markdown import to_html
from medsd.metrics.intervals import Interval
from medsd.results.result import DISCLAIMER, SYNTHETIC
from medsd.strict import read_json

CARD, EVALUATION = "README.md", "evaluation.json"
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
            "auroc": measured.get(name, ""),
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


def _measured(bundle: Bundle) -> dict[str, str]:
    """The AUROC of each finding on images that the model did not learn from; empty where nothing was measured.

    `medsd.evaluation.report` writes the file, with libraries that serving does without.
    """
    try:
        found = read_json((bundle.folder / EVALUATION).read_text(encoding="utf-8"))["findings"]
        return {each["name"]: str(Interval.model_validate(each["auroc"])) for each in found}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


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
