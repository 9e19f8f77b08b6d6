"""CheXpert: 224,316 radiographs of 65,240 patients of Stanford Hospital, fourteen labels mined from the reports.

Layout: the folder that has `train.csv` and `valid.csv`, with the images below `train/` and `valid/`, or the folder
above it; or the batches of the full-size download ("CheXpert-v1.0 batch 2 (train 1)/patient00001/…"), with the tables
beside them or in the first. Paths in the tables begin with the name of the data set's folder, whatever it is called
now. Copies as PNG are read too. With the official split `valid.csv`, labelled by radiologists, is the test set.

Labels are 1, 0, −1 (uncertain) or empty (not mentioned); the settings say what the last two mean, by default unknown
and, as in the paper, absent. "No Finding" means that all but support devices are absent.

Irvin et al., CheXpert, AAAI 2019. Stanford University Dataset Research Use Agreement: research only, no onward sharing.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.findings import FindingSet, Uncertain, finding_set, resolve_uncertain
from medsd.findings.mapping import ancestors, concepts
from medsd.settings import CheXpertSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import tables

_OWNER = "CheXpert"
_NEEDED = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding"]
_PLACE = r"(?P<path>(?:.*/)?(?P<patient>patient\d+)/(?P<study>study\d+)/[^/]+)$"


def read(settings: CheXpertSource, splits: SplitSettings) -> Manifest:
    root = settings.root
    findings = finding_set("chexpert14")
    parts = [_read_part(settings, path, findings) for path in _tables(root)]
    table = pd.concat(parts, ignore_index=True)
    if settings.frontal_only:
        table = tables.of_views(table, table["view"] != "LATERAL", table["view"], _OWNER)
    return tables.manifest_of_present(table, findings, settings, splits, "valid")


def _tables(root: Path) -> list[Path]:
    """train.csv, and valid.csv where it is beside it: a copy without the second is read."""
    below = sorted(root.glob("*/train.csv"))
    found = below and not (root / "train.csv").is_file()
    train = below[0] if found else tables.find_table(root, ("train.csv",), _OWNER)
    return [path for path in (train, train.with_name("valid.csv")) if path.is_file()]


def _image_paths(root: Path, home: Path, place: pd.DataFrame) -> pd.Series:
    """Paths below the root; `home` is the folder of the tables, `place` the path in the table, patient and study."""
    # The first folder of the path is the data set's own, which the copy may have another name for.
    inside = place["path"].str.extract(r"((?:train|valid|test)/patient.*)$")[0].fillna(place["path"])
    above = "" if home == root else home.relative_to(root).as_posix() + "/"
    homes = {
        folder.name: folder.relative_to(root).as_posix()
        for pattern in ("*batch*/patient*", "*batch*/train/patient*", "*batch*/valid/patient*")
        for folder in root.glob(pattern)
    }
    own = place["path"].str.extract(r"patient\d+(/.*)$")[0]
    layouts = [inside, above + inside, place["path"], place["patient"].map(lambda name: homes.get(name, "")) + own]
    return tables.likeliest(root, [*layouts, *(each.str.replace(r"\.jpe?g$", ".png", regex=True) for each in layouts)])


def _read_part(settings: CheXpertSource, path: Path, findings: FindingSet) -> pd.DataFrame:
    entries = tables.read_table(path, [*_NEEDED, *findings], _OWNER)
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
            "path": _image_paths(settings.root, path.parent, place),
            "view": tables.words(entries["AP/PA"], tables.VIEWS).mask(lateral, "LATERAL"),
            "age": tables.years(entries["Age"]),
            "sex": tables.words(entries["Sex"], tables.SEXES),
            "source": "chexpert",
            "part": path.stem,
        }
    )
    table[list(findings)] = read_labels(entries, findings, path, settings.uncertain, settings.unmentioned)
    return table


def read_labels(
    entries: pd.DataFrame, findings: FindingSet, path: Path, uncertain: Uncertain, unmentioned: str
) -> npt.NDArray[np.float32]:
    """The text columns of CheXpert's labeller as float32 (N, F), see `label_values`; MIMIC-CXR-JPG has the same."""
    return label_values(tables.numbers(entries, [*findings, "No Finding"], path), findings, uncertain, unmentioned)


def label_values(
    given: npt.NDArray[np.float32], findings: FindingSet, uncertain: Uncertain, unmentioned: str
) -> npt.NDArray[np.float32]:
    """What labels of CheXpert's kind, (N, F + 1) with "No Finding" last, mean, as float32 (N, F).

    They are 1, 0, −1 or NaN; `uncertain` is what −1 means, `unmentioned` ("absent" or "unknown") what NaN means. A
    wider finding that is not mentioned beside one of its kinds that is present or uncertain (Lung Opacity beside
    Consolidation) is unknown either way.
    """
    labels, normal = resolve_uncertain(given[:, :-1], uncertain), given[:, -1] == 1
    empty = np.isnan(given[:, :-1])
    if unmentioned == "unknown":
        devices = np.array([name == "Support Devices" for name in findings])
        empty &= normal[:, None] & ~devices  # an image without findings has none of them, mentioned or not
    else:
        empty &= ~_has_a_kind(np.isin(given[:, :-1], (1.0, -1.0)), findings)
    labels[empty] = 0.0
    return labels


def _has_a_kind(told: npt.NDArray[np.bool_], findings: FindingSet) -> npt.NDArray[np.bool_]:
    """(N, F) True where a narrower finding of the same set is among those `told` (N, F)."""
    named = concepts(findings)
    kinds = np.array([[wider in ancestors(narrower) for wider in named] for narrower in named])
    return np.asarray(told @ kinds)  # of booleans: any
