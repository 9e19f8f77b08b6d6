"""The tab Model: what model this is, and its card as it ships with the bundle."""

import re

from medsd.apps.web.html import fill
from medsd.bundle.layout import Bundle
from medsd.markdown import to_html

CARD = "README.md"
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


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
