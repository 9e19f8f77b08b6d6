"""What a model says of one study. Every reader of a result (table, app, cases, documents) takes this one class."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from medsd.calibration.conformal import ConformalSet
from medsd.calibration.types import Call
from medsd.errors import DataError
from medsd.findings import FindingSet
from medsd.preprocessing.pixels import evidence_to_image
from medsd.settings import PixelSpec

Status = Literal["scored", "warned", "refused"]
NOT_TRAINED: Literal["not trained"] = "not trained"  # stands where a call would
Said = Call | Literal["not trained"]


@dataclass(frozen=True)
class Prediction:
    """One study's reading.

    Attributes:
        findings: the model's vocabulary, in the order of every array here.
        status: scored; warned (scored, but read `message`); refused (no numbers of the findings are filled).
        reason: a code of `medsd.dicom.policy.REASONS`, empty when scored; "no_image" where an image is missing.
        message: the sentence for a person, empty when scored.
        model: name and version of the bundle.
        model_sha256: of its model.onnx.
        provider: the ONNX Runtime execution provider that computed it.
        study_key, patient_key, instance_key: keyed hashes, never identifiers; empty where the input carries none.
        view: of the image, as in `medsd.preprocessing.image.DecodedImage`; "" where nothing says.
        study_keys, patient_keys: all keys under which study and patient may be cases, to leave those out of an answer;
            one of them may be public, so they are never shown. Without them the two keys above count.
        logits, values: float32 (F,); `values` are the calibrated probabilities, NaN for a finding that was not trained.
        calls: present, absent or undecided, by finding that was trained; at the operating points, or conformal where
            `coverage` is set.
        coverage: what the conformal calls promise; None for calls at the operating points.
        conformal_sets: by finding, where `coverage` is set: "present", "absent", "both" (undecided for want of
            certainty) or "neither" (undecided, because it is unlike the validation images of either class).
        embedding: float32 (D,) of unit length.
        evidence_maps: float32 (F, h, w) in the model's grid; what each place adds to the logit, beyond
            an average image where the bundle has one.
        regions: float32 (D, h, w), what each place of the image adds to the embedding: it is their mean and the note's
            part; None where there is no image.
        out_of_distribution: the largest ratio of a score to its limit; above 1 the image is unlike the training images.
        pixel_spec: how the image became the model's square; `evidence` goes that way back.
        image: float32 (H, W) in 0…1, the image as it is shown; None for a note alone.
        spacing_mm, spacing_from: distance of its rows and of its columns, and the DICOM attribute that says so; None
            and "" where nothing does.
        ends: of the window that 0 and 1 of `image` are, in the units of the DICOM file, as in
            `medsd.dicom.greys.StoredGreys`; None where it gives none.
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
    instance_key: str = ""
    view: str = ""
    study_keys: tuple[str, ...] = field(default=(), repr=False)
    patient_keys: tuple[str, ...] = field(default=(), repr=False)
    logits: npt.NDArray[np.float32] | None = None
    values: npt.NDArray[np.float32] | None = None
    calls: Mapping[str, Call] = field(default_factory=dict)
    coverage: float | None = None
    conformal_sets: Mapping[str, ConformalSet] = field(default_factory=dict)
    embedding: npt.NDArray[np.float32] | None = None
    evidence_maps: npt.NDArray[np.float32] | None = None
    regions: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    out_of_distribution: float | None = None
    pixel_spec: PixelSpec | None = None
    image: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    spacing_mm: tuple[float, float] | None = None
    spacing_from: str = ""
    ends: tuple[float, float] | None = None

    @property
    def refused(self) -> bool:
        """True when the study must not be read by this model; `reason` and `message` say why."""
        return self.status == "refused"

    @cached_property
    def probabilities(self) -> dict[str, float]:
        """Calibrated probability by finding that was trained; empty when refused."""
        if self.values is None:
            return {}
        found = zip(self.findings, self.values, strict=True)
        return {name: float(value) for name, value in found if not np.isnan(value)}

    @cached_property
    def not_trained(self) -> tuple[str, ...]:
        """The findings of which the model can say nothing; empty when refused."""
        if self.values is None:
            return ()
        return tuple(name for name, value in zip(self.findings, self.values, strict=True) if np.isnan(value))

    @cached_property
    def ranked(self) -> tuple[str, ...]:
        """The findings, most probable first, those that were not trained last; empty when refused."""
        probabilities = self.probabilities
        return (*sorted(probabilities, key=lambda name: -probabilities[name]), *self.not_trained)

    def said(self, name: str) -> Said:
        """The call of a finding, or "not trained"."""
        return NOT_TRAINED if name in self.not_trained else self.calls.get(name, "undecided")

    @property
    def present(self) -> tuple[str, ...]:
        """The findings called present."""
        return tuple(name for name in self.findings if self.calls.get(name) == "present")

    @property
    def neither(self) -> tuple[str, ...]:
        """The findings of which neither presence nor absence conforms with this study, at the named coverage."""
        return tuple(name for name in self.findings if self.conformal_sets.get(name) == "neither")

    def evidence(self, name: str) -> npt.NDArray[np.float32]:
        """Where in the image the evidence for a finding lies: its class activation map laid over `image`.

        Args:
            name: a finding of the model's vocabulary.

        Returns:
            float32 (H, W), the size of `image`, in logits: positive speaks for the finding, negative against it.

        Raises:
            DataError: no such finding, or there is no image behind this prediction.
        """
        position = self._position(name)
        if name in self.not_trained:
            raise DataError(f"no evidence for '{name}': the model was not trained for it")
        if self.evidence_maps is None or self.image is None or self.pixel_spec is None:
            why = "the study was refused" if self.refused else "there is no image"
            raise DataError(f"no evidence for '{name}': {why}; evidence maps need an image that was scored")
        height, width = self.image.shape
        return evidence_to_image(self.evidence_maps[position], (height, width), self.pixel_spec)

    def _position(self, name: str) -> int:
        names = tuple(self.findings)
        if name in names:
            return names.index(name)
        lowered = {known.lower(): known for known in names}
        near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
        hint = f"did you mean '{lowered[near[0]]}'?" if near else f"it has {', '.join(names)}"
        raise DataError(f"'{name}' is no finding of {self.findings.key}; {hint}")
