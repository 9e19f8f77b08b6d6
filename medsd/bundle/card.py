"""The card of a bundle: README.md, what the model is, how it was measured, and what it is not for.

`write_card` is called after every other file of the bundle is written and before `layout.write_description`: the card
lists the hashes of the others. Every figure in it comes from the description, the evaluation or the parity check.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medsd.bundle import layout
from medsd.evaluation.evidence import EvidenceReport
from medsd.evaluation.intervals import Interval
from medsd.evaluation.modalities import ModalityReport, warning_of
from medsd.evaluation.report import CalibrationState, EvaluationReport, FindingReport
from medsd.evaluation.robustness import RobustnessReport

CARD = "README.md"
PLOTS = "plots"
_CAPTIONS = {
    "roc.png": "ROC curves",
    "precision_recall.png": "Precision-recall curves",
    "calibration.png": "Calibration",
    "map.png": "Map of the learned space",
    "prevalence.png": "How often each finding occurs",
}
_METRICS = {
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
# Absolute paths, paths from a home or a parent folder, Windows drives; not the slash of a web address or of «a/b».
_MACHINE_PATH = re.compile(r"(?<![\w.:/~<…])(?:~|(?:\.\./)*\.\.)?/[\w.~+@-][^\s\"'`,;)]*|\b[A-Za-z]:\\[^\s\"'`,;)]*")


def write_card(
    folder: Path,
    description: layout.Description,
    report: EvaluationReport,
    parity: Mapping[str, Any],
    *,
    command: str | None = None,
    readings: Mapping[str, EvaluationReport] | None = None,
    modalities: ModalityReport | None = None,
    evidence: EvidenceReport | None = None,
    robustness: RobustnessReport | None = None,
) -> None:
    """Write the card into the bundle in `folder`.

    Args:
        folder: the bundle, with everything but README.md and bundle.json; pictures in plots/*.png are shown.
        description: what bundle.json will say.
        report: the measurement on the test split.
        parity: the figures of the parity check, as parity.json has them.
        command: what made the bundle; `medsd train` with the configuration's name when None.
        readings: the same split read with less, by what was left, for instance ``{"image alone": …}``.
        modalities: what hangs on image and note.
        evidence: the maps against boxes.
        robustness: what becomes of the calls when films are only handled differently.
    """
    sections = [
        _head(description),
        _use(description),
        _data(description),
        _discrimination(report),
        _calls(report),
        _calibration(report),
        _conformal(report),
        _subgroups(report),
        _retrieval(report),
        _readings(report, readings or {}),
        _modalities(modalities),
        _evidence(evidence),
        _robustness(robustness),
        _plots(folder),
        _limits(description, report),
        _parity(parity),
        _making(description, command),
        _hashes(folder),
    ]
    text = "\n\n".join(section for section in sections if section) + "\n"
    (folder / CARD).write_text(without_machine_paths(text), encoding="utf-8")


def without_machine_paths(text: str) -> str:
    """`text` with paths of the machine that it was made on replaced by their last part."""
    return _MACHINE_PATH.sub(lambda found: "…/" + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def _head(d: layout.Description) -> str:
    inputs = [f"a frontal chest radiograph ({d.pixels.size} × {d.pixels.size} pixels)"] if d.image else []
    if d.note is not None:
        inputs.append(f"a clinical note (up to {d.note.max_tokens} tokens)")
    either = "; either may be missing" if d.image and d.note is not None else ""
    warning = (
        "> **Synthetic.** This model learned from computer-generated phantoms. It shows that the software works. "
        "Nothing here is a medical result, and its output for a real patient means nothing.\n\n"
        if d.synthetic
        else ""
    )
    grid = d.evidence_grid
    evidence = f", an evidence map for each ({grid[0]} × {grid[1]})" if grid is not None else ""
    about = f"\n\n{d.description.strip()}" if d.description.strip() else ""
    titles = ", ".join(f.title for f in d.findings)
    return (
        f"# {d.name} {d.version}\n\n{warning}A medsd bundle that reads {' and '.join(inputs)}{either}, and gives a "
        f"calibrated probability for each of {len(d.findings)} findings{evidence}, and a place among earlier cases "
        f"({d.embedding_size} dimensions).{about}\n\nFindings ({d.finding_set}): {titles}."
    )


def _use(d: layout.Description) -> str:
    return (
        "## Intended use and misuse\n\n"
        "Research software. It is **not a medical device**, has not been cleared by any authority, and must not be "
        "used to diagnose, to treat, to triage, or to withhold a reading by a radiologist.\n\n"
        "- Meant for: method research, teaching, retrospective studies under ethical approval, trials of integration.\n"
        "- Not meant for: decisions about a patient; lateral views, other body parts, children unless the data below "
        "held them; use at another hospital without measuring there first.\n"
        "- A probability is that of the *label* of this data set, at its prevalence; it is not the probability of "
        "disease in another population.\n"
        "- «Absent» means that the probability is below the operating point. It does not rule a finding out.\n"
        "- The evidence map shows where the network looked. It does not outline the finding."
    )


def _data(d: layout.Description) -> str:
    p = d.provenance
    order = ("train", "validation", "test")
    splits = sorted(p.studies, key=lambda split: [*order, split].index(split))
    rows = [[split, str(p.patients.get(split, "not stated")), str(p.studies[split])] for split in splits]
    return "\n\n".join(
        [
            "## Data",
            _bullets(
                ("Source", p.data),
                ("Licence", p.licence or "not stated"),
                ("Citation", p.citation or "not stated"),
                ("Hash of the manifest's rows", f"`{p.data_hash}`"),
                ("Hash of the split", f"`{p.split_hash}`"),
            ),
            "Split by patient: no patient is in two splits.",
            _table(["Split", "Patients", "Images"], rows),
        ]
    )


def _discrimination(r: EvaluationReport) -> str:
    rows = [
        [f.title, str(f.positives), str(f.negatives), _told(f.auroc), _told(f.average_precision), _told(f.brier)]
        for f in r.findings
    ]
    means = [
        [_METRICS[name], _told(r.macro[name].interval), str(r.macro[name].over)] for name in _METRICS if name in r.macro
    ]
    return "\n\n".join(
        [
            f"## Measurement on the {r.split} split",
            f"{r.images} images of {r.patients} patients. In brackets: {100 * r.confidence:g} % intervals from "
            f"{r.resamples} bootstrap resamples of patients (seed {r.seed}). Unknown labels are left out, finding by "
            f"finding. A finding with fewer than {r.few} positives or negatives is «too few to tell».",
            "### Over all findings",
            _table(["Metric", "Mean over findings", "Findings in it"], means),
            _left_out(r),
            "### Each finding",
            _table(["Finding", "Positives", "Negatives", "AUROC", "Average precision", "Brier score"], rows),
            _incomplete(r),
        ]
    )


def _left_out(r: EvaluationReport) -> str:
    titles = [f.title for f in r.findings if f.too_few]
    if not titles:
        return "No finding is left out of the means. F1 (micro) sums the calls of all findings that have a threshold."
    return (
        f"Left out of the means as too few to tell: {', '.join(titles)}. F1 (micro) sums the calls of all findings "
        "that have a threshold."
    )


def _incomplete(r: EvaluationReport) -> str:
    lost = [f"{f.title} {f.auroc.undefined}" for f in r.findings if f.auroc.undefined]
    if not lost:
        return "Every resample had positives and negatives of each finding that is told."
    return (
        f"Resamples without a positive or without a negative, left out of that finding's intervals: {', '.join(lost)}."
    )


def _calls(r: EvaluationReport) -> str:
    rows = [_call_row(f) for f in r.findings]
    header = ["Finding", "Threshold", "Sensitivity", "Specificity", "PPV", "NPV", "F1"]
    return "\n\n".join(
        [
            "### Calls at the operating points",
            "Thresholds were chosen on the validation split and are measured here on the "
            f"{r.split} split. PPV and NPV hold at this split's prevalence only. Where there is no threshold, every "
            "call is «undecided».",
            _table(header, rows),
        ]
    )


def _call_row(f: FindingReport) -> list[str]:
    if f.threshold is None:
        return [f.title, "none: undecided", "–", "–", "–", "–", "–"]
    return [f.title, f"{f.threshold:.3f}", *(_told(i) for i in (f.sensitivity, f.specificity, f.ppv, f.npv, f.f1))]


def _calibration(r: EvaluationReport) -> str:
    def row(name: str, state: CalibrationState) -> list[str]:
        return [name, *(_figure(value) for value in (state.log_loss, state.brier, state.calibration_error))]

    header = ["", "Log loss, all labels", "Brier score, mean", "Expected calibration error, mean"]
    return "\n\n".join(
        [
            "### Calibration",
            "A slope and an intercept for each finding (one pair for all findings with too few cases; a rising curve "
            "where there are very many), fitted on the "
            f"validation split and built into the ONNX graph; here on the {r.split} split. Lower is better.",
            _table(header, [row("before", r.calibration.before), row("after", r.calibration.after)]),
        ]
    )


def _retrieval(r: EvaluationReport) -> str:
    if r.retrieval is None:
        return ""
    t = r.retrieval
    rows = [
        [f"nDCG@{t.k}", _told(t.ndcg), _told(t.random_ndcg)],
        [f"Recall@{t.k}", _told(t.recall), _told(t.random_recall)],
            *_chosen(r),
    ]
    left_out = f" {t.without_relevant} queries have nothing relevant in the index and are left out." * bool(
        t.without_relevant
    )
def _chosen(r: EvaluationReport) -> list[str]:
    chosen = [(f.title, f.calibration) for f in r.findings if f.calibration is not None]
    if not chosen:
        return []
    return [_table(["Finding", "Calibration", "Why"], [[title, c.method, c.reason] for title, c in chosen])]


def _conformal(r: EvaluationReport) -> str:
    c = r.conformal
    if c is None:
        return ""
    titles = {f.name: f.title for f in r.findings}
    rows = [
        [titles[f.name], _told(f.covered), _told(f.present.covered), _told(f.absent.covered), f"{f.decided:.0%}"]
        for f in c.findings
        if f.enough
    ]
    silent = [titles[f.name] for f in c.findings if not f.enough]
    groups = [
        [f"{g.attribute} {g.value}", str(g.patients), _told(g.covered), _told(g.covered_present)] for g in c.groups
    ]
    return "\n\n".join(
        [
            "### Conformal calls",
            f"Where a coverage is named (`medsd score --coverage {c.coverage:g}`), a call is present or absent only "
            "where the other does not conform with the validation patients; else it is undecided. The truth is then in "
            f"the set of at least that share of patients, of those with a finding and of those without; here of "
            f"{c.coverage:.0%}, counted by patients of the {r.split} split with exact binomial intervals.",
            _table(["Finding", "Covered", "… where present", "… where absent", "Films decided"], rows) if rows else "",
            f"Always undecided, for want of validation patients: {', '.join(silent)}." if silent else "",
            _table(["Group", "Patients", "Covered", "… where present"], groups) if groups else "",
        ]
    ).replace("\n\n\n\n", "\n\n")


def _subgroups(r: EvaluationReport) -> str:
    s = r.subgroups
    if s is None or not s.groups:
        return ""
    rows = [
        [
            f"{g.attribute} {g.value}",
            str(g.patients),
            str(g.over),
            *(
                f"{_told(g.figures[name].value)}; {_told(g.figures[name].gap)}"
                for name in ("auroc", "calibration_error")
            ),
        ]
        for g in s.groups
    ]
    header = ["Group", "Patients", "Findings", "AUROC; gap", "Calibration error; gap"]
    parts = [
        "### Groups of patients",
        "Each group against all others, on the findings that both can tell; the gap is the group's mean less that of "
        "the others, on the same resamples. All figures, by finding, are in evaluation.json.",
        _table(header, rows),
        *(f"> **Warning.** {sentence}" for sentence in s.warnings),
    ]
    return "\n\n".join(parts)


    return "\n\n".join(
        [
            "### Similar cases",
            f"{t.queries} images of the {r.split} split, each against {t.index} cases without its own patient's."
            f"{left_out} Gain: Jaccard overlap of the known findings (two images without findings: 1). Recall: cases "
            f"with any overlap among the first {t.k}, over the most that could be there.",
            _table(["", "Learned space", "Random order"], rows),
            f"Gain in nDCG@{t.k} over a random order, on the same resamples: {_told(t.gain_over_random)}.",
        ]
    )


def _readings(report: EvaluationReport, readings: Mapping[str, EvaluationReport]) -> str:
    if not readings:
        return ""
    rows = [
        [
            name,
            _told(r.macro["auroc"].interval),
            _told(r.macro["average_precision"].interval),
            "not measured" if r.retrieval is None else _told(r.retrieval.ndcg),
        ]
        for name, r in ({"everything": report} | dict(readings)).items()
    ]
    header = ["Read with", "AUROC, mean", "Average precision, mean", "nDCG"]
    return "### With a part of the study missing\n\n" + _table(header, rows)


def _modalities(m: ModalityReport | None) -> str:
    if m is None:
        return ""
    rows = [
        [name, _told(r.alone), _told(r.variance_share), _told(r.lost_when_withheld), _told(r.lost_when_shuffled)]
        for name, r in (("image", m.image), ("note", m.note))
    ]
    header = ["", "AUROC alone", "Share of the logits' variance", "AUROC lost without it", "… with another patient's"]
    warning = warning_of(m)
    parts = [
        "### How much hangs on image and note",
        f"{m.studies} studies of {m.patients} patients of the {m.split} split that have both; means over {m.over} "
        f"findings. With both the AUROC is {_told(m.both)}.",
        _table(header, rows),
        f"> **Warning.** {warning}" if warning else "",
        _found_by_words(m),
    ]
    return "\n\n".join(part for part in parts if part)


def _evidence(e: EvidenceReport | None) -> str:
    if e is None:
        return ""
    rows = [
        [m.name, _told(m.pointing), "" if m.lead is None else _told(m.lead), _told(m.overlap), _told(m.inside)]
        for m in e.methods
    ]
    header = ["Map", "Points into the box", "Evidence beyond it by", "Overlap", "Mass inside"]
    likeness = ", ".join(f"{value:.2f} with other weights of {name}" for name, value in e.randomised.items())
    parts = [
        "### Where the evidence maps point",
        f"{e.films} pairs of a film and a finding with boxes, of {e.patients} patients of the {e.split} split; means "
        f"over the {e.over} findings with {e.few} of them or more. «evidence» is what this bundle shows: the class "
        "activation map beyond that of an average film; «activation map» is the same with the average left in; «usual "
        "place» is where boxes of the finding lie on training films, «centre» the film's middle: neither looks at it.",
        _table(header, rows),
        f"Rank correlation of the maps with those of the same network: {likeness}." if likeness else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _robustness(r: RobustnessReport | None) -> str:
    if r is None:
        return ""
    rows = [
        [
            c.name,
            _told(c.flipped),
            "" if c.most_flipped is None else f"{c.most_flipped[0]} ({c.most_flipped[1]:.3f})",
            _told(c.moved),
            _told(c.auroc_lost),
            f"{c.likeness.value:.3f}",
        ]
        for c in r.changes
    ]
    header = ["Film", "Calls that flip", "Most often", "Probability moves by", "AUROC lost", "Cosine of embeddings"]
    text = (
        f"The same {r.films} films of {r.patients} patients of the {r.split} split, handled differently and read "
        "without notes; nothing about the patients has changed."
    )
    return "\n\n".join(["### When a film is only handled differently", text, _table(header, rows)])


def _found_by_words(m: ModalityReport) -> str:
    """What notes and sentences find among images."""
    said = []
    if (t := m.note_to_image) is not None:
        said.append(
            f"A note alone finds training images, read without their notes, with an nDCG@{t.k} of {_told(t.ndcg)} "
            f"(random order: {_told(t.random_ndcg)})."
        )
    if (s := m.sentences) is not None:
        said.append(
            f"A sentence that names a finding finds images of the {m.split} split with a precision@{s.k} of "
            f"{_told(s.precision)}, {_told(s.gain_over_random)} more than at random."
        )
        rows = [[f"«{f.sentence}»", str(f.positives), _told(f.precision), f"{f.at_random:.3f}"] for f in s.findings]
        said.append(_table(["Sentence", "Images with it", f"Precision@{s.k}", "At random"], rows))
    return "\n\n".join(said)


def _plots(folder: Path) -> str:
    pictures = sorted((folder / PLOTS).glob("*.png"), key=lambda p: [*_CAPTIONS, p.name].index(p.name))
    if not pictures:
        return ""
    captions = [_CAPTIONS.get(p.name, p.stem.replace("_", " ").capitalize()) for p in pictures]
    shown = [f"![{c}]({PLOTS}/{p.name})" for c, p in zip(captions, pictures, strict=True)]
    return "\n\n".join(["## Plots", *shown])


def _limits(d: layout.Description, r: EvaluationReport) -> str:
    few = [f.title for f in r.findings if f.too_few]
    silent = [f.title for f in d.findings if f.name in d.operating_points and _threshold_missing(d, f.name)]
    limits = [
        f"Measured on {r.patients} patients of the source that it learned from: how it does elsewhere is not known.",
        "The labels are those of the source, with their errors; the figures measure agreement with these labels.",
        "Not measured here: differences between groups of patients "
        + (
            "(age, sex, view, machine)."
            if r.subgroups is None
            else "by machine, by origin, or by several traits at once."
        ),
    ]
    if d.synthetic:
        limits.insert(0, "Synthetic: learned from and measured on phantoms only.")
    if few and len(few) == len(r.findings):
        limits.insert(0, "No finding has enough test cases: nothing is known of how well this model reads.")
    elif few:
        limits.append(f"Too few test cases to tell: {', '.join(few)}.")
    if silent:
        limits.append(f"Never called present or absent, for want of validation cases: {', '.join(silent)}.")
    if not d.image:
        limits.append(
            "It reads notes alone: it knows no film, and has no evidence maps and no out-of-distribution check."
        )
    elif d.out_of_distribution is None:
        limits.append("No out-of-distribution check: an unsuitable image is read like any other.")
    else:
        rate = d.out_of_distribution.false_alarm_rate
        limits.append(
            f"The out-of-distribution check is set to refuse about {rate:.0%} of suitable images"
            + ("." if d.out_of_distribution.checks else ", by each of its scores.")
        )
    return "## Known limits\n\n" + "\n".join(f"- {line}" for line in limits)


def _threshold_missing(d: layout.Description, name: str) -> bool:
    return d.operating_points[name].threshold is None


def _parity(parity: Mapping[str, Any]) -> str:
    """The scalars as a list, and the differences by batch size and output as a table."""
    if not parity:
        return ""
    by_size = parity.get("largest_difference")
    lines = [
        (key.replace("_", " ").capitalize(), _scalars(v)) for key, v in parity.items() if key != "largest_difference"
    ]
    parts = ["## Agreement of the exported graph with PyTorch", _bullets(*lines)]
    if isinstance(by_size, Mapping) and by_size and all(isinstance(v, Mapping) for v in by_size.values()):
        outputs = list(next(iter(by_size.values())))
        rows = [[str(size), *(f"{by_output[o]:.1e}" for o in outputs)] for size, by_output in by_size.items()]
        parts += ["Largest absolute difference of each output:", _table(["Batch size", *outputs], rows)]
    elif by_size is not None:
        parts.append(_bullets(("Largest difference", _scalars(by_size))))
    return "\n\n".join(parts)


def _making(d: layout.Description, command: str | None) -> str:
    p = d.provenance
    name = p.config.get("name", d.name)
    made_by = command or f"medsd train configs/{name}.yaml"
    packages = ", ".join(f"{package} {version}" for package, version in sorted(p.packages.items()))
    config = yaml.safe_dump(dict(p.config), sort_keys=False, allow_unicode=True).strip() if p.config else ""
    parts = [
        "## How it was made",
        f"```\n{made_by}\n```",
        _bullets(
            ("Created", d.created),
            ("Git commit", f"`{p.git_commit}`" if p.git_commit else "not stated"),
            ("Training time", f"{p.training_seconds / 60:.0f} minutes" if p.training_seconds else "not stated"),
            ("Packages", packages or "not stated"),
            ("Schema", f"bundle {d.schema_version}"),
        ),
    ]
    if config:
        parts.append(f"<details><summary>The resolved configuration</summary>\n\n```yaml\n{config}\n```\n\n</details>")
    return "\n\n".join(parts)


def _hashes(folder: Path) -> str:
    rows = [[f"`{name}`", f"`{digest}`"] for name, digest in layout.hash_files(folder).items() if name != CARD]
    return "## Files\n\nsha256 of each file; medsd compares them before it uses the bundle.\n\n" + _table(
        ["File", "sha256"], rows
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _bullets(*lines: tuple[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in lines)


def _scalars(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_scalars(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def _told(interval: Interval) -> str:
    return str(interval)


def _figure(value: float | None) -> str:
    return "too few to tell" if value is None else f"{value:.3f}"
