"""Relations, differences and the vote against brute force over Python sets."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from medsd.cases.case import Case, Hit, SimilarCase
from medsd.cases.explain import as_records, as_text, explain, sentence
from medsd.cases.vote import vote
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


def similar(labels, similarity=0.5, k_s=1.0, k_d=1.0) -> SimilarCase:
    return SimilarCase(Case("k", labels=np.array(labels, np.float32)), similarity, "equal", (), (), (), k_s, k_d)


def test_the_vote_is_the_weighted_share_of_those_who_know(findings):
    nothing = [np.nan] * 5
    votes = vote(
        [
            similar([1, 0, np.nan, *nothing], similarity=0.8, k_s=0.5, k_d=0.5),
            similar([0, 0, 1, *nothing], similarity=0.4, k_s=1, k_d=0.25),
            similar([1, 1, np.nan, *nothing], similarity=-0.9),
        ],
        findings,
    )
    by_position = list(votes.values())
    assert by_position[:3] == pytest.approx([0.2 / 0.3, 0.0, 1.0])
    assert all(map(math.isnan, by_position[3:]))
    assert list(votes) == list(findings)


def test_the_vote_of_cases_without_weight_is_the_plain_share(findings):
    votes = vote([similar([1] * 8, k_s=0), similar([0] * 8, k_s=0), similar([1] * 8, k_s=0)], findings)
    assert votes["Effusion"] == pytest.approx(2 / 3)
    assert all(map(math.isnan, vote([], findings).values()))


def test_a_case_in_one_line(findings):
    case = SimilarCase(Case("k"), 0.5, "overlap", ("Effusion",), ("Edema",), ("Mass",), 0.5, 0.5)
    assert sentence(case) == "overlap: shares Effusion; also Edema; without Mass"
    assert sentence(case, findings) == "overlap: shares Pleural effusion; also Pulmonary oedema; without Mass"
    assert sentence(similar([0] * 8)) == "equal: no finding in either"


def test_cases_as_a_text_table_and_as_json(index, embeddings, findings):
    found = index.similar(predict(findings, embeddings[0], ("Edema",), study_key="study0000"), 8)
    lines = as_text(found).splitlines()
    assert len(lines) == 9
    assert len({line.index("  ") for line in lines}) == 1
    assert all(
        case.case.study_key in line and case.relation in line for case, line in zip(found, lines[1:], strict=True)
    )
    assert as_text([]) == "no similar case"
    records = json.loads(json.dumps(as_records(found), allow_nan=False))
    assert [record["study_key"] for record in records] == [case.case.study_key for case in found]
    assert not any("picture" in str(record) for record in records)
