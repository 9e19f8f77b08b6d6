"""Sections about films: where maps point, what handling does to calls, what is refused, and the plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medsd.bundle import layout
from medsd.card.markdown import bullets, joined, table, told, warning
from medsd.evaluation.distribution import DistributionReport
from medsd.evaluation.evidence import EvidenceReport
from medsd.evaluation.robustness import RobustnessReport
from medsd.evaluation.sources import SourcesReport

PLOTS = "plots"
_RANDOMISED = {"classifier": "where what stands behind the encoder is random", "all weights": "where all of them are"}
_CAPTIONS = {
    "roc.png": "ROC curves",
    "precision_recall.png": "Precision-recall curves",
    "calibration.png": "Calibration",
    "map.png": "Map of the learned space",
    "prevalence.png": "How often each finding occurs",
}


def evidence(e: EvidenceReport | None, boxed: Sequence[str] = ()) -> str:
    """Evidence maps against boxes; `boxed` are the findings whose maps learned from some."""
    if e is None:
        return ""
    rows = [[m.name, told(m.pointing), told(m.lead), told(m.overlap), told(m.inside)] for m in e.methods]
    header = ["Map", "Points into the box", "Evidence beyond it by", "Overlap", "Mass inside"]
    likeness = ", ".join(f"{value:.2f} {_RANDOMISED.get(name, name)}" for name, value in e.randomised.items())
    return joined(
        "### Where the evidence maps point",
        f"{e.films} pairs of a film and a finding with boxes, of {e.patients} patients of the {e.split} split; means "
        f"over the {e.over} findings with {e.minimum_positives} of them or more. «evidence» is what this bundle shows; "
        "«activation map» is the classifier's own; «usual place» is where boxes of the finding lie on training films, "
        "«centre» the film's middle: neither looks at it.",
        f"Training films with boxes taught the maps of {', '.join(boxed)} at which places to draw the logit; those of "
        "other findings are the activation map beyond that of an average film."
        if boxed
        else "Maps are the activation map beyond that of an average film; no boxes taught them.",
        table(header, rows),
        f"Rank correlation of the maps with those of random weights: {likeness}." if likeness else "",
    )


def robustness(r: RobustnessReport | None) -> str:
    """What becomes of the calls when films are only handled differently."""
    if r is None:
        return ""
    rows = [
        [
            c.name,
            told(c.flipped),
            "" if c.most_flipped is None else f"{c.most_flipped[0]} ({c.most_flipped[1]:.3f})",
            told(c.moved),
            told(c.auroc_lost),
            f"{c.likeness.value:.3f}",
        ]
        for c in r.changes
    ]
    header = ["Film", "Calls that flip", "Most often", "Probability moves by", "AUROC lost", "Cosine of embeddings"]
    return joined(
        "### When a film is only handled differently",
        f"The same {r.films} films of {r.patients} patients of the {r.split} split, handled differently and read "
        "without notes; nothing about the patients has changed.",
        table(header, rows),
    )


def sources(s: SourcesReport | None) -> str:
    """Whether embeddings tell where an image comes from."""
    if s is None:
        return ""
    rows = [
        [*p.sources, p.over, *(f"{n} of {m}" for n, m in zip(p.images, p.patients, strict=True)), told(p.told),
         told(p.told_coarsely)]
        for p in s.pairs
    ]  # fmt: skip
    header = ["Source", "and source", "Over", "Images of patients", "and of", "AUROC", "AUROC of mean greys"]
    return joined(
        "### Whether the source of an image shows",
        "A linear classifier tells two sources apart by the embedding, among images with the same labels and view and "
        f"across patients; 0.5 is chance, above {s.limit:g} the source shows. Beside it the same by the mean greys of "
        "8 × 8 blocks, which no sharpness changes.",
        table(header, rows),
        *(warning(p.sentence) for p in s.pairs if p.above),
    )


def distribution(d: layout.Description, report: DistributionReport | None) -> str:
    """The check for films that the model must not read, and how it was found to work."""
    limits = d.out_of_distribution
    if limits is None:
        return ""
    names = ", ".join(limits.checks) or ", ".join(limits.limits)
    settings = bullets(
        ("Looks at", f"{names}; each against the training films, together one value with one limit"),
        ("Set to a false-alarm rate of", f"{limits.false_alarm_rate:g}"),
    )
    if report is None:
        return joined("### Films unlike those that it learned from", settings)
    rows = [[g.name, str(g.films), told(g.beyond), told(g.auroc)] for g in report.groups]
    return joined(
        "### Films unlike those that it learned from",
        settings,
        f"{report.films} films of {report.patients} patients of the {report.split} split, and the same films made "
        "unsuitable. AUROC: of telling a group from the films as they are. Photographs, other body parts and drawings "
        "are measured in tests/bench, not here.",
        table(["Film", "Films", "Beyond the limit", "AUROC"], rows),
        f"How different films of the same source look to the network, although they are alike: it tells test from "
        f"training films with an AUROC of {told(report.told_apart)}, because it has seen the training films. A shift "
        "elsewhere is measured against that."
        if report.told_apart is not None
        else "",
    )


def plots(folder: Path) -> str:
    """The pictures of plots/."""
    pictures = sorted((folder / PLOTS).glob("*.png"), key=lambda p: [*_CAPTIONS, p.name].index(p.name))
    if not pictures:
        return ""
    captions = [_CAPTIONS.get(p.name, p.stem.replace("_", " ").capitalize()) for p in pictures]
    shown = [f"![{c}]({PLOTS}/{p.name})" for c, p in zip(captions, pictures, strict=True)]
    return joined("## Plots", *shown)
