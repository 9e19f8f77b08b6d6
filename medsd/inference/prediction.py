"""What a model says of one study. Every reader of a result (table, app, cases, documents) takes this one class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from medsd.bundle.layout import Call
from medsd.findings import FindingSet

Status = Literal["scored", "warned", "refused"]


@dataclass(frozen=True)
class Prediction:
    """One study's reading.

    Attributes:
        findings: the model's vocabulary, in the order of every array here.
        status: scored; warned (scored, but read `message`); refused (nothing below is filled).
        reason: a code of `medsd.dicom.gate.REASONS`, empty when scored.
        message: the sentence for a person, empty when scored.
        model: name and version of the bundle.
        model_sha256: of its model.onnx.
        provider: the ONNX Runtime execution provider that computed it.
        study_key, patient_key: keyed hashes, never identifiers; empty where the input carries none.
        logits, values: float32 (F,); `values` are the calibrated probabilities.
        calls: present, absent or undecided, by finding.
        embedding: float32 (D,) of unit length.
        evidence_maps: float32 (F, h, w) in the model's grid; class activation, in logits, before pooling.
        out_of_distribution: the largest ratio of a score to its limit; above 1 the film is unlike the training films.
        image: float32 (H, W) in 0…1, the film as it is shown; None for a note alone.
    """

    findings: FindingSet
    status: Status
    reason: str = ""
    message: str = ""
    model: str = ""
    model_sha256: str = ""
    provider: str = ""
    study_key: str = ""
    patient_key: str = ""
    logits: npt.NDArray[np.float32] | None = None
    values: npt.NDArray[np.float32] | None = None
    calls: Mapping[str, Call] = field(default_factory=dict)
    embedding: npt.NDArray[np.float32] | None = None
    evidence_maps: npt.NDArray[np.float32] | None = None
    out_of_distribution: float | None = None
    image: npt.NDArray[np.float32] | None = field(default=None, repr=False)

    @property
    def refused(self) -> bool:
        """True when the study must not be read by this model; `reason` and `message` say why."""
        return self.status == "refused"

    @property
    def probabilities(self) -> dict[str, float]:
        """Calibrated probability by finding; empty when refused."""
        if self.values is None:
            return {}
        return {name: float(value) for name, value in zip(self.findings, self.values, strict=True)}

    @property
    def present(self) -> tuple[str, ...]:
        """The findings called present."""
        return tuple(name for name in self.findings if self.calls.get(name) == "present")
