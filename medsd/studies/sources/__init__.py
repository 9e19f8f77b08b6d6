"""Sources of studies, a module a data set; `read_source` picks the one that the settings name.

Each module says how its folder is laid out. Its `read` raises DataError where the folder, a table, a column or every
image is missing, or a file is damaged.
"""

import logging
from dataclasses import replace
from importlib import import_module

import numpy as np

from medsd.errors import DataError
from medsd.findings import FindingSet, finding_set, map_labels
from medsd.settings import Settings
from medsd.studies.manifest import Manifest

log = logging.getLogger(__name__)


def read_source(settings: Settings) -> Manifest:
    """Read the data set that `settings.data` names, split it by patient, and label it in `settings.findings`.

    Raises DataError: a file is missing or not as published, or its labels say nothing of the findings that are wanted.
    """
    return in_findings(_read(settings), finding_set(settings.findings))


def in_findings(manifest: Manifest, findings: FindingSet) -> Manifest:
    """The same studies in another vocabulary (`medsd.findings.map_labels`); DataError if no label is known there."""
    if manifest.findings.key == findings.key:
        return manifest
    labels = map_labels(manifest.labels, manifest.findings, findings)
    if np.isnan(labels).all() and not np.isnan(manifest.labels).all():
        raise DataError(
            f"labels of {manifest.findings.key} say nothing of {findings.key}; set findings to {manifest.findings.key}"
        )
    one_sided = [
        name for name, column in zip(findings, labels.T, strict=True) if (column == 1).any() and not (column == 0).any()
    ]
    if one_sided:
        log.warning("%s labels %s only where present, never absent", manifest.findings.key, ", ".join(one_sided))
    table = manifest.table.drop(columns=list(manifest.findings))
    table[list(findings)] = labels
    return replace(manifest, table=table, findings=findings)


def _read(settings: Settings) -> Manifest:
    data, findings = settings.data, finding_set(settings.findings)
    read = import_module(f"{__name__}.{data.source}").read  # a module is called as its source in the settings
    match data.source:
        case "merge":
            return read(data, settings, read_source)
        case "csv":
            return read(data, settings.splits, findings)
        case "dicom":
            return read(data, settings.splits, findings, settings.gate)
        case _:
            return read(data, settings.splits)
