"""Studies as arrays, and batches of them.

Batches name their samples by (epoch, row), so that workers hold no state and an epoch can be drawn again exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medsd.findings import FindingSet
from medsd.networks.fusion import StudyInputs
from medsd.settings import AugmentSettings
from medsd.training.augment import Augmentation, sample_seed

Rows = npt.NDArray[np.int64]
SENTENCE_FORMS = (
    "{}",
    "{}.",
    "large {}",
    "small {}",
    "known {}",
    "follow-up of {}",
    "with {}",
    "{} on the right",
    "{} on the left",
)


def spread(rows: Rows, most: int) -> Rows:
    """At most `most` of some rows, at even distances."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]


@dataclass(frozen=True)
class Sentences:
    """Sentences that name a finding, as tokens, by finding: integers (K_f, L) each; the plain one first."""

    ids: tuple[npt.NDArray[np.integer], ...]
    mask: tuple[npt.NDArray[np.integer], ...]


def sentences_of(findings: FindingSet) -> list[tuple[str, ...]]:
    """By finding, sentences with which a reader might search: title and synonyms in all forms, the title first."""
    return [
        tuple(form.format(word.lower()) for word in (finding.title, *finding.synonyms) for form in SENTENCE_FORMS)
        for finding in findings.findings
    ]


@dataclass(frozen=True)
class StudyArrays:
    """All studies of a run."""

    pixels: npt.NDArray[np.uint8] | None  # (N, S, S), zeros where `has_image` is False; None: a model of notes alone
    labels: npt.NDArray[np.float32]  # (N, F), 1, 0 or NaN
    has_image: npt.NDArray[np.bool_]  # (N,)
    has_note: npt.NDArray[np.bool_]  # (N,)
    note_ids: npt.NDArray[np.integer] | None = None  # (N, L) of any width; batches have int64
    note_mask: npt.NDArray[np.integer] | None = None  # (N, L)
    sentences: Sentences | None = None  # where images and notes are contrasted and names are not masked

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, rows: Rows, pixels: Tensor | None, has_image: Tensor, has_note: Tensor) -> StudyInputs:
        """`pixels` with the notes of `rows`, as the model reads them; `has_image` and `has_note` float32 (B,)."""
        if self.note_ids is None or self.note_mask is None:
            return StudyInputs(pixels)
        ids, mask = (torch.from_numpy(values[rows].astype(np.int64)) for values in (self.note_ids, self.note_mask))
        return StudyInputs(pixels, has_image=has_image, note_ids=ids, note_mask=mask, has_note=has_note)


@dataclass(frozen=True)
class Batch:
    """Some studies, in V views each: the first B samples are the first view, the next B the second."""

    inputs: StudyInputs  # of V·B samples
    labels: Tensor  # float32 (V·B, F)
    rows: Tensor  # int64 (B,) rows of the manifest

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory, from which a GPU copies beside its work; the loader calls it."""
        pinned = {name: value.pin_memory() for name, value in vars(self.inputs).items() if value is not None}
        return Batch(replace(self.inputs, **pinned), self.labels.pin_memory(), self.rows)


@dataclass(frozen=True)
class Share:
    """The part of each batch that the process `rank` of `world` takes; parts differ by a study at most."""

    rank: int = 0
    world: int = 1

    def of(self, rows: Rows) -> Rows:
        """The share of some rows."""
        return np.array_split(rows, self.world)[self.rank]


class _Batches(Dataset[Batch]):
    """Augmented batches, addressed by the epoch and the rows: whole batches are several times as fast as samples."""

    def __init__(
        self, arrays: StudyArrays, augment: AugmentSettings, *, views: int, modality_dropout: float, seed: int
    ) -> None:
        self.arrays, self.views, self.modality_dropout, self.seed = arrays, views, modality_dropout, seed
        self.augmentation = None if arrays.pixels is None else Augmentation(augment, arrays.pixels.shape[1])

    def __getitem__(self, key: tuple[int, Rows]) -> Batch:
        epoch, rows = key
        seeds = [sample_seed(self.seed, epoch, int(row), view) for view in range(self.views) for row in rows]
        samples = np.tile(rows, self.views)  # view after view
        kept = torch.tensor([self._keep(row, seed) for row, seed in zip(samples, seeds, strict=True)]).float()
        pixels = self._pixels(rows, seeds)
        if pixels is not None:
            pixels.mul_(kept[:, 0, None, None, None])
        inputs = self.arrays.inputs(samples, pixels, *kept.T)
        return Batch(inputs, torch.from_numpy(self.arrays.labels[samples]), torch.from_numpy(rows))

    def _pixels(self, rows: Rows, seeds: list[int]) -> Tensor | None:
        """(V·B, 1, S, S) augmented, view after view."""
        pixels = self.arrays.pixels
        if pixels is None or self.augmentation is None:
            return None
        # Rows of a file are read in their order, each once, and spread afterwards.
        images = np.empty((len(rows), *pixels.shape[1:]), np.uint8)
        images[np.argsort(rows, kind="stable")] = pixels[np.sort(rows)]
        return self.augmentation(np.tile(images, (self.views, 1, 1)), seeds)

    def _keep(self, row: int, seed: int) -> tuple[bool, bool]:
        """Which of image and note this view keeps; a study never loses its only modality."""
        image, note = bool(self.arrays.has_image[row]), bool(self.arrays.has_note[row])
        if not (image and note):
            return image, note
        draw = np.random.default_rng(seed).random() / max(self.modality_dropout, 1e-9)
        return draw >= 0.5 or draw >= 1.0, not 0.5 <= draw < 1.0


class _EpochSampler(Sampler[tuple[int, Rows]]):
    """Shuffled batches as (epoch, rows), from the batch `start` on, without the rest that fills no batch."""

    def __init__(self, rows: Rows, batch_size: int, seed: int, share: Share) -> None:
        self.rows, self.batch_size, self.seed, self.share = rows, min(batch_size, len(rows)), seed, share
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        for start in range(self.start * self.batch_size, len(self) * self.batch_size, self.batch_size):
            yield self.epoch, self.share.of(order[start : start + self.batch_size])


class TrainingBatches:
    """The batches of a training stage, an epoch at a time; the seed decides order, augmentation and modality dropout.

    Args:
        batch_size: studies in a batch, over all processes; `share` is the part that this process takes.
        views: of each study in a batch.
        modality_dropout: chance that a study with both modalities loses one.
        workers: loader processes, on which the batches do not depend; 0 works in the calling process.
    """

    def __init__(
        self,
        arrays: StudyArrays,
        rows: Rows,
        *,
        batch_size: int,
        views: int,
        augment: AugmentSettings,
        modality_dropout: float,
        seed: int,
        workers: int = 0,
        share: Share | None = None,
    ) -> None:
        self._sampler = _EpochSampler(rows, batch_size, seed, share or Share())
        self._loader: DataLoader[Batch] = DataLoader(
            _Batches(arrays, augment, views=views, modality_dropout=modality_dropout, seed=seed),
            batch_size=None,  # an item is a batch
            sampler=self._sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own: a loader that starts must not move the dropout's generator
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose which epoch the next pass draws, from 0, and with which of its batches it begins."""
        self._sampler.epoch, self._sampler.start = epoch, start

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)


def plain_batches(
    arrays: StudyArrays, rows: Rows, batch_size: int = 32, *, use_image: bool = True, use_note: bool = True
) -> Iterator[StudyInputs]:
    """The studies as they are, in order, for measuring; a modality can be withheld."""
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        pixels = None
        if arrays.pixels is not None:
            pixels = torch.from_numpy(arrays.pixels[part].astype(np.float32) / 255.0).unsqueeze(1)
        present = (arrays.has_image[part] & use_image, arrays.has_note[part] & use_note)
        yield arrays.inputs(part, pixels, *(torch.from_numpy(each.astype(np.float32)) for each in present))
