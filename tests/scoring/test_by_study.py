"""One row a study: how its images are combined, in every format."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from medsd.bundle.layout import Bundle
from medsd.calibration.types import call
from medsd.cli import app
from medsd.privacy import KeyedHasher
from medsd.scoring import table
from medsd.scoring.by_study import Studies

KEY = "a key for tests alone"


@pytest.fixture(autouse=True)
def site_key(monkeypatch) -> None:
    monkeypatch.setenv("MEDSD_KEY", KEY)


def _score(bundle: Bundle, *words: object, out: Path) -> pd.DataFrame:
    result = CliRunner().invoke(app, ["score", *map(str, (bundle.folder, *words, "--out", out, "--by", "study"))])
    assert result.exit_code == 0, (result.output, result.exception)
    if out.suffix == ".parquet":
        return pd.read_parquet(out)
    return (
        pd.read_csv(out, keep_default_na=False, na_values={}) if out.suffix == ".csv" else pd.read_json(out, lines=True)
    )


def test_a_row_of_an_image_has_its_keys_and_its_view_also_where_it_is_refused(
    image_bundle: Bundle, studies: Path, tmp_path: Path
):
    words = ["score", str(image_bundle.folder), str(studies), "--out", str(tmp_path / "out.csv")]
    assert CliRunner().invoke(app, words).exit_code == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    hasher = KeyedHasher(KEY.encode())
    for name, study, instance, view in (("e_lateral.dcm", "1", 3, "LATERAL"), ("f_damaged.dcm", "1", 4, "PA")):
        row = rows[name]
        assert row["status"] == "refused" and row["view"] == view
        assert row["study_key"] == hasher.study_key(f"1.2.{study}")
        assert row["patient_key"] == hasher.patient_key(f"patient {study}")
        assert row["instance_key"] == hasher.instance_key(f"1.2.{study}.{instance}")
    assert rows["a_pa.dcm"]["instance_key"] == rows["d_copy.dcm"]["instance_key"] != rows["b_pa.dcm"]["instance_key"]
    assert rows["c_ap.dcm"]["view"] == "AP"


@pytest.mark.parametrize("suffix", table.SUFFIXES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_study_is_the_mean_of_its_frontal_images(
    image_bundle: Bundle, studies: Path, tmp_path: Path, suffix: str, packed: bool
):
    given = studies
    if packed:
        given = tmp_path / "studies.zip"
        with zipfile.ZipFile(given, "w") as archive:
            for path in studies.iterdir():
                archive.write(path, path.name)
    out = tmp_path / f"out{suffix}"
    frame = _score(image_bundle, given, out=out)
    assert list(frame) == table.study_columns(image_bundle.findings)
    hasher = KeyedHasher(KEY.encode())
    by_key = {row["study_key"]: row for row in frame.to_dict("records")}
    first, second, third = (by_key[hasher.study_key(f"1.2.{n}")] for n in (1, 2, 3))
    assert len(frame) == 3 and frame["patient_key"].nunique() == 3
    counts = [first[name] for name in table.COUNTS]
    assert counts == [4, 2, 0, 2, 1] and first["status"] == "warned"
    assert [Path(path).name.rpartition("!")[2] for path in json.loads(first["paths_used"])] == ["a_pa.dcm", "b_pa.dcm"]
    refused = {Path(path).name.rpartition("!")[2]: why for path, why in json.loads(first["paths_refused"]).items()}
    assert refused == {"e_lateral.dcm": "view", "f_damaged.dcm": "cannot_decode"}
    assert "2 images were refused" in first["message"]
    images = {
        Path(row["path"]).name.rpartition("!")[2]: row for row in table.read_table(tmp_path / f"out.images{suffix}")
    }
    assert len(images) == 8
    for name in image_bundle.findings:
        mean = (images["a_pa.dcm"][f"probability_{name}"] + images["b_pa.dcm"][f"probability_{name}"]) / 2
        assert float(first[f"probability_{name}"]) == pytest.approx(mean, abs=1e-6)
        assert first[f"call_{name}"] == call(mean, image_bundle.description.operating_points[name])
        assert float(second[f"probability_{name}"]) == pytest.approx(
            images["c_ap.dcm"][f"probability_{name}"], abs=1e-9
        )
    assert [second[name] for name in table.COUNTS] == [1, 1, 0, 0, 1] and second["status"] == images["c_ap.dcm"][
        "status"
    ]
    assert (third["status"], third["reason"], third["images_used"]) == ("refused", "view", 0)


def test_a_table_of_studies_is_resumed_from_that_of_its_images(image_bundle: Bundle, studies: Path, tmp_path: Path):
    out = tmp_path / "out.csv"
    _score(image_bundle, studies / "a*", studies / "c*", out=out)
    whole = _score(image_bundle, studies, "--resume", out=out)
    new = _score(image_bundle, studies, out=tmp_path / "new.csv")
    for frame, name in ((frame, name) for frame in (whole, new) for name in ("paths_used", "paths_refused")):
        frame[name] = [str(sorted(json.loads(text))) for text in frame[name]]  # in the order in which they were scored
    by_key = [frame.sort_values("study_key").reset_index(drop=True) for frame in (whole, new)]
    pd.testing.assert_frame_equal(*by_key)
    assert len(whole) == 3


def test_laterals_that_the_gate_lets_through_are_not_averaged_in(image_bundle: Bundle, studies: Path, tmp_path: Path):
    frame = _score(image_bundle, studies, "--set", "gate.view=warn", out=tmp_path / "out.csv")
    counts = frame.set_index("study_key")[list(table.COUNTS)]
    hasher = KeyedHasher(KEY.encode())
    assert counts.loc[hasher.study_key("1.2.1")].tolist() == [4, 2, 1, 1, 1]
    alone = frame.set_index("study_key").loc[hasher.study_key("1.2.3")]
    assert (alone["status"], alone["reason"]) == ("refused", "view") and "No frontal image" in alone["message"]


def _row(**values: object) -> table.Row:
    row = {
        "path": "p",
        "status": "scored",
        "reason": "",
        "message": "",
        "study_key": "s",
        "patient_key": "",
        "view": "",
    }
    return row | {"instance_key": "", "out_of_distribution": None, "model": "m", "model_sha256": "0"} | values


def test_images_of_two_patients_in_one_study_are_warned_about(image_bundle: Bundle):
    said = {f"probability_{name}": 0.25 for name in image_bundle.findings} | dict.fromkeys(
        (f"call_{name}" for name in image_bundle.findings), "absent"
    )
    rows = [_row(path="a", patient_key="1", **said), _row(path="b", patient_key="2", **said)]
    row = Studies(image_bundle).combine(rows)
    assert (row["status"], row["reason"]) == ("warned", "patients_differ") and "2 patients" in row["message"]


def test_inputs_without_a_study_are_studies_of_their_own(image_bundle: Bundle, films: Path, tmp_path: Path):
    frame = _score(image_bundle, films, out=tmp_path / "out.parquet")
    assert len(frame) == 8 and set(frame["images"]) == {1} and frame["paths_used"].nunique() == 8
