"""A queue of earlier batches, so that a small batch is compared with many samples.

Cross-batch memory (Wang et al., CVPR 2020); with the embeddings of a momentum encoder, MoCo (He et al., CVPR 2020).
"""

import torch
from torch import Tensor, nn

from medsd.errors import SettingsError
from medsd.sd.losses import ContrastiveLoss, flatten_views


class MemoryQueue(nn.Module):
    """Compares each batch with itself and with the last `size` samples before it.

    Places not yet filled have unknown labels, which every loss of the family leaves out. The queue is part of the state
    dict, so that training resumes with it.

    Args:
        loss: any loss of the family; with ``gather=True`` each process queues the samples of all.
        size: how many earlier samples are kept, 1 or more (SettingsError).

    Example:
        >>> import torch
        >>> from medsd.sd.losses import SDLoss
        >>> queue = MemoryQueue(SDLoss(), size=64, embedding_size=8, findings=3)
        >>> loss = queue(torch.randn(4, 8), torch.ones(4, 3))
    """

    embeddings: Tensor
    labels: Tensor
    position: Tensor

    def __init__(self, loss: ContrastiveLoss, size: int, embedding_size: int, findings: int) -> None:
        super().__init__()
        if size < 1:
            raise SettingsError(f"size of the queue is {size}; it must be 1 or more")
        self.loss = loss
        self.register_buffer("embeddings", torch.zeros(size, embedding_size))
        self.register_buffer("labels", torch.full((size, findings), torch.nan))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    def forward(self, embeddings: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        """The loss of a batch against itself and the queue; the batch joins the queue afterwards.

        Args:
            embeddings: (N, D) or (B, V, D).
            labels: (N, F) or (B, F), values in [0, 1] or NaN.
            keys: embeddings of the same samples by a momentum encoder, shaped alike; they are queued instead.
        """
        keyed = None if keys is None else flatten_views(keys, labels, "keys", "labels")
        embeddings, labels = flatten_views(embeddings, labels, "embeddings", "labels")
        refs, ref_labels, own = self.loss.all_samples(embeddings, labels)
        loss = self.loss.contrast(
            embeddings,
            labels,
            torch.cat([refs, self.embeddings.to(refs.dtype)]),
            torch.cat([ref_labels.to(self.labels.dtype), self.labels]),
            own,
        )
        if keyed is not None:
            refs, ref_labels, _ = self.loss.all_samples(*keyed)
        self._push(refs, ref_labels)
        return loss

    @torch.no_grad()
    def _push(self, embeddings: Tensor, labels: Tensor) -> None:
        size = self.embeddings.shape[0]
        embeddings, labels = embeddings[-size:], labels[-size:]
        places = (self.position + torch.arange(embeddings.shape[0], device=embeddings.device)) % size
        self.embeddings[places] = self.loss.place(embeddings.detach()).to(self.embeddings.dtype)
        self.labels[places] = labels.to(self.labels.dtype)
        self.position.add_(embeddings.shape[0]).remainder_(size)
