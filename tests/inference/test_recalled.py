"""Calls made again with another coverage: the same as if the study had been read so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsd.bundle import layout
from medsd.calibration.conformal import CONFORMAL, ConformalScores, write_conformal
from medsd.errors import BundleError
from medsd.inference.coverage import COVERAGES, offered, recalled
from medsd.inference.predict import Predictor
from tests.bundles import tiny_bundle

FILM = np.random.default_rng(0).random((64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> layout.Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    bundle = tiny_bundle(folder)
    present, absent = (tuple(np.linspace(*ends, 40).tolist()) for ends in ((0.95, 0.2), (0.05, 0.8)))
    scores = ConformalScores(present=present, absent=absent, present_patients=40, absent_patients=40)
    write_conformal(folder / CONFORMAL, dict.fromkeys(bundle.findings, scores))
    layout.write_description(folder, bundle.description)
    return layout.Bundle.open(folder)


@pytest.mark.parametrize("coverage", [None, *COVERAGES])
def test_calls_are_those_of_a_predictor_of_that_coverage(bundle: layout.Bundle, coverage: float | None) -> None:
    wanted = Predictor(bundle, coverage=coverage)(FILM)
    for other in (None, 0.9):
        found = recalled(Predictor(bundle, coverage=other)(FILM), bundle, coverage)
        assert found.calls == wanted.calls and found.conformal_sets == wanted.conformal_sets
        assert found.coverage == coverage


def test_a_refused_study_stays_refused(bundle: layout.Bundle) -> None:
    refused = Predictor(bundle)(np.zeros((4, 4), np.float32))
    assert refused.refused and recalled(refused, bundle, 0.9) is refused


def test_a_bundle_without_scores_offers_no_coverage(bundle: layout.Bundle, tmp_path: Path) -> None:
    bare = tiny_bundle(tmp_path / "bare")
    assert offered(bare) == () and offered(bundle) == COVERAGES
    with pytest.raises(BundleError, match="no coverage"):
        recalled(Predictor(bare)(FILM), bare, 0.9)
