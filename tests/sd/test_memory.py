"""The queue of earlier batches."""

from __future__ import annotations

import pytest
import torch

from medsd.errors import SettingsError
from medsd.sd.losses import SDLoss
from medsd.sd.memory import MemoryQueue
from medsd.sd.rivals import LOSSES
from tests.sd.loops import build_loss
from tests.sd.test_losses import batch, value_and_gradient


def make_queue(size: int = 30) -> MemoryQueue:
    return MemoryQueue(SDLoss(), size=size, embedding_size=5, findings=4).double()


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_queue_changes_nothing(name: str) -> None:
    embeddings, labels = batch(0, unknown=0.2)
    loss = build_loss(name).double()
    queue = MemoryQueue(loss, size=30, embedding_size=5, findings=4).double()
    torch.testing.assert_close(
        value_and_gradient(queue, embeddings, labels), value_and_gradient(loss, embeddings, labels)
    )


def test_anchors_meet_their_batch_and_the_earlier_ones() -> None:
    queue, (earlier, earlier_labels), (embeddings, labels) = make_queue(), batch(1), batch(2)
    queue(earlier, earlier_labels)
    references = {
        "ref_emb": torch.cat([embeddings, earlier.detach()]),
        "ref_labels": torch.cat([labels, earlier_labels]),
    }
    expected = value_and_gradient(SDLoss(), embeddings, labels, own=0, **references)
    torch.testing.assert_close(value_and_gradient(queue, embeddings, labels), expected)
    assert earlier.grad is None


def test_the_oldest_samples_leave_first() -> None:
    queue = make_queue(size=5)
    for value in range(4):  # two samples each; eight in all
        queue(torch.full((2, 5), value + 1.0), torch.eye(4)[[value, value]])
    assert queue.labels.argmax(1).tolist() == [2, 3, 3, 1, 2]
    assert not queue.labels.isnan().any()


def test_a_batch_larger_than_the_queue_leaves_its_end() -> None:
    queue, (embeddings, labels) = make_queue(size=5), batch(3)
    queue(embeddings, labels)
    torch.testing.assert_close(queue.labels, labels[-5:])


def test_keys_of_a_momentum_encoder_are_queued_instead() -> None:
    queue, (embeddings, labels) = make_queue(size=12), batch(4)
    queue(embeddings, labels, keys=-embeddings)
    torch.testing.assert_close(queue.embeddings, -torch.nn.functional.normalize(embeddings.detach()))


def test_the_queue_is_resumed_from_its_state() -> None:
    queue, again, (embeddings, labels) = make_queue(), make_queue(), batch(5)
    queue(embeddings, labels)
    again.load_state_dict(queue.state_dict())
    torch.testing.assert_close(again(embeddings, labels), queue(embeddings, labels))


def test_a_queue_needs_a_place() -> None:
    with pytest.raises(SettingsError, match="size of the queue is 0"):
        make_queue(size=0)
