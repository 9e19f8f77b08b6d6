"""`Predictor`: an image, a note or both in, a `Prediction` out. The one call behind the app, the tables and the node.

A predictor holds no state between calls; threads may share one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.bundle.layout import Bundle
from medsd.dicom.policy import REASONS, GatePolicy, concern
from medsd.errors import BundleError
from medsd.inference import out_of_distribution
from medsd.inference.coverage import called, conformal_limits
from medsd.inference.out_of_distribution import Verdict
from medsd.inference.prediction import Prediction, Status
from medsd.inference.providers import PrecisionChoice, ProviderChoice
from medsd.inference.session import ModelSession, Outputs
from medsd.preprocessing.image import DecodedImage, Source, named, read_image
from medsd.preprocessing.notes import NoteTokenizer, clean_note
from medsd.preprocessing.pixels import to_batch
from medsd.privacy import KeyedHasher

_CHUNK = 16  # studies in one run of the graph; bounds the memory of a long list
_FAR = "This one is far from them and is not scored."


@dataclass(frozen=True)
class Study:
    """One study ready for the graph: the image behind the gate, or None, and the note, "" for none."""

    image: DecodedImage | None
    note: str = ""


class Predictor:
    """A bundle, ready to read studies.

    Args:
        bundle: an opened bundle, or its folder.
        provider: ``"auto"`` takes a GPU where one works (CUDA), else the CPU; ``"cpu"``, ``"cuda"``, ``"tensorrt"``
            (falls to CUDA) or ``"openvino"``.
        precision: ``"auto"`` takes the float16 graph on a GPU where the bundle has one, else float32; ``"float32"``,
            ``"float16"`` or ``"int8"``.
        require_gpu: make a fall to the CPU an error instead of a logged warning.
        policy: what the gate refuses, warns about and accepts; frontal chest radiographs by default.
        hasher: makes `study_key`, `patient_key` and `instance_key`; without it they stay empty.
        coverage: None for calls at the operating points; a share, for instance 0.9, for conformal calls: the set of
            calls holds the truth for at least that share of the patients with a finding, and of those without it (see
            `medsd.calibration.conformal`).
        threads: of the CPU provider; 0 takes the processors that this process may use.
        decode: reads paths and contents of files, ``decode(source, name) -> DecodedImage``; for
            instance `medsd.preprocessing.decode.Decoder.helper`, a process that the policy's limits bound.
            By default they are read in this process, which only the policy's limits of size bound.

    Raises:
        BundleError: no bundle, an altered one, or a graph that is not the one it describes; when it reads, also where
            a probability is not a number and should be one.
        DependencyError: `require_gpu` and no GPU computes.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        *,
        provider: ProviderChoice = "auto",
        precision: PrecisionChoice = "auto",
        require_gpu: bool = False,
        policy: GatePolicy | None = None,
        hasher: KeyedHasher | None = None,
        coverage: float | None = None,
        threads: int = 0,
        decode: Callable[[Path | bytes, str], DecodedImage] | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.policy = policy or GatePolicy()
        self.hasher = hasher
        self.coverage = coverage
        self._limits = None if coverage is None else conformal_limits(self.bundle, coverage)
        self._decode = decode
        self.session = ModelSession(
            self.bundle, provider=provider, precision=precision, require_gpu=require_gpu, threads=threads
        )
        spec = self.bundle.description.note
        self._tokenizer = NoteTokenizer(self.bundle.tokenizer_path, spec) if spec else None
        self._reference = out_of_distribution.load(self.bundle)
        self._silent = np.isin(self.bundle.findings.names, list(self.bundle.description.not_trained))

    @property
    def takes_notes(self) -> bool:
        """Whether a note changes what this model says; where not, notes are ignored."""
        return self._tokenizer is not None

    @property
    def takes_images(self) -> bool:
        """Whether this model reads images; where not, they are ignored, and only the note is read."""
        return self.bundle.description.image

    def __call__(self, source: Source | DecodedImage | None, note: str | None = None, *, name: str = "") -> Prediction:
        """Read one study.

        Args:
            source: a path, the content of a file, an array (H, W) in 0…1 with dark air, a `Radiograph`, an image that
                was decoded before, or None.
            note: the clinical note; a blank one counts as none. A model without a note encoder ignores it.
            name: how messages call the image; the file's name by default.

        Returns:
            the prediction; an image that must not be scored gives one of status ``"refused"``, not an exception.
        """
        return self.batch([(source, note)], names=[name])[0]

    def batch(
        self, studies: Sequence[tuple[Source | DecodedImage | None, str | None]], *, names: Sequence[str] | None = None
    ) -> list[Prediction]:
        """Read many studies, pairs of image and note as in a single call; the same as one after another, but faster."""
        names = names if names is not None else [""] * len(studies)
        predictions: list[Prediction] = []
        for start in range(0, len(studies), _CHUNK):
            chunk = zip(studies[start : start + _CHUNK], names[start : start + _CHUNK], strict=True)
            predictions += self.read([self._study(source, note, name) for (source, note), name in chunk])
        return predictions

    def _study(self, source: Source | DecodedImage | None, note: str | None, name: str) -> Study:
        if source is None or not self.takes_images:
            return Study(None, note or "")
        if isinstance(source, DecodedImage):
            return Study(source, note or "")
        if self._decode is not None and isinstance(source, (Path, str, bytes)):
            return Study(self._decode(Path(source) if isinstance(source, str) else source, name), note or "")
        spec = self.bundle.description.pixels
        return Study(read_image(source, spec, policy=self.policy, hasher=self.hasher, name=name), note or "")

    def read(self, studies: Sequence[Study]) -> list[Prediction]:
        """Read studies whose images were decoded before, in one run of the graph."""
        refusals = [self._refusal(study) for study in studies]
        scored = [study for study, refusal in zip(studies, refusals, strict=True) if refusal is None]
        readings = iter(self._score(scored) if scored else [])
        return [refusal or next(readings) for refusal in refusals]

    def _refusal(self, study: Study) -> Prediction | None:
        """Why a study cannot go to the graph, or None."""
        image = study.image
        if image is not None and image.pixels is None:
            return self._prediction(image, "refused", image.reason, image.message)
        if not self.takes_images:
            return None if clean_note(study.note) else self._prediction(None, "refused", "no_note", REASONS["no_note"])
        if image is not None or (self.takes_notes and clean_note(study.note)):
            return None
        detail = (
            "and no note; give at least one" if self.takes_notes else "this model reads no notes; give a radiograph"
        )
        return self._prediction(None, "refused", "no_image", concern("no_image", detail=detail).message)

    def _score(self, studies: Sequence[Study]) -> list[Prediction]:
        side, images = self.bundle.description.pixels.size, [study.image for study in studies]
        missing = np.zeros((side, side), np.uint8)  # what the model sees in the place of an image
        pixels = np.stack([missing if each is None or each.pixels is None else each.pixels for each in images])
        outputs = self.session.run(self._feeds(studies, pixels))
        self._check(outputs)
        verdicts = self._reference.judge(pixels, outputs.embedding) if self._reference else [None] * len(studies)
        return [
            self._reading(study, outputs, row, verdict if study.image else None)
            for row, (study, verdict) in enumerate(zip(studies, verdicts, strict=True))
        ]

    def _check(self, outputs: Outputs) -> None:
        """That NaN means "not trained" and nothing else; an overflow must not be read as that."""
        odd = (np.isnan(outputs.probabilities) != self._silent).any(axis=0)
        if odd.any():
            names = ", ".join(np.array(self.bundle.findings.names)[odd])
            raise BundleError(
                f"{self.bundle.graph_path(self.session.precision)}: gives no number where it should, or one where "
                f"nothing was trained ({names}); try float32, else export the bundle again"
            )

    def _feeds(self, studies: Sequence[Study], pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        feeds: dict[str, npt.NDArray[Any]] = {"pixels": to_batch(list(pixels))}
        if self._tokenizer is not None:
            notes = self._tokenizer([study.note for study in studies])
            feeds["has_image"] = np.array([study.image is not None for study in studies], np.float32)
            feeds |= {"note_ids": notes.ids, "note_mask": notes.mask, "has_note": notes.given}
        return {name: feeds[name] for name in self.bundle.description.inputs}

    def _reading(self, study: Study, outputs: Outputs, row: int, verdict: Verdict | None) -> Prediction:
        status, reason, message = self._judgement(study.image, verdict)
        value = verdict.value if verdict else None
        if status == "refused":
            return self._prediction(study.image, status, reason, message, out_of_distribution=value)
        values = outputs.probabilities[row]
        return self._prediction(
            study.image,
            status,
            reason,
            message,
            out_of_distribution=value,
            logits=outputs.logits[row],
            values=values,
            **called(self.bundle, values, self.coverage, self._limits),
            embedding=outputs.embedding[row],
            evidence_maps=outputs.evidence[row] if study.image and outputs.evidence is not None else None,
            regions=outputs.regions[row] if study.image and outputs.regions is not None else None,
        )

    def _judgement(self, image: DecodedImage | None, verdict: Verdict | None) -> tuple[Status, str, str]:
        """Status, reason and message by the gate and by the check for unlike images."""
        status: Status = image.status if image else "scored"
        reason, message = (image.reason, image.message) if image else ("", "")
        if verdict is None or not verdict.reason or verdict.reason == reason:
            return status, reason, message
        action = self.policy.action(verdict.reason)
        if action == "accept":
            return status, reason, message
        said = concern(verdict.reason, detail=verdict.detail).message
        sentence = named(image.name if image else "", said)
        far = verdict.far and reason != "inverted_look"  # a negative is far from everything, and known for what it is
        if action == "refuse" or far:
            return "refused", verdict.reason, f"{sentence} {_FAR}" if far else sentence
        return "warned", reason or verdict.reason, f"{message} Also: {said}" if message else sentence

    def _prediction(
        self, image: DecodedImage | None, status: Status, reason: str, message: str, **found: Any
    ) -> Prediction:
        given: dict[str, Any] = {}
        if image is not None:
            keys = ("study_key", "patient_key", "instance_key", "study_keys", "patient_keys")
            names = (*keys, "view", "spacing_mm", "spacing_from", "ends")
            given = {name: getattr(image, name) for name in names} | {"image": image.display}
        return Prediction(
            self.bundle.findings,
            status,
            reason,
            message,
            model=self.bundle.label,
            model_sha256=self.bundle.model_sha256,
            provider=self.session.provider,
            pixel_spec=self.bundle.description.pixels,
            **given,
            **found,
        )
