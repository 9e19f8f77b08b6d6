"""A small index of invented cases, and predictions to ask it with."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from medsd.cases.case import Case
from medsd.cases.index import CaseIndex, create_index
from medsd.findings import FindingSet, finding_set
from medsd.inference.prediction import Prediction

MODEL = "a" * 64
N, D = 120, 16


@pytest.fixture(scope="session")
def findings() -> FindingSet:
    return finding_set("phantom8")


@pytest.fixture(scope="session")
def embeddings() -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def cases(findings: FindingSet) -> list[Case]:
    """Two studies a patient; a fifth of the labels unknown."""
    rng = np.random.default_rng(2)
    labels = rng.choice([0.0, 1.0, np.nan], (N, len(findings)), p=[0.5, 0.3, 0.2]).astype(np.float32)
    return [
        Case(
            study_key=f"study{i:04d}",
            patient_key=f"patient{i // 2:04d}",
            labels=labels[i],
            view=("PA", "AP", "")[i % 3],
            sex="FM"[i % 2],
            age_band=("40-49", "60-69")[i // 7 % 2],
            source=("here", "o'there")[i // 5 % 2],
            split="train",
            thumbnail=b"picture %d" % i,
            note_excerpt=f"note {i}",
        )
        for i in range(N)
    ]


@pytest.fixture
def index(tmp_path: Path, cases: list[Case], embeddings: npt.NDArray[np.float32], findings: FindingSet) -> CaseIndex:
    return create_index(tmp_path / "cases", cases, embeddings, model_sha256=MODEL, findings=findings, model="tiny 1")


def predict(findings: FindingSet, embedding: npt.NDArray[np.float32], present: tuple[str, ...] = (), **values):
    """A scored prediction that calls `present` present and the rest absent."""
    calls = {name: "present" if name in present else "absent" for name in findings}
    probabilities = np.where(findings.encode(present) > 0, 0.9, 0.1).astype(np.float32)
    fields = {"model_sha256": MODEL, "model": "tiny 1", "calls": calls, "values": probabilities} | values
    return Prediction(findings, "scored", embedding=embedding, **fields)
