"""From a table of one's own to arrays: what is left out, what notes become, which runs stay valid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medsd.bundle.layout import NoteInput
from medsd.errors import DataError
from medsd.pipeline import run as running
from medsd.pipeline.folder import Run
from medsd.pipeline.prepare import load_arrays, note_input, prepare, write_tokenizer
from medsd.preprocessing.notes import NoteTokenizer
from medsd.settings import CsvColumns, Settings, SplitSettings
from medsd.studies.manifest import Manifest
from tests.dicom.drawings import lateral_image

NOTE = {"model": "small-bert", "vocabulary_size": 200, "max_tokens": 16}


def _settings(root: Path, **note: object) -> Settings:
    return Settings(
        name="own",
        findings="nih14",
        output=root / "runs",
        data={"source": "csv", "root": root, "columns": {"note": "note"}},
        pixels={"size": 32},
        network={"note": {**NOTE, **note}},
    )


def _write_table(root: Path, count: int = 40, bad: int = 0) -> Settings:
    rng = np.random.default_rng(0)
    films = [f"film{number}.png" for number in range(4)]
    for film in films:
        Image.fromarray((rng.random((80, 80)) * 255).astype(np.uint8)).save(root / film)
    rows = [f"{films[n] if n < 4 else ''},q{n},{n % 2},fever and no effusion" for n in range(count - bad)]
    rows += [f"none{n}.png,q{n},1,cough" for n in range(bad)]
    (root / "studies.csv").write_text("image,patient,Effusion,note\n" + "\n".join(rows), encoding="utf-8")
    return _settings(root)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSD_KEY", "a key for the tests of medsd")


def _prepare(settings: Settings) -> tuple[Run, Manifest]:
    run = Run(settings)
    run.folder.mkdir(parents=True, exist_ok=True)
    prepare(run)
    return run, Manifest.read(run.manifest)


def test_bad_rows_stand_in_the_sidecar_and_the_rest_in_the_manifest(tmp_path: Path) -> None:
    run, manifest = _prepare(_write_table(tmp_path, bad=3))
    sidecar = pd.read_csv(run.rejected)
    assert len(manifest) == 37 == len(np.load(run.pixels))
    assert sidecar["row"].tolist() == [38, 39, 40] and set(sidecar["reason"]) == {"missing_file"}


def test_a_table_that_is_mostly_bad_is_refused_and_its_rows_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"21 of 40 rows cannot be used, 21 of them because of missing_file; row 20: "):
        _prepare(_write_table(tmp_path, bad=21))
    run = Run(_settings(tmp_path))
    assert len(pd.read_csv(run.rejected)) == 21 and not run.manifest.exists()


def test_training_and_serving_make_the_same_tokens_of_a_masked_note(tmp_path: Path) -> None:
    settings = _write_table(tmp_path)
    run, manifest = _prepare(settings)
    write_tokenizer(run, manifest)
    arrays = load_arrays(run, manifest)
    described = note_input(settings.network.note, run.tokenizer, manifest.findings).model_dump_json()
    kept = NoteInput.model_validate_json(described)
    serving = NoteTokenizer(run.tokenizer, kept)(["fever and no effusion", "Fever and no infiltrates"])
    np.testing.assert_array_equal(serving.ids, arrays.note_ids[:2])  # of either finding no more than "no ___" is left
    np.testing.assert_array_equal(serving.mask, arrays.note_mask[:2])
    assert '"effusion"' not in run.tokenizer.read_text(encoding="utf-8")


def test_notes_are_read_whole_where_masking_is_not_wanted(tmp_path: Path) -> None:
    _write_table(tmp_path)
    settings = _settings(tmp_path, mask_findings=False)
    run, manifest = _prepare(settings)
    write_tokenizer(run, manifest)
    assert note_input(settings.network.note, run.tokenizer, manifest.findings).mask == ()
    assert '"effusion"' in run.tokenizer.read_text(encoding="utf-8")


def test_masking_findings_is_learned_anew(tmp_path: Path) -> None:
    pretrain = next(step for step in running.STEPS if step.name == "pretrain")
    plain, masked = (_settings(tmp_path, mask_findings=mask) for mask in (False, True))
    assert running._fingerprint(pretrain, plain, "") != running._fingerprint(pretrain, masked, "")


def test_images_that_the_gate_warns_of_are_listed_without_their_patients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = _write_table(tmp_path)
    lateral = (lateral_image(1000) * 255).astype(np.uint8)
    for number in (1, 2):
        Image.fromarray(lateral[: 1000 - number]).save(tmp_path / f"film{number}.png")
    (tmp_path / "film1.png").rename(tmp_path / "q1.png")
    table = tmp_path / "studies.csv"
    table.write_text(table.read_text().replace("film1.png", "q1.png"))
    settings = settings.model_copy(update={"splits": SplitSettings(near_duplicates=False)})
    for _ in range(2):  # the second time out of the journal
        caplog.clear()
        run, _ = _prepare(settings)
        told = (run.folder / "warned.csv").read_text(encoding="utf-8").splitlines()
        assert [line.split(",")[:3] for line in told] == [
            ["row", "path", "reason"], ["1", "film0.png", "not_a_chest"], ["2", "….png", "view"],
            ["3", "film2.png", "view"], ["4", "film3.png", "not_a_chest"],
        ]  # fmt: skip
        assert "4 images are used with a warning of the gate" in caplog.text and "view 2" in caplog.text


def test_one_picture_under_several_patients_stands_in_one_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = (rng.random((36, 12, 12)) * 255).astype(np.uint8)
    for number in range(40):
        picture = Image.fromarray(small[number % 36]).resize((96, 96), Image.Resampling.BICUBIC)
        picture.resize((80 + number, 80 + number)).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,q{number},{number % 2},cough" for number in range(40)]
    (tmp_path / "studies.csv").write_text("image,patient,Effusion,note\n" + "\n".join(rows), encoding="utf-8")
    run, manifest = _prepare(_settings(tmp_path))
    table = manifest.table.set_index("path")["split"]
    assert all(table[f"{number}.png"] == table[f"{number + 36}.png"] for number in range(4)) and len(table) == 40
    assert len(pd.read_csv(run.folder / "near_duplicates.csv")) == 4


def test_a_run_without_validation_studies_is_refused_before_it_begins(tmp_path: Path) -> None:
    settings = _write_table(tmp_path)
    table = tmp_path / "studies.csv"
    header, *rows = table.read_text().splitlines()
    splits = [("train", "test", "holdout")[n % 3] for n in range(40)]
    table.write_text("\n".join([f"{header},part", *(f"{r},{s}" for r, s in zip(rows, splits, strict=True))]))
    data = settings.data.model_copy(update={"columns": CsvColumns(note="note", split="part")})
    with pytest.raises(DataError, match=r"no study is in validation; train has 14, test has 13.*'holdout' \(13\)"):
        _prepare(settings.model_copy(update={"data": data}))
    assert not Run(settings).manifest.exists() and Run(settings).rejected.exists()
