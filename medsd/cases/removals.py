"""Who was removed from an index, so that adding the same table again does not bring a patient back.

The list holds keyed hashes of the index's keys, under a random secret of the index, so it identifies nobody and the
lists of two indexes cannot be compared.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from medsd.cases.case import Case
from medsd.privacy import KeyedHasher

_DIGITS = 32


@dataclass(frozen=True)
class Removals:
    """Patients who were removed."""

    secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)  # drawn when the index is made
    # The hash of each patient's key, with those of the keys of the studies that were removed.
    patients: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def bars(self, case: Case) -> bool:
        """Whether a case is of a removed patient, by the patient's key or by the study's."""
        if not self.patients:
            return False
        return self._hash("patient", case.patient_key) in self.patients or (
            self._hash("study", case.study_key) in self._studies
        )

    def with_patient(self, patient_key: str, study_keys: list[str]) -> Self:
        """The list with one more patient, whose studies in the index had `study_keys`."""
        patient = self._hash("patient", patient_key)
        studies = {*self.patients.get(patient, ()), *(self._hash("study", key) for key in study_keys if key)}
        return replace(self, patients={**self.patients, patient: tuple(sorted(studies))})

    def without_patient(self, patient_key: str) -> Self:
        """The list without this patient, who may be added again."""
        gone = self._hash("patient", patient_key)
        return replace(self, patients={key: studies for key, studies in self.patients.items() if key != gone})

    def holds(self, patient_key: str) -> bool:
        """Whether this patient was removed."""
        return self._hash("patient", patient_key) in self.patients

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `of` reads it."""
        return {"secret": self.secret, "patients": {key: list(studies) for key, studies in self.patients.items()}}

    @classmethod
    def of(cls, tree: Any) -> Self:
        """The list that `as_dict` gave; raises KeyError, TypeError or ValueError for anything else."""
        bytes.fromhex(tree["secret"])
        return cls(tree["secret"], {str(key): tuple(studies) for key, studies in tree["patients"].items()})

    @cached_property
    def _studies(self) -> frozenset[str]:
        return frozenset(study for studies in self.patients.values() for study in studies)

    def _hash(self, domain: str, key: str) -> str:
        hasher = KeyedHasher(bytes.fromhex(self.secret))
        return hasher.digest(f"removed {domain}", key).hex()[:_DIGITS] if key else ""
