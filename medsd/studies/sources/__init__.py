"""Sources of studies, a module a data set; `read_source` picks the one that the settings name."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from medsd.errors import DataError
from medsd.findings import FindingSet, finding_set, map_labels
from medsd.settings import (
    CheXpertPlusSource,
    CheXpertSource,
    Cmc2007Source,
    CovidSource,
    CsvSource,
    DicomSource,
    MergeSource,
    MimicSource,
    Nih14Source,
    OpeniSource,
    PadChestSource,
    PhantomSource,
    Settings,
    VindrSource,
)
from medsd.studies.manifest import Manifest

log = logging.getLogger(__name__)


def read_source(settings: Settings) -> Manifest:
    """Read the data set that `settings.data` names, split it by patient, and label it in `settings.findings`.

    Raises:
        DataError: the folder or a file in it is missing or not what the data set publishes, or its labels say nothing
            of the findings that the settings ask for.
    """
    return in_findings(_read(settings), finding_set(settings.findings))


def in_findings(manifest: Manifest, findings: FindingSet) -> Manifest:
    """The same studies in another vocabulary, as `medsd.findings.map_labels` carries labels over.

    Raises:
        DataError: there are labels, and none of them is known in the other vocabulary.
    """
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
        log.warning("%s tells of %s only where present", manifest.findings.key, ", ".join(one_sided))
    table = manifest.table.drop(columns=list(manifest.findings))
    table[list(findings)] = labels
    return replace(manifest, table=table, findings=findings)


def _read(settings: Settings) -> Manifest:
    match settings.data:
        case Nih14Source():
            from medsd.studies.sources import nih14

            return nih14.read(settings.data, settings.splits)
        case PhantomSource():
            from medsd.studies.sources import phantom

            return phantom.read(settings.data, settings.splits)
        case CovidSource():
            from medsd.studies.sources import covid

            return covid.read(settings.data, settings.splits)
        case Cmc2007Source():
            from medsd.studies.sources import cmc2007

            return cmc2007.read(settings.data, settings.splits)
        case CheXpertSource():
            from medsd.studies.sources import chexpert

            return chexpert.read(settings.data, settings.splits)
        case CheXpertPlusSource():
            from medsd.studies.sources import chexpert_plus

            return chexpert_plus.read(settings.data, settings.splits)
        case MergeSource():
            from medsd.studies.sources import merge

            return merge.read(settings.data, settings, read_source)
        case CsvSource():
            from medsd.studies.sources import csv

            return csv.read(settings.data, settings.splits, finding_set(settings.findings))
        case MimicSource():
            from medsd.studies.sources import mimic

            return mimic.read(settings.data, settings.splits)
        case VindrSource():
            from medsd.studies.sources import vindr

            return vindr.read(settings.data, settings.splits)
        case PadChestSource():
            from medsd.studies.sources import padchest

            return padchest.read(settings.data, settings.splits)
        case OpeniSource():
            from medsd.studies.sources import openi

            return openi.read(settings.data, settings.splits)
        case DicomSource():
            from medsd.studies.sources import dicom

            return dicom.read(settings.data, settings.splits, finding_set(settings.findings), settings.gate)
