"""`Reporter`: the content of a DICOM file in, the objects of its result out; what `report` and `receive` stand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import Dataset, dcmread, dcmwrite

from medsd.bundle.layout import Bundle
from medsd.cases.index import CaseIndex
from medsd.cases.manage import hasher_of
from medsd.dicom.content import read_content
from medsd.dicom.gate import GatePolicy
from medsd.errors import DataError
from medsd.files import replacing
from medsd.inference.predict import Predictor
from medsd.inference.prediction import Prediction
from medsd.inference.words import impression
from medsd.preprocessing.decode import Decoder
from medsd.results.objects import Kind, objects
from medsd.results.source import Source

if TYPE_CHECKING:
    from medsd.inference.session import PrecisionChoice, ProviderChoice


class Reporter:
    """A bundle that reads images into DICOM objects; a context manager that ends its helper process.

    Args:
        folder: of the bundle.
        kinds: of the objects.
        k: how many similar cases are told of.
        provider, precision, policy, coverage: as for `Predictor`.

    Raises:
        BundleError: no bundle, an altered one, or no cases although `k` asks for some.
        DataError: the model reads no images.
    """

    def __init__(
        self,
        folder: Path,
        kinds: Sequence[Kind] = ("sr",),
        *,
        k: int = 0,
        provider: ProviderChoice = "auto",
        precision: PrecisionChoice = "auto",
        policy: GatePolicy | None = None,
        coverage: float | None = None,
    ) -> None:
        self.bundle = bundle = Bundle.open(folder)
        if not bundle.description.image:
            raise DataError(f"{bundle.label} reads no images, so there is no image to report on")
        self.kinds, self._k, self.policy = tuple(kinds), k, policy or GatePolicy()
        self._cases = CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256) if k else None
        self.hasher = hasher_of(bundle)
        # A process of its own decodes: what others send can be stopped, and may go down, without this one.
        self._helper = Decoder(bundle.description.pixels, self.policy, self.hasher, keep_image=True).helper()
        self._predictor = Predictor(
            bundle,
            provider=provider,
            precision=precision,
            policy=self.policy,
            coverage=coverage,
            hasher=self.hasher,
            decode=self._helper,
        )

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._helper.close()

    def predict(self, content: bytes, note: str | None = None) -> Prediction:
        """Read one image."""
        return self._predictor(content, note)

    def objects(self, prediction: Prediction, content: bytes, previous: Sequence[Dataset] = ()) -> dict[Kind, Dataset]:
        """The objects of a prediction; see `medsd.results.objects.objects`.

        Raises:
            DataError: `content` is no DICOM file, or lacks an identifier.
        """
        cases = [] if self._cases is None or prediction.refused else self._cases.similar(prediction, self._k)
        return objects(prediction, self.bundle, Source.read(content), self.kinds, cases, previous=previous)


@dataclass(frozen=True)
class Written:
    """What was written of one image; names no file but our own."""

    folder: Path
    kinds: tuple[Kind, ...]
    left_out: tuple[Kind, ...]
    prediction: Prediction

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "files": [f"{kind}.dcm" for kind in self.kinds],
            "left_out": list(self.left_out),
            "status": self.prediction.status,
            "reason": self.prediction.reason,
            "message": self.prediction.message,
        }

    def line(self) -> str:
        """For a person."""
        said = self.prediction.message or impression(self.prediction)
        files = ", ".join(f"{kind}.dcm" for kind in self.kinds) or "nothing"
        left = f"; not for this image: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{self.prediction.status}: {said}\n{self.folder}: {files}{left}"


def write_report(
    reporter: Reporter, path: Path, out: Path, *, note: str | None = None, previous: Sequence[Path] = ()
) -> Written:
    """Read one file and write the objects of its result, each as ``KIND.dcm``.

    Args:
        reporter: reads it.
        path: a DICOM file.
        out: a folder, made where it is absent.
        note: the clinical note.
        previous: earlier structured reports of the image, which the new one follows.

    Raises:
        ImageError: the file cannot be read.
        DataError: it is no DICOM file, or lacks an identifier.
    """
    content = read_content(path, reporter.policy, path.name)
    Source.read(content)  # before the model is asked
    prediction = reporter.predict(content, note)
    made = reporter.objects(prediction, content, [_earlier(each) for each in previous])
    out.mkdir(parents=True, exist_ok=True)
    for kind, document in made.items():
        with replacing(out / f"{kind}.dcm") as draft:
            dcmwrite(draft, document, enforce_file_format=True)
    return Written(out, tuple(made), tuple(kind for kind in reporter.kinds if kind not in made), prediction)


def _earlier(path: Path) -> Dataset:
    try:
        document = dcmread(path)
        if document.Modality == "SR":
            return document
    except Exception as error:  # foreign bytes
        raise DataError(f"{path}: cannot be read as an earlier report ({type(error).__name__})") from None
    raise DataError(f"{path}: is no structured report")
