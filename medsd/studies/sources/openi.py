"""Open-i: radiology reports of Indiana University, with their images where they are there.

Layout: `reports.tgz` (or NLM's `NLMCXR_reports.tgz`), or its folder `ecgen-radiology/`; the images of `NLMCXR_png.tgz`
or `NLMCXR_dcm.tgz` unpacked below the folder that `data.images` names; and, if there, `findings14.csv` with the labels
that NegBio was tested on. The note is the INDICATION; with `data.note` "report" it is findings and impression. One
report is one patient.

Labels are either "checked" (openi14) or "mesh" (mesh). Checked: a row of `findings14.csv`; without one, the heading
"normal" means that all findings are absent. Nobody labelled its column Hernia: Hernia is unknown but in normal reports.
Mesh: the headings that indexers set by hand ("Pulmonary Atelectasis/base/left"); what has no heading is absent, and a
report that was not indexed is unknown. The two are not independent: the checked labels are nearly the headings.

Demner-Fushman et al., JAMIA 2016;23:304-310. Peng et al., NegBio, AMIA 2018. CC BY-NC-ND 4.0.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.findings import FindingSet, finding_set
from medsd.settings import OpeniSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.published_reports import OpeniReport, read_reports
from medsd.studies.sources.cells import agreed
from medsd.studies.sources.tables import find_table, limited, manifest_of, numbers, read_table

_OWNER = "Open-i"
_TABLE = "findings14.csv"
_NEVER_CHECKED = ("Hernia",)
_SUFFIXES = (".png", ".dcm")
_REPORT = ("findings", "impression")
# Headings of a report that no indexer coded, or whose image could not be read.
_UNKNOWN: tuple[set[str], ...] = ({"no indexing"}, {"technical quality of image unsatisfactory"}, set())


def read(settings: OpeniSource, splits: SplitSettings) -> Manifest:
    root = settings.root
    path = find_table(root, ("ecgen-radiology", "reports.tgz", "NLMCXR_reports.tgz"), f"{_OWNER}'s reports")
    reports = {report.name: report for report in reversed(list(read_reports(path)))}  # the first of each name
    reports = dict(sorted(reports.items()))
    findings = finding_set("mesh" if settings.labels == "mesh" else "openi14")
    if settings.labels == "mesh":
        labels = np.array([mesh_labels(report.headings, findings) for report in reports.values()])
    else:
        labels = _checked(root, reports, findings)
    notes = [_note(report, settings.note) for report in reports.values()]
    table = pd.DataFrame({"study": list(reports), "note": notes})
    table = table.assign(patient=table["study"], source="openi", path=None)
    table[list(findings)] = labels
    if settings.images is not None:
        folder, paths = settings.images, []
        for report in reports.values():
            places = [
                (folder / (image + suffix)).as_posix() for image in report.images for suffix in _SUFFIXES if image
            ]
            paths.append([place for place in places if (root / place).is_file()])
        table = table.assign(path=pd.Series(paths, dtype=object)).explode("path", ignore_index=True)
        if table["path"].isna().all():
            raise DataError(f"{root / settings.images}: no image of {_OWNER} is here; check data.images")
    return manifest_of(limited(table, settings.limit), findings, root, splits)


def mesh_labels(headings: tuple[str, ...], findings: FindingSet) -> npt.NDArray[np.float32]:
    """(F,) what the major headings of one report say: 1 and 0, or NaN throughout where it was not indexed.

    `headings` are lower case, qualifiers behind slashes.
    """
    if {heading.strip() for heading in headings} in _UNKNOWN:
        return np.full(len(findings), np.nan, dtype=np.float32)
    named = [heading.split("/") for heading in headings]
    return findings.encode(
        [
            finding.name
            for finding in findings.findings
            if any(_fits(parts, word) for parts in named for word in (finding.name.lower(), *finding.synonyms))
        ]
    )


def _note(report: OpeniReport, wanted: str) -> str | None:
    if wanted == "indication":
        return report.sections.get("indication")
    return " ".join(report.sections[name] for name in _REPORT if name in report.sections) or None


def _fits(parts: list[str], name: str) -> bool:
    """Whether a heading in parts is `name`, which may ask for qualifiers."""
    heading, *qualifiers = (part.strip() for part in parts)
    wanted, *needed = name.split("/")
    return heading == wanted and set(needed) <= set(qualifiers)


def _checked(root: Path, reports: dict[str, OpeniReport], findings: FindingSet) -> npt.NDArray[np.float32]:
    labels = pd.DataFrame(np.nan, index=list(reports), columns=list(findings), dtype=np.float32)
    if (root / _TABLE).is_file():
        given = read_table(root / _TABLE, ["filename", *findings], _OWNER)
        values = numbers(given, list(findings), root / _TABLE)
        known = pd.DataFrame(values, index=given["filename"], columns=list(findings))
        known[list(_NEVER_CHECKED)] = np.nan
        labels.update(agreed(known, np.arange(1, len(known) + 1), root / _TABLE))
    normal = [report.headings == ("normal",) for report in reports.values()]
    unknown = labels.isna().to_numpy() & np.array(normal, dtype=bool)[:, None]
    return labels.mask(unknown, 0.0).to_numpy(dtype=np.float32)
