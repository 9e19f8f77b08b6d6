"""Retrieval scores against an independent loop over queries and cases."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from torchmetrics.functional import retrieval as peer

from medsd.errors import DataError
from medsd.metrics import retrieval
from medsd.metrics.intervals import IntervalOptions
from medsd.metrics.retrieval import FIGURES, Cases


def random_cases(seed: int, n: int, *, unknown: float = 0.0, patients: int = 20) -> Cases:
    rng = np.random.default_rng(seed)
    target = (rng.random((n, 5)) < 0.3).astype(float)
    target[rng.random((n, 5)) < unknown] = np.nan
    embeddings = np.nan_to_num(target) @ np.eye(5, 8) + rng.normal(0, 0.5, (n, 8))
    return Cases(embeddings, target, [f"p{i}" for i in rng.integers(patients, size=n)])


def gain_of(s: np.ndarray, t: np.ndarray) -> float:
    """Jaccard overlap over the findings known on both sides."""
    known = ~np.isnan(s) & ~np.isnan(t)
    ours, theirs = {*np.flatnonzero(known & (s == 1))}, {*np.flatnonzero(known & (t == 1))}
    if not ours | theirs:
        return float(known.any() and not (s == 1).any() and not (t == 1).any())
    return len(ours & theirs) / len(ours | theirs)


def by_hand(queries: Cases, index: Cases, k: int) -> tuple[list[float], list[float]]:
    ndcg, recall = [], []
    for vector, labels, patient in zip(queries.embeddings, queries.target, queries.patients, strict=True):
        ranked = []
        for other, theirs, owner in zip(index.embeddings, index.target, index.patients, strict=True):
            if owner != patient:
                cosine = float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other))
                ranked.append((cosine, gain_of(labels, theirs)))
        gains = [gain for _, gain in sorted(ranked, key=lambda pair: -pair[0])]
        best = sorted(gains, reverse=True)
        ideal = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(best[:k]))
        relevant = sum(gain > 0 for gain in gains)
        found = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains[:k]))
        ndcg.append(found / ideal if relevant else math.nan)
        recall.append(sum(g > 0 for g in gains[:k]) / min(k, relevant) if relevant else math.nan)
    return ndcg, recall


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("k", "unknown"), [(1, 0.0), (10, 0.0), (10, 0.3), (200, 0.1)])
def test_scores_equal_a_loop_over_queries_and_cases(seed: int, k: int, unknown: float) -> None:
    queries, index = random_cases(seed, 25, unknown=unknown), random_cases(seed + 50, 60, unknown=unknown)
    scores = retrieval.score_queries(queries, index, k=k)
    ndcg, recall = by_hand(queries, index, k)
    np.testing.assert_allclose(scores.ndcg, ndcg)
    np.testing.assert_allclose(scores.recall, recall)


def test_ndcg_equals_scikit_learns_where_no_case_is_left_out() -> None:
    queries, index = random_cases(1, 20), random_cases(2, 50)
    apart = Cases(index.embeddings, index.target, [f"q{i}" for i in range(50)])
    scores = retrieval.score_queries(queries, apart, k=7)
    gains = np.array([[gain_of(s, t) for t in index.target] for s in queries.target])
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries.embeddings, index.embeddings)]
    expected = [ndcg_score(g[None], c[None], k=7) for g, c in zip(gains, unit[0] @ unit[1].T, strict=True)]
    np.testing.assert_allclose(scores.ndcg, np.where(gains.any(1), expected, np.nan))


def test_the_random_baseline_is_the_mean_over_random_orders() -> None:
    queries, index = random_cases(3, 12), random_cases(4, 40)
    expected = retrieval.score_queries(queries, index, k=5)
    rng, trials = np.random.default_rng(0), []
    for _ in range(600):
        noise = Cases(rng.normal(size=(12, 16)), queries.target, queries.patients)
        trials.append(
            retrieval.score_queries(noise, Cases(rng.normal(size=(40, 16)), index.target, index.patients), k=5)
        )
    assert np.nanmean([t.ndcg for t in trials]) == pytest.approx(np.nanmean(expected.random_ndcg), abs=0.01)
    assert np.nanmean([t.recall for t in trials]) == pytest.approx(np.nanmean(expected.random_recall), abs=0.01)


def test_a_query_never_finds_its_own_patient() -> None:
    cases = Cases(np.eye(3), np.array([[1, 0], [1, 0], [0, 1]]), ["a", "a", "b"])
    scores = retrieval.score_queries(cases, cases, k=2)
    assert np.isnan(scores.ndcg).all()  # the only relevant case is the patient's own


def test_two_cases_without_findings_are_alike() -> None:
    normal = Cases(np.eye(2), np.zeros((2, 3)), ["a", "b"])
    assert retrieval.score_queries(normal, normal, k=1).ndcg.tolist() == [1, 1]


def test_blocks_of_queries_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, index = random_cases(5, 30, unknown=0.1), random_cases(6, 40, unknown=0.1)
    whole = retrieval.score_queries(queries, index)
    monkeypatch.setattr(retrieval, "_BLOCK", 100)
    np.testing.assert_allclose(retrieval.score_queries(queries, index).ndcg, whole.ndcg)


def test_a_space_made_of_the_labels_beats_the_random_order_and_noise_does_not() -> None:
    queries, index = random_cases(7, 80, patients=40), random_cases(8, 150)
    report = retrieval.measure_retrieval(queries, index, IntervalOptions(resamples=200))
    assert report.ndcg.value == pytest.approx(np.nanmean(retrieval.score_queries(queries, index).ndcg))
    assert report.gain_over_random.low > 0.1
    rng = np.random.default_rng(1)
    noise = Cases(rng.normal(size=(80, 8)), queries.target, queries.patients)
    found = retrieval.measure_retrieval(noise, index, IntervalOptions(resamples=200)).gain_over_random
    assert found.low < 0.02
    assert found.high < 0.1


def test_queries_with_nothing_to_find_are_counted_and_left_out() -> None:
    queries = Cases(np.eye(3), np.array([[1.0, 0], [0, 1], [np.nan, np.nan]]), ["a", "b", "c"])
    index = Cases(np.eye(3), np.array([[1.0, 0], [1, 0], [1, 0]]), ["d", "e", "f"])
    report = retrieval.measure_retrieval(queries, index, IntervalOptions(resamples=20), k=2)
    assert (report.queries, report.without_relevant, report.index) == (1, 2, 3)
    assert report.ndcg.value == 1
    nothing = retrieval.measure_retrieval(Cases(np.eye(3), np.full((3, 2), np.nan), ["a", "b", "c"]), index)
    assert nothing.queries == 0
    assert nothing.ndcg.value is None


def peer_figures(similarity: np.ndarray, gain: np.ndarray) -> list[float]:
    """The figures of one query by torchmetrics, NaN where nothing is relevant."""
    if not gain.any():
        return [math.nan] * len(FIGURES)
    scores = torch.from_numpy(2 + similarity)  # torchmetrics takes scores of 0 or less for no answer
    gains, relevant = torch.from_numpy(gain), torch.from_numpy(gain > 0)
    found = [
        relevant.float().mean(),
        *(peer.retrieval_precision(scores, relevant, top_k=k) for k in (1, 5, 10)),
        peer.retrieval_average_precision(scores, relevant),
        peer.retrieval_recall(scores, relevant, top_k=5),
        peer.retrieval_hit_rate(scores, relevant, top_k=5),
        *(peer.retrieval_normalized_dcg(scores, gains, top_k=k) for k in (10, 100)),
    ]
    return [float(value) for value in found]


def shared_gain(s: np.ndarray, t: np.ndarray) -> int:
    """2^r − 1 for r findings known on both sides; 1 for two that are known to have none of what both know."""
    return 2 ** int(((s == 1) & (t == 1)).sum()) - 1 or int(gain_of(s, t) > 0)


@pytest.mark.parametrize(("seed", "unknown", "size"), [(0, 0.0, 150), (1, 0.3, 150), (2, 0.1, 8)])
def test_rankings_equal_those_of_torchmetrics(seed: int, unknown: float, size: int) -> None:
    queries, index = random_cases(seed, 40, unknown=unknown), random_cases(seed + 50, size, unknown=unknown)
    overall, by_finding = retrieval.score_rankings(queries, index)
    assert np.isnan(by_finding).any() and not np.isnan(by_finding).all()
    for q, (vector, labels, patient) in enumerate(
        zip(queries.embeddings, queries.target, queries.patients, strict=True)
    ):
        other = np.array(index.patients) != patient
        those, theirs = index.embeddings[other], index.target[other]
        similarity = those @ vector / np.linalg.norm(those, axis=1) / np.linalg.norm(vector)
        gains = np.array([shared_gain(labels, t) for t in theirs])
        np.testing.assert_allclose(overall[q], peer_figures(similarity, gains), atol=1e-6)
        for f in range(5):
            has = (labels[f] == 1) * (theirs[:, f] == 1).astype(int)
            np.testing.assert_allclose(by_finding[f, q], peer_figures(similarity, has), atol=1e-6)


def test_a_case_that_is_not_known_to_have_the_finding_is_not_relevant() -> None:
    query = Cases(np.array([[1.0, 0]]), np.array([[1.0, np.nan]]), ["a"])
    near_first = np.array([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3]])
    labels = np.array([[np.nan, 1], [1, 0], [0, np.nan], [1, 1]])
    overall, by_finding = retrieval.score_rankings(query, Cases(near_first, labels, ["b", "c", "d", "e"]))
    figures = dict(zip(FIGURES, by_finding[0, 0], strict=True))
    assert (figures["P@1"], figures["P@5"], figures["Chance"]) == (0, 2 / 5, 1 / 2)
    assert figures["mAP"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    np.testing.assert_array_equal(overall[0], by_finding[0, 0])  # nothing else is known on both sides
    assert np.isnan(by_finding[1]).all()


def test_rankings_are_the_means_of_their_queries_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, index = random_cases(5, 60, unknown=0.1, patients=30), random_cases(6, 50, unknown=0.1, patients=60)
    overall, by_finding = retrieval.score_rankings(queries, index)
    monkeypatch.setattr(retrieval, "_BLOCK", 100)
    found = retrieval.measure_retrieval(queries, index, IntervalOptions(resamples=50), names=tuple("abcde")).rankings
    has = (queries.target == 1).any(1)
    for row, values in (
        (found.images, overall),
        (found.with_finding, overall[has]),
        (found.without_finding, overall[~has]),
        *((found.findings[name], by_finding[f]) for f, name in enumerate("abcde")),
    ):
        assert row.queries == (~np.isnan(values[:, 0])).sum()
        assert [row.figures[name].value for name in FIGURES] == pytest.approx(np.nanmean(values, 0))
        assert all(i.low <= i.value <= i.high and i.low >= 0 and i.high <= 1 for i in row.figures.values())
    assert found.with_finding.queries + found.without_finding.queries == found.images.queries
    assert found.over == 5
    means = [np.mean([found.findings[name].figures[figure].value for name in "abcde"]) for figure in FIGURES]
    assert [found.mean[figure].value for figure in FIGURES] == pytest.approx(means)


def test_intervals_of_a_finding_hang_on_the_patients_that_have_it() -> None:
    queries, index = random_cases(9, 200, patients=80), random_cases(10, 60, patients=500)
    everyone = retrieval.measure_retrieval(
        queries, index, IntervalOptions(resamples=100), names=tuple("abcde")
    ).rankings
    rows = np.flatnonzero(queries.target[:, 2] == 1)
    those = Cases(queries.embeddings[rows], queries.target[rows], np.array(queries.patients)[rows])
    alone = retrieval.measure_retrieval(those, index, IntervalOptions(resamples=100), names=tuple("abcde")).rankings
    for figure in FIGURES:
        ours, theirs = everyone.findings["c"].figures[figure], alone.findings["c"].figures[figure]
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    one = Cases(queries.embeddings, queries.target, [f"p{i}" for i in range(200)])
    apart = retrieval.measure_retrieval(one, index, IntervalOptions(resamples=100), names=tuple("abcde")).rankings
    twice = Cases(*(np.concatenate([part, part]) for part in (one.embeddings, one.target, np.array(one.patients))))
    again = retrieval.measure_retrieval(twice, index, IntervalOptions(resamples=100), names=tuple("abcde")).rankings
    for figure in FIGURES:  # each image twice: as many patients, so an interval as wide
        ours, theirs = apart.images.figures[figure], again.images.figures[figure]
        assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high))


def test_queries_of_few_patients_are_too_few_to_tell_and_not_in_the_mean() -> None:
    queries, index = random_cases(11, 120, patients=40), random_cases(12, 40, patients=500)
    queries.target[:, 1] = 0
    queries.target[:30, 1] = 1
    few = Cases(queries.embeddings, queries.target, ["one"] * 30 + [f"p{i}" for i in range(90)])
    found = retrieval.measure_retrieval(few, index, IntervalOptions(resamples=20), names=tuple("abcde")).rankings
    assert found.findings["b"].queries == 30
    assert {str(i) for i in found.findings["b"].figures.values()} == {"too few to tell"}
    assert found.over == 4 and found.findings["a"].figures["mAP"].low is not None
    four = [found.findings[name].figures["mAP"].value for name in "acde"]
    assert found.mean["mAP"].value == pytest.approx(np.mean(four))
    none = retrieval.measure_retrieval(
        few, index, IntervalOptions(resamples=20, minimum_positives=100), names=tuple("abcde")
    ).rankings
    assert none.over == 0 and none.mean["mAP"].value is None and none.images.figures["mAP"].value is None


def test_embeddings_labels_and_patients_that_do_not_fit_are_refused() -> None:
    cases = random_cases(0, 10)
    with pytest.raises(DataError, match="do not belong together"):
        Cases(cases.embeddings, cases.target[:-1], cases.patients)
    with pytest.raises(DataError, match="NaN or infinite"):
        Cases(np.full((1, 2), np.nan), np.zeros((1, 2)), ["a"])
    with pytest.raises(DataError, match="same model"):
        retrieval.score_queries(cases, Cases(np.zeros((10, 3)), cases.target, cases.patients))
    with pytest.raises(DataError, match="a split is empty"):
        retrieval.score_queries(cases, Cases(np.zeros((0, 8)), np.zeros((0, 5)), []))
