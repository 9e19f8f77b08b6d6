"""What every store of cases must do, run on LanceDB and on Qdrant (in memory, in a folder and, by URL, on a server)."""

import base64
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsd.cases.case import FILTER_COLUMNS, Case, CaseFilter
from medsd.cases.described import describe
from medsd.cases.index import CaseIndex, NewCases, create_index
from medsd.cases.query import FindingQuery
from medsd.errors import BundleError, DataError
from tests.cases.conftest import MODEL, N, predict
from tests.cases.test_index import FILTERS, keys, may_be_found
from tests.cases.test_lance import CANARY, PICTURE, canary_case

URL = "MEDSD_QDRANT_URL"
STORES = ("lance", "lance-uri", "lance-scan", "qdrant-memory", "qdrant-path", "qdrant-url")
Make = Callable[..., CaseIndex]


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest, tmp_path: Path, findings) -> Iterator[Make]:
    """Makes an index of one store: ``make(cases, embeddings, replace=…, model=…)``."""
    if request.param.startswith("lance"):
        yield _lance(request.param, tmp_path, findings)
        return
    qdrant = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed: pip install 'medsd[qdrant]'")
    if request.param == "qdrant-url" and not os.environ.get(URL):
        pytest.skip(f"no Qdrant server: set {URL}")
    where: dict[str, Any] = {
        "qdrant-memory": {"location": ":memory:"},
        "qdrant-path": {"path": str(tmp_path / "q")},
        "qdrant-url": {"url": os.environ.get(URL)},
    }[request.param]
    client, name = qdrant.QdrantClient(**where), f"medsd-test-{uuid.uuid4().hex[:8]}"
    yield _qdrant(client, name, findings)
    for collection in client.get_collections().collections:
        if collection.name.startswith(name):
            client.delete_collection(collection.name)
    client.close()


def _lance(kind: str, folder: Path, findings) -> Make:
    path = (folder / "c").as_uri() if kind == "lance-uri" else folder / "c"

    def make(cases, embeddings, *, replace=False, model=MODEL) -> CaseIndex:
        index = create_index(path, cases, embeddings, model_sha256=model, findings=findings, replace=replace)
        if kind == "lance-scan":
            from medsd.cases.lance import LanceIndex

            return LanceIndex(path, memory_limit=0)
        return index

    return make


def _qdrant(client: Any, name: str, findings) -> Make:
    from medsd.cases.qdrant import QdrantIndex

    def make(cases, embeddings, *, replace=False, model=MODEL) -> CaseIndex:
        description = describe(model, findings, np.shape(embeddings)[-1], model="tiny 1")
        return QdrantIndex.create(name, NewCases(cases, embeddings, description), replace=replace, client=client)

    return make


def test_filtered_answers_are_those_of_a_full_sort(make, cases, embeddings, findings):
    index = make(cases, embeddings)
    query = np.random.default_rng(3).normal(size=embeddings.shape[1]).astype(np.float32)
    cosines = embeddings @ (query / np.linalg.norm(query))
    for filters in FILTERS:
        allowed = [i for i in range(N) if filters is None or may_be_found(cases[i], filters, findings)]
        expected = sorted(allowed, key=lambda i: -cosines[i])[:10]
        hits = index.nearest(query, 10, filters=filters)
        assert keys(hits) == [cases[i].study_key for i in expected], filters
        np.testing.assert_allclose([hit.similarity for hit in hits], cosines[expected], atol=1e-5)


def test_a_stored_case_comes_back_with_all_that_was_stored(make, cases, embeddings):
    index = make(cases, embeddings)
    hit = index.nearest(embeddings[17], 3)[0]
    for name in ("study_key", "patient_key", *FILTER_COLUMNS, "split", "thumbnail", "note_excerpt"):
        assert getattr(hit.case, name) == getattr(cases[17], name)
    np.testing.assert_array_equal(hit.case.labels, cases[17].labels)
    np.testing.assert_allclose(hit.embedding, embeddings[17], atol=1e-6)
    bare = Case("bare", labels=np.full(8, np.nan, np.float32))
    index.add([bare], np.eye(1, 16, dtype=np.float32))
    found = index.nearest(np.eye(1, 16)[0], 1)[0].case
    assert (found.study_key, found.thumbnail, found.note_excerpt, found.findings) == ("bare", None, None, ())


def test_the_patients_own_studies_and_the_study_itself_are_left_out(make, cases, embeddings, findings):
    index = make(cases, embeddings)
    asked = predict(findings, embeddings[4], study_key="new", patient_key=cases[4].patient_key)
    found = keys(index.similar(asked, N))
    assert len(found) == N - 2 and not {"study0004", "study0005"} & set(found)
    assert keys(index.similar(asked, N, exclude_patient=None))[0] == "study0004"
    assert "study0004" not in keys(index.similar(predict(findings, embeddings[4], study_key="study0004"), N))


def test_no_case_comes_twice(make, cases, embeddings):
    """The nearest is stored forty times under its key, and forty times under others."""
    copies = [*([cases[3]] * 40), *(Case(f"copy{i}", "", cases[3].labels) for i in range(40))]
    near = embeddings[3] + np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32) * 0.02
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    vectors = np.concatenate([embeddings, near, np.repeat(embeddings[3:4], 40, 0)]).astype(np.float32)
    index = make([*cases, *copies], vectors)
    hits = index.nearest(embeddings[3], 8)
    assert len(set(keys(hits))) == 8
    assert sum(np.allclose(hit.embedding, embeddings[3], atol=1e-6) for hit in hits) == 1
    assert len(index.nearest(embeddings[3], 1000)) == N


def test_table_embeddings_and_records_have_one_order(make, cases, embeddings, findings):
    index = make(cases, embeddings)
    table, vectors, records = index.table(), index.embeddings(), list(index.records())
    assert len(index) == len(table) == len(vectors) == len(records) == N
    by_key = {case.study_key: row for row, case in enumerate(cases)}
    order = [by_key[key] for key in table["study_key"]]
    assert [case.study_key for case, _ in records] == table["study_key"].tolist()
    np.testing.assert_allclose(vectors, embeddings[order], atol=1e-6)
    np.testing.assert_allclose(np.stack([vector for _, vector in records]), vectors)
    np.testing.assert_array_equal(table[list(findings)].to_numpy(), np.stack([cases[i].labels for i in order]))
    assert records[5][0].thumbnail == cases[order[5]].thumbnail
    assert index.vocabulary == {
        "view": ("", "AP", "PA"), "sex": ("F", "M"), "age_band": ("40-49", "60-69"), "source": ("here", "o'there"),
    }  # fmt: skip


def test_cases_that_fit_a_findings_query_come_in_the_order_of_the_weight(make, cases, embeddings, findings):
    index = make(cases, embeddings)
    found = index.find(FindingQuery(("Effusion", "Edema"), ("Mass",)), 30, filters=CaseFilter(view="PA"))
    assert found and all("Mass" not in case.case.findings and case.case.view == "PA" for case in found)
    assert all(case.case.labels[list(findings).index("Mass")] == 0 for case in found)
    weights = [case.k_s * case.k_d for case in found]
    assert weights == sorted(weights, reverse=True) and min(weights) > 0
    wanted = {"Effusion", "Edema"}
    for case in found:
        assert set(case.shared) == wanted & set(case.case.findings)
        assert set(case.extra) == set(case.case.findings) - wanted
    without = index.find(FindingQuery(absent=("Edema",)), 5)
    assert [len(case.case.findings) for case in without] == sorted(len(case.case.findings) for case in without)


def test_all_that_fit_are_a_table_of_studies_best_first(make, cases, embeddings):
    index = make([*cases, cases[3]], np.concatenate([embeddings, embeddings[:1] * -1]))
    for query in (FindingQuery(("Effusion", "Edema"), ("Mass",)), FindingQuery(absent=("Edema",))):
        filters = CaseFilter(view="PA")
        table, found = index.matches(query, filters=filters), index.find(query, 1000, filters=filters)
        assert sorted(table["study_key"]) == sorted(keys(found)) and table["fit"].is_monotonic_decreasing
        weights = {each.case.study_key: each.k_d * (each.k_s if query.present else 1) for each in found}
        np.testing.assert_allclose(table["fit"], [weights[key] for key in table["study_key"]], atol=1e-6)
        assert [key for key in table["study_key"] if key == "study0003"] == ["study0003"] * ("study0003" in weights)
    with pytest.raises(DataError, match="at least one"):
        index.matches(FindingQuery())


def test_a_removed_patient_is_in_no_answer(make, cases, embeddings, findings):
    index = make(cases, embeddings)
    index.nearest(embeddings[8])
    assert index.remove_patient(cases[8].patient_key) == 2
    gone = {"study0008", "study0009"}
    assert len(index) == N - 2
    assert not gone & set(keys(index.nearest(embeddings[8], N)))
    assert not gone & set(index.table()["study_key"])
    assert not gone & {case.study_key for case, _ in index.records()}
    assert index.remove_patient("x' OR 'a' = 'a") == 0
    with pytest.raises(DataError, match="key"):
        index.remove_patient("")


def test_what_is_added_is_found_by_a_reader_that_was_open_before(make, cases, embeddings):
    index = make(cases[:60], embeddings[:60])
    assert len(index.nearest(embeddings[0], N)) == 60
    index.add(cases[60:], embeddings[60:])
    index.compact()
    assert index.nearest(embeddings[100], 1)[0].case.study_key == "study0100"
    assert len(index) == N


def test_an_index_is_replaced_only_when_asked_and_another_model_is_refused(make, cases, embeddings, findings):
    index = make(cases, embeddings)
    with pytest.raises(BundleError, match=r"already|exists"):
        make(cases[:5], embeddings[:5])
    make(cases[:5], embeddings[:5], replace=True)
    assert len(index.nearest(embeddings[0], N)) == 5
    with pytest.raises(BundleError, match=r"aaaaaaaaaaaa.*cccccccccccc"):
        index.similar(predict(findings, embeddings[0], model_sha256="c" * 64))
    make(cases[:5], embeddings[:5], replace=True, model="b" * 64)
    with pytest.raises(BundleError, match="another model"):
        index.nearest(embeddings[0])


def test_what_does_not_fit_is_refused_and_nothing_is_written(make, cases, embeddings, findings):
    broken = [*cases[:-1], Case("s", labels=np.full(len(findings), 7, np.float32))]
    with pytest.raises(DataError, match="labels are 1"):
        make(broken, embeddings)
    with pytest.raises(DataError, match="unit length"):
        make(cases, embeddings * 2)
    with pytest.raises(DataError, match="119 cases for 120"):
        make(cases[:-1], embeddings)
    index = make(cases, embeddings)
    with pytest.raises(DataError, match="labels are 1"):
        index.add(broken, embeddings)
    assert len(index) == N


def test_an_empty_index_finds_nothing(make, findings):
    index = make([], np.zeros((0, 16), np.float32))
    assert (len(index), index.nearest(np.ones(16, np.float32)), list(index.records())) == (0, [], [])
    assert index.find(FindingQuery(("Edema",))) == [] and index.table().empty


@pytest.mark.parametrize(
    "filters", [CaseFilter(present=["Flu"]), CaseFilter(view="PA' OR 1=1 --"), CaseFilter(sex="X")]
)
def test_a_filter_that_asks_for_what_is_not_there_is_refused(make, cases, embeddings, filters):
    with pytest.raises(DataError, match="filter"):
        make(cases, embeddings).nearest(embeddings[0], filters=filters)


def test_qdrant_keeps_no_file_of_a_removed_patient(tmp_path, cases, embeddings, findings):
    qdrant = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed: pip install 'medsd[qdrant]'")
    client = qdrant.QdrantClient(path=str(tmp_path / "q"))
    index = _qdrant(client, "removal", findings)([*cases[:5], canary_case(findings)], embeddings[:6])

    def left() -> list[str]:
        words = (b"canarystudy", b"canarypatient", CANARY.encode(), base64.b64encode(b"canarypixels" + PICTURE)[:40])
        contents = [path.read_bytes() for path in (tmp_path / "q").rglob("*") if path.is_file()]
        return [str(word) for word in words for content in contents if word in content]

    assert len(left()) >= 4
    assert index.remove_patient("canarypatient") == 1
    assert left() == [] and len(index) == 5
    client.close()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("qdrant+ftp://host/cases", "a Qdrant index is named"),
        ("qdrant+http://host", "a Qdrant index is named"),
        ("qdrant+http://me:secret@host/cases", "a Qdrant index is named"),
        ("qdrant+http://127.0.0.1:9/cases", "does not answer"),
    ],
)
def test_a_qdrant_address_that_cannot_be_used_is_refused_in_a_sentence(uri, message):
    pytest.importorskip("qdrant_client", reason="qdrant-client is not installed: pip install 'medsd[qdrant]'")
    with pytest.raises(BundleError, match=message) as caught:
        CaseIndex.open(uri)
    assert "secret@" not in str(caught.value)


def test_a_secret_is_not_sent_in_the_open(monkeypatch):
    pytest.importorskip("qdrant_client", reason="qdrant-client is not installed: pip install 'medsd[qdrant]'")
    monkeypatch.setenv("MEDSD_QDRANT_API_KEY", "s3cret")
    with pytest.raises(BundleError, match=r"in the open; use qdrant\+https"):
        CaseIndex.open("qdrant+http://cases.example:6333/cases")


def test_a_removed_patient_comes_back_only_when_readmitted(make, cases, embeddings):
    index = make(cases, embeddings)
    theirs = [row for row, case in enumerate(cases) if case.patient_key == cases[0].patient_key]
    assert index.remove_patient(cases[0].patient_key) == len(theirs) == 2
    assert index.add([cases[row] for row in theirs] + [cases[50]], embeddings[[*theirs, 50]]) == 1
    assert len(index) == N - 1
    nameless = replace(cases[theirs[0]], patient_key="")  # the same study in a table that names no patients
    assert index.add([nameless], embeddings[theirs[:1]]) == 0
    index.compact()
    assert index.add([cases[theirs[0]]], embeddings[theirs[:1]]) == 0
    assert index.remove_patient("not there yet") == 0
    early = replace(cases[1], study_key="new", patient_key="not there yet")
    assert index.add([early], embeddings[1:2]) == 0
    assert make(cases, embeddings, replace=True).add([early], embeddings[1:2]) == 0
    assert len(index) == N - 2
    assert (index.readmit_patient(cases[0].patient_key), index.readmit_patient(cases[9].patient_key)) == (True, False)
    assert index.add([cases[row] for row in theirs], embeddings[theirs]) == 2
