"""Sections of a bundle measured on another set: what was read, what has moved, what a recalibration changed."""

from __future__ import annotations

from collections.abc import Mapping

from medsd.card.markdown import bullets, chance, figure, joined, table, told
from medsd.evaluation.against_card import AgainstCard
from medsd.evaluation.shift import AttributeShift, FilmShift, PrevalenceShift, ShiftReport
from medsd.evaluation.studies_report import RecalibrationReport, StudiesReport

_FIGURES = {"calibration_error": "Expected calibration error", "log_loss": "Log loss", "brier": "Brier score"}
_TESTS = {"chi2": "χ², Cramér's V", "kolmogorov-smirnov": "Kolmogorov-Smirnov distance"}


def studies(s: StudiesReport | None) -> str:
    """Which studies were measured, and what was left out."""
    if s is None:
        return ""
    part = "" if s.split is None else f", the patients of its {s.split} split"
    lines = [
        ("Set", f"{s.name}, source {s.source}{part}"),
        ("Images", f"{s.images} of {s.patients} patients"),
        ("Measured", f"{s.scored} of {s.scored_patients} patients"),
        ("Left out because the model learned from their patients, or was calibrated on them", str(s.own)),
        ("Rows of the source that cannot be used", _counted(s.rejected)),
        ("Refused", _counted(s.refused)),
        ("Scored with a warning", _counted(s.warned)),
        ("Findings that the set never labels", ", ".join(s.unlabelled) or "none"),
        ("Hash of the rows", f"`{s.data_hash}`"),
        ("Model", f"{s.bundle}, sha256 `{s.model_sha256}`"),
    ]
    return joined("## Studies", bullets(*lines), _card(s.card) if s.card is not None and s.card.findings else "")


def _card(c: AgainstCard) -> str:
    """What the card said, and what was measured here."""
    rows = [[f.title, told(f.card), told(f.here), "yes" if f.inside else "no"] for f in c.findings]
    return joined(
        "### What the card says, and what these studies say",
        f"By AUROC, {c}.",
        table(["Finding", "Card", "These studies", "In the card's interval"], rows),
    )


def report_head(s: StudiesReport) -> str:
    """The title of a report over another set."""
    return joined(
        f"# {s.bundle} on {s.name}",
        "A medsd bundle measured on studies that it did not learn from. Research software, no medical device: the "
        "figures hold for these studies and their labels.",
    )


def shift(s: ShiftReport | None) -> str:
    """What has moved between the bundle's cases and these studies, and what has not."""
    if s is None:
        return ""
    return joined(
        "## What has moved",
        f"**{s.sentence}**",
        f"From the {s.images[0]} cases ({s.patients[0]} patients) that the bundle learned from to {s.images[1]} images "
        f"({s.patients[1]} patients). Tests take one film a patient; p values are adjusted for their number (Holm). "
        f"«Moved» is what is significant at {1 - s.confidence:.2g} and larger than a margin, so that it matters.",
        _films(s.films),
        joined(
            "### How often each finding occurs",
            table(
                ["Finding", "Labelled", "Positives", "Cases", "These studies", "Difference", "Estimated", "p", "Moved"],
                [_prevalence(p) for p in s.prevalences],
            ),
            "Estimated: what the probabilities alone say of the new prevalence (EM of Saerens et al.). It is right "
            "only where films with a finding, and films without it, look as they did"
            + (", and is left out here, because they do not." if s.films and s.films.moved is not False else "."),
        ),
        joined(
            "### Who is examined, and how",
            table(
                ["Attribute", "Patients, cases", "Patients, here", "Test", "Size", "p", "Moved"],
                [_attribute(a) for a in s.attributes],
            ),
            table(
                ["", "Cases", "These studies"],
                [
                    [f"{a.attribute} {value}", f"{before:.3f}", f"{after:.3f}"]
                    for a in s.attributes
                    for value, (before, after) in a.shares.items()
                ],
            ),
        ),
    )


def recalibration(r: RecalibrationReport | None) -> str:
    """Before and after, on patients that were not fitted."""
    if r is None:
        return ""
    rows = [
        [_FIGURES[name], told(c.before), told(c.after), told(c.gain)]
        for name, c in sorted(r.figures.items(), key=lambda item: list(_FIGURES).index(item[0]))
    ]
    measured = (
        f"{r.measured_patients} patients, each half with the fit of the other; the bundle has the fit of all"
        if r.crossed
        else f"{r.measured_patients} patients that were held back"
    )
    if not r.findings:
        return joined("## Recalibration", "No finding had enough labels: everything is as it was.")
    return joined(
        "## Recalibration",
        f"Calibration and operating points of {r.bundle} fitted again on {r.fitted_patients} patients of {r.studies} "
        f"(seed {r.seed}), for {', '.join(r.findings)}; every other finding, for want of labels, kept what it had. The "
        "network is the same. Measured on " + measured + f", over {r.labels} labels; intervals "
        f"({100 * r.confidence:g} %) over patients, the gain on the same resamples.",
        table(["", "Before", "After", "Gain"], rows),
        "Where the calibration of a finding is «intercept» (below), what is gained is the prevalence of this set: it "
        "does not hold for patients among whom the finding is rarer or more frequent.",
        bullets(
            ("Made from the model with sha256", f"`{r.model_sha256}`"),
            ("Hash of the studies", f"`{r.data_hash}`"),
            (
                "Largest difference of the other outputs",
                ", ".join(f"{name} {value:.1e}" for name, value in r.outputs.items()) + f", on {r.readings} readings",
            ),
        ),
    )


def _films(f: FilmShift | None) -> str:
    if f is None:
        return ""
    rows = [
        ["AUROC of telling them from the training films", told(f.told_apart), ""],
        ["The same for the bundle's own test films", told(f.own) or "not in this bundle", ""],
        ["Maximum mean discrepancy, squared", figure(f.discrepancy, 4), chance(f.adjusted)],
    ]
    if f.beyond is not None and f.false_alarm_rate is not None:
        name = f"Beyond the limit of suitable films (set to {f.false_alarm_rate:g})"
        rows.append([name, told(f.beyond), chance(f.beyond_p)])
    return joined("### How films look to the network", table(["", "Value", "p"], rows))


def _prevalence(p: PrevalenceShift) -> list[str]:
    if not p.labelled:
        return [p.title, "0", *["–"] * 6, "not labelled"]
    estimated = "–" if p.estimated is None else f"{p.estimated:.3f}"
    values = [told(p.before), told(p.after), told(p.difference)]
    return [p.title, str(p.labelled), str(p.positives), *values, estimated, chance(p.adjusted), _moved(p.moved)]


def _attribute(a: AttributeShift) -> list[str]:
    size = "–" if a.size is None else f"{a.size:.3f}"
    patients = [str(count) for count in a.patients]
    return [a.attribute, *patients, _TESTS[a.test], size, chance(a.adjusted), _moved(a.moved)]


def _moved(moved: bool | None) -> str:
    return "too few to tell" if moved is None else "moved" if moved else "no sign of it"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"
