"""Calls with a named coverage: conformal where one is named, at the operating points where none is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from typer.testing import CliRunner

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.calibration.conformal import CONFORMAL, ConformalScores, write_conformal
from medsd.cli import app
from medsd.errors import BundleError, DataError
from medsd.inference.predict import Predictor
from medsd.scoring.batch import score
from medsd.scoring.request import ScoringRequest
from tests.bundles import tiny_bundle

Chest = npt.NDArray[np.float64]
SURE = ConformalScores(present=(1.0,) * 20, absent=(0.0,) * 20, present_patients=20, absent_patients=20)
WIDE = ConformalScores(present=(0.0,) * 20, absent=(1.0,) * 20, present_patients=20, absent_patients=20)
FEW = ConformalScores(present=(1.0,) * 8, absent=(0.0,) * 20, present_patients=8, absent_patients=20)
ALWAYS = ConformalScores(present=(0.0,) * 20, absent=(0.0,) * 20, present_patients=20, absent_patients=20)
NEVER = ConformalScores(present=(1.0,) * 20, absent=(1.0,) * 20, present_patients=20, absent_patients=20)


@pytest.fixture(scope="module")
def promising(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose findings are unlike both classes, but for five that are chosen."""
    folder = tmp_path_factory.mktemp("promising")
    bundle = tiny_bundle(folder)
    scores = dict.fromkeys(bundle.findings, SURE)
    scores |= {"Mass": ALWAYS, "Nodule": NEVER, "Edema": WIDE, "Hernia": FEW}
    write_conformal(folder / CONFORMAL, scores)
    layout.write_description(folder, bundle.description)
    return Bundle.open(folder)


def test_without_a_coverage_calls_are_those_of_the_operating_points(promising: Bundle, chest: Chest) -> None:
    prediction = Predictor(promising, provider="cpu")(chest)
    assert (prediction.coverage, prediction.conformal_sets) == (None, {})
    assert prediction.calls["Mass"] == ("present" if prediction.probabilities["Mass"] >= 0.5 else "absent")


def test_with_a_coverage_a_set_of_one_is_a_call_and_every_other_is_undecided(promising: Bundle, chest: Chest) -> None:
    prediction = Predictor(promising, provider="cpu", coverage=0.9)(chest)
    assert prediction.coverage == 0.9
    calls = {name: prediction.calls[name] for name in ("Mass", "Nodule", "Edema", "Effusion", "Hernia")}
    assert calls == {
        "Mass": "present",
        "Nodule": "absent",
        "Edema": "undecided",
        "Effusion": "undecided",
        "Hernia": "undecided",
    }
    assert (prediction.conformal_sets["Edema"], prediction.conformal_sets["Effusion"]) == ("both", "neither")
    assert "Effusion" in prediction.neither and "Edema" not in prediction.neither
    assert prediction.conformal_sets["Hernia"] == "both"  # eight patients cannot promise 90 %


def test_another_coverage_can_be_named_of_the_same_bundle(promising: Bundle, chest: Chest) -> None:
    assert Predictor(promising, provider="cpu", coverage=0.8)(chest).conformal_sets["Hernia"] == "neither"


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90.0])
def test_a_coverage_that_is_no_share_is_refused(promising: Bundle, coverage: float) -> None:
    with pytest.raises(DataError, match="no share between 0 and 1"):
        Predictor(promising, provider="cpu", coverage=coverage)


def test_a_bundle_of_before_there_were_scores_says_so(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    assert Predictor(bundle, provider="cpu").coverage is None
    with pytest.raises(BundleError, match="without conformal scores"):
        Predictor(bundle, provider="cpu", coverage=0.9)


def test_a_bundle_without_the_scores_of_a_finding_is_refused(promising: Bundle, tmp_path: Path) -> None:
    shutil.copytree(promising.folder, tmp_path / "short")
    write_conformal(tmp_path / "short" / CONFORMAL, {"Mass": SURE})
    layout.write_description(tmp_path / "short", promising.description)
    with pytest.raises(BundleError, match="nothing for Atelectasis"):
        Predictor(tmp_path / "short", provider="cpu", coverage=0.9)


def test_score_takes_the_coverage_and_does_not_mix_rows_of_two(promising: Bundle, films: Path, tmp_path: Path) -> None:
    film, out = next(path for path in sorted(films.rglob("*")) if path.is_file()), tmp_path / "out.csv"
    arguments = ["score", str(promising.folder), str(film), "--out", str(out), "--workers", "1", "--provider", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--coverage", "0.9"])
    assert result.exit_code == 0, result.output
    row = pd.read_csv(out).iloc[0]
    if row["status"] != "refused":
        assert (row["call_Mass"], row["call_Effusion"]) == ("present", "undecided")
    with pytest.raises(DataError, match="coverage"):
        score(ScoringRequest(promising, [film], out, resume=True, provider="cpu"))
