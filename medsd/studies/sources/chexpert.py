"""CheXpert: 224,316 radiographs of 65,240 patients of Stanford Hospital, fourteen labels mined from the reports.

Layout: the folder that has `train.csv` and `valid.csv`, with the images below `train/` and `valid/`, or the folder
above it. Paths in the tables begin with the name of that folder, whatever it is called now, as in
«CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg». The full-size download comes in batches, as
«CheXpert-v1.0 batch 2 (train 1)/patient00001/…», with its tables beside them or in the first of them. Copies as PNG are
read too.

Labels are 1, 0, −1 (uncertain) or empty (not mentioned); the settings say what the last two mean, by default unknown
and, as in the paper, absent. «No Finding» means that all are absent but support devices, of which it says nothing. The
labeller marks what a report mentions, so that Lung Opacity can be empty beside Consolidation, of which it is the wider
finding (figure 1): it is then unknown, not absent. The labels of `valid.csv` are radiologists' and not mined: with the
official split it is the test set. The 500 studies of the competition's test set, published later without sex and age
(`test_labels.csv`), are not read.

Irvin J, Rajpurkar P, Ko M, et al. CheXpert: a large chest radiograph dataset with uncertainty labels and expert
comparison. AAAI 2019. Stanford University Dataset Research Use Agreement: research only, no onward sharing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.findings import FindingSet, Uncertain, finding_set, resolve_uncertain
from medsd.findings.mapping import ancestors, concepts
from medsd.settings import CheXpertSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources.places import likeliest
from medsd.studies.sources.tables import (
    SEXES,
    VIEWS,
    find_table,
    left_out_views,
    limited,
    manifest_of,
    numbers,
    present_files,
    read_table,
    words,
    years,
)

CITATION = "Irvin et al., CheXpert, AAAI 2019; Stanford University"
_OWNER = "CheXpert"
_NEEDED = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding"]
_PLACE = r"(?P<path>(?:.*/)?(?P<patient>patient\d+)/(?P<study>study\d+)/[^/]+)$"


def read(settings: CheXpertSource, splits: SplitSettings) -> Manifest:
    """Read the data set below `settings.root`; see the module for the layout.

    Raises:
        DataError: the folder, its table, a column or every film is missing.
    """
    root = settings.root
    findings = finding_set("chexpert14")
    parts = [_read_part(settings, path, findings) for path in _tables(root)]
    table = pd.concat(parts, ignore_index=True)
    if settings.frontal_only:
        frontal = table["view"] != "LATERAL"
        left_out_views(table["view"], frontal, _OWNER)
        table = table[frontal]
    table = limited(table[present_files(root, table["path"])], settings.limit)
    official = (table["part"] == "valid").to_numpy() if settings.official_split else None
    return manifest_of(table, findings, root, splits, fixed_test=official)


def _tables(root: Path) -> list[Path]:
    """train.csv, and valid.csv where it is beside it: a copy without the second is read."""
    below = sorted(root.glob("*/train.csv"))
    train = below[0] if below and not (root / "train.csv").is_file() else find_table(root, ("train.csv",), _OWNER)
    return [path for path in (train, train.with_name("valid.csv")) if path.is_file()]


def _films(root: Path, tables: Path, place: pd.DataFrame) -> pd.Series:
    """Paths below the root, by the layout in which most of the first images are.

    Args:
        root: of the data set.
        tables: the folder of its tables.
        place: the path in the table, and the patient and the study in it.
    """
    # The first folder of the path is the data set's own, which the copy may have another name for.
    inside = place["path"].str.extract(r"((?:train|valid|test)/patient.*)$")[0].fillna(place["path"])
    above = "" if tables == root else tables.relative_to(root).as_posix() + "/"
    homes = {
        folder.name: folder.relative_to(root).as_posix()
        for pattern in ("*batch*/patient*", "*batch*/train/patient*", "*batch*/valid/patient*")
        for folder in root.glob(pattern)
    }
    own = place["path"].str.extract(r"patient\d+(/.*)$")[0]
    layouts = [inside, above + inside, place["path"], place["patient"].map(lambda name: homes.get(name, "")) + own]
    return likeliest(root, [*layouts, *(each.str.replace(r"\.jpe?g$", ".png", regex=True) for each in layouts)])


def _read_part(settings: CheXpertSource, path: Path, findings: FindingSet) -> pd.DataFrame:
    entries = read_table(path, [*_NEEDED, *findings], _OWNER)
    place = entries["Path"].str.extract(_PLACE)
    if place["path"].isna().any():
        line = int(np.flatnonzero(place["path"].isna())[0]) + 2
        raise DataError(f"{path}: line {line}: Path is not …/patientNNNNN/studyN/file; CheXpert's paths are")
    lateral = entries["Frontal/Lateral"] == "Lateral"
    table = pd.DataFrame(
        {
            "row": np.arange(1, len(entries) + 1),
            "study": place["patient"] + "/" + place["study"],
            "patient": place["patient"],
            "path": _films(settings.root, path.parent, place),
            "view": words(entries["AP/PA"], VIEWS).mask(lateral, "LATERAL"),
            "age": years(entries["Age"]),
            "sex": words(entries["Sex"], SEXES),
            "source": "chexpert",
            "part": path.stem,
        }
    )
    table[list(findings)] = read_labels(entries, findings, path, settings.uncertain, settings.unmentioned)
    return table


def read_labels(
    entries: pd.DataFrame, findings: FindingSet, path: Path, uncertain: Uncertain, unmentioned: str
) -> npt.NDArray[np.float32]:
    """The columns of CheXpert's labeller as float32 (N, F); MIMIC-CXR-JPG has the same.

    Args:
        entries: the table as text, with a column a finding and «No Finding».
        findings: chexpert14.
        path: the table, for messages.
        uncertain, unmentioned: as `label_values` has them.

    Raises:
        DataError: a cell is no label.
    """
    return label_values(numbers(entries, [*findings, "No Finding"], path), findings, uncertain, unmentioned)


def label_values(
    given: npt.NDArray[np.float32], findings: FindingSet, uncertain: Uncertain, unmentioned: str
) -> npt.NDArray[np.float32]:
    """What labels of CheXpert's kind mean, as float32 (N, F).

    Args:
        given: (N, F + 1), 1, 0, −1 or NaN (not mentioned), «No Finding» last.
        findings: chexpert14.
        uncertain: what −1 means.
        unmentioned: "absent" or "unknown", what NaN means. A wider finding that is not mentioned beside one of its
            kinds that is present or uncertain (Lung Opacity beside Consolidation) is unknown either way.
    """
    labels, normal = resolve_uncertain(given[:, :-1], uncertain), given[:, -1] == 1
    empty = np.isnan(given[:, :-1])
    if unmentioned == "unknown":
        devices = np.array([name == "Support Devices" for name in findings])
        empty &= normal[:, None] & ~devices  # a film without findings has none of them, mentioned or not
    else:
        empty &= ~_has_a_kind(np.isin(given[:, :-1], (1.0, -1.0)), findings)
    labels[empty] = 0.0
    return labels


def _has_a_kind(told: npt.NDArray[np.bool_], findings: FindingSet) -> npt.NDArray[np.bool_]:
    """(N, F) True where a narrower finding of the same set is among those `told` (N, F)."""
    named = concepts(findings)
    kinds = np.array([[wider in ancestors(narrower) for wider in named] for narrower in named])
    return np.asarray(told @ kinds)  # of booleans: any
