"""The approximate index: made above a size, measured, exact on demand, and gone with the patients it held."""

import logging
from pathlib import Path

import numpy as np
import pytest

from medsd.cases.case import Case, CaseFilter
from medsd.cases.index import CaseIndex, create_index
from tests.cases.conftest import MODEL
from tests.cases.test_index import keys

COUNT, SIZE = 800, 16


@pytest.fixture(scope="module")
def many(findings) -> tuple[list[Case], np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(COUNT, SIZE)).astype(np.float32)
    labels = (rng.random((COUNT, len(findings))) < 0.3).astype(np.float32)
    cases = [Case(f"s{i:04d}", f"p{i // 2:04d}", labels[i], view=("PA", "AP")[i % 2]) for i in range(COUNT)]
    return cases, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def built(tmp_path, many, findings, caplog) -> CaseIndex:
    caplog.set_level(logging.INFO)
    cases, vectors = many
    return create_index(
        tmp_path / "c", cases, vectors, model_sha256=MODEL, findings=findings, approximate_above=COUNT - 1
    )


def graphs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "c" / "cases.lance").glob("_indices/*"))


def test_above_the_size_the_index_is_approximate_and_its_recall_is_said(built, tmp_path, caplog):
    (said,) = [record.message for record in caplog.get_records("setup") if "approximate" in record.message]
    assert float(said.split()[-1]) >= 0.95 and f"{COUNT} cases" in said
    assert built.approximate and len(graphs(tmp_path)) == 1


def test_exact_and_approximate_answers_agree_but_for_few(built, many):
    _, vectors = many
    rng, found = np.random.default_rng(1), []
    for query in rng.normal(size=(20, SIZE)):
        exact, near = built.nearest(query, 10, exact=True), built.nearest(query, 10)
        cosines = vectors @ (query / np.linalg.norm(query)).astype(np.float32)
        assert keys(exact) == [f"s{i:04d}" for i in np.argsort(-cosines)[:10]]
        found.append(len(set(keys(exact)) & set(keys(near))) / 10)
        np.testing.assert_allclose([h.similarity for h in near], vectors[[int(k[1:]) for k in keys(near)]] @ (
            query / np.linalg.norm(query)), atol=1e-5)  # fmt: skip
    assert np.mean(found) >= 0.95


def test_filters_hold_in_an_approximate_search(built, many):
    _, vectors = many
    hits = built.nearest(vectors[7], 20, filters=CaseFilter(view="PA", present="Edema"), exclude_patient="p0004")
    assert len(hits) == 20
    assert all(hit.case.view == "PA" and "Edema" in hit.case.findings for hit in hits)
    assert "s0008" not in keys(hits)


def test_a_removed_patient_leaves_no_old_graph_behind(built, tmp_path, many):
    _, vectors = many
    before = graphs(tmp_path)
    assert built.remove_patient("p0007") == 2
    assert {"s0014", "s0015"}.isdisjoint(keys(built.nearest(vectors[14], 50)))
    assert len(graphs(tmp_path)) == 1 and graphs(tmp_path) != before
    for path in (tmp_path / "c").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"s0014" not in content and vectors[14].tobytes() not in content


def test_what_is_added_is_found_at_once_and_compacting_brings_it_into_the_graph(built, findings):
    case = Case("new", "new", np.zeros(len(findings), np.float32))
    built.add([case], np.eye(1, SIZE, dtype=np.float32))
    assert keys(built.nearest(np.eye(1, SIZE)[0], 1)) == ["new"]
    assert built.compact() >= 0.95
    assert keys(built.nearest(np.eye(1, SIZE)[0], 1)) == ["new"]


def test_compacting_makes_and_drops_it_as_told(tmp_path, many, findings):
    cases, vectors = many
    index = create_index(tmp_path / "c", cases, vectors, model_sha256=MODEL, findings=findings)
    assert index.compact() is None and not index.approximate
    assert index.compact(approximate_above=100) >= 0.95 and index.approximate
    assert index.compact(approximate_above=COUNT) is None and not index.approximate
    assert graphs(tmp_path) == []
