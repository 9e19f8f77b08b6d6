from __future__ import annotations

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
from medsd.inference.out_of_distribution import Reference, fit, thumbnails
from medsd.inference.preprocess import to_pixels
from medsd.settings import PixelSpec

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


def test_a_thumbnail_has_no_mean_and_unit_length(films: Films):
    small = thumbnails(films)
    np.testing.assert_allclose(small.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, rtol=1e-5)


def test_brightness_and_contrast_change_nothing(reference: Reference, films: Films):
    darker = (films[:1] // 2 + 20).astype(np.uint8)
    np.testing.assert_allclose(reference.look(thumbnails(darker)), reference.look(thumbnails(films[:1])), atol=1e-3)


def test_a_flat_film_correlates_with_nothing(reference: Reference):
    flat = np.full((1, 64, 64), 90, np.uint8)
    assert reference.look(thumbnails(flat)) == pytest.approx(1)
    assert reference.judge(flat, None)[0].reason == "out_of_distribution"


def test_limits_are_the_validation_quantiles(films: Films):
    description, arrays = fit(films[:60], None, films[60:], None, false_alarm_rate=0.1)
    scores = Reference.from_arrays(description, arrays).scores(films[60:], None)
    for name, limit in description.limits.items():
        assert limit == pytest.approx(np.quantile(scores[name], 0.9))
        assert (scores[name] > limit).mean() == pytest.approx(0.1, abs=0.01)


def test_residual_is_what_the_components_leave(reference: Reference, films: Films):
    small = thumbnails(films[:5])
    centred = small - reference.mean
    rebuilt = centred @ reference.components.T @ reference.components
    expected = np.linalg.norm(centred - rebuilt, axis=1)
    np.testing.assert_allclose(reference.residual(small), expected, rtol=1e-3)


def test_distance_is_the_mean_over_the_nearest(films: Films):
    rng = np.random.default_rng(3)
    embeddings = rng.normal(size=(90, 16)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    reference = Reference.from_arrays(*fit(films[:60], embeddings[:60], films[60:], embeddings[60:], neighbours=4))
    expected = [np.sort(1 - embeddings[:60] @ query)[:4].mean() for query in embeddings[60:]]
    np.testing.assert_allclose(reference.distance(embeddings[60:]), expected, atol=2e-3)  # stored as float16
    assert set(reference.description.limits) == {"look", "residual", "neighbours"}


def test_a_negative_is_told_from_a_stranger(reference: Reference, films: Films):
    negative, turned = 255 - films[60:], np.ascontiguousarray(np.rot90(films[60:], 1, (1, 2)))
    usual = [not verdict.reason for verdict in reference.judge(films[60:], None)]
    inverted = [verdict.reason == "inverted_look" for verdict in reference.judge(negative, None)]
    assert inverted == usual
    assert sum(usual) > 25
    assert {verdict.reason for verdict in reference.judge(turned, None)} == {"out_of_distribution"}


def test_a_strange_embedding_alone_is_never_far(films: Films):
    base = np.zeros((90, 8), np.float32)
    base[:, 0] = 1
    reference = Reference.from_arrays(*fit(films[:60], base[:60], films[60:], base[60:]))
    verdict = reference.judge(films[:1], -base[:1])[0]
    assert verdict.value > 100
    assert (verdict.reason, verdict.far) == ("out_of_distribution", False)


def test_too_few_films_are_an_error(films: Films):
    with pytest.raises(DataError, match="at least two training films"):
        fit(films[:1], None, films, None)


def test_the_arrays_survive_the_bundle(image_bundle: Bundle, films: Films, reference: Reference, tmp_path: Path):
    description, arrays = fit(films[:60], None, films[60:], None)
    bundle = Bundle(tmp_path, image_bundle.description.model_copy(update={"out_of_distribution": description}))
    with pytest.raises(BundleError, match="cannot be read"):
        out_of_distribution.load(bundle)
    out_of_distribution.save(tmp_path / layout.OUT_OF_DISTRIBUTION, arrays)
    loaded = out_of_distribution.load(bundle)
    assert loaded is not None
    assert loaded.judge(films, None) == reference.judge(films, None)


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


def test_real_dicom_films_are_judged_as_a_person_would(real: Reference, data_root: Path):
    policy = GatePolicy(body_part="accept", not_human="accept", view="accept")
    names = ["cr_chest_mono1_j2k_lossy", "cr_chest_mono2_jpeg", "dx_nih_1", "dx_nih_2", "dx_nih_3", "dx_nih_6"]
    names += ["cr_chest_false_mono1", "dx_thorax_animal", "rg_jpeg_extended"]
    films = [admit(data_root / "dicom" / f"{name}.dcm", policy).radiograph for name in names]
    verdicts = real.judge(np.stack([to_pixels(film, SPEC) for film in films]), None)
    reasons = [verdict.reason for verdict in verdicts]
    assert reasons[:8] == [""] * 6 + ["inverted_look", "out_of_distribution"]
    assert reasons[8]  # a hip; its negative could be taken for a chest, so either word is right
