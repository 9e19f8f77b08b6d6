"""COVID-19 image data collection: radiographs from publications, each with its clinical note and a diagnosis.

Layout: `metadata.csv` and `images/`. The column `finding` names a diagnosis ("COVID-19, ARDS") or a path of diagnoses
("Pneumonia/Viral/COVID-19"). It tells only of pneumonia: "No Finding" means that all fourteen findings of nih14 are
absent, a pneumonia of whatever cause that Pneumonia is present, anything else nothing. CT slices and lateral images are
left out. Notes often name the diagnosis: mask label words. Each image has a licence of its own in the column `license`.

Cohen et al., COVID-19 image data collection, Journal of Machine Learning for Biomedical Imaging 2020:002.
"""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.findings import FindingSet, finding_set
from medsd.settings import CovidSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import tables

_OWNER = "the COVID-19 image data collection"
_NEEDED = ["patientid", "sex", "age", "finding", "view", "modality", "folder", "filename", "clinical_notes"]
# Steps of the finding path that are a pneumonia, or name its germ.
_PNEUMONIAS = {
    "aspergillosis", "aspiration", "bacterial", "chlamydophila", "covid-19", "e.coli", "fungal", "h1n1", "herpes",
    "influenza", "klebsiella", "legionella", "lipoid", "mers-cov", "mrsa", "mycoplasma",
    "mycoplasma bacterial pneumonia", "nocardia", "pneumocystis", "pneumonia", "sars", "staphylococcus",
    "streptococcus", "varicella", "viral",
}  # fmt: skip


def read(settings: CovidSource, splits: SplitSettings) -> Manifest:
    findings = finding_set("nih14")
    entries = tables.read_table(tables.find_table(settings.root, ("metadata.csv",), _OWNER), _NEEDED, _OWNER)
    entries["row"] = np.arange(1, len(entries) + 1)
    entries = entries[(entries["modality"] == "X-ray") & (entries["folder"] == "images")]
    entries = tables.of_views(entries, tables.words(entries["view"], tables.VIEWS) != "", entries["view"], _OWNER)
    table = pd.DataFrame(
        {
            "row": entries["row"],
            "study": entries["filename"].map(lambda name: Path(name).stem),
            "patient": _same_person(entries),
            "path": "images/" + entries["filename"],
            "note": tables.texts(entries["clinical_notes"]),
            "view": tables.words(entries["view"], tables.VIEWS),
            "age": tables.years(entries["age"]),
            "sex": tables.words(entries["sex"], tables.SEXES),
            "source": "covid",
        }
    )
    table[list(findings)] = np.array([_labels(text, findings) for text in entries["finding"]]).reshape(
        -1, len(findings)
    )
    return tables.manifest_of_present(table, findings, settings, splits)


def _labels(finding: str, findings: FindingSet) -> npt.NDArray[np.float32]:
    """(F,) what a diagnosis says of each finding: 1, 0 or NaN."""
    steps = {step.strip().lower() for step in re.split(r"[/,]", finding)}
    if steps == {"no finding"}:
        return findings.encode(["No Finding"])
    row = np.full(len(findings), np.nan, dtype=np.float32)
    if steps & _PNEUMONIAS:
        row[findings.names.index("Pneumonia")] = 1.0
    return row


def _same_person(entries: pd.DataFrame) -> pd.Series:
    """One number for patients who share an image: some publications were entered twice, under two numbers."""
    person, before = entries["patientid"], None
    while before is None or not person.equals(before):
        before = person
        person = person.groupby(entries["filename"]).transform("min").groupby(entries["patientid"]).transform("min")
    return person
