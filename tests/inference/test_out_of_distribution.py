from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.dicom.gate import GatePolicy, admit
from medsd.errors import BundleError, DataError
from medsd.inference import out_of_distribution
from medsd.inference.out_of_distribution import CHECKS, WORDS, Reference, fit
from medsd.preprocessing.pixels import to_pixels
from medsd.settings import PixelSpec
from tests.bench.generated_bodies import hand, skull

Films = npt.NDArray[np.uint8]
SPEC = PixelSpec(size=64)


@pytest.fixture(scope="module")
def films(chest: npt.NDArray[np.float64]) -> Films:
    rng = np.random.default_rng(0)
    chests = [np.clip(chest * rng.uniform(0.5, 1) + rng.normal(0, 0.04, chest.shape), 0, 1) for _ in range(90)]
    return np.stack([to_pixels(one, SPEC) for one in chests])


@pytest.fixture(scope="module")
def reference(films: Films) -> Reference:
    return Reference.from_arrays(*fit(films[:60], None, films[60:], None))


def unit(rows: int, size: int, seed: int = 3) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_brightness_and_contrast_change_little(reference: Reference, films: Films):
    darker = (films[:1] // 2 + 20).astype(np.uint8)
    for name, strange in reference.strangeness(darker, None).items():
        assert strange[0] == pytest.approx(reference.strangeness(films[:1], None)[name][0], abs=0.4)


def test_the_value_is_the_length_of_what_speaks_over_its_limit(films: Films):
    embeddings = unit(90, 16)
    reference = Reference.from_arrays(*fit(films[:60], embeddings[:60], films[60:], embeddings[60:]))
    strange = reference.strangeness(films[60:], embeddings[60:])
    assert tuple(strange) == CHECKS
    above = np.stack([np.maximum(strange[name], 0) for name in CHECKS])
    expected = np.linalg.norm(above, axis=0) / reference.description.limits["all"]
    np.testing.assert_allclose(reference.values(films[60:], embeddings[60:]), expected, rtol=1e-5)


def test_a_flat_film_is_out_of_distribution(reference: Reference):
    flat = np.full((1, 64, 64), 90, np.uint8)
    assert reference.judge(flat, None)[0].reason == "out_of_distribution"


def test_as_many_films_lie_beyond_the_limit_as_the_rate_says(films: Films):
    rng = np.random.default_rng(5)
    many = np.concatenate([films[rng.permutation(90)] // np.uint8(rng.integers(1, 3)) for _ in range(5)])
    noise = rng.integers(0, 12, many.shape, dtype=np.uint8)
    many, embeddings = many // 2 + noise, unit(450, 16)
    description, arrays = fit(many[:300], embeddings[:300], many[300:], embeddings[300:], false_alarm_rate=0.1)
    beyond = Reference.from_arrays(description, arrays).values(many[300:], embeddings[300:]) > 1
    assert description.false_alarm_rate == 0.1
    assert beyond.mean() == pytest.approx(0.1, abs=0.06)


def test_the_limit_hangs_on_no_single_film(films: Films):
    embeddings = unit(90, 16)
    limits = [
        fit(films[:60], embeddings[:60], np.delete(films[60:], row, 0), np.delete(embeddings[60:], row, 0))[0].limits
        for row in range(8)
    ]
    found = np.array([one["all"] for one in limits])
    assert found.std() / found.mean() < 0.03


def test_a_patients_films_are_never_measured_against_each_other(films: Films):
    twice, whose = np.repeat(films[:30], 2, axis=0), np.repeat(np.arange(30), 2)
    apart, together = (fit(twice, None, films[60:], None, patients=p)[0] for p in (whose, None))
    assert apart.checks["edges"].centre > together.checks["edges"].centre


def test_a_negative_is_told_from_a_stranger(reference: Reference, films: Films):
    negative, turned = 255 - films[60:], np.ascontiguousarray(np.rot90(films[60:], 1, (1, 2)))
    inverted = [verdict.reason == "inverted_look" for verdict in reference.judge(negative, None)]
    assert np.mean(inverted) > 0.9
    assert {verdict.reason for verdict in reference.judge(turned, None)} == {"out_of_distribution"}


@pytest.mark.parametrize(("turn", "said"), [(1, "90° to the right"), (2, "upside down"), (3, "90° to the left")])
def test_a_turned_film_is_told_how_to_turn_it(reference: Reference, films: Films, turn: int, said: str):
    turned = np.ascontiguousarray(np.rot90(films[60:], turn, (1, 2)))
    assert np.mean([said in verdict.detail for verdict in reference.judge(turned, None)]) > 0.9


def test_the_check_that_speaks_is_named(films: Films):
    base = np.zeros((90, 8), np.float32)
    base[:, 0] = 1
    reference = Reference.from_arrays(*fit(films[:60], base[:60], films[60:], base[60:]))
    verdict = reference.judge(films[:1], -base[:1])[0]
    assert verdict.value > 1
    assert (verdict.reason, verdict.detail) == ("out_of_distribution", WORDS["network"])


def test_a_film_is_judged_alone_as_among_others(reference: Reference, films: Films):
    alone = [reference.judge(films[row : row + 1], None)[0].value for row in range(3)]
    np.testing.assert_allclose(alone, [verdict.value for verdict in reference.judge(films[:3], None)], rtol=1e-4)


def test_too_few_films_are_an_error(films: Films):
    with pytest.raises(DataError, match="at least two training images"):
        fit(films[:1], None, films, None)


def test_one_patient_alone_can_be_learned_from(films: Films):
    description, _ = fit(films[:4], None, films[60:], None, patients=["one"] * 4)
    assert set(description.checks) == {"greys", "edges"}


def test_the_arrays_survive_the_bundle(image_bundle: Bundle, films: Films, reference: Reference, tmp_path: Path):
    description, arrays = fit(films[:60], None, films[60:], None)
    bundle = Bundle(tmp_path, image_bundle.description.model_copy(update={"out_of_distribution": description}))
    with pytest.raises(BundleError, match="cannot be read"):
        out_of_distribution.load(bundle)
    out_of_distribution.save(tmp_path / layout.OUT_OF_DISTRIBUTION, arrays)
    loaded = out_of_distribution.load(bundle)
    assert loaded is not None
    assert loaded.judge(films, None) == reference.judge(films, None)


@pytest.mark.parametrize(("name", "said"), [("template", "template"), ("edges_noise", "edges_noise")])
def test_a_missing_array_is_one_clear_error(films: Films, name: str, said: str):
    description, arrays = fit(films[:60], None, films[60:], None)
    arrays.pop(name)
    with pytest.raises(BundleError, match=f"{said}.* is missing; export again"):
        Reference.from_arrays(description, arrays)


def test_embeddings_of_another_size_are_an_error(image_bundle: Bundle, films: Films, tmp_path: Path):
    embeddings = unit(90, image_bundle.description.embedding_size + 8)
    description, arrays = fit(films[:60], embeddings[:60], films[60:], embeddings[60:])
    out_of_distribution.save(tmp_path / layout.OUT_OF_DISTRIBUTION, arrays)
    bundle = Bundle(tmp_path, image_bundle.description.model_copy(update={"out_of_distribution": description}))
    with pytest.raises(BundleError, match="embeddings are not of the bundle's size"):
        out_of_distribution.load(bundle)


def test_limits_without_their_checks_are_no_description(films: Films):
    tree = fit(films[:60], None, films[60:], None)[0].model_dump() | {"limits": {"all": 1.0}}
    with pytest.raises(ValueError, match="'image'"):
        layout.OutOfDistribution.model_validate(tree)


@pytest.fixture(scope="module")
def nih(data_root: Path) -> tuple[Films, npt.NDArray[np.bool_]]:
    """Every second film of ChestX-ray14's sample, and which belong to training patients."""
    paths = sorted((data_root / "nih_cxr" / "images").glob("*.png"))[::2]
    if not paths:
        pytest.skip(f"real data: no films of NIH ChestX-ray14 under {data_root}")
    pixels = np.stack([to_pixels(np.asarray(Image.open(p).convert("L"), np.float32) / 255, SPEC) for p in paths])
    return pixels, np.array([int(path.name[:8]) % 10 for path in paths])


@pytest.fixture(scope="module")
def real(nih: tuple[Films, npt.NDArray[np.int64]]) -> Reference:
    pixels, part = nih
    return Reference.from_arrays(*fit(pixels[part < 6], None, pixels[(part == 6) | (part == 7)], None))


def test_real_chests_of_new_patients_pass_and_none_is_far(real: Reference, nih):
    verdicts = real.judge(nih[0][nih[1] > 7], None)
    assert np.mean([bool(verdict.reason) for verdict in verdicts]) < 0.06
    assert not any(verdict.far for verdict in verdicts)


@pytest.mark.parametrize("grey", [0, 250])
def test_a_small_field_is_no_stranger_than_a_large_one(real: Reference, nih, grey: int, monkeypatch):
    test = nih[0][nih[1] > 7]
    framed = np.full_like(test, grey)
    framed[:, 8:56, 12:52] = [np.asarray(Image.fromarray(film).resize((40, 48))) for film in test]
    assert np.mean(real.values(framed, None) > 1) < 0.1
    monkeypatch.setattr("medsd.inference.out_of_distribution.without_borders", lambda pixels: pixels)
    assert np.mean(real.values(framed, None) > 1) > 0.5


@pytest.mark.parametrize(("name", "least"), [("negative", 0.9), ("turned", 0.85), ("upside down", 0.95)])
def test_real_chests_wrongly_presented_are_noticed(real: Reference, nih, name: str, least: float):
    test = nih[0][nih[1] > 7]
    changed = {
        "negative": 255 - test,
        "turned": np.rot90(test, 1, (1, 2)),
        "upside down": np.rot90(test, 2, (1, 2)),
    }[name]
    verdicts = real.judge(np.ascontiguousarray(changed), None)
    assert np.mean([bool(verdict.reason) for verdict in verdicts]) > least
    if name == "negative":
        assert np.mean([verdict.reason == "inverted_look" for verdict in verdicts]) > least


@pytest.mark.parametrize("draw", [hand, skull])
def test_generated_films_of_another_body_part_are_noticed(real: Reference, draw: Callable[[int, int], Films]):
    films = np.stack([to_pixels(draw(index, 40), SPEC) for index in range(12)])
    assert {verdict.reason for verdict in real.judge(films, None)} == {"out_of_distribution"}


def test_real_dicom_films_are_judged_as_a_person_would(real: Reference, data_root: Path):
    policy = GatePolicy(body_part="accept", not_human="accept", view="accept")
    names = ["cr_chest_mono1_j2k_lossy", "cr_chest_mono2_jpeg", "dx_nih_1", "dx_nih_2", "dx_nih_3", "dx_nih_6"]
    names += ["cr_chest_false_mono1", "dx_thorax_animal", "rg_jpeg_extended"]
    films = [admit(data_root / "dicom" / f"{name}.dcm", policy).radiograph for name in names]
    verdicts = real.judge(np.stack([to_pixels(film, SPEC) for film in films]), None)
    reasons = [verdict.reason for verdict in verdicts]
    assert reasons[:8] == [""] * 6 + ["inverted_look", "out_of_distribution"]
    assert reasons[8]  # a hip; its negative could be taken for a chest, so either word is right
