from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.dicom.gate import GatePolicy
from medsd.dicom.read import read_radiograph
from medsd.errors import BundleError, DataError
from medsd.inference import out_of_distribution
from medsd.inference.predict import Predictor
from medsd.preprocessing.image import read_image
from medsd.privacy import KeyedHasher
from medsd.scoring.table import row
from tests.bundles import tiny_bundle

Chest = npt.NDArray[np.float64]


def test_a_film_gives_every_number(predictor: Predictor, chest: Chest):
    prediction = predictor(chest)
    assert (prediction.status, prediction.reason, prediction.message) == ("scored", "", "")
    assert list(prediction.probabilities) == list(prediction.findings)
    np.testing.assert_allclose(prediction.values, expit(prediction.logits), rtol=1e-5)
    assert np.linalg.norm(prediction.embedding) == pytest.approx(1, abs=1e-5)
    assert prediction.evidence_maps.shape == (14, 8, 8)
    assert (prediction.model, len(prediction.model_sha256)) == ("tiny 1", 64)


def test_calls_follow_the_operating_points(predictor: Predictor, chest: Chest):
    prediction = predictor(chest)
    for name, probability in prediction.probabilities.items():
        expected = "undecided" if name == "Hernia" else "present" if probability >= 0.5 else "absent"
        assert prediction.calls[name] == expected
    assert prediction.present == tuple(n for n, p in prediction.probabilities.items() if p >= 0.5 and n != "Hernia")


def test_a_number_that_is_lost_is_not_taken_for_a_finding_that_was_not_trained(
    image_bundle: Bundle, chest: Chest, monkeypatch: pytest.MonkeyPatch
):
    predictor = Predictor(image_bundle, provider="cpu")
    run = predictor.session.run

    def overflowed(feeds):
        found = run(feeds)
        probabilities = found.probabilities.copy()
        probabilities[:, 1] = np.nan
        return replace(found, probabilities=probabilities)

    monkeypatch.setattr(predictor.session, "run", overflowed)
    with pytest.raises(BundleError, match=r"no number where it should.*Cardiomegaly"):
        predictor(chest)


def test_image_note_and_both_differ(fused: Predictor, chest: Chest):
    image, note, both = fused(chest), fused(None, "fever"), fused(chest, "fever")
    assert {p.status for p in (image, note, both)} == {"scored"}
    for one, other in ((image, note), (note, both), (image, both)):
        assert np.abs(one.logits - other.logits).max() > 1e-3


def test_a_blank_note_counts_as_none(fused: Predictor, chest: Chest):
    np.testing.assert_array_equal(fused(chest, " \n").logits, fused(chest).logits)
    assert fused(None, " \n").reason == "no_image"


def test_a_note_alone_has_neither_image_nor_evidence(fused: Predictor):
    prediction = fused(None, "short of breath")
    assert prediction.image is None
    assert prediction.evidence_maps is None
    with pytest.raises(DataError, match="no evidence for 'Mass': there is no image"):
        prediction.evidence("Mass")


def test_a_note_alone_is_refused_by_a_model_of_images(predictor: Predictor):
    prediction = predictor(None, "short of breath")
    assert (prediction.status, prediction.reason) == ("refused", "no_image")
    assert prediction.probabilities == {}


def test_a_model_of_images_ignores_the_note(predictor: Predictor, chest: Chest):
    with_note, without = predictor(chest, "fever"), predictor(chest)
    assert with_note.status == "scored"
    np.testing.assert_array_equal(with_note.values, without.values)


def test_a_batch_says_what_single_calls_say(fused: Predictor, chest: Chest):
    studies = [(chest * shade, note) for shade in (1.0, 0.7) for note in (None, "fever", "known heart failure")] * 4
    studies += [(None, "cough"), (b"no film", None)]
    for prediction, study in zip(fused.batch(studies), studies, strict=True):
        single = fused(*study)
        assert prediction.status == single.status
        if not single.refused:
            np.testing.assert_allclose(prediction.logits, single.logits, rtol=1e-4, atol=1e-5)


def test_one_predictor_serves_many_threads(fused: Predictor, chest: Chest):
    studies = [(chest * (0.5 + shade / 40), "fever" if shade % 2 else None) for shade in range(20)]
    expected = [fused(*study).logits for study in studies]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda study: fused(*study).logits, studies * 3))
    np.testing.assert_allclose(np.array(found), np.array(expected * 3), rtol=1e-5)


def test_path_content_and_radiograph_are_one_film(predictor: Predictor, films: Path):
    path = films / "film_3.png"
    values = [predictor(s).values for s in (path, str(path), path.read_bytes(), read_radiograph(path))]
    assert all((value == values[0]).all() for value in values)


def test_a_refused_film_says_why_and_holds_no_numbers(predictor: Predictor, films: Path):
    prediction = predictor(films / "note.doc")
    assert (prediction.status, prediction.reason) == ("refused", "not_dicom")
    assert prediction.refused
    assert prediction.message.startswith("note.doc: ")
    assert prediction.values is prediction.embedding is prediction.evidence_maps is None
    with pytest.raises(DataError, match="the study was refused"):
        prediction.evidence("Mass")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 90, 80)), "not_an_image"),
        (np.full((90, 80), 200.0), "not_an_image"),
        (np.full((90, 80), np.nan), "not_an_image"),
        (np.zeros((20, 20)), "too_small"),
        (np.full((90, 80), 0.5), "flat"),
        (np.array([["a", "b"]]), "not_an_image"),
    ],
)
def test_an_array_that_is_no_film_is_refused(predictor: Predictor, array, reason):
    assert (predictor(array).status, predictor(array).reason) == ("refused", reason)


def test_a_negative_is_scored_with_a_warning(predictor: Predictor, chest: Chest):
    prediction = predictor(1 - chest, name="upload 3")
    assert (prediction.status, prediction.reason) == ("warned", "inverted_look")
    assert prediction.message.startswith("upload 3: bright and dark")
    assert prediction.values is not None


def test_keys_are_hashes_of_the_hasher(image_bundle: Bundle, build_dx, chest: Chest, hasher: KeyedHasher):
    content = build_dx((chest * 4095).astype(np.uint16), bits_stored=12)
    prediction = Predictor(image_bundle, provider="cpu", hasher=hasher)(content)
    assert prediction.patient_key == hasher.patient_key("PH-0042") != ""
    assert prediction.study_key == hasher.study_key("1.2.3.4") != ""
    assert "PH-0042" not in repr(prediction)
    assert Predictor(image_bundle, provider="cpu")(content).patient_key == ""


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_evidence_lies_where_the_film_is_bright(image_bundle: Bundle, fit: str, tmp_path: Path):
    """The tiny graph's maps are linear in the pixels, so a bright spot moves the map where the spot is."""
    spec = image_bundle.description.pixels.model_copy(update={"fit": fit})
    bundle = Bundle(image_bundle.folder, image_bundle.description.model_copy(update={"pixels": spec}))
    film = np.full((200, 120), 0.3)
    film[0, 0] = 0.0
    spotted = film.copy()
    spotted[120:136, 60:76] = 0.9
    predictor = Predictor(bundle, provider="cpu", policy=GatePolicy(inverted_look="accept"))
    change = np.abs(predictor(spotted).evidence("Mass") - predictor(film).evidence("Mass"))
    assert change.shape == (200, 120)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert abs(row - 128) < 26
    assert abs(column - 68) < 16


def test_an_unknown_finding_names_the_nearest(predictor: Predictor, chest: Chest):
    prediction = predictor(chest)
    with pytest.raises(DataError, match=r"'efusion' is no finding of nih14; did you mean 'Effusion'\?"):
        prediction.evidence("efusion")
    with pytest.raises(DataError, match="'Qqq' is no finding of nih14; it has Atelectasis, "):
        prediction.evidence("Qqq")


def test_a_missing_bundle_is_one_clear_error(tmp_path: Path):
    with pytest.raises(BundleError, match="no bundle here"):
        Predictor(tmp_path / "nothing")


def usual(chest: Chest, rng: np.random.Generator, shift: int | None = None) -> Chest:
    """A chest in its own exposure and place, or `shift` pixels down."""
    moved = np.roll(chest, rng.integers(-4, 5, 2) if shift is None else (shift, 0), axis=(0, 1))
    return np.clip(moved * rng.uniform(0.6, 1) + rng.normal(0, 0.03, chest.shape), 0, 1)


@pytest.fixture(scope="module")
def wary(tmp_path_factory: pytest.TempPathFactory, chest: Chest) -> Bundle:
    """A tiny bundle that knows what chests look like."""
    folder = tmp_path_factory.mktemp("wary")
    bundle = tiny_bundle(folder)
    predictor = Predictor(bundle, provider="cpu")
    rng = np.random.default_rng(0)
    chests = [usual(chest, rng) for _ in range(60)]
    pixels = np.stack([read_image(one, bundle.description.pixels).pixels for one in chests])
    embeddings = np.stack([p.embedding for p in predictor.batch([(one, None) for one in chests])])
    limits, arrays = out_of_distribution.fit(pixels[:40], embeddings[:40], pixels[40:], embeddings[40:])
    out_of_distribution.save(folder / layout.OUT_OF_DISTRIBUTION, arrays)
    layout.write_description(folder, bundle.description.model_copy(update={"out_of_distribution": limits}))
    return Bundle.open(folder)


@pytest.fixture
def strange(chest: Chest) -> Chest:
    """A chest with a shadow of itself upside down: beyond the limit, not beyond twice the limit."""
    image = usual(chest, np.random.default_rng(7), 3)
    return 0.78 * image + 0.22 * image[::-1]


def test_a_usual_film_is_in_distribution(wary: Bundle, chest: Chest):
    prediction = Predictor(wary, provider="cpu")(usual(chest, np.random.default_rng(7), 3))
    assert prediction.status == "scored"
    assert 0 <= prediction.out_of_distribution < 1


def test_a_strange_film_has_no_findings_and_is_told_why(wary: Bundle, strange: Chest):
    prediction = Predictor(wary, provider="cpu")(strange, name="film.dcm")
    assert (prediction.status, prediction.reason) == ("refused", "out_of_distribution")
    assert (prediction.values, prediction.calls, prediction.embedding, prediction.evidence_maps) == (
        None,
        {},
        None,
        None,
    )
    assert prediction.out_of_distribution > 1
    assert prediction.message.startswith("film.dcm: the image is unlike the radiographs that the model learned from (")
    assert "its outlines are not those of a frontal chest" in prediction.message


def test_the_table_withholds_what_a_strange_film_would_have_been_given(wary: Bundle, strange: Chest):
    prediction = Predictor(wary, provider="cpu")(strange)
    found = row("film.dcm", prediction)
    assert {found[name] for name in found if name.startswith("probability_")} == {None}
    assert {found[name] for name in found if name.startswith("call_")} == {""}
    assert (found["status"], found["reason"]) == ("refused", "out_of_distribution")
    assert found["out_of_distribution"] == pytest.approx(prediction.out_of_distribution, abs=1e-3)


def test_where_the_policy_warns_a_very_strange_film_is_refused_all_the_same(wary: Bundle, strange: Chest):
    predictor = Predictor(wary, provider="cpu", policy=GatePolicy(out_of_distribution="warn"))
    warned, noise = predictor(strange), predictor(np.random.default_rng(1).random((90, 80)))
    assert (warned.status, warned.reason) == ("warned", "out_of_distribution")
    assert (noise.status, noise.reason) == ("refused", "out_of_distribution")
    assert noise.out_of_distribution > warned.out_of_distribution > 1
    assert noise.message.endswith("is not scored.")


@pytest.mark.parametrize(("action", "status"), [("accept", "scored"), ("warn", "warned"), ("refuse", "refused")])
def test_the_policy_decides_what_strangeness_leads_to(wary: Bundle, strange: Chest, action: str, status: str):
    policy = GatePolicy(out_of_distribution=action)  # type: ignore[arg-type]
    prediction = Predictor(wary, provider="cpu", policy=policy)(strange)
    assert (prediction.status, prediction.values is None) == (status, status == "refused")
    assert prediction.out_of_distribution > 1
