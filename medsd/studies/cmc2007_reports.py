"""The reports of the 2007 Computational Medicine Challenge as they are published; the only reader of them in medsd.

One XML file, `2007ChallengeTrainData.xml`: radiology reports of children, each with its clinical history, its
impression, and the ICD-9-CM codes that three companies and their majority gave it. Free for research.

Pestian JP, Brew C, Matykiewicz P, et al. A shared task involving multi-label classification of clinical free text.
BioNLP, ACL 2007:97–104.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.studies.splits import fixed_fifth

TABLE = "2007ChallengeTrainData.xml"
FEWEST_REPORTS = 5  # of a code that is dealt out evenly


@dataclass(frozen=True)
class CodedReport:
    """One report.

    Attributes:
        name: the document's number.
        text: history and impression in one.
        codes: the majority's.
    """

    name: str
    text: str
    codes: frozenset[str]


def read_coded_reports(path: Path) -> list[CodedReport]:
    """The reports in their order.

    Raises:
        DataError: there is no such file, or it is no XML, or it declares a document type, which could define entities.
    """
    try:
        content = path.read_bytes()
        if b"<!DOCTYPE" in content:
            raise DataError(
                f"{path}: declares a document type, which the challenge's file does not; take it as published"
            )
        root = ElementTree.fromstring(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}); is the data set complete?") from None
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: no valid XML (line {error.position[0]})") from None
    return [
        CodedReport(
            document.get("id", f"{number:06d}"),
            " ".join(text.text or "" for text in document.iter("text")),
            frozenset(code.text or "" for code in document.iter("code") if code.get("origin") == "CMC_MAJORITY"),
        )
        for number, document in enumerate(root.iter("doc"))
    ]


def common_codes(reports: list[CodedReport]) -> tuple[str, ...]:
    """The codes of `FEWEST_REPORTS` reports or more, in their order."""
    every = sorted(set().union(*(report.codes for report in reports)))
    return tuple(code for code in every if sum(code in report.codes for report in reports) >= FEWEST_REPORTS)


def coded(reports: list[CodedReport], codes: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """(N, F) 1 where a report has a code, else 0."""
    return np.array([[code in report.codes for code in codes] for report in reports], dtype=np.float32)


def tested_fifth(reports: list[CodedReport]) -> npt.NDArray[np.bool_]:
    """(N,) True for the fixed fifth that is tested; reports of rare codes alone are never in it."""
    labels = coded(reports, common_codes(reports))
    dealt = labels.any(axis=1)
    chosen = np.zeros(len(reports), dtype=bool)
    chosen[dealt] = fixed_fifth(labels[dealt], np.array([f"{row:06d}" for row in range(int(dealt.sum()))]))
    return chosen
