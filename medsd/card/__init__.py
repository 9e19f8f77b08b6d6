"""The card of a bundle: what the model is, how it was measured, and what it is not for; as README.md and card.html.

`write_card` comes after every other file of the bundle, whose hashes it lists, and before `layout.write_description`.
Every figure is from the description and the JSON files, so that `medsd card` makes the card again, byte by byte. The
words are in templates/.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.ext import Extension
from markupsafe import Markup

from medsd.bundle import layout
from medsd.errors import BundleError
from medsd.evaluation.against import AGAINST, AgainstReport
from medsd.evaluation.distribution import DISTRIBUTION, DistributionReport
from medsd.evaluation.evidence import EVIDENCE, EvidenceReport
from medsd.evaluation.modalities import MODALITIES, ModalityReport
from medsd.evaluation.report import EVALUATION, EvaluationReport
from medsd.evaluation.robustness import ROBUSTNESS, RobustnessReport
from medsd.evaluation.saved import Saved
from medsd.evaluation.shift import SHIFT, ShiftReport
from medsd.evaluation.sources import SOURCES, SourcesReport
from medsd.evaluation.studies_report import RECALIBRATION, STUDIES, RecalibrationReport, StudiesReport
from medsd.markdown import to_html
from medsd.metrics.metrics import FEWEST_POSITIVES
from medsd.metrics.retrieval import FIGURES
from medsd.strict import read_json, to_yaml

CARD, PAGE = "README.md", "card.html"
PARITY, PLOTS = "parity.json", "plots"
REPORT = ("report.md", "report.html")

# What the templates are given, by name: the file, where there is one.
_FILES: dict[str, tuple[str, type[Saved]]] = {
    "image_alone": ("evaluation_image.json", EvaluationReport),
    "note_alone": ("evaluation_note.json", EvaluationReport),
    "modalities": (MODALITIES, ModalityReport),
    "evidence": (EVIDENCE, EvidenceReport),
    "robustness": (ROBUSTNESS, RobustnessReport),
    "distribution": (DISTRIBUTION, DistributionReport),
    "sources": (SOURCES, SourcesReport),
    "shift": (SHIFT, ShiftReport),
    "studies": (STUDIES, StudiesReport),
    "against": (AGAINST, AgainstReport),
    "recalibration": (RECALIBRATION, RecalibrationReport),
}
_CAPTIONS = {
    "roc.png": "ROC curves",
    "precision_recall.png": "Precision-recall curves",
    "calibration.png": "Calibration",
    "map.png": "Map of the learned space",
    "space.png": "The learned space by relation",
    "prevalence.png": "How often each finding occurs",
}
_SPLITS = ("train", "validation", "test")
# Absolute paths, paths from a home or a parent folder, Windows drives; not the slash of a web address or of "a/b".
_MACHINE_PATH = re.compile(r"(?<![\w.:/~<…])(?:~|(?:\.\./)*\.\.)?/[\w.~+@-][^\s\"'`,;)]*|\b[A-Za-z]:\\[^\s\"'`,;)]*")


def write_card(folder: Path, description: layout.Description) -> None:
    """Write the card into the bundle in `folder`; `description` is what bundle.json will say.

    Raises DataError: evaluation.json is missing, or a file is not as this medsd writes it.
    """
    for name, text in pages(folder, description).items():
        (folder / name).write_text(text, encoding="utf-8")


def pages(folder: Path, description: layout.Description) -> dict[str, str]:
    """The card by file name; arguments and errors as `write_card`."""
    d, parity = description, _parity(folder)
    differences = parity.get("largest_difference", {})
    uncalled = {name for name, point in d.operating_points.items() if point.threshold is None}
    return _pages(
        folder,
        (CARD, PAGE),
        f"{d.name} {d.version}",
        d=d,
        length_of_note=_length_of_note(d.note),
        splits=sorted(d.provenance.studies, key=lambda split: [*_SPLITS, split].index(split)),
        uncalled=[f.title for f in d.findings if f.name in uncalled],
        boxed=d.evidence_from_boxes,
        parity=parity,
        differences=differences,
        outputs=list(next(iter(differences.values()), ())),
        configuration=to_yaml(d.provenance.config).strip(),
        files={name: digest for name, digest in layout.hash_files(folder).items() if name not in (CARD, PAGE)},
    )


def write_report(folder: Path) -> None:
    """Write report.md and report.html of a bundle measured on other studies, from the JSON files and plots in `folder`.

    Raises DataError: studies.json or evaluation.json is missing, or a file is not as this medsd writes it.
    """
    studies = StudiesReport.read(folder / STUDIES)
    for name, text in _pages(folder, REPORT, f"{studies.bundle} on {studies.name}", boxed=()).items():
        (folder / name).write_text(text, encoding="utf-8")


def different_pages(bundle: layout.Bundle) -> list[str]:
    """The pages of a bundle that are not what its JSON files say, to the byte."""
    made = pages(bundle.folder, bundle.description)
    paths = {name: bundle.folder / name for name in made}
    return [
        name for name, path in paths.items() if not path.is_file() or path.read_text(encoding="utf-8") != made[name]
    ]


def rankings(r: EvaluationReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the retrieval table: over all, and by finding; no rows where it was not measured."""
    header = ["", "Queries", *FIGURES]
    found = None if r.retrieval is None else r.retrieval.rankings
    if found is None:
        return header, []
    titles = {f.name: f.title for f in r.findings}
    groups = {
        "All images": found.images,
        "With a finding": found.with_finding,
        "Without finding": found.without_finding,
        **{titles[name]: ranked for name, ranked in found.findings.items()},
    }
    rows = [[title, str(g.queries), *(str(g.figures[name]) for name in FIGURES)] for title, g in groups.items()]
    mean = [f"Mean over {found.over} findings", "–", *(str(found.mean[name]) for name in FIGURES)]
    return header, [*rows[:3], mean, *rows[3:]]


def without_machine_paths(text: str) -> str:
    """`text` with paths of the machine that it was made on replaced by their last part."""
    return _MACHINE_PATH.sub(lambda found: "…/" + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def _pages(folder: Path, names: tuple[str, str], title: str, **values: Any) -> dict[str, str]:
    """The template of the first of `names`, rendered for what the JSON files of `folder` say, as Markdown and HTML."""
    r = EvaluationReport.read(folder / EVALUATION)
    read = {key: cls.read(folder / name) if (folder / name).is_file() else None for key, (name, cls) in _FILES.items()}
    titles = {f.name: f.title for f in r.findings}
    left_out = {
        "too few to tell": [f.title for f in r.findings if f.too_few],
        "not trained": [f.title for f in r.findings if not f.trained],
    }
    pictures = sorted((path.name for path in (folder / PLOTS).glob("*.png")), key=lambda n: [*_CAPTIONS, n].index(n))
    text = _ENVIRONMENT.get_template("card.md" if names[0] == CARD else names[0]).render(
        r=r,
        titles=titles,
        scarce=len(left_out["too few to tell"]),
        left_out={why: found for why, found in left_out.items() if found},
        below=_below(r, titles),
        plots={name: _CAPTIONS.get(name, Path(name).stem.replace("_", " ").capitalize()) for name in pictures},
        **read,
        **values,
    )
    text = without_machine_paths(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    return {names[0]: text, names[1]: html_page(text, folder, title=title)}


def html_page(markdown: str, folder: Path, *, title: str) -> str:
    """Markdown as one HTML file: pictures of `folder` inside, nothing from outside; `title` is that of the window."""
    return _PAGE.render(title=title, body=to_html(markdown, folder))


def _length_of_note(note: layout.NoteInput | None) -> str:
    """How much of a note is read, and in which pieces."""
    if note is None or note.window is None:
        return "" if note is None else f"up to {note.max_tokens} tokens"
    begun = f"every {note.stride} tokens" if note.stride else "after half of the text of the previous one"
    count = note.max_tokens // note.window
    return (
        f"in overlapping windows of {note.window} tokens, a new one {begun}, {count} at most; what follows is not read"
    )


def _below(r: EvaluationReport, titles: Mapping[str, str]) -> list[str]:
    """The classes that are covered less than chance allows."""
    return [
        f"{titles[f.name]} where {name} ({each.covered})"
        for f in (r.conformal.findings if r.conformal else ())
        for name, each in (("present", f.present), ("absent", f.absent))
        if each.expected and each.covered.value is not None and each.covered.value < each.expected[0]
    ]


def _parity(folder: Path) -> dict[str, Any]:
    path = folder / PARITY
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = read_json(path.read_text(encoding="utf-8"))
    except ValueError:
        raise BundleError(f"{path}: not valid JSON; copy the bundle again") from None
    return found


class _Lines(Extension):
    """Templates are wrapped at 120 columns; the page has each paragraph, list item and table row on one line.

    A line that begins with % is a statement, and leaves no line behind.
    """

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        lines: list[str] = []
        for line in source.splitlines():
            whole = not lines or not lines[-1] or lines[-1].startswith(("%", "```", "#", "<"))
            if whole or not line or line.startswith(("%", "```", "- ", "> ", "| ")):
                lines.append(line)
            else:
                lines[-1] += " " + line.strip()
        return "".join(f"{{{line} %}}" if line.startswith("%") else f"{line}\n" for line in lines)


def _shown(value: Any) -> Any:
    """Nothing for None, and no bar, which would end the cell of a table; what is marked as safe stays."""
    if value is None or isinstance(value, Markup):
        return "" if value is None else value
    return str(value).replace("|", "\\|")


def _scalars(value: Any) -> str:
    """A number, a text or a mapping of them in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_scalars(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


_TEMPLATES = PackageLoader("medsd.card")
_PAGE = Environment(loader=_TEMPLATES, keep_trailing_newline=True).get_template("page.html")
_ENVIRONMENT = Environment(
    loader=_TEMPLATES, extensions=[_Lines], keep_trailing_newline=True, undefined=StrictUndefined, finalize=_shown
)
_ENVIRONMENT.filters |= {
    "spec": format,
    "scalars": _scalars,
    "figure": lambda value, digits=3: "too few to tell" if value is None else f"{value:.{digits}f}",
    "p": _p,
    "moved": {None: "too few to tell", True: "moved", False: "no sign of it"}.__getitem__,
    "counted": lambda counts: ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none",
    "number_of": lambda count, thing: f"{count} {thing}" if count == 1 else f"{count} {thing}s",
}
_ENVIRONMENT.globals |= {"rankings": rankings, "FEWEST_POSITIVES": FEWEST_POSITIVES}
