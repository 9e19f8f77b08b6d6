"""What can be found on a chest radiograph: ordered vocabularies of findings, their codes and their synonyms.

Start at `FindingSet`. Every table, tensor and ONNX output of medsd has its columns in the order of one finding set;
nothing else in the code lists findings. Codes are SNOMED CT concept identifiers and RadLex identifiers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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

FINDING_SETS: Mapping[str, FindingSet] = {
    # Wang et al., ChestX-ray8, CVPR 2017; fourteen labels in the 2017 extension, alphabetical order.
    "nih14": FindingSet(
        "nih14",
        (
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
        ),
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
}


def finding_set(key: str) -> FindingSet:
    """The vocabulary called `key`.

    Raises:
        DataError: there is none of that name.
    """
    try:
        return FINDING_SETS[key]
    except KeyError:
        raise DataError(f"there is no finding set '{key}'; medsd has {', '.join(sorted(FINDING_SETS))}") from None
