"""Batches: the same whatever the workers, views, modality dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsd.settings import AugmentSettings
from medsd.training.loaders import Share, StudyArrays, TrainingBatches, plain_batches

COUNT, SIZE = 24, 32


@pytest.fixture
def arrays() -> StudyArrays:
    rng = np.random.default_rng(0)
    return StudyArrays(
        pixels=rng.integers(0, 256, (COUNT, SIZE, SIZE), dtype=np.uint8),
        labels=rng.integers(0, 2, (COUNT, 3)).astype(np.float32),
        has_image=np.arange(COUNT) % 6 != 0,
        has_note=np.arange(COUNT) % 6 != 1,
        note_ids=rng.integers(0, 9, (COUNT, 8)),
        note_mask=np.ones((COUNT, 8), np.int64),
    )


def _batches(
    arrays: StudyArrays, workers: int = 0, views: int = 2, dropout: float = 0.5, share: Share | None = None
) -> TrainingBatches:
    return TrainingBatches(
        arrays,
        np.arange(COUNT),
        batch_size=8,
        views=views,
        augment=AugmentSettings(),
        modality_dropout=dropout,
        seed=5,
        workers=workers,
        share=share,
    )


def test_batches_do_not_depend_on_the_number_of_workers(arrays: StudyArrays) -> None:
    for one, other in zip(_batches(arrays), _batches(arrays, workers=2), strict=True):
        assert torch.equal(one.inputs.pixels, other.inputs.pixels) and torch.equal(one.rows, other.rows)
        torch.testing.assert_close(vars(one.inputs), vars(other.inputs), rtol=0, atol=0)


def test_an_epoch_is_drawn_again_exactly_and_another_differs(arrays: StudyArrays) -> None:
    batches = _batches(arrays)
    batches.set_epoch(3)
    first = [batch.inputs.pixels for batch in batches]
    again = [batch.inputs.pixels for batch in batches]
    batches.set_epoch(4)
    other = [batch.inputs.pixels for batch in batches]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_an_epoch_goes_on_in_its_middle(arrays: StudyArrays) -> None:
    batches = _batches(arrays)
    batches.set_epoch(2)
    whole = list(batches)
    batches.set_epoch(2, start=1)
    for one, other in zip(whole[1:], batches, strict=True):
        assert torch.equal(one.inputs.pixels, other.inputs.pixels) and torch.equal(one.rows, other.rows)


@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_processes_are_the_batch_of_one(arrays: StudyArrays, world: int) -> None:
    shares = [list(_batches(arrays, share=Share(rank, world))) for rank in range(world)]
    for whole, *parts in zip(_batches(arrays), *shares, strict=True):
        assert torch.equal(whole.rows, torch.cat([part.rows for part in parts]))
        views = [[part.inputs.pixels.chunk(2)[view] for part in parts] for view in range(2)]
        assert torch.equal(whole.inputs.pixels, torch.cat([torch.cat(view) for view in views]))


def test_the_second_half_of_a_batch_is_another_view_of_the_first(arrays: StudyArrays) -> None:
    batch = next(iter(_batches(arrays, dropout=0.0)))
    assert batch.inputs.pixels.shape == (16, 1, SIZE, SIZE)
    assert torch.equal(batch.labels[:8], batch.labels[8:]) and torch.equal(
        batch.labels[:8], torch.from_numpy(arrays.labels[batch.rows])
    )
    assert not torch.equal(batch.inputs.pixels[:8], batch.inputs.pixels[8:])


def test_no_study_loses_its_only_modality_and_each_is_dropped_at_its_rate(arrays: StudyArrays) -> None:
    batches, kept = _batches(arrays, views=1, dropout=0.6), []
    for epoch in range(25):
        batches.set_epoch(epoch)
        for batch in batches:
            both = torch.from_numpy(arrays.has_image & arrays.has_note)[batch.rows]
            assert (batch.inputs.has_image + batch.inputs.has_note >= 1).all()
            kept.append(torch.stack([batch.inputs.has_image[both], batch.inputs.has_note[both]], dim=1))
    image, note = torch.cat(kept).mean(dim=0).tolist()
    assert image == pytest.approx(0.7, abs=0.07) and note == pytest.approx(0.7, abs=0.07)


def test_every_study_has_its_turn_in_an_epoch(arrays: StudyArrays) -> None:
    rows = torch.cat([batch.rows for batch in _batches(arrays)])
    assert sorted(rows.tolist()) == list(range(COUNT))


def test_plain_batches_keep_the_order_and_can_withhold_a_modality(arrays: StudyArrays) -> None:
    inputs = list(plain_batches(arrays, np.arange(COUNT), 10, use_image=False))
    assert [len(part.pixels) for part in inputs] == [10, 10, 4]
    assert not torch.cat([part.has_image for part in inputs]).any()
    whole = torch.cat([part.pixels for part in plain_batches(arrays, np.arange(COUNT), 10)])
    np.testing.assert_allclose(whole[:, 0].numpy() * 255, arrays.pixels, atol=1e-4)
