"""Notes: their sections, their findings by rule, and the words that give a finding away.

Start at `read_note`; `Note.before_reading` may be an input, `Note.report` only a source of labels.
"""

from medsd.studies.notes.labeller import ReportLabels, Status, label_report
from medsd.studies.notes.lexicon import mask_phrases
from medsd.studies.notes.sections import PLACEHOLDER, Note, normalise_placeholders, read_note

__all__ = [
    "PLACEHOLDER",
    "Note",
    "ReportLabels",
    "Status",
    "label_report",
    "mask_phrases",
    "normalise_placeholders",
    "read_note",
]
