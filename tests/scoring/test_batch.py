from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsd.bundle.layout import Bundle
from medsd.errors import BundleError, DataError, DependencyError
from medsd.inference.predict import Predictor, Study
from medsd.preprocessing.image import DecodedImage
from medsd.privacy import KeyedHasher
from medsd.scoring import batch, table
from medsd.scoring.batch import score
from medsd.scoring.finished import FinishedRows
from medsd.scoring.request import ScoringRequest
from tests.dicom.test_gate import EXPECTED
from tests.interrupted import finished_rows, segments

READ = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda path: pd.read_json(path, lines=True)}


@pytest.fixture(autouse=True)
def site_key(monkeypatch) -> None:
    monkeypatch.setenv("MEDSD_KEY", "a key for tests alone")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_each_format_holds_one_row_an_input(image_bundle: Bundle, films: Path, tmp_path: Path, suffix: str):
    out = tmp_path / "results" / f"out{suffix}"
    summary = score(ScoringRequest(image_bundle, [films], out, batch_size=3))
    frame = READ[suffix](out)
    assert list(frame.columns) == table.columns(image_bundle.findings)
    assert frame.path.map(lambda text: Path(text).name).tolist() == [
        *(f"film_{n}.png" for n in range(5)), "note.doc", "film_5.png", "film_6.png",
    ]  # fmt: skip
    assert (summary.inputs, summary.scored, summary.warned, summary.refused) == (8, 7, 0, 1)
    assert frame.probability_Mass.isna().tolist() == [name.endswith("note.doc") for name in frame.path]
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, f"{out.name}.run.json"]
    assert json.loads(out.with_name(f"{out.name}.run.json").read_text())["summary"]["reasons"] == {"not_dicom": 1}


def test_the_table_says_what_the_predictor_says(
    image_bundle: Bundle, predictor: Predictor, films: Path, tmp_path: Path
):
    score(ScoringRequest(image_bundle, [films], tmp_path / "out.csv", workers=2, batch_size=3))
    for row in _rows(tmp_path / "out.csv"):
        prediction = predictor(Path(row["path"]))
        assert (row["status"], row["reason"], row["message"]) == (
            prediction.status, prediction.reason, prediction.message.removeprefix(f"{Path(row['path']).name}: "),
        )  # fmt: skip
        for name, value in prediction.probabilities.items():
            assert float(row[f"probability_{name}"]) == pytest.approx(value, abs=2e-6)
            assert row[f"call_{name}"] == prediction.calls[name]


def test_notes_change_what_a_fused_model_says(fused_bundle: Bundle, films: Path, tmp_path: Path):
    (tmp_path / "notes.csv").write_text("path,note\nfilm_1.png,fever\n")
    score(ScoringRequest(fused_bundle, [films], tmp_path / "plain.csv"))
    score(ScoringRequest(fused_bundle, [films], tmp_path / "noted.csv", notes=tmp_path / "notes.csv"))
    plain, noted = (pd.read_csv(tmp_path / name) for name in ("plain.csv", "noted.csv"))
    changed = np.abs(plain.probability_Mass - noted.probability_Mass) > 1e-4
    assert plain.path[changed].map(lambda text: Path(text).name).tolist() == ["film_1.png"]


def test_notes_for_a_model_of_images_are_ignored_and_said_so(image_bundle: Bundle, films: Path, tmp_path: Path, caplog):
    (tmp_path / "notes.csv").write_text("path,note\nfilm_1.png,fever\n")
    summary = score(ScoringRequest(image_bundle, [films], tmp_path / "out.csv", notes=tmp_path / "notes.csv"))
    assert summary.scored == 7
    assert "tiny 1 reads no notes" in caplog.text
    assert "fever" not in caplog.text


def _rows_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the rows that are made from now on."""
    seen: list[str] = []
    append = FinishedRows.append

    def appending(self, rows, *vectors) -> None:
        seen.extend(row["path"] for row in rows)
        append(self, rows, *vectors)

    monkeypatch.setattr(FinishedRows, "append", appending)
    return seen


def test_a_resumed_run_repeats_nothing(image_bundle: Bundle, films: Path, tmp_path: Path, monkeypatch):
    out = tmp_path / "out.csv"
    score(ScoringRequest(image_bundle, [films / "film_?.png"], out))
    first = out.read_text()
    seen = _rows_made(monkeypatch)
    summary = score(ScoringRequest(image_bundle, [films], out, resume=True))
    assert [Path(path).name for path in seen] == ["note.doc", "film_5.png", "film_6.png"]
    assert (summary.inputs, summary.reused) == (8, 5)
    assert out.read_text().startswith(first)


def test_without_resume_everything_is_scored_again(image_bundle: Bundle, films: Path, tmp_path: Path):
    for _ in range(2):
        summary = score(ScoringRequest(image_bundle, [films], tmp_path / "out.csv"))
    assert (summary.inputs, summary.reused) == (8, 0)


def test_rows_of_another_model_are_not_mixed(image_bundle: Bundle, fused_bundle: Bundle, films: Path, tmp_path: Path):
    out = tmp_path / "out.csv"
    score(ScoringRequest(image_bundle, [films], out))
    with pytest.raises(DataError, match=r"out\.csv: its rows were made with another model, bundle"):
        score(ScoringRequest(fused_bundle, [films], out, resume=True))


SLOW = """
import sys, time
from pathlib import Path
from medsd.preprocessing import decode
from medsd.scoring.batch import score
from medsd.scoring.finished import FinishedRows
from medsd.scoring.request import ScoringRequest
read = decode.read_image
def slow(*arguments, **options):
    time.sleep(0.25)
    return read(*arguments, **options)
decode.read_image = slow
score(ScoringRequest(sys.argv[1], [Path(sys.argv[2])], Path(sys.argv[3]), batch_size=1))
"""


@pytest.fixture
def slow_run(image_bundle: Bundle, films: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A run in a process of its own that has finished two rows."""
    out = tmp_path / "out.csv"
    run = subprocess.Popen([sys.executable, "-c", SLOW, str(image_bundle.folder), str(films), str(out)])
    deadline = time.monotonic() + 30
    while finished_rows(out) < 2:
        assert time.monotonic() < deadline and run.poll() is None, "the run did not begin"
        time.sleep(0.02)
    yield run, out
    run.kill()
    run.wait()


def test_a_killed_run_is_resumed_without_loss(
    slow_run, image_bundle: Bundle, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, out = slow_run
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert not out.exists()
    finished = [json.loads(line)["path"] for path in segments(out) for line in path.read_text().splitlines()]
    (tmp_path / "out.csv.parts" / ".block-0.jsonl.1.draft").write_text('{"path": "half a li')  # what a kill may leave
    seen = _rows_made(monkeypatch)
    summary = score(ScoringRequest(image_bundle, [films], out, resume=True))
    assert len(finished) >= 2
    assert [row["path"] for row in _rows(out)] == finished + seen
    assert (summary.inputs, summary.reused) == (8, len(finished))
    assert not (tmp_path / "out.csv.parts").exists()


def test_two_runs_on_one_output_do_not_mix(slow_run, image_bundle: Bundle, films: Path):
    run, out = slow_run
    with pytest.raises(DataError, match=r"out\.csv: another run is writing it"):
        score(ScoringRequest(image_bundle, [films], out))
    assert run.wait(30) == 0
    assert len(_rows(out)) == 8


def test_a_film_on_which_the_model_fails_is_one_row(image_bundle: Bundle, films: Path, tmp_path: Path, monkeypatch):
    run = batch.Predictor.read

    def fragile(self, studies):
        if any(study.image.name == "film_2.png" for study in studies if study.image.pixels is not None):
            raise RuntimeError("out of memory")
        return run(self, studies)

    monkeypatch.setattr(batch.Predictor, "read", fragile)
    summary = score(ScoringRequest(image_bundle, [films], tmp_path / "out.csv", batch_size=4))
    failed = [row for row in _rows(tmp_path / "out.csv") if row["reason"] == "model_failed"]
    assert [Path(row["path"]).name for row in failed] == ["film_2.png"]
    assert failed[0]["message"].startswith("the model could not be run")
    assert (summary.scored, summary.refused) == (6, 2)


def test_a_file_name_that_is_no_text_is_still_a_row(image_bundle: Bundle, films: Path, tmp_path: Path):
    (films / "film_1.png").rename(films / os.fsdecode(b"r\xf6ntgen.png"))
    for suffix in table.SUFFIXES:
        summary = score(ScoringRequest(image_bundle, [films], tmp_path / f"out{suffix}"))
        assert (summary.inputs, summary.scored) == (8, 7)
    assert any(r"r\udcf6ntgen.png" in row["path"] for row in _rows(tmp_path / "out.csv"))


def test_a_file_that_a_list_names_and_that_is_gone_is_a_row(image_bundle: Bundle, films: Path, tmp_path: Path):
    (tmp_path / "list.txt").write_text("films/film_1.png\nfilms/gone.png\n")
    score(ScoringRequest(image_bundle, [tmp_path / "list.txt"], tmp_path / "out.csv"))
    assert [row["reason"] for row in _rows(tmp_path / "out.csv")] == ["", "file_error"]


def test_bad_usage_is_an_error_before_any_work(image_bundle: Bundle, films: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"out\.xlsx: the results are written as \.csv, \.parquet, \.jsonl"):
        score(ScoringRequest(image_bundle, [films], tmp_path / "out.xlsx"))
    with pytest.raises(DataError, match="nowhere: does not exist"):
        score(ScoringRequest(image_bundle, [tmp_path / "nowhere"], tmp_path / "out.csv"))
    with pytest.raises(BundleError, match="no bundle here"):
        score(ScoringRequest(tmp_path / "no_bundle", [films], tmp_path / "out.csv"))
    (tmp_path / "taken.csv").mkdir()
    with pytest.raises(DataError, match=r"taken\.csv: cannot be written \(it is a folder\)"):
        score(ScoringRequest(image_bundle, [films], tmp_path / "taken.csv"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films", "taken.csv"]


def test_the_table_holds_no_identity(image_bundle: Bundle, build_dx, chest, tmp_path: Path, hasher: KeyedHasher):
    content = build_dx((chest * 4095).astype(np.uint16), bits_stored=12, AccessionNumber="ACC-77")
    (tmp_path / "film.dcm").write_bytes(content)
    score(ScoringRequest(image_bundle, [tmp_path / "film.dcm"], tmp_path / "out.csv", hasher=hasher))
    text = (tmp_path / "out.csv").read_text()
    assert not [word for word in ("Phantom", "PH-0042", "1.2.3.4", "ACC-77") if word in text]
    assert hasher.patient_key("PH-0042") in text


# The gate's own expectations: the tiny bundle has no reference of what is in distribution.
REAL = {name: ({"accepted": "scored"}.get(status, status), reason) for name, (status, reason) in EXPECTED.items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_real_file_is_a_row_with_its_reason(image_bundle: Bundle, data_root: Path, tmp_path: Path, workers: int):
    score(
        ScoringRequest(
            image_bundle, [data_root / "dicom" / "*.dcm"], tmp_path / "out.csv", workers=workers, batch_size=5
        )
    )
    found = {Path(row["path"]).name: row for row in _rows(tmp_path / "out.csv")}
    assert {name: (row["status"], row["reason"]) for name, row in found.items()} == REAL
    assert all(row["message"] and name not in row["message"] for name, row in found.items() if row["reason"])
    lossy, near_lossless = found["cr_chest_mono1_j2k_lossy.dcm"], found["cr_chest_mono1_jpegls.dcm"]
    assert float(lossy["probability_Mass"]) == pytest.approx(float(near_lossless["probability_Mass"]), abs=0.01)


def test_a_fused_model_reads_a_table_of_notes_alone(fused_bundle: Bundle, tmp_path: Path):
    (tmp_path / "notes.csv").write_text("path,note\na,fever and cough\nb,\n")
    score(ScoringRequest(fused_bundle, [], tmp_path / "out.csv", notes=tmp_path / "notes.csv", workers=2))
    assert [(row["path"], row["status"], row["reason"]) for row in _rows(tmp_path / "out.csv")] == [
        ("a", "scored", ""), ("b", "refused", "no_image"),
    ]  # fmt: skip


def test_batches_are_filled_up_so_that_no_row_depends_on_its_mates(
    image_bundle: Bundle, films: Path, tmp_path: Path, monkeypatch
):
    sizes: list[int] = []
    run = batch.Predictor.read

    def noted(self, studies):
        sizes.append(sum(batch.is_scorable(study) for study in studies))
        return run(self, studies)

    monkeypatch.setattr(batch.Predictor, "read", noted)
    summary = score(ScoringRequest(image_bundle, [films], tmp_path / "out.csv", batch_size=3))
    assert (summary.inputs, sizes) == (8, [3, 3, 3])


def test_a_batch_of_refused_films_does_not_wait_for_one_that_can_be_scored():
    refused, film = DecodedImage("refused", "view"), DecodedImage("scored", pixels=np.zeros((4, 4), np.uint8))
    films = [("a", refused), ("b", film), *((f"{n}", refused) for n in range(20)), ("c", film)]
    made = list(batch.batches([(name, Study(film)) for name, film in films], 2))
    assert [batch_.names for batch_ in made[:1]] == [["a"]]
    sizes = [len(batch_.names) for batch_ in made]
    assert sizes[1:3] == [16, 1] and sum(sizes) == len(films)


def test_a_run_that_could_not_begin_leaves_nothing_behind(image_bundle: Bundle, films: Path, tmp_path: Path):
    with pytest.raises(DependencyError, match="a GPU is required"):
        score(ScoringRequest(image_bundle, [films], tmp_path / "out.csv", provider="cpu", require_gpu=True))
    assert [path.name for path in tmp_path.iterdir()] == ["films"]
