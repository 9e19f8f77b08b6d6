"""Studies of several images."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def studies(tmp_path: Path, build_dx, chest) -> Path:
    """One study of two PA films, a copy of one, a lateral and a damaged one; one of an AP film; one of a lateral."""
    folder = tmp_path / "studies"
    folder.mkdir()

    def write(name: str, study: str, instance: int, view: str, shade: float = 1.0, cut: float = 1.0) -> None:
        content = build_dx(
            (chest * shade * 4000).astype(np.uint16),
            12,
            StudyInstanceUID=f"1.2.{study}",
            SOPInstanceUID=f"1.2.{study}.{instance}",
            PatientID=f"patient {study}",
            ViewPosition=view,
        )
        (folder / name).write_bytes(content[: int(len(content) * cut)])

    write("a_pa.dcm", "1", 1, "PA", 0.9)
    write("b_pa.dcm", "1", 2, "PA", 0.7)
    write("c_ap.dcm", "2", 1, "AP")
    write("d_copy.dcm", "1", 1, "PA", 0.9)
    write("e_lateral.dcm", "1", 3, "LL")
    write("f_damaged.dcm", "1", 4, "PA", cut=0.7)
    write("g_lateral.dcm", "3", 1, "LL")
    write("h_cut_copy.dcm", "2", 1, "AP", cut=0.7)
    return folder
