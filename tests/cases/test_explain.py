"""Relations, differences, soft factors and chances against brute force over Python sets."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from medsd.cases.case import Case, Hit, SimilarCase
from medsd.cases.explain import (
    RELATION_TITLES,
    as_records,
    as_text,
    explain,
    explain_query,
    likeness,
    percentile_words,
    relation_chances,
    relation_line,
    sentence,
    who_briefly,
)
from tests.cases.conftest import predict

EMBEDDING = np.eye(1, 16, dtype=np.float32)[0]


def by_sets(s: dict, t: dict) -> tuple[str, set, set, set]:
    """Relation, shared, extra and missing by the words of the design; None is unknown."""
    both = [name for name in s if s[name] is not None and t[name] is not None]
    present_s, present_t = {n for n in both if s[n]}, {n for n in both if t[n]}
    parts = present_s & present_t, present_t - present_s, present_s - present_t
    hidden = any(s[n] for n in s if n not in both) or any(t[n] for n in t if n not in both)
    if not both or (not present_s and not present_t and hidden):
        return "undetermined", *parts
    if present_s == present_t:
        return "equal", *parts
    if not present_s & present_t:
        return "disjoint", *parts
    if present_s < present_t:
        return "superset", *parts
    return ("subset" if present_t < present_s else "overlap"), *parts


def test_relation_words_are_those_of_sets_on_1000_random_pairs(findings):
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(1000):
        known = rng.choice([0.6, 0.95])
        draw = lambda: [None if rng.random() > known else bool(rng.random() < 0.3) for _ in findings]  # noqa: B023, E731
        s, t = (dict(zip(findings, draw(), strict=True)) for _ in "st")
        calls = {n: {True: "present", False: "absent", None: "undecided"}[v] for n, v in s.items()}
        labels = np.array([np.nan if v is None else float(v) for v in t.values()], np.float32)
        (case,) = explain(predict(findings, EMBEDDING, calls=calls), [Hit(Case("k", labels=labels), 0.5, EMBEDDING)])
        relation, shared, extra, missing = by_sets(s, t)
        assert (case.relation, set(case.shared), set(case.extra), set(case.missing)) == (
            relation,
            shared,
            extra,
            missing,
        )
        seen.add(relation)
    assert len(seen) == 6


def test_superset_means_that_the_case_has_more(findings):
    hit = Hit(Case("k", labels=findings.encode(["Effusion", "Edema"])), 0.5, EMBEDDING)
    (case,) = explain(predict(findings, EMBEDDING, ("Effusion",)), [hit])
    assert (case.relation, case.shared, case.extra, case.missing) == ("superset", ("Effusion",), ("Edema",), ())


def test_the_soft_factors_are_taken_over_the_probabilities(findings):
    values = np.array([0.8, 0.1, 0, 0, 0.5, 0, 0, 0], np.float32)
    labels = np.array([1, np.nan, 0, 0, 0, 0, 1, 0], np.float32)
    (case,) = explain(predict(findings, EMBEDDING, values=values), [Hit(Case("k", labels=labels), 0.5, EMBEDDING)])
    assert case.k_s == pytest.approx(0.8 / (0.8 + 0.5))
    assert case.k_d == pytest.approx(1 / (1 + 0.2 + 1))


def test_soft_factors_are_those_of_fuzzy_sets_on_1000_random_pairs(findings):
    """Σ min, Σ max(t − s, 0) and Σ s by plain loops, over the findings that the case knows."""
    rng = np.random.default_rng(1)
    for _ in range(1000):
        s = rng.choice([0.0, 1.0, -1.0], len(findings), p=[0.2, 0.1, 0.7]).astype(np.float32)
        s = np.where(s < 0, rng.random(len(findings)), s).astype(np.float32)
        t = rng.choice([0, 1, np.nan], len(findings), p=[0.6, 0.3, 0.1]).astype(np.float32)
        (case,) = explain(predict(findings, EMBEDDING, values=s), [Hit(Case("k", labels=t), 0.5, EMBEDDING)])
        known = [(float(a), float(b)) for a, b in zip(s, t, strict=True) if not np.isnan(b)]
        shared, size = sum(min(a, b) for a, b in known), sum(a for a, _ in known)
        if not known:
            assert (case.k_s, case.k_d) == (0, 0)
        elif size > 0:
            assert case.k_s == pytest.approx(shared / size, abs=1e-5)
            assert case.k_d == pytest.approx(1 / (1 + sum(max(b - a, 0) for a, b in known)), abs=1e-5)


def test_the_chances_of_the_relations_are_those_of_all_sets_counted_out(findings):
    """Every set of true findings, weighted by its probability, related to the case by the words of the design."""
    rng = np.random.default_rng(2)
    subsets = list(itertools.product([False, True], repeat=len(findings)))
    seen = set()
    for turn in range(12):
        known = 1.0 if turn % 3 else 0.6
        t = [None if rng.random() > known else bool(rng.random() < 0.3 * (turn % 4)) for _ in findings]
        t = [None] * len(findings) if turn == 9 else t
        p = rng.random(len(findings)) ** 2
        expected = dict.fromkeys(("equal", "overlap", "superset", "subset", "disjoint", "undetermined"), 0.0)
        for s in subsets:
            word = by_sets(dict(zip(findings, s, strict=True)), dict(zip(findings, t, strict=True)))[0]
            expected[word] += float(np.prod(np.where(s, p, 1 - p)))
        labels = np.array([np.nan if v is None else float(v) for v in t], np.float32)
        found = relation_chances(p, labels)
        assert found == pytest.approx(expected, abs=1e-9)
        seen |= {word for word, chance in found.items() if chance > 0.01}
    assert len(seen) == 6


def test_certain_probabilities_leave_one_relation(findings):
    hit = Hit(Case("k", labels=findings.encode(["Effusion", "Edema"])), 0.5, EMBEDDING)
    (case,) = explain(predict(findings, EMBEDDING, ("Effusion",), values=findings.encode(["Effusion"])), [hit])
    assert case.chances["superset"] == 1 == sum(case.chances.values())
    assert case.relation == "superset" and case.embedding is EMBEDDING


def test_a_query_is_explained_like_a_prediction(findings):
    labels = findings.encode(["Effusion", "Edema"])
    (case,) = explain_query(findings.encode(["Effusion"]), [Hit(Case("k", labels=labels), 0.5, EMBEDDING)], findings)
    assert (case.relation, case.extra, case.k_s, case.k_d, case.chances) == ("superset", ("Edema",), 1, 0.5, {})


def test_a_case_in_one_line(findings):
    case = SimilarCase(Case("k"), 0.5, "overlap", ("Effusion",), ("Edema",), ("Mass",), 0.5, 0.5)
    assert sentence(case) == "Shares Effusion; has also Edema; lacks Mass"
    assert (
        relation_line(case, findings) == "Partly shared: shares pleural effusion; has also pulmonary oedema; lacks mass"
    )
    assert (
        relation_line(SimilarCase(Case("k"), 0.5, "equal", (), (), (), 1, 1)) == "Same findings: no finding in either"
    )
    several = replace(
        case, shared=("Effusion", "Mass", "Edema"), case=Case("k", findings=("Mass", "Pneumothorax")), missing=()
    )
    told = "Shares pleural effusion, mass and pulmonary oedema; has also pulmonary oedema"
    assert sentence(several, findings) == f"{told}; has, without a call here, pneumothorax"


@pytest.mark.parametrize(
    ("band", "said"), [("60-69", "PA · F · 60s"), ("0-9", "PA · F · 0-9"), ("90+", "PA · F · 90+")]
)
def test_a_patient_in_the_room_of_a_card(band, said):
    assert who_briefly(SimilarCase(Case("k", view="PA", sex="F", age_band=band), 1, "equal", (), (), (), 1, 1)) == said


@pytest.mark.parametrize(
    ("percentile", "similarity", "word"),
    [
        (99.2, 0.9, "very alike"),
        (91, 0.9, "alike"),
        (50, 0.9, "somewhat alike"),
        (3, 0.9, "hardly alike"),
        (12, 1.0, "the same image"),
        (None, 0.5, "similarity 0.50"),
    ],
)
def test_likeness_is_a_word(percentile, similarity, word):
    case = SimilarCase(Case("k"), similarity, "equal", (), (), (), 1, 1, percentile=percentile)
    assert likeness(case) == word and f"similarity {similarity:.2f}" in percentile_words(case)


def test_cases_as_a_text_table_and_as_json(index, embeddings, findings):
    found = index.similar(predict(findings, embeddings[0], ("Edema",), study_key="study0000"), 8)
    lines = as_text(found).splitlines()
    assert len(lines) == 9
    assert len({line.index("  ") for line in lines}) == 1
    assert all(
        case.case.study_key in line and RELATION_TITLES[case.relation] in line
        for case, line in zip(found, lines[1:], strict=True)
    )
    assert as_text([]) == "no similar case"
    records = json.loads(json.dumps(as_records(found), allow_nan=False))
    assert [record["study_key"] for record in records] == [case.case.study_key for case in found]
    assert not any("picture" in str(record) for record in records)
