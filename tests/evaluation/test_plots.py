"""The plots: written, small, the same bytes for the same arrays, and showing the numbers that they should."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

from medsd.errors import DataError
from medsd.evaluation import plots
from medsd.findings import finding_set
from medsd.metrics import metrics

FINDINGS = finding_set("nih14")


@pytest.fixture(scope="module")
def split() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, probabilities and coordinates of 300 images; Hernia is rare."""
    rng = np.random.default_rng(0)
    z = rng.normal(-1, 1.2, (300, len(FINDINGS)))
    z[:, 7] -= 5
    target = (rng.random(z.shape) < expit(z)).astype(float)
    target[rng.random(z.shape) < 0.05] = np.nan
    return target, expit(z), rng.normal(size=(300, 2))


def words(figure: plots.Figure) -> str:
    """Everything that is written in the figure."""
    texts = [t.get_text() for axes in figure.axes for t in (*axes.texts, axes.title)]
    return "\n".join([*texts, figure.get_suptitle()])


def test_every_plot_is_a_small_readable_png_and_the_bytes_repeat(
    split: tuple[np.ndarray, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    target, probs, coordinates = split
    for folder in ("first", "second"):
        written = plots.write_plots(
            tmp_path / folder, FINDINGS, target, probs, before=probs**2, coordinates=coordinates
        )
        assert {p.name for p in written} == {p.name for p in (tmp_path / folder).iterdir()}
    assert len(written) == 5
    for path in written:
        assert path.stat().st_size < 150_000
        assert path.read_bytes() == (tmp_path / "first" / path.name).read_bytes()
        with Image.open(path) as picture:
            assert picture.mode == "P"
            assert min(picture.size) >= 400
            assert max(picture.size) <= 1200


def test_the_curves_name_their_area_and_counts_and_rare_findings_say_so(
    split: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    target, probs, _ = split
    text = words(plots.draw_roc(FINDINGS, target, probs))
    positives, negatives = metrics.class_counts(target)
    assert f"AUROC {metrics.auroc(target, probs)[0]:.2f}" in text
    assert f"Atelectasis\n{positives[0]} of {positives[0] + negatives[0]}" in text
    assert "too few to tell" in text
    assert "n = 300" in text
    assert f"AP {metrics.average_precision(target, probs)[0]:.2f}" in words(
        plots.draw_precision_recall(FINDINGS, target, probs)
    )


def test_the_roc_panel_draws_the_curve_of_the_known_cases(split: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    target, probs, _ = split
    line = plots.draw_roc(FINDINGS, target, probs).axes[1].lines[1]
    area = np.trapezoid(line.get_ydata(), line.get_xdata())
    assert area == pytest.approx(metrics.auroc(target, probs)[1])


def test_the_map_has_a_panel_for_each_finding_and_one_for_none(
    split: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    target, _, coordinates = split
    figure = plots.draw_map(FINDINGS, target, coordinates)
    shown = [axes for axes in figure.axes if axes.collections]
    assert len(shown) == len(FINDINGS) + 1
    assert len(shown[3].collections[1].get_offsets()) == (target[:, 3] == 1).sum()
    assert len(shown[-1].collections[1].get_offsets()) == ((target == 0).all(1)).sum()
    with pytest.raises(DataError, match="coordinates"):
        plots.draw_map(FINDINGS, target, coordinates[:-1])


def test_prevalences_are_drawn_for_each_split(split: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    target, _, _ = split
    axes = plots.draw_prevalence(FINDINGS, {"train": target, "test": target[:50]}).axes[0]
    assert len(axes.patches) == 2 * len(FINDINGS)
    assert axes.patches[0].get_width() == pytest.approx(np.nanmean(target[:, 0]))


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_projection_repeats_and_keeps_groups_apart(method: str) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16)) * 4
    group = np.arange(60) % 3
    vectors = centres[group] + rng.normal(size=(60, 16)) * 0.3
    points = plots.project(vectors, method)  # type: ignore[arg-type]
    np.testing.assert_allclose(points, plots.project(vectors, method))  # type: ignore[arg-type]
    middles = np.array([points[group == g].mean(0) for g in range(3)])
    nearest = np.linalg.norm(points[:, None] - middles, axis=2).argmin(1)
    np.testing.assert_array_equal(nearest, group)


def test_a_projection_of_two_images_is_refused() -> None:
    with pytest.raises(DataError, match="three or more"):
        plots.project(np.ones((2, 4)))
