"""PadChest: 160,868 radiographs of 67,625 patients of San Juan Hospital, Alicante, with labels out of the reports.

Layout: `PADCHEST_chest_x_ray_images_labels_160K*.csv` (gzipped or not) and the films, below the folder that the column
`ImageDir` names or all in one, with or without `images/` above. The column `Labels` holds a list as text, as Python or
(without commas) NumPy writes it, with stray spaces, line breaks, nan and empty labels; it is read as data. A cell that
is no such list is unknown and logged. Of the 174 findings those of the set "padchest" are kept; PadChest orders them in
a tree, so that a narrower one ("multiple nodules") makes the wider ones present; what is neither listed nor wider is
absent. There are no uncertain labels. Images labelled "exclude" or "suboptimal study" are left out, of those that are
only "unchanged" nothing is known. Age is the year of the study less that of birth. There
is no official split. The reports are Spanish and tell the findings: they are no notes. About a quarter of the labels
(MethodLabel «Physician») were set by hand, the others by a network.

Bustos A, Pertusa A, Salinas JM, de la Iglesia-Vayá M. PadChest: a large chest x-ray image dataset with multi-label
annotated reports. Medical Image Analysis 2020;66:101797. BIMCV research use agreement: research only, no onward
sharing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.findings import FindingSet, finding_set
from medsd.settings import PadChestSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources.cells import EMPTY, LabelCells, listed_words
from medsd.studies.sources.places import likeliest
from medsd.studies.sources.tables import (
    SEXES,
    VIEWS,
    find_table,
    left_out_views,
    limited,
    manifest_of,
    present_files,
    read_table,
    words,
    years,
)

CITATION = "Bustos et al., PadChest, Medical Image Analysis 2020;66:101797; BIMCV"
_OWNER = "PadChest"
_NEEDED = [
    "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection",
    "Labels",
]  # fmt: skip
_LEFT_OUT = {"exclude", "suboptimal study"}
# Label, in lower case → the labels that stand above it in PadChest's tree of findings, as far as they are kept.
_ABOVE: Mapping[str, tuple[str, ...]] = {
    "alveolar pattern": ("infiltrates",),
    "consolidation": ("alveolar pattern", "infiltrates"),
    "interstitial pattern": ("infiltrates",),
    "ground glass pattern": ("interstitial pattern", "infiltrates"),
    "miliary opacities": ("interstitial pattern", "infiltrates"),
    "reticular interstitial pattern": ("interstitial pattern", "infiltrates"),
    "reticulonodular interstitial pattern": ("interstitial pattern", "infiltrates"),
    "atypical pneumonia": ("pneumonia",),
    "laminar atelectasis": ("atelectasis",),
    "lobar atelectasis": ("atelectasis",),
    "round atelectasis": ("atelectasis",),
    "segmental atelectasis": ("atelectasis",),
    "total atelectasis": ("atelectasis",),
    "aortic button enlargement": ("aortic elongation",),
    "ascendent aortic elongation": ("aortic elongation",),
    "descendent aortic elongation": ("aortic elongation",),
    "supra aortic elongation": ("aortic elongation",),
    "central venous catheter via jugular vein": ("central venous catheter",),
    "central venous catheter via subclavian vein": ("central venous catheter",),
    "central venous catheter via umbilical vein": ("central venous catheter",),
    "reservoir central venous catheter": ("central venous catheter",),
    "dual chamber device": ("pacemaker",),
    "single chamber device": ("pacemaker",),
    "hydropneumothorax": ("pleural effusion", "pneumothorax"),
    "loculated fissural effusion": ("pleural effusion",),
    "loculated pleural effusion": ("pleural effusion",),
    "multiple nodules": ("nodule",),
    "apical pleural thickening": ("pleural thickening",),
    "calcified pleural thickening": ("pleural thickening",),
}


def read(settings: PadChestSource, splits: SplitSettings) -> Manifest:
    """Read the data set below `settings.root`; see the module for the layout.

    Raises:
        DataError: the folder, its table, a column or every film is missing, or most lists of labels cannot be read.
    """
    root, findings = settings.root, finding_set("padchest")
    path = find_table(root, ("PADCHEST_chest_x_ray_images_labels_160K*.csv*", "PADCHEST*.csv*"), _OWNER)
    entries = read_table(path, _NEEDED, _OWNER)
    listed = _lists(entries["Labels"], path)
    view = words(entries["Projection"], VIEWS | {"l": "LATERAL"})
    kept = np.array([not _LEFT_OUT & labels for labels in listed])
    born = pd.to_numeric(entries["PatientBirth"], errors="coerce")
    table = pd.DataFrame(
        {
            "row": np.arange(1, len(entries) + 1),
            "study": entries["StudyID"],
            "patient": entries["PatientID"],
            "path": _films(root, entries),
            "view": view,
            "age": years(pd.to_numeric(entries["StudyDate_DICOM"].str[:4], errors="coerce") - born),
            "sex": words(entries["PatientSex_DICOM"], SEXES),
            "source": "padchest",
        }
    )
    table[list(findings)] = np.array([_encode(labels, findings) for labels in listed]).reshape(-1, len(findings))
    shown = (view != "") & ((view != "LATERAL") | (not settings.frontal_only))
    left_out_views(entries["Projection"], shown, _OWNER)
    table = table[kept & shown.to_numpy()]
    return manifest_of(limited(table[present_files(root, table["path"])], settings.limit), findings, root, splits)


def _lists(column: pd.Series, path: Path) -> list[set[str]]:
    """The labels of each cell; of one that is empty or no list, none."""
    cells, listed = LabelCells(), []
    for row, text in enumerate(column, start=1):
        words = listed_words(text)
        if text.strip().casefold() not in EMPTY:
            cells.count(str(column.name), row, text, read=words is not None, reason="unreadable_list")
        listed.append(set(words or ()))
    cells.tell(path)
    return listed


def _encode(labels: set[str], findings: FindingSet) -> npt.NDArray[np.float32]:
    """(F,): 1 and 0, or NaN throughout where the report says nothing but "unchanged", or nothing at all."""
    if labels <= {"unchanged"}:
        return np.full(len(findings), np.nan, dtype=np.float32)
    given = {label.lower() for label in labels}
    known = given.union(*(_ABOVE.get(label, ()) for label in given))
    return findings.encode([name for name in findings if name.lower() in known])


def _films(root: Path, entries: pd.DataFrame) -> pd.Series:
    """Paths below the root: in numbered folders or flat, as the first films are."""
    flat = pd.Series("", index=entries.index)
    places = [(prefix, folder) for prefix in ("", "images/") for folder in (entries["ImageDir"] + "/", flat)]
    return likeliest(root, (prefix + folder + entries["ImageID"] for prefix, folder in places))
