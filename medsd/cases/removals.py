"""Who was removed from an index, so that adding the same table again does not bring a patient back.

The list holds keyed hashes of the index's keys, under a random secret of the index, so it identifies nobody and the
lists of two indexes cannot be compared.
"""

import secrets
from functools import cached_property
from typing import Self

from pydantic import Field

from medsd.cases.case import Case
from medsd.privacy import KeyedHasher
from medsd.strict import Described

_DIGITS = 32


class Removals(Described):
    """Patients who were removed."""

    # Drawn when the index is made.
    secret: str = Field(default_factory=lambda: secrets.token_hex(32), pattern="^([0-9a-f]{2})+$", repr=False)
    # The hash of each patient's key, with those of the keys of the studies that were removed.
    patients: dict[str, tuple[str, ...]] = Field({})

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
        return type(self)(secret=self.secret, patients={**self.patients, patient: tuple(sorted(studies))})

    def without_patient(self, patient_key: str) -> Self:
        """The list without this patient, who may be added again."""
        gone = self._hash("patient", patient_key)
        kept = {key: studies for key, studies in self.patients.items() if key != gone}
        return type(self)(secret=self.secret, patients=kept)

    def holds(self, patient_key: str) -> bool:
        return self._hash("patient", patient_key) in self.patients

    @cached_property
    def _studies(self) -> frozenset[str]:
        return frozenset(study for studies in self.patients.values() for study in studies)

    def _hash(self, domain: str, key: str) -> str:
        hasher = KeyedHasher(bytes.fromhex(self.secret))
        return hasher.digest(f"removed {domain}", key).hex()[:_DIGITS] if key else ""
