"""Images beside notes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medsd.errors import DataError
from medsd.sd.crossmodal import CrossModalLoss
from medsd.sd.losses import SDLoss
from tests.sd.test_losses import batch


def studies() -> tuple[Tensor, Tensor, Tensor]:
    images, labels = batch(0)
    return images, batch(1)[0], labels


def test_distinct_studies_give_the_loss_of_clip() -> None:
    images, notes = (torch.randn(4, 8) for _ in range(2))
    logits = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(notes).T / 0.1
    own = torch.arange(4)
    clip = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(CrossModalLoss(SDLoss())(images, notes, torch.eye(4)), clip)


def test_both_directions_count_alike() -> None:
    images, notes, labels = studies()
    torch.testing.assert_close(
        CrossModalLoss(SDLoss())(images, notes, labels), CrossModalLoss(SDLoss())(notes, images, labels)
    )


def test_a_study_without_a_note_takes_part_as_an_image_only() -> None:
    images, notes, labels = studies()
    has_note = torch.arange(12) % 3 > 0
    loss = SDLoss()
    to_note = loss(images, labels, ref_emb=notes[has_note], ref_labels=labels[has_note])
    to_image = loss(notes[has_note], labels[has_note], ref_emb=images, ref_labels=labels)
    found = CrossModalLoss(loss)(images, notes, labels.bool(), has_note)
    torch.testing.assert_close(found, (to_note + to_image) / 2)
    found.backward()
    assert notes.grad is not None and (notes.grad[~has_note] == 0).all()


def test_inputs_that_do_not_fit_are_named() -> None:
    images, notes, labels = studies()
    with pytest.raises(DataError, match=r"has_note has shape \(3,\)"):
        CrossModalLoss(SDLoss())(images, notes, labels, torch.ones(3))


def test_both_directions_teach_one_temperature() -> None:
    images, notes, labels = studies()
    loss = SDLoss(learn_temperature=True).double()
    assert loss.log_temperature is not None
    assert torch.autograd.gradcheck(
        lambda *_: CrossModalLoss(loss)(images, notes, labels), (images, notes, loss.log_temperature)
    )
