"""Findings queries: from names, and from sentences with their negations."""

import numpy as np
import pytest

from medsd.cases.case import Case, CaseFilter
from medsd.cases.index import create_index
from medsd.cases.query import FindingQuery, read_query, resolve
from medsd.errors import DataError
from medsd.findings import Finding, FindingSet, finding_set
from tests.cases.conftest import MODEL

NIH = finding_set("nih14")


@pytest.mark.parametrize(
    ("sentence", "present", "absent", "uncertain"),
    [
        ("right effusion without cardiomegaly", ("Effusion",), ("Cardiomegaly",), ()),
        ("pleural effusion and atelectasis, no pneumothorax", ("Atelectasis", "Effusion"), ("Pneumothorax",), ()),
        ("enlarged heart, possible pneumonia", ("Cardiomegaly",), (), ("Pneumonia",)),
        ("no effusion", (), ("Effusion",), ()),
        ("an image of Tuesday", (), (), ()),
    ],
)
def test_a_sentence_becomes_a_query(sentence, present, absent, uncertain):
    query = read_query(sentence, NIH)
    assert (query.present, query.absent, query.uncertain) == (present, absent, uncertain)
    assert bool(query) == bool(present or absent)


def test_what_the_labels_do_not_hold_is_said_not_to_be_read():
    query = read_query("Large right effusion without cardiomegaly", NIH)
    assert query.unread == ("large", "right")
    assert query.sentence(NIH) == (
        "with Pleural effusion; without Cardiomegaly; not in the cases' labels, so no filter: large, right"
    )


@pytest.mark.parametrize(
    ("sentence", "not_understood"),
    [
        ("xyz", ("xyz",)),
        ("effusion xyz", ("xyz",)),
        ("xyz effusion, without foo bar", ("xyz", "foo bar")),
        ("pleural efusion", ("pleural efusion",)),
        ("effusion without fracture", ("fracture",)),
        ("history of effusion", ("history of effusion",)),
        ("show me patients with a large pleural effusion and no pneumothorax, please", ()),
        ("possible left pneumonia", ()),
    ],
)
def test_what_was_not_understood_is_told_apart(sentence, not_understood):
    query = read_query(sentence, NIH)
    assert query.not_understood == not_understood
    assert ("not understood" in query.sentence(NIH)) == bool(not_understood)


def test_a_finding_that_the_index_does_not_have_is_not_understood(findings):
    query = read_query("effusion without hernia", findings)  # phantom8 has no hernia
    assert query.not_understood == ("hernia",) and query.absent == ()


def test_a_long_sentence_is_quoted_in_part():
    said = read_query("effusion " + "xyz, " * 2000, NIH).sentence(NIH)
    assert said.startswith("with Pleural effusion; not understood: xyz") and len(said) < 300 and said.endswith(" …")


def test_a_vocabulary_without_phrases_borrows_those_of_the_same_names(findings):
    query = read_query("effusion without hernia, no cardiomegaly", findings)  # phantom8 has no hernia
    assert (query.present, query.absent) == (("Effusion",), ("Cardiomegaly",))
    with pytest.raises(DataError, match="--with"):
        read_query("effusion", FindingSet("mine", (Finding("Flu", "Flu"),)))


def test_findings_are_named_by_name_or_title_in_any_case(findings):
    assert resolve(["EFFUSION", "pleural effusion", "pulmonary Oedema"], findings) == ("Effusion", "Edema")
    assert resolve(["pleural thickening"], NIH) == ("Pleural_Thickening",)
    with pytest.raises(DataError, match="'flu' is no finding of phantom8; it has Atelectasis"):
        resolve(["flu"], findings)


def test_a_contradiction_and_an_empty_query_are_refused(index):
    with pytest.raises(DataError, match="present and absent"):
        index.find(FindingQuery(("Edema",), ("Edema",)))
    with pytest.raises(DataError, match="at least one"):
        index.find(FindingQuery())
    with pytest.raises(DataError, match="Flu"):
        index.find(FindingQuery(("Flu",)))


def test_equal_sets_come_first_then_the_nearest_to_them_and_unknown_is_not_absent(tmp_path, findings):
    def case(key: str, *present: str, unknown: str = "") -> Case:
        labels = findings.encode(present)
        if unknown:
            labels[findings.names.index(unknown)] = np.nan
        return Case(key, labels=labels)

    cases = [
        case("more", "Effusion", "Edema"),
        case("odd one", "Effusion"),
        case("typical", "Effusion"),
        case("also typical", "Effusion"),
        case("maybe a mass", "Effusion", unknown="Mass"),
        case("mass", "Effusion", "Mass"),
        case("other", "Edema"),
    ]
    vectors = np.eye(7, 16, dtype=np.float32)
    vectors[2] = [0.8, 0, 0.6] + [0] * 13
    vectors[3] = [0.8, 0, 0.55, 0.2397916] + [0] * 12
    index = create_index(tmp_path / "c", cases, vectors, model_sha256=MODEL, findings=findings)
    found = index.find(FindingQuery(("Effusion",), ("Mass",)))
    order = [c.case.study_key for c in found]
    assert set(order[:2]) == {"also typical", "typical"} and order[2:] == ["odd one", "more"]
    assert [c.relation for c in found] == ["equal"] * 3 + ["superset"]
    assert found[0].similarity > found[2].similarity and found[3].k_d == 0.5
    assert index.find(FindingQuery(("Effusion", "Edema")), 2)[0].case.study_key == "more"


def test_the_filter_of_a_query_keeps_the_other_filters():
    query = FindingQuery(("Edema",), ("Mass",))
    filters = query.filters(CaseFilter(present="Effusion", view="PA"), require_present=True)
    assert (filters.present, filters.absent, filters.view) == (("Effusion", "Edema"), ("Mass",), ("PA",))
    assert query.filters().present == ()
