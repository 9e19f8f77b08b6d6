"""The choice of a source, and its labels in the vocabulary that the settings ask for."""

from pathlib import Path

import numpy as np

from medsd.settings import Settings
from medsd.studies.sources import read_source
from tests.studies.sources.test_chexpert import _replica


def _settings(root: Path, findings: str) -> Settings:
    return Settings(name="t", findings=findings, data={"source": "chexpert", "root": root})


def test_labels_come_in_the_vocabulary_that_is_asked_for(tmp_path: Path) -> None:
    own = read_source(_settings(_replica(tmp_path), "chexpert14"))
    mapped = read_source(_settings(tmp_path, "nih14"))
    assert mapped.findings.key == "nih14" and list(mapped.table["split"]) == list(own.table["split"])
    assert mapped.labels[0, mapped.findings.names.index("Cardiomegaly")] == 1
    assert np.isnan(mapped.labels[:, mapped.findings.names.index("Hernia")]).all()
