"""`Predictor`: a film, a note or both in, a `Prediction` out. The one call behind the app, the tables and the node.

A predictor holds no state between calls; threads may share one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medsd.bundle.layout import Bundle
from medsd.dicom.gate import REASONS, GatePolicy
from medsd.dicom.policy import concern
from medsd.errors import BundleError
from medsd.inference import out_of_distribution
from medsd.inference.coverage import called, conformal_limits
from medsd.inference.prediction import Prediction, Status
from medsd.inference.session import ModelSession, Outputs, PrecisionChoice, ProviderChoice
from medsd.inference.verdict import Verdict
from medsd.preprocessing.film import Film, Source, named, read_film
from medsd.preprocessing.notes import NoteTokenizer, clean_note
from medsd.preprocessing.pixels import to_batch

if TYPE_CHECKING:
    from medsd.privacy import KeyedHasher

_CHUNK = 16  # studies in one run of the graph; bounds the memory of a long list
_FAR = "This one is far from them and is not scored."


@dataclass(frozen=True)
class Study:
    """One study ready for the graph: the film behind the gate, or None, and the note, "" for none."""

    film: Film | None
    note: str = ""


class Predictor:
    """A bundle, ready to read studies.

    Args:
        bundle: an opened bundle, or its folder.
        provider: ``"auto"`` takes a GPU where one works, else the CPU; or one by name, as for `ModelSession`.
        precision: ``"auto"`` takes float16 on a GPU and float32 on a CPU; see `ModelSession`.
        require_gpu: make a fall to the CPU an error.
        policy: what the gate refuses, warns about and accepts; frontal chest radiographs by default.
        hasher: makes `study_key`, `patient_key` and `instance_key`; without it they stay empty.
        coverage: None for calls at the operating points; a share, for instance 0.9, for conformal calls, of which the
            truth is in the set of at least that share of patients, for those who have a finding and those who do not
            (see `medsd.calibration.conformal`).
        threads: of the CPU provider; 0 takes the processors that this process may use.
        decode: reads paths and contents of files, ``decode(source, name) -> Film``; for
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
        decode: Callable[[Path | bytes, str], Film] | None = None,
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
        """Whether this model reads films; where not, they are ignored, and only the note is read."""
        return self.bundle.description.image

    def __call__(self, source: Source | None, note: str | None = None, *, name: str = "") -> Prediction:
        """Read one study.

        Args:
            source: a path, the content of a file, an array (H, W) in 0…1 with dark air, a `Radiograph`, or None.
            note: the clinical note; a blank one counts as none. A model without a note encoder ignores it.
            name: how messages call the film; the file's name by default.

        Returns:
            the prediction; a film that must not be scored gives one of status ``"refused"``, not an exception.
        """
        return self.batch([(source, note)], names=[name])[0]

    def batch(
        self, studies: Sequence[tuple[Source | None, str | None]], *, names: Sequence[str] | None = None
    ) -> list[Prediction]:
        """Read many studies; the same as one after another, but faster.

        Args:
            studies: pairs of film and note, as in a single call.
            names: how messages call each film.
        """
        names = names if names is not None else [""] * len(studies)
        predictions: list[Prediction] = []
        for start in range(0, len(studies), _CHUNK):
            chunk = zip(studies[start : start + _CHUNK], names[start : start + _CHUNK], strict=True)
            predictions += self.read([self._study(source, note, name) for (source, note), name in chunk])
        return predictions

    def _study(self, source: Source | None, note: str | None, name: str) -> Study:
        if source is None or not self.takes_images:
            return Study(None, note or "")
        if self._decode is not None and isinstance(source, (Path, str, bytes)):
            return Study(self._decode(Path(source) if isinstance(source, str) else source, name), note or "")
        spec = self.bundle.description.pixels
        return Study(read_film(source, spec, policy=self.policy, hasher=self.hasher, name=name), note or "")

    def read(self, studies: Sequence[Study]) -> list[Prediction]:
        """Read studies whose films were decoded before, in one run of the graph."""
        refusals = [self._refusal(study) for study in studies]
        scored = [study for study, refusal in zip(studies, refusals, strict=True) if refusal is None]
        readings = iter(self._score(scored) if scored else [])
        return [refusal or next(readings) for refusal in refusals]

    def _refusal(self, study: Study) -> Prediction | None:
        """Why a study cannot go to the graph, or None."""
        film = study.film
        if film is not None and film.pixels is None:
            return self._prediction(film, "refused", film.reason, film.message)
        if not self.takes_images:
            return None if clean_note(study.note) else self._prediction(None, "refused", "no_note", REASONS["no_note"])
        if film is not None or (self.takes_notes and clean_note(study.note)):
            return None
        detail = (
            "and no note; give at least one" if self.takes_notes else "this model reads no notes; give a radiograph"
        )
        return self._prediction(None, "refused", "no_image", concern("no_image", detail=detail).message)

    def _score(self, studies: Sequence[Study]) -> list[Prediction]:
        pixels = self._pixels(studies)  # (B, S, S)
        outputs = self.session.run(self._feeds(studies, pixels))
        self._check(outputs)
        verdicts = self._reference.judge(pixels, outputs.embedding) if self._reference else [None] * len(studies)
        return [
            self._reading(study, outputs, row, verdict if study.film else None)
            for row, (study, verdict) in enumerate(zip(studies, verdicts, strict=True))
        ]

    def _check(self, outputs: Outputs) -> None:
        """That NaN means "not trained" and nothing else; an overflow must not be read as that.

        Raises:
            BundleError: a finding has no number that should have one, or has one that should not.
        """
        odd = (np.isnan(outputs.probabilities) != self._silent).any(axis=0)
        if odd.any():
            names = ", ".join(np.array(self.bundle.findings.names)[odd])
            raise BundleError(
                f"{self.bundle.graph_path(self.session.precision)}: gives no number where it should, or one where "
                f"nothing was trained ({names}); try float32, else export the bundle again"
            )

    def _pixels(self, studies: Sequence[Study]) -> npt.NDArray[np.uint8]:
        """What the model sees (B, S, S); zeros stand for a missing film."""
        side = self.bundle.description.pixels.size
        missing = np.zeros((side, side), np.uint8)
        films = [study.film for study in studies]
        return np.stack([missing if f is None or f.pixels is None else f.pixels for f in films])

    def _feeds(self, studies: Sequence[Study], pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        feeds: dict[str, npt.NDArray[Any]] = {"pixels": to_batch(list(pixels))}
        if self._tokenizer is not None:
            notes = self._tokenizer([study.note for study in studies])
            feeds["has_image"] = np.array([study.film is not None for study in studies], np.float32)
            feeds |= {"note_ids": notes.ids, "note_mask": notes.mask, "has_note": notes.given}
        return {name: feeds[name] for name in self.bundle.description.inputs}

    def _reading(self, study: Study, outputs: Outputs, row: int, verdict: Verdict | None) -> Prediction:
        status, reason, message = self._judgement(study.film, verdict)
        value = verdict.value if verdict else None
        if status == "refused":
            return self._prediction(study.film, status, reason, message, out_of_distribution=value)
        values = outputs.probabilities[row]
        return self._prediction(
            study.film,
            status,
            reason,
            message,
            out_of_distribution=value,
            logits=outputs.logits[row],
            values=values,
            **self._calls(values),
            embedding=outputs.embedding[row],
            evidence_maps=outputs.evidence[row] if study.film and outputs.evidence is not None else None,
            regions=outputs.regions[row] if study.film and outputs.regions is not None else None,
        )

    def _judgement(self, film: Film | None, verdict: Verdict | None) -> tuple[Status, str, str]:
        """The gate's word and the verdict on the look of the film, as one."""
        status: Status = film.status if film else "scored"
        reason, message = (film.reason, film.message) if film else ("", "")
        if verdict is None or not verdict.reason or verdict.reason == reason:
            return status, reason, message
        action = self.policy.action(verdict.reason)
        if action == "accept":
            return status, reason, message
        said = concern(verdict.reason, detail=verdict.detail).message
        sentence = named(film.name if film else "", said)
        far = verdict.far and reason != "inverted_look"  # a negative is far from everything, and known for what it is
        if (action == "refuse" and verdict.firm) or far:
            return "refused", verdict.reason, f"{sentence} {_FAR}" if far else sentence
        return "warned", reason or verdict.reason, f"{message} Also: {said}" if message else sentence

    def _calls(self, values: npt.NDArray[np.float32]) -> dict[str, Any]:
        return called(self.bundle, values, self.coverage, self._limits)

    def _prediction(self, film: Film | None, status: Status, reason: str, message: str, **found: Any) -> Prediction:
        return Prediction(
            self.bundle.findings,
            status,
            reason,
            message,
            model=self.bundle.label,
            model_sha256=self.bundle.model_sha256,
            provider=self.session.provider,
            study_key=film.study_key if film else "",
            patient_key=film.patient_key if film else "",
            instance_key=film.instance_key if film else "",
            view=film.view if film else "",
            study_keys=film.study_keys if film else (),
            patient_keys=film.patient_keys if film else (),
            pixel_spec=self.bundle.description.pixels,
            image=film.image if film else None,
            **found,
        )
