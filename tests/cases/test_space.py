"""The plane of the cases: principal components as scikit-learn has them, and the same map each time."""

from pathlib import Path

import numpy as np
import pytest

from medsd.cases.case import Case
from medsd.cases.index import CaseIndex, create_index
from medsd.cases.space import lay_out
from medsd.errors import DataError
from medsd.findings import finding_set

FINDINGS = finding_set("nih14")


def _index(path: Path, count: int) -> CaseIndex:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(count, 16)).astype(np.float32) * np.geomspace(3, 0.1, 16, dtype=np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    cases = [Case(f"{number:04d}", labels=np.zeros(14, np.float32)) for number in range(count)]
    return create_index(path, cases, embeddings, model_sha256="0", findings=FINDINGS)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> CaseIndex:
    return _index(tmp_path_factory.mktemp("index") / "cases", 60)


def test_the_axes_are_the_two_principal_components(index: CaseIndex) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    peer = decomposition.PCA(2, svd_solver="full").fit(index.embeddings())
    plane = lay_out(index)
    np.testing.assert_allclose(np.abs((plane.axes * peer.components_).sum(axis=1)), 1, atol=1e-4)
    assert plane.explained == pytest.approx(peer.explained_variance_ratio_.sum(), abs=1e-4)


def test_a_case_laid_into_the_plane_lies_where_its_point_is(index: CaseIndex) -> None:
    plane = lay_out(index)
    for place in (0, 31, 59):
        np.testing.assert_allclose(plane.place(index.embeddings()[place]), plane.points[place], atol=1e-5)


def test_the_same_index_gives_the_same_map(index: CaseIndex) -> None:
    first, second = lay_out(index), lay_out(index)
    np.testing.assert_array_equal(first.points, second.points)


def test_of_many_cases_some_are_shown_and_all_decide(index: CaseIndex) -> None:
    some, every = lay_out(index, most=10), lay_out(index)
    assert len(some.points) == 10 and some.total == 60 and some.rows[0] == 0 and some.rows[-1] == 59
    np.testing.assert_array_equal(some.axes, every.axes)
    np.testing.assert_array_equal(some.embeddings, index.embeddings()[some.rows])


def test_a_single_case_makes_no_map(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two cases"):
        lay_out(_index(tmp_path / "cases", 1))
