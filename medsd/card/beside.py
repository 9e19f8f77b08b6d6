"""The section beside the headline: within views, on selected images, against radiologists, with its warnings."""

from __future__ import annotations

from medsd.card.markdown import chance, joined, table, told, warning
from medsd.evaluation.confounding import ViewReport
from medsd.evaluation.report import EvaluationReport


def section(r: EvaluationReport) -> str:
    """Whether the headline holds within views, on images picked by finding, and by radiologists' labels."""
    if not (r.parts or r.radiologists or r.warnings):
        return ""
    titles = {f.name: f.title for f in r.findings}
    rows = [
        [p.name, str(p.images), str(p.patients), str(p.over), told(p.auroc), told(p.pooled), told(p.gap)]
        for p in r.parts
    ]
    parts = [
        "Each part of the images, over the findings that can be told there; over all: the same findings on the images "
        "of the headline; the gap is the difference of the two on the same resamples. Selected images are of test "
        "patients and were picked by finding; they are in no other figure." * bool(r.selected),
        table(["Images", "Number", "Patients", "Findings", "AUROC", "Over all", "Gap"], rows),
    ]
    return joined(
        "### Beside the headline",
        *(warning(sentence) for sentence in r.warnings),
        *(parts if rows else ()),
        _views(r.views, titles) if r.views is not None else "",
        _radiologists(r),
    )


def _views(v: ViewReport, titles: dict[str, str]) -> str:
    names = [part.name for part in v.parts]
    shares = [[f"{f.prevalence[view]:.3f}" if view in f.prevalence else "–" for view in names] for f in v.findings]
    rows = [
        [titles[f.name], *share, chance(f.prevalence_p), told(f.pooled), told(f.within), chance(f.difference_p)]
        for f, share in zip(v.findings, shares, strict=True)
    ]
    mean = ["Mean", *["–"] * len(names), "–", told(v.pooled), told(v.within), chance(v.difference_p)]
    return joined(
        "Whether the view tells the labels: how often each finding occurs by view, and the AUROC over all pairs of "
        "images beside that over pairs of one view (Janes and Pepe 2009), which a score that knows the view alone "
        "cannot raise. p values are adjusted for the number of findings (Benjamini and Hochberg); below "
        f"{v.level:.2g} they are warned of.",
        table(["Finding", *names, "p", "AUROC, all pairs", "Pairs of one view", "p"], [*rows, mean]) if rows else "",
    )


def _radiologists(r: EvaluationReport) -> str:
    if not r.radiologists:
        return ""
    rows = [
        [q.name, ", ".join(q.findings), str(q.images), str(q.positives), told(q.auroc), told(q.mined), told(q.gap)]
        for q in r.radiologists
    ]
    return joined(
        "Against radiologists, who looked at part of these images (RSNA 2018: Shih et al. 2019; Google: Majkowska et "
        "al. 2020). The score is the largest probability of the findings named. Mined is its AUROC on the same images "
        "against the labels of the data set, which were mined from reports. The radiologists' labels never train.",
        table(["Radiologists", "Scored by", "Images", "Positives", "AUROC", "Mined", "Gap"], rows),
    )
