"""What can be found on a chest radiograph: ordered vocabularies of findings, their codes, and maps between them.

Start at `FindingSet`. Every table, tensor and ONNX output of medsd has its columns in the order of one finding set;
nothing else in the code lists findings. `FINDING_SETS` (in `sets`) holds the vocabularies with their SNOMED CT and
RadLex codes; `map_labels` (in `mapping`) carries labels from one to another: what the first never labelled is unknown
in the second, not absent.
"""

from medsd.findings.mapping import map_labels
from medsd.findings.sets import FINDING_SETS, finding_set
from medsd.findings.vocabulary import Finding, FindingSet, Uncertain, resolve_uncertain

__all__ = [
    "FINDING_SETS",
    "Finding",
    "FindingSet",
    "Uncertain",
    "finding_set",
    "map_labels",
    "resolve_uncertain",
]
