"""The tab Model: what model this is, and its card as it ships with the bundle.

The card is a Markdown file that anybody may have written: pictures beside it are put into the page, pictures from
elsewhere are left out, and Gradio's Markdown removes HTML that could act.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

from medsd.apps.web.html import fill
from medsd.bundle.layout import Bundle

CARD = "README.md"
_MAX_PICTURE_BYTES = 2_000_000
_PICTURE_KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_PICTURE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)")
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


def card_text(bundle: Bundle) -> str:
    """The bundle's card as Markdown whose pictures need no further request."""
    path = bundle.folder / CARD
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "This bundle ships no card."
    text = _FRONT_MATTER.sub("", text)
    # HTML can fetch from elsewhere as well, and a card needs none.
    text = re.sub(r"<(?=[A-Za-z/!])", "&lt;", text)
    return _PICTURE.sub(lambda match: _inlined(bundle.folder, match["target"], match["alt"]), text)


def _inlined(folder: Path, target: str, alt: str) -> str:
    path = folder / target
    kind = _PICTURE_KINDS.get(path.suffix.lower())
    inside = path.resolve().is_relative_to(folder.resolve())
    if kind is None or not inside or not path.is_file() or path.stat().st_size > _MAX_PICTURE_BYTES:
        return f"*{alt or 'picture'} (not shown)*"
    return f"![{alt}](data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')})"
