"""The model against radiologists' labels of NIH ChestX-ray14, where they exist: measured only, never trained on.

NIH's own labels were mined from reports. Radiologists looked at part of the images for the RSNA challenge of 2018 (Shih
et al., Radiology: Artificial Intelligence 2019; `rsna_class.csv`) and for Google (Majkowska et al., Radiology 2020;
`google4.csv`). Each of their words is scored by the largest probability of the findings that it may mean (`QUESTIONS`).
An opacity may be any finding whose name says that air spaces are filled; atelectasis is a loss of volume. Google's
fracture corresponds to no finding of NIH's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from medsd.errors import DataError
from medsd.evaluation.subgroups import Images
from medsd.metrics.intervals import Interval, bootstrap, rarer_patients
from medsd.metrics.metrics import FloatArray, enough, weighted_auroc
from medsd.strict import Described

IMAGE = "Image Index"
_OPACITY = ("Consolidation", "Edema", "Infiltration", "Pneumonia")
_RSNA = {"lung opacity": 1.0, "normal": 0.0, "no lung opacity / not normal": 0.0}
_GOOGLE = {"yes": 1.0, "no": 0.0}


@dataclass(frozen=True)
class RadiologistQuestion:
    """What radiologists were asked: where the answer stands, what its words mean, and which findings answer it."""

    name: str
    table: str
    column: str
    words: dict[str, float]
    findings: tuple[str, ...]


QUESTIONS = (
    RadiologistQuestion("Pneumothorax (Google)", "google4.csv", "Pneumothorax", _GOOGLE, ("Pneumothorax",)),
    RadiologistQuestion("Nodule or mass (Google)", "google4.csv", "Nodule or mass", _GOOGLE, ("Nodule", "Mass")),
    RadiologistQuestion("Airspace opacity (Google)", "google4.csv", "Airspace opacity", _GOOGLE, _OPACITY),
    RadiologistQuestion("Lung opacity (RSNA)", "rsna_class.csv", "class", _RSNA, _OPACITY),
)


class RadiologistReport(Described):
    """One question to radiologists; figures have no value where there are too few answers.

    `auroc` is that of the largest probability of `findings` (titles) against the radiologists, `mined` the same against
    the labels of the data set, any of `findings`; `gap` is `auroc` less `mined`.
    """

    name: str
    findings: tuple[str, ...]
    images: int
    patients: int
    positives: int
    negatives: int
    auroc: Interval = Interval()
    mined: Interval = Interval()
    gap: Interval = Interval()


def read_radiologists(folder: Path, paths: Iterable[object]) -> dict[str, FloatArray]:
    """The answers of radiologists to N images, by the name of each question (N,) 1, 0 or NaN where nobody was asked.

    `folder` has rsna_class.csv, google4.csv, or one of them. Images are known by file name, as NIH names them. A
    DataError is raised if there is neither, or one cannot be read or lacks a column.
    """
    names = [PurePosixPath(path).name if isinstance(path, str) else "" for path in paths]
    found: dict[str, FloatArray] = {}
    for question in QUESTIONS:
        path = folder / question.table
        if not path.is_file():
            continue
        try:
            table = pd.read_csv(path, usecols=[IMAGE, question.column], dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read as a table with the columns {IMAGE} and {question.column} "
                f"({type(error).__name__})"
            ) from None
        table["answer"] = table[question.column].str.strip().str.lower().map(question.words)
        answers = table.groupby(IMAGE)["answer"].agg(["min", "max"])
        agreed = answers["max"].where(answers["min"] == answers["max"])  # NaN where two rows say the opposite
        found[question.name] = agreed.reindex(names).to_numpy(dtype=np.float64)
    if not found:
        tables = " nor ".join(sorted({question.table for question in QUESTIONS}))
        raise DataError(f"{folder}: neither {tables} is here; set evaluation.radiologists to their folder")
    return found


def measure_radiologists(images: Images, answers: dict[str, FloatArray]) -> tuple[RadiologistReport, ...]:
    """Measure each question of `answers` (see `read_radiologists`) whose findings the model has."""
    return tuple(
        _measure(question, images, answers[question.name])
        for question in QUESTIONS
        if question.name in answers and set(question.findings) <= set(images.titles)
    )


def _measure(question: RadiologistQuestion, images: Images, answers: FloatArray) -> RadiologistReport:
    rows, names = ~np.isnan(answers), list(images.titles)
    columns = [names.index(name) for name in question.findings]
    truth, score = answers[rows], images.probs[rows][:, columns].max(axis=1)
    labels, patients = images.target[rows][:, columns], images.patients[rows]
    # Any of the findings; where none is known to be present and one is unknown, unknown.
    mined = np.where((labels == 1).any(axis=1), 1.0, labels.sum(axis=1))
    report = RadiologistReport(
        name=question.name,
        findings=tuple(images.titles[name] for name in question.findings),
        images=int(rows.sum()),
        patients=len(set(patients)),
        positives=int((truth == 1).sum()),
        negatives=int((truth == 0).sum()),
    )
    if not enough(truth[:, None], images.options.minimum_positives)[0]:
        return report
    drawn, known = images.options.draw(patients), ~np.isnan(mined)

    def statistic(weights: FloatArray) -> FloatArray:
        theirs = weighted_auroc(truth, score, weights)
        own = weighted_auroc(mined[known], score[known], weights[:, known])
        return np.column_stack([theirs, own, theirs - own])

    cases = int(rarer_patients(truth[:, None], drawn.patient_of)[0])
    auroc, of_mined, gap = bootstrap(statistic, drawn, images.options.confidence, (-1, 1), cases=cases)
    if not enough(mined[:, None], images.options.minimum_positives)[0]:
        of_mined = gap = Interval()
    return report.model_copy(update={"auroc": auroc.within(0, 1), "mined": of_mined.within(0, 1), "gap": gap})
