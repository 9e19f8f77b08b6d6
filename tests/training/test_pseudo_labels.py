"""Class-aware pseudo-labels: shares, ties, what stays unknown, and the rounds of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medsd.errors import DataError
from medsd.sd import SDLoss
from medsd.sd.relations import LabelPairs
from medsd.training.pseudo_labels import is_labelled, pseudo_labelled

NAN = np.nan


def test_a_finding_with_too_few_known_labels_of_either_class_is_not_labelled() -> None:
    labels = np.array([[1, 1, NAN], [0, 1, NAN], [0, 1, NAN], [NAN, NAN, 1]])
    probs = np.full((4, 3), 0.9)
    found = pseudo_labelled(np.concatenate([probs, probs / 9]), np.concatenate([labels, np.full((4, 3), NAN)]))
    assert found[3, 0] == 1 and np.isnan(found[4:, 1:]).all()
    again = pseudo_labelled(probs, labels, minimum_positives=2)
    np.testing.assert_array_equal(again, labels.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float64, (40, 3), elements=st.integers(0, 20).map(lambda n: n / 20)),
    st.tuples(*[st.integers(1, 19)] * 3),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_no_more_is_labelled_than_is_expected_and_nothing_present_below_what_is_absent(
    probs: np.ndarray, known: tuple[int, ...], positive: float, negative: float
) -> None:
    labels = np.concatenate([np.arange(20)[:, None] < known, np.full((40, 3), NAN)])
    said = np.concatenate([np.full((20, 3), 0.5), probs])
    found = pseudo_labelled(said, labels, positive=positive, negative=negative)[20:]
    shares = np.array(known) / 20
    assert ((found == 1).sum(0) <= shares * positive * 40 + 1e-6).all()
    assert ((found == 0).sum(0) <= (1 - shares) * negative * 40 + 1e-6).all()
    lowest, highest = np.where(found == 1, probs, 2).min(0), np.where(found == 0, probs, -1).max(0)
    assert (lowest > highest).all()


def test_pseudo_labels_follow_the_class_distribution_however_timid_the_model_is() -> None:
    rng = np.random.default_rng(0)
    labels = np.full((1100, 1), NAN)
    labels[:100, 0] = np.arange(100) < 20
    probs = rng.random((1100, 1)) * 0.2  # never above a fifth: a threshold of one half would find nothing
    added = pseudo_labelled(probs, labels)[100:, 0]
    assert (added == 1).sum() == 200 and (added == 0).sum() == 800
    assert probs[100:][added == 1].min() > probs[100:][added == 0].max()


def test_between_the_thresholds_a_label_stays_unknown_and_known_ones_stay() -> None:
    labels = np.array([[1.0, 0], [0, 1], [NAN, 1], [NAN, NAN], [NAN, NAN], [NAN, 0]])
    probs = np.array([[0.1, 0.9], [0.9, 0.1], [0.9, 0.2], [0.5, 0.9], [0.4, 0.1], [0.1, 0.6]])
    found = pseudo_labelled(probs, labels, positive=0.5, negative=0.5)
    np.testing.assert_array_equal(found[:, 0], np.array([1, 0, 1, NAN, NAN, 0], np.float32))
    known = ~np.isnan(labels)
    np.testing.assert_array_equal(found[known], labels[known].astype(np.float32))


def test_studies_that_nothing_tells_apart_stay_unknown() -> None:
    labels = np.array([[1.0], [0], *[[NAN]] * 10])
    assert np.isnan(pseudo_labelled(np.full((12, 1), 0.3), labels)[2:]).all()


def test_a_study_is_labelled_when_one_finding_is_known() -> None:
    assert is_labelled([[NAN, NAN], [NAN, 0]]).tolist() == [False, True]


def test_pairs_are_surely_disjoint_only_where_no_unknown_label_could_join_them() -> None:
    anchors = np.array([[1.0, 0, 0], [1, NAN, 0], [0, 0, 0], [0, NAN, 0]])
    samples = np.array([[0.0, 1, 0], [NAN, 1, 0], [0, 0, NAN], [0, 0, 0]])
    assert LabelPairs(anchors, samples).surely_disjoint().tolist() == [
        [True, False, True, True],
        [False, False, True, True],
        [True, True, False, False],
        [False, False, False, False],
    ]


@pytest.mark.parametrize("blocked", [False, True])
def test_unsure_negatives_do_not_push_where_asked(blocked: bool) -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    labels = torch.tensor([[1.0, 0, 0], [1, 0, 0], [NAN, 1, 0], [0, 0, 1]])
    without = torch.tensor([True, True, False, True])
    sure = SDLoss(negatives="sure", blocked=blocked)
    # Sample 2 may share the finding of 0 and 1, so for them it is as if it were not there; against 3 it is sure.
    assert torch.allclose(sure(embeddings, labels), sure(embeddings[without], labels[without]), atol=1e-6)
    assert not torch.allclose(SDLoss(blocked=blocked)(embeddings, labels), sure(embeddings, labels), atol=1e-3)


def test_on_known_labels_sure_negatives_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(12, 4, generator=generator)
    labels = torch.randint(0, 2, (12, 3), generator=generator).float()
    assert torch.equal(SDLoss(negatives="sure")(embeddings, labels), SDLoss()(embeddings, labels))


def test_rounds_teach_from_unlabelled_studies_and_resume_to_the_same_weights(tmp_path: Path) -> None:
    from medsd.networks.fusion import StudyModel
    from medsd.training.engine import StageResult
    from medsd.training.loaders import StudyArrays
    from medsd.training.stages import labelled_rows, self_train
    from tests.runs import small_settings

    rounds = (
        "training.pseudo_labels.rounds=2",
        "training.pseudo_labels.minimum_positives=1",
        "training.pseudo_labels.epochs=1",
    )
    settings = small_settings(tmp_path, "network.note=null", *rounds)
    rng, count = np.random.default_rng(0), 40
    labels = rng.integers(0, 2, (count, 3)).astype(np.float32)
    labels[8:24] = np.nan
    yes, no = np.ones(count, bool), np.zeros(count, bool)
    studies = StudyArrays(rng.integers(0, 256, (count, 32, 32), dtype=np.uint8), labels, yes, no)
    train, validation = np.arange(24), np.arange(24, count)
    assert len(labelled_rows(labels, train)) == 8
    torch.manual_seed(0)
    model, nothing = StudyModel(settings.network, 3, 32), StageResult([], -1, 0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert len(self_train(settings, model, studies, train, validation, tmp_path, nothing)) == 2
    after = {name: value.clone() for name, value in model.state_dict().items()}
    assert np.isnan(studies.labels[8:24]).all() and any(not torch.equal(before[name], after[name]) for name in before)
    model.load_state_dict(before)
    (tmp_path / "rounds" / "2" / "finetune.safetensors").unlink()  # as if killed in the second round
    self_train(settings, model, studies, train, validation, tmp_path, nothing)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in after.items())


def test_a_run_without_labels_is_refused() -> None:
    from medsd.training.stages import labelled_rows

    with pytest.raises(DataError, match="no training study has a known finding"):
        labelled_rows(np.full((3, 2), NAN, np.float32), np.arange(3))


def test_a_run_labels_its_unlabelled_studies_keeps_the_manifest_and_suggests_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from medsd.labelling.pool import suggest_studies
    from medsd.pipeline.run import run_steps
    from medsd.studies.manifest import Manifest
    from tests.runs import small_settings

    monkeypatch.setenv("MEDSD_KEY", "a key for the tests of medsd")
    more = (
        "network.note=null",
        "loss.cross_modal_weight=0",
        "training.pretrain.epochs=1",
        "training.finetune.epochs=1",
    )
    settings = small_settings(
        tmp_path, *more, "training.pseudo_labels.rounds=1", "training.pseudo_labels.minimum_positives=1"
    )
    run = run_steps(settings, "prepare")
    manifest = Manifest.read(run.manifest)
    unlabelled = manifest.rows("train")[::2]
    table = manifest.table.copy()
    table.loc[unlabelled, list(manifest.findings)] = np.nan
    replace(manifest, table=table).write(run.manifest)
    run_steps(settings, "calibrate")
    assert (run.folder / "rounds" / "1" / "finetune.safetensors").is_file()
    assert "round 1" in (run.folder / "history.json").read_text()
    assert not is_labelled(Manifest.read(run.manifest).labels[unlabelled]).any()
    told = suggest_studies(settings, tmp_path / "next.csv", count=3)
    assert told.suggested == 3 and told.pool <= len(unlabelled)
    run_steps(small_settings(tmp_path, *more), "finetune")  # without rounds: nothing of them is left
    assert not (run.folder / "rounds").exists()
