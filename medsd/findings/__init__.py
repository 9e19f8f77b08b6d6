"""Ordered vocabularies of findings on chest radiographs, their codes, and maps between them.

Start at `FindingSet`: every table, tensor and ONNX output of medsd has its columns in the order of one finding set.
"""

from medsd.findings.mapping import map_labels
from medsd.findings.vocabulary import FINDING_SETS, Finding, FindingSet, Uncertain, finding_set, resolve_uncertain

__all__ = ["FINDING_SETS", "Finding", "FindingSet", "Uncertain", "finding_set", "map_labels", "resolve_uncertain"]
