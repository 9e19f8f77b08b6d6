"""What prepare keeps of a study: keys and a scrubbed note."""

from pathlib import Path

import numpy as np
import pandas as pd

from medsd.findings import finding_set
from medsd.privacy import KeyedHasher
from medsd.studies.manifest import Manifest, complete
from medsd.studies.protect import image_identities, protect
from tests.conftest import BuildDx

HASHER = KeyedHasher(b"a key for tests alone")
STORED = np.arange(80 * 90, dtype=np.uint16).reshape(80, 90)


def _manifest(root: Path, build_dx: BuildDx) -> Manifest:
    (root / "a.dcm").write_bytes(
        build_dx(STORED, PatientName="Canary^Carla", ReferringPhysicianName="Vogel^V", PatientBirthDate="19470203")
    )
    rows = {
        "study": ["1.2.3", "1.2.4"], "patient": ["00421", "00421"], "path": ["a.dcm", None],
        "note": ["Carla Canary (421), born 3.2.1947, sent by Vogel: cough.", None],
    }  # fmt: skip
    findings = finding_set("phantom8")
    return Manifest(complete(pd.DataFrame(rows), findings), findings, root)


def test_identifiers_become_the_keys_of_serving_and_notes_lose_what_the_header_says(
    tmp_path: Path, build_dx: BuildDx
) -> None:
    kept = protect(_manifest(tmp_path, build_dx), HASHER)
    assert kept.table["study"].tolist() == [HASHER.study_key("1.2.3"), HASHER.study_key("1.2.4")]
    assert kept.table["patient"].tolist() == [HASHER.patient_key("00421")] * 2
    assert kept.table["note"][0] == "___ ___ (___), born ___, sent by ___: cough." and pd.isna(kept.table["note"][1])


def test_a_protected_manifest_says_so_and_is_not_protected_twice(tmp_path: Path, build_dx: BuildDx) -> None:
    given = _manifest(tmp_path, build_dx)
    protect(given, HASHER).write(tmp_path / "m.parquet")
    again = Manifest.read(tmp_path / "m.parquet")
    assert again.keyed and not given.keyed and protect(again, HASHER) is again


def test_what_is_no_dicom_file_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "film.png").write_bytes(b"\x89PNG")
    (tmp_path / "odd").write_bytes(b"no DICOM file at all" * 9)
    assert image_identities(tmp_path / "film.png") == image_identities(tmp_path / "gone.dcm") == []
    assert image_identities(tmp_path / "odd") == []
