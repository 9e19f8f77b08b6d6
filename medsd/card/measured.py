"""Sections of what was measured on studies: discrimination, calls, calibration, coverage, groups, neighbours, parts."""

from __future__ import annotations

from collections.abc import Mapping

from medsd.card.markdown import figure, joined, table, told, warning
from medsd.evaluation.modalities import ModalityReport, warning_of
from medsd.evaluation.report import CalibrationState, EvaluationReport, FindingReport
from medsd.evaluation.subgroups import COMPARED, NOT_STATED
from medsd.metrics.retrieval import FIGURES

METRICS = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "brier": "Brier score",
    "calibration_error": "Expected calibration error",
    "sensitivity": "Sensitivity at the operating points",
    "specificity": "Specificity at the operating points",
    "ppv": "PPV at the operating points",
    "npv": "NPV at the operating points",
    "f1": "F1 (macro) at the operating points",
    "micro_f1": "F1 (micro) at the operating points",
}


def discrimination(r: EvaluationReport) -> str:
    """The metrics over all findings and of each."""
    rows = [
        [f.title, str(f.positives), str(f.negatives)]
        + [told(each) if f.trained else "not trained" for each in (f.auroc, f.average_precision, f.brier)]
        for f in r.findings
    ]
    means = [
        [METRICS[name], told(r.macro[name].interval), str(r.macro[name].over)] for name in METRICS if name in r.macro
    ]
    return joined(
        f"## Measurement on {_where(r)}",
        f"{r.images} images of {r.patients} patients. In brackets: {100 * r.confidence:g} % intervals from "
        f"{r.resamples} bootstrap resamples of patients (seed {r.seed}). Unknown labels are left out, finding by "
        f"finding. A finding with fewer than {r.minimum_positives} positives or negatives is «too few to tell».",
        "### Over all findings",
        table(["Metric", "Mean over findings", "Findings in it"], means),
        _left_out(r),
        "### Each finding",
        table(["Finding", "Positives", "Negatives", "AUROC", "Average precision", "Brier score"], rows),
        _incomplete(r),
    )


def _where(r: EvaluationReport) -> str:
    return f"the {r.split} split" if r.split in ("train", "validation", "test") else r.split


def _left_out(r: EvaluationReport) -> str:
    titles = [f.title for f in r.findings if f.too_few]
    summed = "F1 (micro) sums the calls of all findings that have a threshold."
    silent = [f.title for f in r.findings if not f.trained]
    left = {"too few to tell": titles, "not trained": silent}
    said = "; ".join(f"as {why}: {', '.join(names)}" for why, names in left.items() if names)
    return f"Left out of the means {said}. {summed}" if said else f"No finding is left out of the means. {summed}"


def _incomplete(r: EvaluationReport) -> str:
    lost = [f"{f.title} {f.auroc.undefined}" for f in r.findings if f.auroc.undefined]
    if not lost:
        return "Every resample had positives and negatives of each finding that is told."
    return (
        f"Resamples without a positive or without a negative, left out of that finding's intervals: {', '.join(lost)}."
    )


def calls(r: EvaluationReport) -> str:
    """What the operating points make of the probabilities."""
    return joined(
        "### Calls at the operating points",
        "Thresholds were chosen on validation patients, or on those that a recalibration was fitted to, and are "
        f"measured here on {_where(r)}. PPV and NPV hold at its prevalence only. Where there is no threshold, every "
        "call is «undecided».",
        table(
            ["Finding", "Threshold", "Sensitivity", "Specificity", "PPV", "NPV", "F1"],
            [_call_row(f) for f in r.findings],
        ),
    )


def _call_row(f: FindingReport) -> list[str]:
    if not f.trained:
        return [f.title, "not trained", "–", "–", "–", "–", "–"]
    if f.threshold is None:
        return [f.title, f"none: undecided{_seen(f)}", "–", "–", "–", "–", "–"]
    return [f.title, f"{f.threshold:.3f}", *(told(i) for i in (f.sensitivity, f.specificity, f.ppv, f.npv, f.f1))]


def _seen(f: FindingReport) -> str:
    """Why there is no threshold: how many images it would have been chosen on."""
    c = f.calibration
    return "" if c is None else f" ({c.positives} with it, {c.negatives} without)"


def calibration(r: EvaluationReport) -> str:
    """Before and after, and which calibration each finding has."""

    def row(name: str, state: CalibrationState) -> list[str]:
        return [name, *(figure(value) for value in (state.log_loss, state.brier, state.calibration_error))]

    chosen = [
        [f.title, f.calibration.method, told(f.calibration_error), str(f.calibration.positives), f.calibration.reason]
        for f in r.findings
        if f.calibration is not None
    ]
    header = ["", "Log loss, all labels", "Brier score, mean", "Expected calibration error, mean"]
    return joined(
        "### Calibration",
        "From logits to probabilities, finding by finding, as richly as the validation cases allow (one fit for all "
        "findings with too few, a temperature, Platt's slope and intercept, an isotonic curve), built into the ONNX "
        f"graph; here on {_where(r)}. Lower is better.",
        table(header, [row("before", r.calibration.before), row("after", r.calibration.after)]),
        table(["Finding", "Calibration", "Expected error", "Fitted on positives", "Why"], chosen) if chosen else "",
    )


def conformal(r: EvaluationReport) -> str:
    """The coverage of conformal calls, by finding and by group."""
    c = r.conformal
    if c is None:
        return ""
    titles = {f.name: f.title for f in r.findings}
    rows = [
        [titles[f.name], told(f.covered), told(f.present.covered), told(f.absent.covered), f"{f.decided:.3f}"]
        + [f"{each.calibration_patients} / {each.patients}" for each in (f.present, f.absent)]
        for f in c.findings
        if f.enough
    ]
    silent = [
        f"{titles[f.name]} ({f.present.calibration_patients} with it, {f.absent.calibration_patients} without)"
        for f in c.findings
        if not f.enough
    ]
    below = [
        f"{titles[f.name]} where {name} ({told(each.covered)})"
        for f in c.findings
        for name, each in (("present", f.present), ("absent", f.absent))
        if each.expected and each.covered.value is not None and each.covered.value < each.expected[0]
    ]
    header = ("Finding", "Covered", "… where present", "… where absent", "Images decided")
    groups = [
        [f"{g.attribute} {g.value or NOT_STATED}", str(g.patients), told(g.covered), told(g.covered_present)]
        for g in c.groups
    ]
    return joined(
        "### Conformal calls",
        f"Where a coverage is named (`medsd score --coverage {c.coverage:g}`), a call is present or absent only where "
        "the other does not conform with the validation patients; else it is undecided. The truth is then in the set "
        f"of at least that share of patients, of those with a finding and of those without; here of {c.coverage:.0%}, "
        f"counted by patients of {_where(r)} with exact binomial intervals. Chance alone lets a class fall below the "
        "promise, by more the fewer patients its limit was chosen on and it is counted on (the last columns).",
        table([*header, "With it, chosen on / counted on", "Without it"], rows) if rows else "",
        f"Always undecided, for want of validation patients: {', '.join(silent)}." if silent else "",
        warning(f"Covered less than promised, beyond what chance allows: {', '.join(below)}.") if below else "",
        table(["Group", "Patients", "Covered", "… where present"], groups) if groups else "",
    )


def subgroups(r: EvaluationReport) -> str:
    """Groups against the rest, with warnings."""
    s = r.subgroups
    if s is None:
        return ""
    rows = [
        [f"{g.attribute} {g.value}", str(g.patients), str(g.over)]
        + [f"{told(g.figures[name].value)}; {told(g.figures[name].gap)}" for name in COMPARED]
        for g in s.groups
    ]
    same = ", ".join(s.not_compared)
    header = ["Group", "Patients", "Findings", *(f"{METRICS[name].split(' at ')[0]}; gap" for name in COMPARED)]
    return joined(
        "### Groups of patients",
        "Each group against all others, on the findings that both can tell; the gap is the group's mean less that of "
        "the others, on the same resamples. Warned of are groups too small to tell, and those that read worse by more "
        f"than {s.margin:g} and more than chance. All figures, by finding, are in evaluation.json.",
        table(header, rows) if rows else "",
        f"Not compared, as all studies have the same, or none is stated: {same}." if same else "",
        *(warning(sentence) for sentence in s.warnings),
    )


def retrieval(r: EvaluationReport) -> str:
    """How well similar cases are found."""
    if r.retrieval is None:
        return ""
    t = r.retrieval
    rows = [
        [f"nDCG@{t.k}", told(t.ndcg), told(t.random_ndcg)],
        [f"Recall@{t.k}", told(t.recall), told(t.random_recall)],
    ]
    left_out = f" {t.without_relevant} queries have nothing relevant in the index and are left out." * bool(
        t.without_relevant
    )
    return joined(
        "### Similar cases",
        f"{t.queries} images of {_where(r)}, each against {t.index} cases without its own patient's."
        f"{left_out} Gain: Jaccard overlap of the known findings (two images without findings: 1). Recall: cases "
        f"with any overlap among the first {t.k}, over the most that could be there.",
        table(["", "Learned space", "Random order"], rows),
        f"Gain in nDCG@{t.k} over a random order, on the same resamples: {told(t.gain_over_random)}.",
        _published(r),
    )


def _published(r: EvaluationReport) -> str:
    """The figures of published image retrieval, and what they mean."""
    header, rows = rankings(r)
    if not rows:
        return ""
    return joined(
        "#### In the figures of published image retrieval",
        "For a finding, the queries have it, and a case is relevant that has it. Over all images, a case is relevant "
        "that shares a finding with the query, or has none as the query has none; with r shared findings its gain is "
        "2^r − 1 (Zhao et al., CVPR 2015). A case with an unknown label is not relevant. Chance: the share of "
        "relevant cases in the index. P@k: their share among the first k. mAP: mean average precision of the whole "
        "ranking. Recall@k: relevant cases among the first k, over all relevant cases. Hit@k: queries with a relevant "
        "case among the first k, called Recall@k in metric learning. A row with queries of fewer than "
        f"{r.minimum_positives} patients is «too few to tell» and not in the mean.",
        table(header, rows),
    )


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
    rows = [[title, str(g.queries), *(told(g.figures[name]) for name in FIGURES)] for title, g in groups.items()]
    mean = [f"Mean over {found.over} findings", "–", *(told(found.mean[name]) for name in FIGURES)]
    return header, [*rows[:3], mean, *rows[3:]]


def readings(report: EvaluationReport, others: Mapping[str, EvaluationReport]) -> str:
    """The same split, read with a part of each study missing."""
    if not others:
        return ""
    rows = [
        [
            name,
            told(r.macro["auroc"].interval),
            told(r.macro["average_precision"].interval),
            "not measured" if r.retrieval is None else told(r.retrieval.ndcg),
        ]
        for name, r in ({"everything": report} | dict(others)).items()
    ]
    header = ["Read with", "AUROC, mean", "Average precision, mean", "nDCG"]
    return joined("### With a part of the study missing", table(header, rows))


def modalities(m: ModalityReport | None) -> str:
    """How much hangs on image and note."""
    if m is None:
        return ""
    rows = [
        [name, told(r.alone), told(r.variance_share), told(r.lost_when_withheld), told(r.lost_when_shuffled)]
        for name, r in (("image", m.image), ("note", m.note))
    ]
    header = ["", "AUROC alone", "Share of the logits' variance", "AUROC lost without it", "… with another patient's"]
    return joined(
        "### How much hangs on image and note",
        f"{m.studies} studies of {m.patients} patients of the {m.split} split that have both; means over {m.over} "
        f"findings. With both the AUROC is {told(m.both)}.",
        table(header, rows),
        warning(warning_of(m)),
        _found_by_words(m),
    )


def _found_by_words(m: ModalityReport) -> str:
    """What notes and sentences find among images."""
    said = []
    if (t := m.note_to_image) is not None:
        said.append(
            f"A note alone finds training images, read without their notes, with an nDCG@{t.k} of {told(t.ndcg)} "
            f"(random order: {told(t.random_ndcg)})."
        )
    if (s := m.sentences) is not None:
        said.append(
            f"A sentence that names a finding finds images of the {m.split} split with a precision@{s.k} of "
            f"{told(s.precision)}, {told(s.gain_over_random)} more than at random."
        )
        rows = [[f"«{f.sentence}»", str(f.positives), told(f.precision), f"{f.at_random:.3f}"] for f in s.findings]
        said.append(table(["Sentence", "Images with it", f"Precision@{s.k}", "At random"], rows))
    return joined(*said)
