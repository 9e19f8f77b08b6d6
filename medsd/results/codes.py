"""Codes of findings, calls and relations, the same in every form of a result.

A code is a pydicom `Code`: value, scheme as PS3.16 section 8 designates it, meaning. A finding has its SNOMED CT code,
else that of RadLex, else one of this software's own scheme.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from functools import cache

from pydicom.sr.coding import Code

from medsd.files import packaged
from medsd.findings import Finding

PRIVATE = "99MEDSD"
PRIVATE_NAME = "medsd, codes of its own"
_SHORT, _LONG = 16, 64  # characters of SH and LO
_USUAL = str.maketrans({"–": "-", "—": "-", "−": "-", "×": "x", "…": "...", "“": '"', "”": '"', "’": "'", "ß": "ss"})

CODES: Mapping[str, Mapping[str, Code]] = {
    group: {name: Code(*told) for name, told in entries.items()}
    for group, entries in packaged("medsd.results", "codes.yaml").items()
}
"""Group → name → code, from codes.yaml."""

REPORT, CALLS, SETS = CODES["report"], CODES["calls"], CODES["conformal sets"]


@cache
def finding_code(finding: Finding) -> Code:
    """The code of a finding: SNOMED CT, else RadLex, else private."""
    meaning = plain(finding.title)[:_LONG]
    if finding.snomed:
        return Code(finding.snomed, "SCT", meaning)
    if finding.radlex:
        return Code(finding.radlex, "RADLEX", meaning)
    return private(finding.name, meaning)


def private(name: str, meaning: str = "") -> Code:
    """A code of this software's own scheme; a name that is too long for a code value is shortened with its digest."""
    value = re.sub(r"[^a-z0-9.]+", "-", plain(name).lower()).strip("-")
    if len(value) > _SHORT or not value:
        value = f"{value[:9]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return Code(value, PRIVATE, (meaning or plain(name))[:_LONG])


def plain(text: str) -> str:
    """`text` in ASCII, which every specific character set of DICOM has: letters without accents, ``?`` for others."""
    usual = unicodedata.normalize("NFKD", text.translate(_USUAL))
    letters = "".join(letter for letter in usual if not unicodedata.combining(letter))
    return letters.encode("ascii", "replace").decode()
