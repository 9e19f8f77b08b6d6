"""PadChest: 160,868 radiographs of 67,625 patients of San Juan Hospital, Alicante, with labels from the reports.

Layout: `PADCHEST_chest_x_ray_images_labels_160K*.csv` (gzipped or not) and the images, below the folder that the column
`ImageDir` names or all in one, with or without `images/` above. The column `Labels` holds a list as Python or NumPy
writes it; it is read as data, and a cell that is no such list is unknown and logged. Of the 174 findings those of the
set "padchest" are kept. A narrower finding makes the wider ones present (`padchest_tree.yaml`); what is neither listed
nor wider is absent. Images labelled "exclude" or "suboptimal study" are left out; of those that are only "unchanged"
nothing is known. The reports are Spanish and tell the findings: they are no notes.

Bustos et al., PadChest, Medical Image Analysis 2020;66:101797. BIMCV research use agreement: research only, no onward
sharing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.files import packaged
from medsd.findings import FindingSet, finding_set
from medsd.settings import PadChestSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import tables
from medsd.studies.sources.cells import EMPTY, LabelCells, listed_words

_OWNER = "PadChest"
_NEEDED = [
    "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection",
    "Labels",
]  # fmt: skip
_LEFT_OUT = {"exclude", "suboptimal study"}
# Label, in lower case → the labels that stand above it in PadChest's tree of findings, as far as they are kept.
_ABOVE: Mapping[str, Sequence[str]] = packaged("medsd.studies.sources", "padchest_tree.yaml")


def read(settings: PadChestSource, splits: SplitSettings) -> Manifest:
    root, findings = settings.root, finding_set("padchest")
    path = tables.find_table(root, ("PADCHEST_chest_x_ray_images_labels_160K*.csv*", "PADCHEST*.csv*"), _OWNER)
    entries = tables.read_table(path, _NEEDED, _OWNER)
    listed = _lists(entries["Labels"], path)
    view = tables.words(entries["Projection"], tables.VIEWS | {"l": "LATERAL"})
    kept = np.array([not _LEFT_OUT & labels for labels in listed])
    flat = pd.Series("", index=entries.index)  # in numbered folders or in one, as the first images are
    places = [(prefix, folder) for prefix in ("", "images/") for folder in (entries["ImageDir"] + "/", flat)]
    born = pd.to_numeric(entries["PatientBirth"], errors="coerce")
    table = pd.DataFrame(
        {
            "row": np.arange(1, len(entries) + 1),
            "study": entries["StudyID"],
            "patient": entries["PatientID"],
            "path": tables.likeliest(root, (prefix + folder + entries["ImageID"] for prefix, folder in places)),
            "view": view,
            "age": tables.years(pd.to_numeric(entries["StudyDate_DICOM"].str[:4], errors="coerce") - born),
            "sex": tables.words(entries["PatientSex_DICOM"], tables.SEXES),
            "source": "padchest",
        }
    )
    table[list(findings)] = np.array([_encode(labels, findings) for labels in listed]).reshape(-1, len(findings))
    shown = (view != "") & ((view != "LATERAL") | (not settings.frontal_only))
    table = tables.of_views(table, shown, entries["Projection"], _OWNER)
    return tables.manifest_of_present(table[kept[shown.to_numpy()]], findings, settings, splits)


def _lists(column: pd.Series, path: Path) -> list[set[str]]:
    """The labels of each cell; of one that is empty or no list, none."""
    cells, listed = LabelCells(), []
    for row, text in enumerate(column, start=1):
        labels = listed_words(text)
        if text.strip().casefold() not in EMPTY:
            cells.count(str(column.name), row, text, read=labels is not None, reason="unreadable_list")
        listed.append(set(labels or ()))
    cells.tell(path)
    return listed


def _encode(labels: set[str], findings: FindingSet) -> npt.NDArray[np.float32]:
    """(F,): 1 and 0, or NaN throughout where the report says nothing but "unchanged", or nothing at all."""
    if labels <= {"unchanged"}:
        return np.full(len(findings), np.nan, dtype=np.float32)
    given = {label.lower() for label in labels}
    known = given.union(*(_ABOVE.get(label, ()) for label in given))
    return findings.encode([name for name in findings if name.lower() in known])
