"""Between the feedback of the app and its records in an archive (`medsd.results.assessment`), both ways."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from medsd.apps.web.feedback import FeedbackFolder
from medsd.dicom.identity import read_before_pixels
from medsd.dicom.quiet import quiet
from medsd.errors import DataError
from medsd.inference.prediction import Prediction, Said
from medsd.privacy import KeyedHasher
from medsd.results.assessment import Answer, Opinion, read_assessment
from medsd.results.reporter import Reporter
from medsd.scoring.inputs import expand_inputs


def folder_of(path: Path) -> FeedbackFolder:
    """The folder of the app's feedback, with the keys of this site; DataError where it cannot be made."""
    return FeedbackFolder(path, KeyedHasher.from_environment())


def opinions_on(folder: FeedbackFolder, prediction: Prediction) -> list[Opinion]:
    """What readers said of a prediction in the app."""
    return [
        Opinion(line["finding"], cast(Said, line["call"]), cast(Answer, line["opinion"]), line["reader"])
        for line in folder.opinions_on(prediction)
    ]


@dataclass(frozen=True)
class TakenIn:
    """What came of the records."""

    records: int  # assessments that were read
    opinions: int  # of them, that are in the folder now
    without_image: int  # records whose image was not given, or was refused

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def line(self) -> str:
        """For a person."""
        missing = f"; {self.without_image} without an image that can be read" if self.without_image else ""
        return f"{self.opinions} opinions of {self.records} assessments{missing}"


def take_in(reporter: Reporter, paths: Sequence[Path], folder: FeedbackFolder) -> TakenIn:
    """Keep the opinions of assessments as labels of their images, in `folder`, as the app would have put them there.

    `paths` are files and folders with the assessments and their images; what is neither is passed over. A path that
    does not exist, or a folder that cannot be written, is a DataError.
    """
    images: dict[str, Path] = {}
    records: list[tuple[str, list[Opinion]]] = []
    for path in expand_inputs(paths):
        header = read_before_pixels(path)
        if header is not None and header.get("Modality") == "SR":
            records += _read(path, reporter)
        elif header is not None:
            images[str(header.get("SOPInstanceUID", ""))] = path
    opinions = without_image = 0
    for image, said in records:
        prediction = reporter.predict(images[image]) if image in images else None
        if prediction is None or prediction.refused:
            without_image += 1
            continue
        for opinion in said:
            folder.add(prediction, opinion.finding, opinion.answer, reader=opinion.reader)
        opinions += len(said)
    return TakenIn(len(records), opinions, without_image)


def _read(path: Path, reporter: Reporter) -> list[tuple[str, list[Opinion]]]:
    """The assessment in a file, none where it is another report."""
    try:
        with quiet():
            return [read_assessment(dcmread(path), reporter.bundle.findings)]
    except (DataError, InvalidDicomError, OSError):
        return []
