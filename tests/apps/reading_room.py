"""A small bundle with everything the app shows: cases of phantom images with pictures, examples, a card."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from medsd.bundle import layout
from medsd.calibration.conformal import CONFORMAL, ConformalScores, write_conformal
from medsd.cases import index as case_index
from medsd.cases.case import Case, age_band
from medsd.cases.described import RELATION_WORDS, SimilarityScale, VoteRule
from medsd.inference.predict import Predictor
from medsd.inference.prediction import Prediction
from medsd.studies.phantom import PhantomStudy, generate_study, write_dicom
from tests.bundles import tiny_bundle

SEED, CASES, SIDE = 3, 14, 256
KEY = "a key that only tests use"


def furnish(folder: Path) -> layout.Bundle:
    """Write the bundle into `folder`: it reads notes, and knows the eight findings of the phantom."""
    bundle = tiny_bundle(folder, findings="phantom8", fused=True)
    predictor = Predictor(bundle)
    studies = [generate_study(number, seed=SEED, size=SIDE) for number in range(CASES)]
    readings = [predictor(study.pixels, study.note) for study in studies]
    cases = [
        _case(study, reading, number) for number, (study, reading) in enumerate(zip(studies, readings, strict=True))
    ]
    embeddings = np.stack([reading.embedding for reading in readings if reading.embedding is not None])
    case_index.create_index(
        folder / layout.CASES,
        cases,
        embeddings,
        model_sha256=bundle.model_sha256,
        findings=bundle.findings,
        model=bundle.label,
        scale=SimilarityScale(
            pairs=dict.fromkeys(RELATION_WORDS.values(), 500),
            quantiles=dict.fromkeys(RELATION_WORDS.values(), tuple(np.linspace(-1, 1, 33).tolist())),
        ),
        vote=VoteRule(k=5, thresholds=dict.fromkeys(bundle.findings, 0.5), rule="half of them"),
    )
    _write_conformal(folder, bundle)
    _write_examples(folder / "examples")
    _write_card(folder)
    layout.write_description(folder, bundle.description)
    return layout.Bundle.open(folder)


def _case(study: PhantomStudy, reading: Prediction, number: int) -> Case:
    # The tiny model knows nothing, so its cases get what it would call them, changed a little: every relation occurs.
    labels = reading.findings.encode(reading.present)
    labels[number % len(labels)] = number % 2
    labels[(number * 3) % len(labels)] = 1 - labels[(number * 3) % len(labels)] if number % 3 else labels[0]
    return Case(
        study.study,
        study.patient,
        labels=labels,
        view=study.view,
        sex=study.sex,
        age_band=age_band(study.age),
        source="phantom",
        split="train",
        thumbnail=None if number % 7 == 6 else _thumbnail(study),
        note_excerpt=study.note,
    )


def _thumbnail(study: PhantomStudy) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(study.pixels * 255)).resize((192, 192)).save(buffer, "WEBP")
    return buffer.getvalue()


def _write_conformal(folder: Path, bundle: layout.Bundle) -> None:
    present, absent = (tuple(np.linspace(*ends, 40).tolist()) for ends in ((0.95, 0.2), (0.05, 0.8)))
    scores = ConformalScores(present=present, absent=absent, present_patients=40, absent_patients=40)
    write_conformal(folder / CONFORMAL, dict.fromkeys(bundle.findings, scores))


def _write_examples(folder: Path) -> None:
    folder.mkdir()
    entries = []
    for number, title in ((20, "First phantom"), (21, "Second phantom")):
        study = generate_study(number, seed=SEED, size=SIDE)
        write_dicom(study, folder / f"{number}.dcm")
        entries.append({"title": title, "file": f"{number}.dcm", "note": study.note or ""})
    (folder / "examples.json").write_text(json.dumps(entries), encoding="utf-8")


def _write_card(folder: Path) -> None:
    Image.new("L", (40, 30), 128).save(folder / "plot.png")
    text = (
        "# A tiny model\n\nRandom weights, for tests.\n\n![The plot](plot.png)\n\n"
        "![Elsewhere](https://example.org/pixel.png)\n\n<script>window.acted = true</script>\n\n"
        '<img src="https://example.org/b.png" onerror="window.acted = true">\n\n| a | b |\n|---|---|\n| 1 | 2 |\n'
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def copy_bundle(bundle: layout.Bundle, folder: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(bundle.folder, folder)
