"""Sections that say what a bundle is: head, use and misuse, data, limits, how it was made, files, review."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsd.bundle import layout
from medsd.card.markdown import bullets, figure, joined, scalars, table
from medsd.evaluation.report import EvaluationReport
from medsd.strict import to_yaml


def head(d: layout.Description) -> str:
    """Title, what goes in and what comes out."""
    inputs = [f"a frontal chest radiograph ({d.pixels.size} × {d.pixels.size} pixels)"] if d.image else []
    if d.note is not None:
        inputs.append(f"a clinical note ({_length(d.note)})")
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
    titles = ", ".join(f.title for f in d.findings if f.name not in d.not_trained)
    return (
        f"# {d.name} {d.version}\n\n{warning}A medsd bundle that reads {' and '.join(inputs)}{either}, and gives a "
        f"calibrated probability for each of {len(d.calibration)} findings{evidence}, and a place among earlier cases "
        f"({d.embedding_size} dimensions).{about}\n\nFindings ({d.finding_set}): {titles}.{_told(d)}"
    )


def _told(d: layout.Description) -> str:
    """Which findings have no probability, and which have one that is not calibrated by cases of their own."""
    titles = {f.name: f.title for f in d.findings}
    silent = ", ".join(f"{titles[name]} ({why})" for name, why in d.not_trained.items())
    lines = [f"**Not trained, so without a probability:** {silent}." if silent else "", d.calibration_words()]
    return "".join(f"\n\n{line}" for line in lines if line)


def _length(note: layout.NoteInput) -> str:
    """How much of a note is read, and in which pieces."""
    if note.window is None:
        return f"up to {note.max_tokens} tokens"
    begun = f"every {note.stride} tokens" if note.stride else "after half of the text of the one before"
    count = note.max_tokens // note.window
    return (
        f"in overlapping windows of {note.window} tokens, a new one {begun}, {count} at most; what follows is not read"
    )


def use(d: layout.Description) -> str:
    """What the model is for, and what not."""
    lines = [
        "Meant for: method research, teaching, retrospective studies under ethical approval, trials of integration.",
        "Not meant for: decisions about a patient; lateral views, other body parts, children unless the data below "
        "held them; use at another hospital without measuring there first (`medsd evaluate BUNDLE --studies …`).",
        "A probability is that of the *label* of this data set, at its prevalence; it is not the probability of "
        "disease in another population.",
        "«Absent» means that the probability is below the operating point. It does not rule a finding out.",
        _maps(d),
    ]
    return joined(
        "## Intended use and misuse",
        "Research software. It is **not a medical device**, has not been cleared by any authority, and must not be "
        "used to diagnose, to treat, to triage, or to withhold a reading by a radiologist.",
        "\n".join(f"- {line}" for line in lines if line),
    )


def _maps(d: layout.Description) -> str:
    """What its evidence maps are, and are not."""
    if not d.image:
        return ""
    shows = "The evidence map shows at which places the network's logit arises"
    if d.evidence_from_boxes:
        shows += f", drawn, for {len(d.evidence_from_boxes)} of the findings, where boxes taught it that they lie"
    return f"{shows}. It does not outline the finding, and is drawn for absent findings as well."


def data(d: layout.Description) -> str:
    """What it learned from, with licence, citation and splits."""
    p = d.provenance
    order = ("train", "validation", "test")
    splits = sorted(p.studies, key=lambda split: [*order, split].index(split))
    rows = [[split, str(p.patients.get(split, "not stated")), str(p.studies[split])] for split in splits]
    return joined(
        "## Data",
        bullets(
            ("Source", p.data),
            ("Licence", p.licence or "not stated"),
            ("Citation", p.citation or "not stated"),
            ("Hash of the manifest's rows", f"`{p.data_hash}`"),
            ("Hash of the split", f"`{p.split_hash}`"),
        ),
        "Split by patient: no patient is in two splits.",
        table(["Split", "Patients", "Images"], rows),
    )


def limits(d: layout.Description, r: EvaluationReport) -> str:
    """What is not known, and what must not be expected."""
    scarce = [f.title for f in r.findings if f.too_few]
    silent = [f.title for f in d.findings if f.name in d.operating_points and _threshold_missing(d, f.name)]
    where = "of another source than it learned from" if d.recalibrated else "of the source that it learned from"
    lines = [
        f"Measured on {r.patients} patients {where}: how it does elsewhere is not known.",
        "The labels are those of the source, with their errors; the figures measure agreement with these labels.",
    ]
    if r.subgroups is None:
        lines.append("Not measured here: differences between groups of patients (age, sex, view, machine).")
    else:
        lines.append("Not measured here: differences between machines, and between groups that the data do not name.")
    if d.synthetic:
        lines.insert(0, "Synthetic: learned from and measured on phantoms only.")
    if scarce and len(scarce) == len(r.findings):
        lines.insert(0, "No finding has enough test cases: nothing is known of how well this model reads.")
    elif scarce:
        lines.append(f"Too few test cases to tell: {', '.join(scarce)}.")
    if silent:
        lines.append(f"Never called present or absent, for want of validation cases: {', '.join(silent)}.")
    return "## Known limits\n\n" + "\n".join(f"- {line}" for line in [*lines, _suitable(d)])


def _suitable(d: layout.Description) -> str:
    """What is known of films that it should not read."""
    if not d.image:
        return "It reads notes alone: it knows no film, and has no evidence maps and no out-of-distribution check."
    if d.out_of_distribution is None:
        return "No out-of-distribution check: an unsuitable image is read like any other."
    each = "." if d.out_of_distribution.checks else ", by each of its scores."
    rate = d.out_of_distribution.false_alarm_rate
    return f"The out-of-distribution check is set to refuse about {rate:.0%} of suitable images{each}"


def _threshold_missing(d: layout.Description, name: str) -> bool:
    return d.operating_points[name].threshold is None


def agreement(parity: Mapping[str, Any]) -> str:
    """ONNX against PyTorch: the scalars as a list, the differences by batch size and output as a table."""
    if not parity:
        return ""
    by_size = parity.get("largest_difference")
    lines = [
        (key.replace("_", " ").capitalize(), scalars(v))
        for key, v in parity.items()
        if key not in ("largest_difference", "variants") and v != {}  # variants have a table of their own
    ]
    parts = ["## Agreement of the exported graph with PyTorch", bullets(*lines)]
    if isinstance(by_size, Mapping) and by_size and all(isinstance(v, Mapping) for v in by_size.values()):
        outputs = list(next(iter(by_size.values())))
        rows = [[str(size), *(f"{by_output[o]:.1e}" for o in outputs)] for size, by_output in by_size.items()]
        parts += ["Largest absolute difference of each output:", table(["Batch size", *outputs], rows)]
    elif by_size is not None:
        parts.append(bullets(("Largest difference", scalars(by_size))))
    return joined(*parts)


def variants(d: layout.Description) -> str:
    """Graphs of fewer bits, and what they cost."""
    if not d.variants:
        return ""
    rows = [
        [precision, f"`{each.file}`", figure(each.auroc_difference, 4), f"{each.embedding_cosine:.4f}"]
        for precision, each in d.variants.items()
    ]
    return joined(
        "### Graphs of fewer bits",
        "Measured as above. The figures of this page are those of the float32 graph.",
        table(["Precision", "Graph", "Macro AUROC less PyTorch's", "Mean cosine of embeddings"], rows),
    )


def making(d: layout.Description) -> str:
    """The command, the versions, the resolved configuration."""
    p = d.provenance
    name = p.config.get("name", d.name)
    packages = ", ".join(f"{package} {version}" for package, version in sorted(p.packages.items()))
    config = to_yaml(p.config).strip() if p.config else ""
    again = f"\nmedsd recalibrate {d.name} --studies {d.recalibrated.studies}" if d.recalibrated else ""
    details = f"<details><summary>The resolved configuration</summary>\n\n```yaml\n{config}\n```\n\n</details>"
    return joined(
        "## How it was made",
        f"```\nmedsd train configs/{name}.yaml{again}\n```",
        bullets(
            ("Created", d.created),
            ("Git commit", f"`{p.git_commit}`" if p.git_commit else "not stated"),
            ("Training time", f"{p.training_seconds / 60:.0f} minutes" if p.training_seconds else "not stated"),
            ("Packages", packages or "not stated"),
            ("Schema", f"bundle {d.schema_version}"),
        ),
        "The figures of this page stand in the JSON files below, which `medsd evaluate` and `medsd export` with the "
        "same configuration compute again; `medsd card --check` with this bundle's folder makes the page from them and "
        "compares it byte by byte.",
        details if config else "",
    )


def hashes(files: Mapping[str, str]) -> str:
    """sha256 by file."""
    rows = [[f"`{name}`", f"`{digest}`"] for name, digest in files.items()]
    return joined(
        "## Files",
        "sha256 of each file but this page; medsd compares them before it uses the bundle.",
        table(["File", "sha256"], rows),
    )


def signature() -> str:
    """Where a reviewer signs."""
    names = ("Reviewer", "Date", "Decision (accepted, accepted with conditions, refused)", "Conditions", "Signature")
    return joined("## Review", table(["", ""], [[name, ""] for name in names]))


def without_pages(folder: Path, pages: tuple[str, ...]) -> dict[str, str]:
    """sha256 of the files of a bundle but its own pages."""
    return {name: digest for name, digest in layout.hash_files(folder).items() if name not in pages}
