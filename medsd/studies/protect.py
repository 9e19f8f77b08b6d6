"""What prepare keeps of a study: keys in place of its identifiers, and its note without what identifies the patient.

It is done once, between the source and the manifest, which every later step reads.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from medsd.dicom.header import IDENTIFYING, identities
from medsd.dicom.identity import read_before_pixels
from medsd.dicom.quiet import quiet
from medsd.privacy import KeyedHasher, scrub_note
from medsd.studies.manifest import Manifest

_PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg")  # they have no header that names anybody


def protect(manifest: Manifest, hasher: KeyedHasher) -> Manifest:
    """The manifest with keyed hashes as study and patient, and notes scrubbed (`medsd.privacy.scrub_note`).

    A note is scrubbed of its study's identifiers and of the names in its image's header. Paths stay: they are how the
    images are found. Serving makes its keys with the same `hasher`.
    """
    if manifest.keyed:
        return manifest
    table = manifest.table.copy()
    noted = table["note"].notna()
    if noted.any():
        scrubbed = []
        for study, patient, path, note in table.loc[noted, ["study", "patient", "path", "note"]].values.tolist():
            named = image_identities(manifest.root / path) if isinstance(path, str) else []
            scrubbed.append(scrub_note(str(note), [str(study), str(patient), *named]))
        table.loc[noted, "note"] = pd.Series(scrubbed, index=table.index[noted], dtype=object)
    table["study"] = [hasher.study_key(str(study)) for study in table["study"]]
    table["patient"] = [hasher.patient_key(str(patient)) for patient in table["patient"]]
    return replace(manifest, table=table, keyed=True)


@quiet()
def image_identities(path: Path) -> list[str]:
    """What the header of an image says of the patient and of who treated them; nothing of a file that is no DICOM."""
    if path.suffix.lower() in _PLAIN_SUFFIXES:
        return []
    ds = read_before_pixels(path, specific_tags=list(IDENTIFYING), force=True)
    return [] if ds is None else identities(ds)
