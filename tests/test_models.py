"""The bundles that ship: whole, small, without pictures of patients, and right on the real DICOM files."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from medsd.bundle.layout import Bundle
from medsd.cases.index import CaseIndex
from medsd.cli import app
from medsd.inference.predict import Predictor
from medsd.privacy import KeyedHasher
from medsd.scoring.batch import score
from medsd.scoring.request import ScoringRequest
from tests.dicom.test_gate import EXPECTED

ROOT = Path(__file__).parents[1]
NIH14, PHANTOM = ROOT / "models" / "nih14", ROOT / "models" / "phantom"
HASHER = KeyedHasher(b"a key for the tests of medsd")


@cache
def _phantom() -> Predictor:
    return Predictor(PHANTOM, provider="cpu", hasher=HASHER)


@pytest.mark.parametrize("folder", [NIH14, PHANTOM], ids=lambda folder: folder.name)
def test_every_file_of_a_bundle_is_as_it_was_exported_and_its_cases_are_its_own(folder: Path) -> None:
    bundle = Bundle.open(folder)
    cases = CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256)
    assert len(cases) == bundle.description.provenance.studies["train"]
    parity = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    for by_output in parity["largest_difference"].values():
        assert all(by_output[name] <= parity["output_tolerance"] * scale for name, scale in parity["scale"].items())


def test_no_file_of_a_bundle_names_a_folder_of_the_machine_that_made_it() -> None:
    for path in (ROOT / "models").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(needle in content for needle in (b"site-packages", b"/home/", b"/root/", b".venv")), path


def test_the_bundles_stay_under_sixty_megabytes() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "models").rglob("*") if path.is_file()) < 60e6


def test_the_nih_bundle_holds_no_picture_of_a_patient() -> None:
    assert {path.parent.name for path in NIH14.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".dcm"}} <= {
        "plots"
    }
    index = CaseIndex.open(NIH14 / "cases")
    assert len(index) > 1000
    assert all(case.thumbnail is None and case.note_excerpt is None for case, _ in index.records())


def test_the_card_gives_the_macro_auroc_with_its_interval() -> None:
    figure = json.loads((NIH14 / "evaluation.json").read_text(encoding="utf-8"))["macro"]["auroc"]["interval"]
    assert figure["low"] < figure["value"] < figure["high"]
    assert f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})" in (NIH14 / "README.md").read_text(
        "utf-8"
    )


def test_every_real_dicom_file_is_a_row_that_ends_as_it_should(data_root: Path, tmp_path: Path) -> None:
    score(ScoringRequest(NIH14, [data_root / "dicom"], tmp_path / "out.csv", hasher=HASHER, provider="cpu"))
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    rows = {Path(row["path"]).name: row for _, row in table.iterrows() if row["path"].endswith(".dcm")}
    assert set(rows) == set(EXPECTED)
    for name, (status, reason) in EXPECTED.items():
        row = rows[name]
        assert (row["status"], row["reason"]) == ({"accepted": "scored"}.get(status, status), reason), name
    near = [float(rows[f"cr_chest_mono1_{kind}.dcm"]["probability_Effusion"]) for kind in ("j2k_lossy", "jpegls")]
    assert near[0] == pytest.approx(near[1], abs=0.02)


def test_eight_cases_are_printed_with_their_relation_none_twice(data_root: Path) -> None:
    film = data_root / "dicom" / "dx_nih_1.dcm"
    result = CliRunner().invoke(app, ["similar", str(NIH14), str(film), "-k", "8", "--provider", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    cases = json.loads(result.stdout)["cases"]
    assert len({case["study_key"] for case in cases}) == len(cases) == 8
    words = {"equal", "overlap", "superset", "subset", "disjoint", "undetermined"}
    assert all(case["relation"] in words for case in cases)


def _examples() -> list[dict[str, str]]:
    return json.loads((PHANTOM / "examples" / "examples.json").read_text(encoding="utf-8"))


def test_a_phantom_study_reads_differently_from_its_image_its_note_and_both() -> None:
    for entry in _examples():
        film, note = PHANTOM / "examples" / entry["file"], entry["note"]
        readings = [_phantom()(film), _phantom()(None, note), _phantom()(film, note)]
        assert not any(reading.refused for reading in readings), [reading.message for reading in readings]
        values = np.stack([reading.values for reading in readings])
        differences = [np.abs(values[a] - values[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))]
        assert min(differences) > (0.02 if readings[2].present else 0.001)  # a normal film and a bland note agree


def test_image_note_and_both_are_each_better_than_chance_and_both_is_best() -> None:
    figures = {}
    for reading in ("", "_image", "_note"):
        report = json.loads((PHANTOM / f"evaluation{reading}.json").read_text(encoding="utf-8"))
        figures[reading] = report["macro"]["auroc"]["interval"]
    assert all(figure["low"] > 0.5 for figure in figures.values())
    assert figures[""]["value"] > max(figures["_image"]["value"], figures["_note"]["value"])


def test_every_example_finds_cases_with_pictures() -> None:
    cases = CaseIndex.open(PHANTOM / "cases")
    for entry in _examples():
        similar = cases.similar(_phantom()(PHANTOM / "examples" / entry["file"], entry["note"]), k=8)
        assert len(similar) == 8 and all(case.case.thumbnail for case in similar)
