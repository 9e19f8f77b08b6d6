"""What can be found on a chest radiograph: ordered vocabularies of findings, their codes and their synonyms.

Start at `FindingSet`. Every table, tensor and ONNX output of medsd has its columns in the order of one finding set;
nothing else in the code lists findings. Codes are SNOMED CT concept identifiers and RadLex identifiers. `map_labels`
carries labels from one vocabulary to another: what the first never labelled is unknown in the second, not absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError


@dataclass(frozen=True)
class Finding:
    """One finding of a vocabulary.

    Attributes:
        name: the vocabulary's own spelling, used in columns and outputs (``"Pleural_Thickening"``).
        title: the words a reader sees (``"Pleural thickening"``).
        snomed: SNOMED CT concept identifier, or an empty string where no single concept fits.
        radlex: RadLex identifier, or an empty string.
        synonyms: further words for it in reports and in other data sets, lower case.
    """

    name: str
    title: str
    snomed: str = ""
    radlex: str = ""
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class FindingSet(Sequence[str]):
    """An ordered vocabulary; behaves as the sequence of its finding names.

    Attributes:
        key: the name by which configurations and bundles refer to it, for instance ``"nih14"``.
        findings: the findings, in the order of every column and output.
        negatives: labels of the data set that mean «none of these», for instance ``"No Finding"``.
    """

    key: str
    findings: tuple[Finding, ...]
    negatives: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[str]:
        return (finding.name for finding in self.findings)

    def __getitem__(self, position):  # type: ignore[no-untyped-def]  # int or slice, as Sequence
        return self.names[position]

    @property
    def names(self) -> tuple[str, ...]:
        """The finding names in column order."""
        return tuple(finding.name for finding in self.findings)

    def title(self, name: str) -> str:
        """The words a reader sees for `name`."""
        return self.findings[self.names.index(name)].title

    def encode(self, present: Sequence[str]) -> npt.NDArray[np.float32]:
        """Turn the names of the findings that are present into a row of 0 and 1.

        Args:
            present: names of this set, or one of its negatives, which adds nothing.

        Returns:
            float32 array of shape (F,).

        Raises:
            DataError: a name is neither a finding nor a negative of this set.
        """
        row = np.zeros(len(self), dtype=np.float32)
        for name in present:
            if name in self.negatives:
                continue
            if name not in self.names:
                raise DataError(f"'{name}' is no finding of {self.key}; it has {', '.join(self.names)}")
            row[self.names.index(name)] = 1.0
        return row

    def decode(self, row: npt.ArrayLike, threshold: float = 0.5) -> tuple[str, ...]:
        """Names of the findings whose value in `row` (F,) reaches `threshold`; unknown (NaN) is left out."""
        values = np.asarray(row, dtype=np.float64)
        return tuple(name for name, value in zip(self.names, values, strict=True) if value >= threshold)


# RadLex and SNOMED CT identifiers as published by RSNA and SNOMED International; where a data set's label is wider
# than any one concept (NIH's «Infiltration»), the nearest finding is given, and where a code is not certain, none.
_ATELECTASIS = Finding("Atelectasis", "Atelectasis", "46621007", "RID28493", ("collapse", "volume loss"))
_CARDIOMEGALY = Finding(
    "Cardiomegaly", "Cardiomegaly", "8186001", "RID35057", ("enlarged heart", "cardiac enlargement")
)
_CONSOLIDATION = Finding("Consolidation", "Consolidation", "95436008", "RID43255", ("airspace disease",))
_EDEMA = Finding("Edema", "Pulmonary oedema", "19242006", "RID4866", ("pulmonary edema", "vascular congestion"))
_EFFUSION = Finding("Effusion", "Pleural effusion", "60046008", "RID34539", ("pleural effusion", "pleural fluid"))
_EMPHYSEMA = Finding("Emphysema", "Emphysema", "87433001", "RID4799", ("hyperinflation",))
_FIBROSIS = Finding("Fibrosis", "Fibrosis", "51615001", "RID3820", ("pulmonary fibrosis", "scarring"))
_HERNIA = Finding("Hernia", "Hiatal hernia", "84089009", "", ("hiatus hernia",))
_INFILTRATION = Finding("Infiltration", "Infiltration", "409609008", "", ("infiltrate", "opacity"))
_MASS = Finding("Mass", "Mass", "309529002", "RID3874", ("lung mass",))
_NODULE = Finding("Nodule", "Nodule", "427359005", "RID3875", ("pulmonary nodule",))
_PLEURAL_THICKENING = Finding("Pleural_Thickening", "Pleural thickening", "", "", ("pleural plaque",))
_PNEUMONIA = Finding("Pneumonia", "Pneumonia", "233604007", "RID5350", ("infection",))
_PNEUMOTHORAX = Finding("Pneumothorax", "Pneumothorax", "36118008", "RID5352", ())
_SUPPORT_DEVICES = Finding("Support Devices", "Support devices", "", "", ("tube", "line", "pacemaker", "catheter"))
_NIH14 = (
    _ATELECTASIS,
    _CARDIOMEGALY,
    _CONSOLIDATION,
    _EDEMA,
    _EFFUSION,
    _EMPHYSEMA,
    _FIBROSIS,
    _HERNIA,
    _INFILTRATION,
    _MASS,
    _NODULE,
    _PLEURAL_THICKENING,
    _PNEUMONIA,
    _PNEUMOTHORAX,
)


def _plain(*names: str) -> tuple[Finding, ...]:
    """Findings without codes, titled by their own names."""
    return tuple(Finding(name, name[:1].upper() + name[1:]) for name in names)


FINDING_SETS: Mapping[str, FindingSet] = {
    # Wang et al., ChestX-ray8, CVPR 2017; fourteen labels in the 2017 extension, alphabetical order.
    "nih14": FindingSet(
        "nih14",
        _NIH14,
        negatives=("No Finding",),
    ),
    # What the synthetic thorax of `medsd.studies.phantom` can draw.
    "phantom8": FindingSet(
        "phantom8",
        (
            _ATELECTASIS,
            _CARDIOMEGALY,
            _CONSOLIDATION,
            _EDEMA,
            _EFFUSION,
            _MASS,
            _PNEUMOTHORAX,
            _SUPPORT_DEVICES,
        ),
        negatives=("No Finding",),
    ),
    # NegBio's hand-checked labels of the Open-i reports have the names of nih14 (Peng et al., AMIA 2018).
    "openi14": FindingSet("openi14", _NIH14, negatives=("normal",)),
    # Irvin et al., CheXpert, AAAI 2019, in the order of its table; MIMIC-CXR-JPG has the same labels. Its fourteenth
    # observation, «No Finding», is the negative; it says nothing of support devices.
    "chexpert14": FindingSet(
        "chexpert14",
        (
            *_plain("Enlarged Cardiomediastinum"),
            _CARDIOMEGALY,
            *_plain("Lung Opacity", "Lung Lesion"),
            _EDEMA,
            _CONSOLIDATION,
            _PNEUMONIA,
            _ATELECTASIS,
            _PNEUMOTHORAX,
            replace(_EFFUSION, name="Pleural Effusion"),
            *_plain("Pleural Other", "Fracture"),
            _SUPPORT_DEVICES,
        ),
        negatives=("No Finding",),
    ),
    # Nguyen et al., VinDr-CXR, Scientific Data 2022: twenty-two local labels, then the global ones (diagnoses).
    "vindr": FindingSet(
        "vindr",
        (
            *_plain("Aortic enlargement"),
            _ATELECTASIS,
            *_plain("Calcification"),
            _CARDIOMEGALY,
            *_plain("Clavicle fracture"),
            _CONSOLIDATION,
            _EDEMA,
            _EMPHYSEMA,
            *_plain("Enlarged PA", "ILD"),
            _INFILTRATION,
            *_plain("Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift", "Nodule/Mass"),
            replace(_EFFUSION, name="Pleural effusion"),
            replace(_PLEURAL_THICKENING, name="Pleural thickening"),
            _PNEUMOTHORAX,
            replace(_FIBROSIS, name="Pulmonary fibrosis"),
            *_plain("Rib fracture", "Other lesion", "COPD", "Lung tumor"),
            _PNEUMONIA,
            *_plain("Tuberculosis", "Other diseases"),
        ),
        negatives=("No finding",),
    ),
    # Bustos et al., PadChest, Medical Image Analysis 2020: of its 174 findings those that are common on frontal films.
    "padchest": FindingSet(
        "padchest",
        (
            *_plain("air trapping", "alveolar pattern", "aortic elongation"),
            replace(_ATELECTASIS, name="atelectasis"),
            *_plain("calcified granuloma"),
            replace(_CARDIOMEGALY, name="cardiomegaly"),
            *_plain("central venous catheter", "COPD signs"),
            replace(_CONSOLIDATION, name="consolidation"),
            *_plain("costophrenic angle blunting"),
            replace(_EMPHYSEMA, name="emphysema"),
            *_plain("endotracheal tube", "hemidiaphragm elevation"),
            replace(_HERNIA, name="hiatal hernia"),
            replace(_INFILTRATION, name="infiltrates"),
            *_plain("interstitial pattern"),
            replace(_NODULE, name="nodule"),
            *_plain("NSG tube", "pacemaker"),
            replace(_EFFUSION, name="pleural effusion"),
            replace(_PLEURAL_THICKENING, name="pleural thickening"),
            replace(_PNEUMONIA, name="pneumonia"),
            replace(_PNEUMOTHORAX, name="pneumothorax"),
            replace(_EDEMA, name="pulmonary edema"),
            replace(_FIBROSIS, name="pulmonary fibrosis"),
            replace(_MASS, name="pulmonary mass"),
            *_plain("scoliosis"),
        ),
        negatives=("normal",),
    ),
}

# What the labels of each set mean, where the spelling alone does not say it: name in the set → common concept. A label
# that stands in no row is a concept of its own name, whatever its case.
_MEANINGS: Mapping[str, Mapping[str, str]] = {
    "chexpert14": {"Pleural Effusion": "effusion"},
    "vindr": {
        "Pleural effusion": "effusion",
        "Pleural thickening": "pleural_thickening",
        "Pulmonary fibrosis": "fibrosis",
    },
    "padchest": {
        "hiatal hernia": "hernia",
        "infiltrates": "infiltration",
        "pleural effusion": "effusion",
        "pleural thickening": "pleural_thickening",
        "pulmonary edema": "edema",
        "pulmonary fibrosis": "fibrosis",
        "pulmonary mass": "mass",
    },
}
# Concept → the wider concept that it is a kind of (Irvin et al., figure 1, and what radiologists would not dispute).
_WIDER: Mapping[str, str] = {
    "cardiomegaly": "enlarged cardiomediastinum",
    "alveolar pattern": "lung opacity",
    "atelectasis": "lung opacity",
    "consolidation": "lung opacity",
    "edema": "lung opacity",
    "infiltration": "lung opacity",
    "pneumonia": "lung opacity",
    "lung lesion": "lung opacity",
    "nodule/mass": "lung lesion",
    "lung cavity": "lung lesion",
    "lung tumor": "lung lesion",
    "mass": "nodule/mass",
    "nodule": "nodule/mass",
    "calcified granuloma": "nodule",
    "pleural_thickening": "pleural other",
    "clavicle fracture": "fracture",
    "rib fracture": "fracture",
    "central venous catheter": "support devices",
    "endotracheal tube": "support devices",
    "nsg tube": "support devices",
    "pacemaker": "support devices",
}
Uncertain = Literal["unknown", "present", "absent"]


def finding_set(key: str) -> FindingSet:
    """The vocabulary called `key`.

    Raises:
        DataError: there is none of that name.
    """
    try:
        return FINDING_SETS[key]
    except KeyError:
        raise DataError(f"there is no finding set '{key}'; medsd has {', '.join(sorted(FINDING_SETS))}") from None


def resolve_uncertain(values: npt.ArrayLike, uncertain: Uncertain = "unknown") -> npt.NDArray[np.float32]:
    """Turn the −1 with which CheXpert's labeller marks uncertainty into NaN, 1 or 0.

    Args:
        values: any shape; 1, 0, −1 or NaN.
        uncertain: what −1 becomes. Unknown leaves it out of the loss and of every figure.

    Returns:
        float32 array of the same shape; all else as it was.
    """
    array = np.array(values, dtype=np.float32)
    array[array == -1] = {"unknown": np.nan, "present": 1.0, "absent": 0.0}[uncertain]
    return array


def map_labels(labels: npt.ArrayLike, from_set: FindingSet, to_set: FindingSet) -> npt.NDArray[np.float32]:
    """Carry labels from one vocabulary to another.

    A finding that is present makes every wider one present; a wider one that is absent makes the narrower ones absent;
    nothing else follows. So a lung opacity that is present says nothing of consolidation, and a finding that the
    first set never labelled is unknown.

    Args:
        labels: (N, F_from), 1, 0 or NaN, in the order of `from_set`.
        from_set: their vocabulary.
        to_set: the vocabulary that is wanted.

    Returns:
        float32 (N, F_to), 1, 0 or NaN, in the order of `to_set`.

    Raises:
        DataError: the labels have not the columns of `from_set`.
    """
    given = np.array(labels, dtype=np.float32)
    if given.ndim != 2 or given.shape[1] != len(from_set):
        raise DataError(f"labels of shape {given.shape} do not fit {from_set.key}, which has {len(from_set)} findings")
    if from_set.names == to_set.names:
        return given
    columns = dict(zip(_concepts(from_set), given.T, strict=True))
    mapped = np.full((len(given), len(to_set)), np.nan, dtype=np.float32)
    for position, concept in enumerate(_concepts(to_set)):
        mapped[:, position] = _deduced(concept, columns, len(given))
    return mapped


def _concepts(vocabulary: FindingSet) -> list[str]:
    meanings = _MEANINGS.get(vocabulary.key, {})
    own = ("other lesion", "other diseases")  # what is left over differs from set to set
    names = [meanings.get(name, name.lower()) for name in vocabulary]
    return [f"{vocabulary.key} {name}" if name in own else name for name in names]


def _deduced(concept: str, columns: Mapping[str, npt.NDArray[np.float32]], count: int) -> npt.NDArray[np.float32]:
    """What the columns say of `concept`: itself, else present by a narrower one, else absent by the nearest wider."""
    values = columns[concept].copy() if concept in columns else np.full(count, np.nan, dtype=np.float32)
    for narrower, column in columns.items():
        if concept in _ancestors(narrower):
            values[column == 1] = 1.0
    wider = next((name for name in _ancestors(concept) if name in columns), None)
    if concept not in columns and wider is not None:
        values[np.isnan(values) & (_deduced(wider, columns, count) == 0)] = 0.0
    return values


def _ancestors(concept: str) -> Iterator[str]:
    while concept in _WIDER:
        concept = _WIDER[concept]
        yield concept
