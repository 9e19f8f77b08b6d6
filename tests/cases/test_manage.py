"""Adding images, embedding again, handing out a table: what is done with an index after it was made."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from medsd.bundle.layout import Bundle, write_description
from medsd.cases.case import Case
from medsd.cases.index import CaseIndex, create_index
from medsd.cases.manage import add_images, export, hasher_of, open_cases, patient_keys, rebuild, summary, summary_text
from medsd.cases.table import read_image_table
from medsd.cli import app
from medsd.errors import BundleError, DataError, MedsdError
from medsd.inference.predict import Predictor
from medsd.privacy import KeyedHasher, public_hasher
from medsd.scoring.note_files import Notes
from tests.bundles import WIDTH, tiny_bundle

HASHER = KeyedHasher(b"a key for the tests of medsd")
SECRET = "Withdrawn^Wanda"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("MEDSD_KEY", "a key for the tests of medsd")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(6):
        image = np.linspace(20, 220, 200 * 200).reshape(200, 200) + 25 * np.sin(np.arange(200) / (5 + 3 * number))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"image{number}.png")
    return folder


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    opened = tiny_bundle(tmp_path / "b")
    create_index(
        opened.cases_path,
        [Case("first", "somebody", np.zeros(14, np.float32), view="PA", sex="F")],
        np.eye(1, WIDTH, dtype=np.float32),
        model_sha256=opened.model_sha256,
        findings=opened.findings,
        model=opened.label,
    )
    return opened


def table(folder: Path, **columns) -> Path:
    rows = {
        "path": [f"image{i}.png" for i in range(4)],
        "Effusion": ["1", "0", "", "-1"],
        "Mass": ["0", "yes", "no", "0"],
    }
    rows["patient"] = [SECRET, SECRET, "other", ""]
    rows["age"], rows["sex"], rows["view"] = ["61", "61", "", "93"], ["f", "f", "M", ""], ["pa", "AP", "", "AP"]
    rows["note"] = [f"Mrs. Wanda Withdrawn, short of breath, {SECRET}", "", "", ""]
    path = folder / "new.csv"
    pd.DataFrame(rows | columns).to_csv(path, index=False)
    return path


@pytest.fixture
def filled(bundle, images, tmp_path) -> CaseIndex:
    index = CaseIndex.open(bundle.cases_path)
    rows = read_image_table(table(tmp_path), images, bundle.findings)
    add_images(index, Predictor(bundle, provider="cpu"), rows, HASHER, thumbnails=True, excerpts=True)
    return index


def test_added_images_are_found_by_themselves_with_all_that_is_known_of_them(filled, bundle, images):
    prediction = Predictor(bundle, provider="cpu")(images / "image1.png")
    (hit,) = filled.nearest(prediction.embedding, 1)
    case = hit.case
    assert (case.study_key, case.patient_key) == (HASHER.study_key("image1"), HASHER.patient_key(SECRET))
    assert (case.view, case.sex, case.age_band, case.findings) == ("AP", "F", "60-69", ("Mass",))
    assert np.isnan(case.labels).sum() == 12 and case.thumbnail is not None
    assert hit.similarity == pytest.approx(1, abs=1e-5) and len(filled) == 5


def test_nobodys_name_reaches_the_index(filled, bundle):
    for path in bundle.cases_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"Wanda" not in content and b"image1" not in content
    excerpts = [case.note_excerpt for case, _ in filled.records() if case.note_excerpt]
    assert len(excerpts) == 1 and "short of breath" in excerpts[0]


def test_images_that_are_cases_already_are_left_alone_and_refused_ones_are_counted(filled, bundle, images, tmp_path):
    predictor = Predictor(bundle, provider="cpu")
    (tmp_path / "more").mkdir()
    Image.fromarray(np.zeros((200, 200), np.uint8)).save(tmp_path / "more" / "black.png")
    (tmp_path / "more" / "image0.png").write_bytes((images / "image0.png").read_bytes())
    pd.DataFrame({"path": ["black.png", "image0.png"], "Mass": ["1", "0"]}).to_csv(tmp_path / "more.csv", index=False)
    rows = read_image_table(tmp_path / "more.csv", tmp_path / "more", bundle.findings)
    changes = add_images(filled, predictor, rows, HASHER)
    assert (changes.written, changes.known, changes.refused, changes.cases) == (0, 1, 1, 5)
    assert changes.line() == "0 cases written, 1 known before, 1 refused; 5 in the index"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"Effusion": ["1", "2", "0", "0"]}, r"row 2: column 'Effusion' is neither 1, 0 nor empty"),
        ({"path": ["image0.png", "gone.png", "image1.png", "image2.png"]}, r"row 2: there is no image"),
    ],
)
def test_a_bad_row_of_the_table_is_named_by_its_number(tmp_path, images, bundle, columns, message):
    with pytest.raises(DataError, match=message) as caught:
        read_image_table(table(tmp_path, **columns), images, bundle.findings)
    assert "Wanda" not in str(caught.value)
    with pytest.raises(DataError, match="no such table"):
        read_image_table(tmp_path / "gone.csv", images, bundle.findings)


def test_an_index_is_embedded_again_for_another_model(filled, bundle, images, tmp_path):
    filled.remove_patient("somebody")
    other = tiny_bundle(tmp_path / "other", seed=5)
    predictor = Predictor(other, provider="cpu")
    with pytest.raises(BundleError, match="not by"):
        CaseIndex.open(bundle.cases_path, model_sha256=other.model_sha256)
    before = {case.study_key: case for case, _ in filled.records()}
    changes = rebuild(bundle.cases_path, predictor, images, HASHER)
    assert (changes.cases, changes.written, changes.missing) == (4, 4, 0)
    index = CaseIndex.open(bundle.cases_path, model_sha256=other.model_sha256)
    assert index.nearest(predictor(images / "image2.png").embedding, 1)[0].similarity == pytest.approx(1, abs=1e-5)
    for case, _ in index.records():
        assert case == before[case.study_key] and case.thumbnail == before[case.study_key].thumbnail


def test_cases_without_an_image_end_a_rebuild_unless_they_may_go(filled, bundle, images):
    predictor = Predictor(bundle, provider="cpu")
    with pytest.raises(DataError, match=r"1 of 5 cases have no image here.*--drop-missing"):
        rebuild(bundle.cases_path, predictor, images, HASHER)
    assert len(filled) == 5
    changes = rebuild(bundle.cases_path, predictor, images, HASHER, drop_missing=True)
    assert (changes.cases, changes.missing) == (4, 1)


def test_a_model_that_reads_notes_gets_those_of_the_images(tmp_path, images):
    fused = tiny_bundle(tmp_path / "fused", fused=True)
    predictor = Predictor(fused, provider="cpu")
    case = Case(HASHER.study_key("image0"), "p", np.zeros(14, np.float32))
    made = {"model_sha256": "0" * 64, "findings": fused.findings}
    create_index(tmp_path / "c", [case], np.eye(1, WIDTH, dtype=np.float32), **made)
    rebuild(tmp_path / "c", predictor, images, HASHER, notes=Notes({"image0.png": "short of breath"}))
    expected = predictor(images / "image0.png", "short of breath").embedding
    np.testing.assert_allclose(CaseIndex.open(tmp_path / "c").embeddings()[0], expected, atol=1e-6)


def test_a_model_of_other_findings_is_refused(filled, bundle, images, tmp_path):
    other = Predictor(tiny_bundle(tmp_path / "other", findings="phantom8"), provider="cpu")
    with pytest.raises(DataError, match="other findings"):
        rebuild(bundle.cases_path, other, images, HASHER)


def test_an_export_holds_numbers_in_the_place_of_keys(filled, tmp_path, bundle):
    out = tmp_path / "cases.parquet"
    assert export(filled, out) == 5
    content, frame = out.read_bytes(), pd.read_parquet(out)
    keys = [*filled.table()["study_key"], *filled.table()["patient_key"], "short of breath", SECRET]
    assert not any(key.encode() in content for key in keys if key)
    assert {"study_key", "patient_key", "thumbnail", "note_excerpt"}.isdisjoint(frame)
    assert sorted(frame["study"]) == [1, 2, 3, 4, 5] and frame["patient"].nunique() == 4
    assert frame["Mass"].sum() == 1 and frame["Effusion"].isna().sum() == 2
    stored = {tuple(np.round(vector, 5)) for vector in filled.embeddings()}
    assert {tuple(np.round(np.array(vector, np.float32), 5)) for vector in frame["embedding"]} == stored
    with pytest.raises(DataError, match=r"\.parquet"):
        export(filled, tmp_path / "cases.csv")


def test_what_is_in_an_index(filled, bundle):
    said = summary(filled)
    assert (said["cases"], said["patients"], said["model"]) == (5, 3, bundle.label)
    assert said["findings"]["Mass"] == 1 and said["view"] == {"PA": 2, "AP": 2, "": 1}
    assert "5 of 3 patients" in summary_text(said) and "search       exact" in summary_text(said)


def test_keys_of_patients_come_from_the_secret_that_made_the_index(tmp_path, bundle):
    (tmp_path / "ids.txt").write_text(f"{SECRET}\n\n{SECRET}\n", encoding="utf-8")
    assert patient_keys(bundle.folder, tmp_path / "ids.txt") == [(HASHER.patient_key(SECRET),)]
    assert hasher_of(bundle).patient_key("x") == HASHER.patient_key("x")
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(DataError, match="names no patient"):
        patient_keys(bundle.folder, tmp_path / "none.txt")


def test_images_that_a_site_adds_to_a_public_bundle_are_keyed_by_its_secret(bundle, images, tmp_path):
    public = public_hasher("tiny")
    write_description(bundle.folder, bundle.description.model_copy(update={"public": True, "name": "tiny"}))
    opened = Bundle.open(bundle.folder)
    index, predictor, hasher = CaseIndex.open(opened.cases_path), Predictor(opened, provider="cpu"), hasher_of(opened)
    index.add([Case(public.study_key("image3"), public.patient_key("known"), np.zeros(14))], np.eye(1, WIDTH, 1))
    rows = read_image_table(table(tmp_path), images, opened.findings)
    changes = add_images(index, predictor, rows, hasher)
    assert (changes.written, changes.known) == (3, 1)  # image3 is a public case
    added = index.table()[lambda cases: ~cases["study_key"].isin({"first", public.study_key("image3")})]
    assert set(added["study_key"]) == {HASHER.study_key(f"image{number}") for number in range(3)}
    assert set(added["patient_key"]) == {HASHER.patient_key(SECRET), HASHER.patient_key("other")}
    assert add_images(index, predictor, rows, hasher).written == 0
    (tmp_path / "ids.txt").write_text(f"{SECRET}\nknown\n", encoding="utf-8")
    said = json.loads(_run("remove", opened.folder, "--ids", tmp_path / "ids.txt", "--json"))
    assert said == {"patients": 2, "removed": 3, "cases": 2}  # the site's own images, and the public case


def _run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["cases", *map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_every_verb_from_the_command_line(bundle, images, tmp_path):
    new, out = table(tmp_path), tmp_path / "out.parquet"
    assert "4 cases written; 5 in the index" in _run("add", bundle.folder, new, "--images", images, "--thumbnails")
    assert json.loads(_run("info", bundle.folder, "--json"))["cases"] == 5
    (tmp_path / "ids.txt").write_text(SECRET)
    said = json.loads(_run("remove", bundle.folder, "--ids", tmp_path / "ids.txt", "--json"))
    assert said == {"patients": 1, "removed": 2, "cases": 3}
    again = _run("add", bundle.folder, new, "--images", images)
    assert "0 cases written, 2 known before, 2 of removed patients left out (medsd cases readmit)" in again
    assert "1 of 1 patients were removed, and may be added again" in _run(
        "readmit", bundle.folder, "--ids", tmp_path / "ids.txt"
    )
    assert "1 cases removed; 2 in the index" in _run("remove", bundle.cases_path, "--patient", "somebody")
    assert "2 cases written" in _run("rebuild", bundle.folder, "--images", images)
    assert "2 cases; exact search" in _run("compact", bundle.folder)
    assert "2 cases" in _run("export", bundle.folder, "--out", out) and out.is_file()


@pytest.mark.parametrize("verb", ["info", "add", "remove", "readmit", "rebuild", "compact", "export"])
def test_every_verb_has_help_with_an_example(verb):
    assert f"Example: medsd cases {verb}" in CliRunner().invoke(app, ["cases", verb, "--help"]).output


def test_a_removal_of_nobody_is_bad_usage(bundle):
    assert CliRunner().invoke(app, ["cases", "remove", str(bundle.folder)]).exit_code == 2


def test_an_index_of_another_model_in_a_bundle_is_refused(bundle, tmp_path):
    other = tiny_bundle(tmp_path / "other", seed=5)
    (other.folder / "cases").symlink_to(bundle.cases_path)
    with pytest.raises(BundleError, match="not by"):
        open_cases(other.folder)
    assert len(open_cases(other.folder / "cases")) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--with", "mass", "--without", "effusion"], "cases with Mass; without Pleural effusion"),
        (["--words", "a mass without effusion"], "cases with Mass; without Pleural effusion"),
        (["--with", "mass", "--view", "AP"], "cases with Mass"),
    ],
)
def test_cases_are_found_by_findings_and_by_a_sentence(filled, bundle, arguments, expected):
    result = CliRunner().invoke(app, ["similar", str(bundle.folder), *arguments])
    assert expected in result.output and HASHER.study_key("image1") in result.output
    assert HASHER.study_key("image0") not in result.output
    said = json.loads(CliRunner().invoke(app, ["similar", str(bundle.folder), *arguments, "--json"]).output)
    assert [case["study_key"] for case in said["cases"]] == [HASHER.study_key("image1")]


def test_filters_and_findings_narrow_the_search_by_an_image(filled, bundle, images):
    image = str(images / "image5.png")
    result = CliRunner().invoke(app, ["similar", str(bundle.folder), image, "--with", "Mass", "--json"])
    said = json.loads(result.output)
    assert [case["study_key"] for case in said["cases"]] == [HASHER.study_key("image1")]
    assert said["understood"] == "with Mass" and len(said["votes"]) == 14
    result = CliRunner().invoke(app, ["similar", str(bundle.folder), "--words", "an image of Tuesday"])
    assert isinstance(result.exception, MedsdError) and "names no finding" in str(result.exception)


def test_words_go_through_a_model_that_reads_notes_and_negation_filters(tmp_path):
    fused = tiny_bundle(tmp_path / "fused", fused=True)
    labels = [fused.findings.encode(names) for names in (["Effusion"], ["Effusion", "Cardiomegaly"], ["Effusion"])]
    vectors = np.eye(3, WIDTH, dtype=np.float32)
    made = {"model_sha256": fused.model_sha256, "findings": fused.findings}
    create_index(fused.cases_path, [Case(f"c{i}", labels=row) for i, row in enumerate(labels)], vectors, **made)
    words = "short of breath, effusion without cardiomegaly"
    said = json.loads(CliRunner().invoke(app, ["similar", str(fused.folder), "--words", words, "--json"]).output)
    embedding = Predictor(fused, provider="cpu")(None, words).embedding
    expected = sorted((0, 2), key=lambda row: -float(vectors[row] @ embedding))
    assert [case["study_key"] for case in said["cases"]] == [f"c{row}" for row in expected]
    assert (
        said["understood"]
        == "near these words, with Pleural effusion; without Cardiomegaly; not understood: short of breath"
    )
    assert {case["relation"] for case in said["cases"]} == {"equal"}
