"""A bundle with cases, and a small hospital of another kind: films as PNG, a table, thirty patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medsd.bundle import layout
from medsd.cases.case import Case
from medsd.cases.index import create_index
from medsd.privacy import public_hasher
from tests.bundles import WIDTH, tiny_bundle


def bundle_with_cases(folder: Path, count: int = 60) -> layout.Bundle:
    """A tiny public bundle with made-up cases in its index, and operating points and calibration of its own."""
    bundle = tiny_bundle(folder)
    description = bundle.description.model_copy(update={"public": True})
    layout.write_description(folder, description)
    bundle, rng = layout.Bundle.open(folder), np.random.default_rng(0)
    keys, names = public_hasher(description.name), bundle.findings.names
    vectors = rng.normal(size=(count, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cases = [
        Case(
            keys.study_key(f"case{row}"),
            keys.patient_key(f"patient{row}"),
            labels=(rng.random(len(names)) < 0.2).astype(np.float32),
            view="PA",
            sex="FM"[row % 2],
            age_band="50-59",
            source="made up",
            split="train",
        )
        for row in range(count)
    ]
    create_index(
        bundle.cases_path, cases, vectors, model_sha256=bundle.model_sha256, findings=bundle.findings, public=True
    )
    return bundle


def hospital(folder: Path, chest: np.ndarray, count: int = 30) -> Path:
    """Write films and the table studies.csv: Effusion and Pneumonia are labelled, one film is no film."""
    (folder / "films").mkdir(parents=True)
    rng, rows = np.random.default_rng(1), []
    for number in range(count):
        sick = number % 3 == 0
        film = chest * (0.75 + 0.2 * rng.random()) + rng.normal(0, 0.01, chest.shape) + 0.1 * sick
        name = f"films/{number}.png"
        Image.fromarray((np.clip(film, 0, 1) * 255).astype(np.uint8)).save(folder / name)
        rows.append({"image": name, "patient": f"other{number}", "study": f"s{number}", "view": "AP", "sex": "F",
                     "age": 20 + number, "Effusion": int(sick), "Pneumonia": int(number % 4 > 0)})  # fmt: skip
    (folder / "films" / "0.png").write_bytes(b"no film")
    pd.DataFrame(rows).to_csv(folder / "studies.csv", index=False)
    return folder / "studies.csv"
