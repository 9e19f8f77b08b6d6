"""Percentiles of likeness among training pairs of the same relation."""

import numpy as np
import pytest

from medsd.cases import scale as scales
from medsd.cases.described import SimilarityScale
from medsd.cases.index import CaseIndex, create_index
from medsd.cases.scale import fit_scale
from tests.cases.conftest import MODEL, predict
from tests.cases.test_explain import by_sets


def test_a_percentile_lies_between_the_quantiles():
    scale = SimilarityScale(pairs={"equal": 500}, quantiles={"equal": (-1.0, 0.0, 1.0)})
    assert scale.percentile("equal", 0.5) == 75
    assert scale.percentile("equal", -2) == 0 and scale.percentile("equal", 1.5) == 100
    assert scale.percentile("subset", 0.5) is None


def test_the_scale_is_that_of_all_pairs_of_two_patients(cases, embeddings, findings):
    labels = np.stack([case.labels for case in cases])
    patients = [case.patient_key if row % 3 else "" for row, case in enumerate(cases)]
    scale = fit_scale(embeddings, labels, patients)
    words = [dict(zip(findings, [None if np.isnan(v) else bool(v) for v in row], strict=True)) for row in labels]
    found: dict[str, list[float]] = {}
    for i in range(len(cases)):
        for j in range(len(cases)):
            if i != j and (patients[i] != patients[j] or not patients[i]):
                found.setdefault(by_sets(words[i], words[j])[0], []).append(float(embeddings[i] @ embeddings[j]))
    assert scale.pairs == {word: len(found.get(word, ())) for word in scale.pairs}
    for word, values in found.items():
        assert (word in scale.quantiles) == (len(values) >= scales.FEWEST)
        if word in scale.quantiles:
            assert scale.percentile(word, float(np.median(values))) == pytest.approx(50, abs=0.5)


def test_an_index_gives_percentiles_only_with_a_scale(tmp_path, cases, embeddings, findings):
    made = {"model_sha256": MODEL, "findings": findings}
    prediction = predict(findings, embeddings[0], ("Edema",), study_key="study0000")
    scale = fit_scale(embeddings, [case.labels for case in cases], [case.patient_key for case in cases])
    index = create_index(tmp_path / "c", cases, embeddings, scale=scale, **made)
    assert index.description.scale == scale
    for case in index.similar(prediction, 20):
        assert case.percentile == index.description.scale.percentile(case.relation, case.similarity)
    without = create_index(tmp_path / "old", iter(cases), embeddings, **made)
    assert CaseIndex.open(tmp_path / "old").description.scale is None
    assert {case.percentile for case in without.similar(prediction, 5)} == {None}


def test_too_few_pairs_give_no_scale(findings):
    assert fit_scale(np.eye(1, 16, dtype=np.float32), findings.encode([])[None], ["a"]) is None
    assert fit_scale(np.eye(2, 16, dtype=np.float32), np.zeros((2, 8), np.float32), ["a", "b"]) is None


def test_a_large_index_is_sampled_the_same_each_time(monkeypatch, cases, embeddings):
    monkeypatch.setattr(scales, "ROWS", 60)
    monkeypatch.setattr(scales, "FEWEST", 20)
    labels, patients = np.stack([case.labels for case in cases]), [case.patient_key for case in cases]
    assert fit_scale(embeddings, labels, patients) == fit_scale(embeddings, labels, patients)
    assert sum(fit_scale(embeddings, labels, patients).pairs.values()) < 60 * 60
