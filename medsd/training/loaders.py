"""Studies as arrays, and batches of them.

`medsd prepare` decodes each film once to uint8 model pixels, kept as a memory-mapped file; notes become token ids once.
Batches name their samples by (epoch, row), so that workers hold no state and an epoch can be drawn again exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medsd.networks.fusion import Inputs
from medsd.settings import AugmentSettings
from medsd.training.augment import augmentation, augmented, sample_seed


@dataclass(frozen=True)
class StudyArrays:
    """All studies of a run.

    Attributes:
        pixels: uint8 (N, S, S); zeros where `has_image` is False.
        has_image, has_note: bool (N,).
        note_ids, note_mask: integers (N, L) of any width, or None without a note encoder; batches have int64.
        labels: float32 (N, F), 1, 0 or NaN.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.float32]
    has_image: npt.NDArray[np.bool_]
    has_note: npt.NDArray[np.bool_]
    note_ids: npt.NDArray[np.integer] | None = None
    note_mask: npt.NDArray[np.integer] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batch:
    """Some studies, in V views each: the first B samples are the first view, the next B the second.

    Attributes:
        inputs: of V·B samples.
        labels: float32 (V·B, F).
        rows: int64 (B,) rows of the manifest.
    """

    inputs: Inputs
    labels: Tensor
    rows: Tensor


@dataclass(frozen=True)
class _Sample:
    pixels: Tensor  # (V, 1, S, S)
    has_image: Tensor  # (V,)
    has_note: Tensor  # (V,)
    row: int


class _Views(Dataset[_Sample]):
    """Augmented views of single studies, addressed by (epoch, row)."""

    def __init__(
        self, arrays: StudyArrays, augment: AugmentSettings, *, views: int, modality_dropout: float, seed: int
    ) -> None:
        self.arrays, self.views, self.modality_dropout, self.seed = arrays, views, modality_dropout, seed
        self.chain = augmentation(augment, arrays.pixels.shape[1])

    def __getitem__(self, key: tuple[int, int]) -> _Sample:
        epoch, row = key
        seeds = [sample_seed(self.seed, epoch, row, view) for view in range(self.views)]
        pixels = torch.stack([augmented(self.chain, self.arrays.pixels[row], seed) for seed in seeds])
        kept = torch.tensor([self._keep(row, seed) for seed in seeds], dtype=torch.float32)  # (V, 2)
        return _Sample(pixels * kept[:, 0, None, None, None], kept[:, 0], kept[:, 1], row)

    def _keep(self, row: int, seed: int) -> tuple[bool, bool]:
        """Which of image and note this view keeps; a study never loses its only modality."""
        image, note = bool(self.arrays.has_image[row]), bool(self.arrays.has_note[row])
        if not (image and note):
            return image, note
        draw = np.random.default_rng(seed).random() / max(self.modality_dropout, 1e-9)
        return draw >= 0.5 or draw >= 1.0, not 0.5 <= draw < 1.0


class _EpochSampler(Sampler[list[tuple[int, int]]]):
    """Shuffled batches of (epoch, row); `epoch` is set before each pass. The rest of an epoch that fills no batch is
    dropped, so that no batch is too small for contrast; shuffling gives everybody a turn."""

    def __init__(self, rows: npt.NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed, self.epoch = rows, min(batch_size, len(rows)), seed, 0

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [(self.epoch, int(row)) for row in order[start : start + self.batch_size]]


class TrainingBatches:
    """The batches of a training stage, an epoch at a time.

    Args:
        arrays: of all studies.
        rows: which of them to train on.
        batch_size: studies in a batch.
        views: pictures of each study in a batch.
        seed: of this stage; decides order, augmentation and modality dropout.
        workers: loader processes; 0 works in the calling process. The batches do not depend on it.
    """

    def __init__(
        self,
        arrays: StudyArrays,
        rows: npt.NDArray[np.int64],
        *,
        batch_size: int,
        views: int,
        augment: AugmentSettings,
        modality_dropout: float,
        seed: int,
        workers: int = 0,
    ) -> None:
        self._arrays = arrays
        self._sampler = _EpochSampler(rows, batch_size, seed)
        dataset = _Views(arrays, augment, views=views, modality_dropout=modality_dropout, seed=seed)
        self._loader: DataLoader[_Sample] = DataLoader(
            dataset,
            batch_sampler=self._sampler,
            collate_fn=self._collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own: a loader that starts must not move the dropout's generator
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch the next pass draws, from 0."""
        self._sampler.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)

    def _collate(self, samples: list[_Sample]) -> Batch:
        rows = np.array([sample.row for sample in samples])
        views = samples[0].pixels.shape[0]
        pixels = torch.cat([torch.stack([s.pixels[v] for s in samples]) for v in range(views)])  # (V·B, 1, S, S)
        labels = torch.from_numpy(np.tile(self._arrays.labels[rows], (views, 1)))
        if self._arrays.note_ids is None or self._arrays.note_mask is None:
            return Batch(Inputs(pixels), labels, torch.from_numpy(rows))
        inputs = Inputs(
            pixels,
            has_image=torch.cat([torch.stack([s.has_image[v] for s in samples]) for v in range(views)]),
            note_ids=_tokens(np.tile(self._arrays.note_ids[rows], (views, 1))),
            note_mask=_tokens(np.tile(self._arrays.note_mask[rows], (views, 1))),
            has_note=torch.cat([torch.stack([s.has_note[v] for s in samples]) for v in range(views)]),
        )
        return Batch(inputs, labels, torch.from_numpy(rows))


def plain_batches(
    arrays: StudyArrays,
    rows: npt.NDArray[np.int64],
    batch_size: int = 32,
    *,
    use_image: bool = True,
    use_note: bool = True,
) -> Iterator[Inputs]:
    """The studies as they are, in order, for measuring; a modality can be withheld."""
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        pixels = torch.from_numpy(arrays.pixels[part].astype(np.float32) / 255.0).unsqueeze(1)
        if arrays.note_ids is None or arrays.note_mask is None:
            yield Inputs(pixels)
            continue
        yield Inputs(
            pixels,
            has_image=torch.from_numpy((arrays.has_image[part] & use_image).astype(np.float32)),
            note_ids=_tokens(arrays.note_ids[part]),
            note_mask=_tokens(arrays.note_mask[part]),
            has_note=torch.from_numpy((arrays.has_note[part] & use_note).astype(np.float32)),
        )


def _tokens(values: npt.NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
