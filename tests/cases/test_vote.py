"""The vote of the nearest cases beside the model, and the flag where they disagree."""

import json
import math

import numpy as np
import pytest

from medsd.cases.case import Case, SimilarCase
from medsd.cases.described import VoteRule
from medsd.cases.index import create_index
from medsd.cases.vote import ballot, disagreement_text, vote, vote_records, weighted_shares
from medsd.inference.prediction import Prediction
from tests.cases.conftest import MODEL, predict

EMBEDDING = np.eye(1, 16, dtype=np.float32)[0]


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
    assert weighted_shares(np.array([3.0, 1.0]), np.array([[1], [0]], np.float32)).tolist() == [0.75]


def test_a_call_is_flagged_where_the_vote_calls_otherwise(findings):
    thresholds = dict.fromkeys(findings, 0.4) | {"Mass": None}
    prediction = predict(findings, EMBEDDING, ("Effusion", "Edema", "Mass"))
    cases = [similar(findings.encode(["Effusion", "Cardiomegaly"])), similar(findings.encode(["Effusion"]))]
    votes = {each.finding: each for each in ballot(prediction, cases, VoteRule(k=2, thresholds=thresholds, rule=""))}
    assert {name for name, each in votes.items() if each.disagrees} == {"Edema", "Cardiomegaly"}
    assert (votes["Edema"].call, votes["Edema"].share_call, votes["Edema"].share) == ("present", "absent", 0.0)
    assert votes["Mass"].share_call == "undecided" and votes["Effusion"].share == 1.0
    assert votes["Effusion"].probability == pytest.approx(0.9)


def test_an_undecided_call_and_an_index_without_a_rule_flag_nothing(findings):
    undecided = predict(findings, EMBEDDING, calls=dict.fromkeys(findings, "undecided"))
    rule = VoteRule(k=1, thresholds=dict.fromkeys(findings, 0.5), rule="")
    assert not any(each.disagrees for each in ballot(undecided, [similar([1] * 8)], rule))
    assert not any(each.disagrees for each in ballot(predict(findings, EMBEDDING), [similar([1] * 8)]))
    assert ballot(Prediction(findings, "refused"), [similar([1] * 8)], rule) == ()


def test_an_index_asks_as_many_cases_as_its_rule_says(tmp_path, cases, embeddings, findings):
    rule = VoteRule(k=5, thresholds=dict.fromkeys(findings, 0.5), rule="by hand")
    made = {"model_sha256": MODEL, "findings": findings}
    index = create_index(tmp_path / "c", cases, embeddings, vote=rule, **made)
    prediction = predict(findings, embeddings[0], ("Edema",), study_key="study0000")
    assert index.vote(prediction) == ballot(prediction, index.similar(prediction, 5), rule)
    assert index.vote(prediction) != ballot(prediction, index.similar(prediction, 16), rule)
    plain = create_index(tmp_path / "d", cases, embeddings, **made)
    assert not any(each.disagrees for each in plain.vote(prediction))


def test_votes_as_json_and_as_lines(findings):
    rule = VoteRule(k=1, thresholds=dict.fromkeys(findings, 0.5), rule="")
    labels = findings.encode(["Edema"])
    labels[0] = np.nan
    votes = ballot(predict(findings, EMBEDDING), [similar(labels)], rule)
    records = json.loads(json.dumps(vote_records(votes), allow_nan=False))
    assert records[0]["share"] is None and records[list(findings).index("Edema")]["share_call"] == "present"
    assert disagreement_text(votes, findings) == (
        "disagreement: Pulmonary oedema is absent for the model (0.10) and present by the nearest cases (vote 1.00)"
    )
