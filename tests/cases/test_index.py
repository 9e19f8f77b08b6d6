"""The index: what is found, what is left out, and whom it refuses."""

import numpy as np
import pytest

from medsd.cases.case import FILTER_COLUMNS, Case, CaseFilter, age_band
from medsd.cases.index import OWN_PATIENT, CaseIndex, create_index
from medsd.cases.lance import LanceIndex
from medsd.errors import BundleError, DataError
from medsd.inference.prediction import Prediction
from tests.cases.conftest import MODEL, N, predict


def keys(hits):
    return [hit.case.study_key for hit in hits]


def may_be_found(case: Case, filters: CaseFilter, findings) -> bool:
    """The filter, said once more over plain sets."""
    value = dict(zip(findings, case.labels, strict=True))
    return (
        all(value[name] == 1 for name in filters.present)
        and all(value[name] == 0 for name in filters.absent)
        and all(getattr(case, c) in getattr(filters, c) for c in FILTER_COLUMNS if getattr(filters, c))
    )


FILTERS = [
    None,
    CaseFilter(present=["Effusion"]),
    CaseFilter(absent=("Edema", "Mass")),
    CaseFilter(present="Edema", absent="Effusion", view=("PA", "AP")),
    CaseFilter(view="", sex="F"),
    CaseFilter(age_band="60-69", source="o'there"),
]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("memory_limit", [1 << 30, 0])
def test_the_answer_is_that_of_a_full_sort(index, tmp_path, cases, embeddings, findings, filters, memory_limit):
    index = LanceIndex(tmp_path / "cases", memory_limit=memory_limit)
    query = np.random.default_rng(3).normal(size=embeddings.shape[1]).astype(np.float32)
    allowed = [i for i in range(N) if filters is None or may_be_found(cases[i], filters, findings)]
    cosines = embeddings @ (query / np.linalg.norm(query))
    expected = sorted(allowed, key=lambda i: -cosines[i])[:10]
    hits = index.nearest(query, 10, filters=filters)
    assert keys(hits) == [cases[i].study_key for i in expected]
    np.testing.assert_allclose([hit.similarity for hit in hits], cosines[expected], atol=1e-6)


@pytest.mark.parametrize("memory_limit", [1 << 30, 0])
def test_a_stored_case_retrieves_itself_first_with_all_that_was_stored(
    index, tmp_path, cases, embeddings, findings, memory_limit
):
    index = LanceIndex(tmp_path / "cases", memory_limit=memory_limit)
    first = index.nearest(embeddings[17], 3)[0].case
    assert first.study_key == cases[17].study_key
    for name in ("patient_key", "view", "sex", "age_band", "source", "split", "thumbnail", "note_excerpt"):
        assert getattr(first, name) == getattr(cases[17], name)
    np.testing.assert_array_equal(first.labels, cases[17].labels)
    assert first.findings == tuple(n for n, v in zip(findings, cases[17].labels, strict=True) if v == 1)


def test_the_patients_own_studies_are_left_out_unless_asked_for(index, cases, embeddings, findings):
    asked = predict(findings, embeddings[4], study_key="new", patient_key=cases[4].patient_key)
    assert not {"study0004", "study0005"} & set(keys(index.similar(asked, N)))
    assert keys(index.similar(asked, N, exclude_patient=None))[0] == "study0004"
    assert "study0008" not in keys(index.similar(asked, N, exclude_patient=cases[8].patient_key))
    assert OWN_PATIENT not in index.table()["patient_key"].tolist()


def test_the_study_itself_is_no_answer_even_without_a_patient(index, embeddings, findings):
    asked = predict(findings, embeddings[4], study_key="study0004")
    assert "study0004" not in keys(index.similar(asked, N))


def test_no_case_comes_twice(tmp_path, cases, embeddings, findings):
    """The nearest is stored forty times under its key, and forty times under others."""
    same_key = [cases[3]] * 40
    same_image = [Case(f"copy{i}", "", cases[3].labels) for i in range(40)]
    noise = np.random.default_rng(0).normal(size=(40, embeddings.shape[1])).astype(np.float32) * 0.02
    near = embeddings[3] + noise
    vectors = np.concatenate(
        [embeddings, near / np.linalg.norm(near, axis=1, keepdims=True), np.repeat(embeddings[3:4], 40, 0) * (1 + 1e-7)]
    ).astype(np.float32)
    made = create_index(
        tmp_path / "c", [*cases, *same_key, *same_image], vectors, model_sha256=MODEL, findings=findings
    )
    for memory_limit in (1 << 30, 0):
        hits = LanceIndex(tmp_path / "c", memory_limit=memory_limit).nearest(embeddings[3], 8)
        assert len(set(keys(hits))) == 8
        assert sum(np.allclose(hit.embedding, embeddings[3], atol=1e-6) for hit in hits) == 1
    assert len(made.nearest(embeddings[3], 1000)) == N


def test_a_refused_prediction_has_no_similar_case(index, findings):
    assert index.similar(Prediction(findings, "refused", reason="not_a_chest")) == []


def test_another_model_is_refused_and_both_are_named(index, tmp_path, embeddings, findings):
    with pytest.raises(BundleError, match=r"tiny 1 \(aaaaaaaaaaaa\).*bbbbbbbbbbbb"):
        CaseIndex.open(tmp_path / "cases", model_sha256="b" * 64)
    with pytest.raises(BundleError, match=r"aaaaaaaaaaaa.*other 2 \(cccccccccccc\)"):
        index.similar(predict(findings, embeddings[0], model_sha256="c" * 64, model="other 2"))
    assert len(CaseIndex.open(tmp_path / "cases", model_sha256=MODEL)) == N


@pytest.mark.parametrize(
    "filters",
    [
        CaseFilter(present=["Flu"]),
        CaseFilter(view="PA' OR 1=1 --"),
        CaseFilter(sex="X"),
        CaseFilter(source=["here", "no"]),
    ],
)
def test_a_filter_that_asks_for_what_is_not_there_is_refused(index, embeddings, filters):
    with pytest.raises(DataError, match="filter"):
        index.nearest(embeddings[0], filters=filters)


@pytest.mark.parametrize("embedding", [np.zeros(16), np.full(16, np.nan), np.ones(5)])
def test_an_embedding_that_is_none_is_refused(index, embedding):
    with pytest.raises(DataError, match="16 finite numbers"):
        index.nearest(embedding)


def test_the_table_has_the_order_of_the_embeddings(index, cases, embeddings, findings):
    table = index.table()
    order = [cases.index(next(c for c in cases if c.study_key == key)) for key in table["study_key"]]
    np.testing.assert_array_equal(index.embeddings(), embeddings[order])
    np.testing.assert_array_equal(table[list(findings)].to_numpy(), np.stack([cases[i].labels for i in order]))
    assert table["findings"][0].split("|") == [n for n in findings if table[n][0] == 1]


def test_an_empty_index_finds_nothing(tmp_path, findings):
    empty = create_index(tmp_path / "c", [], np.zeros((0, 16), np.float32), model_sha256=MODEL, findings=findings)
    assert len(empty) == 0
    assert empty.nearest(np.ones(16, np.float32)) == []
    assert empty.table().empty


@pytest.mark.parametrize(
    ("years", "band"),
    [(0, "0-9"), (67.9, "60-69"), (89, "80-89"), (90, "90+"), (414, ""), (None, ""), (float("nan"), "")],
)
def test_an_age_becomes_a_decade(years, band):
    assert age_band(years) == band
