"""Window and level against their formula, the evidence layer, and what counts as a picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medsd.results.render import (
    EVIDENCE_SIDE,
    PRESETS,
    Window,
    apply_window,
    evidence_layer,
    evidence_uri,
    fit_side,
    preset_window,
    scale_evidence,
    thumbnail_uri,
)

RAMP = np.linspace(0, 1, 101, dtype=np.float32)[None]


def test_the_full_window_shows_every_grey_value_as_it_is() -> None:
    assert apply_window(RAMP, Window()).tolist() == np.rint(RAMP * 255).astype(int).tolist()


def test_the_level_is_mid_grey_and_the_edges_of_the_width_are_black_and_white() -> None:
    shown = apply_window(np.array([[0.1, 0.2, 0.3, 0.4, 0.5]], np.float32), Window(level=0.3, width=0.2))
    assert shown.tolist() == [[0, 0, 128, 255, 255]]


@given(st.floats(0, 1), st.floats(0.01, 1.5))
def test_inverting_mirrors_the_grey_scale(level: float, width: float) -> None:
    plain = apply_window(RAMP, Window(level, width))
    assert np.array_equal(apply_window(RAMP, Window(level, width, inverted=True)), 255 - plain)
    assert (np.diff(plain.astype(int)) >= 0).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_never_have_an_empty_window(preset: str) -> None:
    for image in (RAMP, np.full((4, 4), 0.7, np.float32)):
        window = preset_window(preset, image)  # type: ignore[arg-type]
        assert window.width > 0 and 0 <= window.level <= 1


def test_the_lung_preset_opens_the_dark_half_and_the_mediastinum_preset_the_bright_half() -> None:
    lungs, mediastinum = preset_window("Lungs", RAMP), preset_window("Mediastinum", RAMP)
    assert lungs.level < 0.5 < mediastinum.level


def test_an_image_is_made_smaller_but_never_enlarged() -> None:
    assert fit_side(np.zeros((300, 200), np.float32), 150).shape == (150, 100)
    assert fit_side(np.zeros((30, 20), np.float32), 150).shape == (30, 20)


def test_the_evidence_layer_is_clear_away_from_the_focus_and_closed_in_it() -> None:
    evidence = np.full((64, 64), -3.0, np.float32)
    evidence[10:14, 20:24] = 2.0
    layer = evidence_layer(evidence)
    assert layer is not None and layer.shape == (64, 64, 4)
    assert layer[12, 22, 3] == 255 and layer[50, 50, 3] == 0


def test_evidence_is_scaled_between_its_median_and_its_maximum() -> None:
    scaled = scale_evidence(np.array([[-9.0, 1.0, 1.0, 3.0, 5.0]], np.float32))
    assert scaled is not None and scaled.tolist() == [[0.0, 0.0, 0.0, 0.5, 1.0]]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_flat_evidence_has_no_layer(value: float) -> None:
    assert evidence_uri(np.full((8, 8), value, np.float32)) is None


def test_a_large_evidence_map_becomes_a_small_layer() -> None:
    layer = evidence_layer(np.random.default_rng(0).random((900, 700)).astype(np.float32))
    assert layer is not None and max(layer.shape) == EVIDENCE_SIDE


@pytest.mark.parametrize("content", [None, b"", b"<svg onload='x'/>", b"GIF89a"])
def test_only_png_jpeg_and_webp_become_pictures(content: bytes | None) -> None:
    assert thumbnail_uri(content) is None


def test_a_webp_thumbnail_becomes_a_data_uri() -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "WEBP")
    assert str(thumbnail_uri(buffer.getvalue())).startswith("data:image/webp;base64,")
