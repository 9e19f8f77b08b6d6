"""Evidence maps that learn from boxes: where radiologists outlined a finding, the map is drawn there.

Few films have boxes, and a classifier that sees labels alone learns from whatever goes with a finding. For a boxed film
the map of the finding is turned into shares over its places (a softmax), and the loss is −log of the shares that lie in
the boxes, each place counted by how much of it they cover. That asks the map to point into the boxes and leaves the
logit's height to the labels. After Li et al., Thoracic Disease Identification and
Localization with Limited Supervision, CVPR 2018, who learn from the same boxes with a likelihood of patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medsd.evaluation.evidence import SIDE, box_mask
from medsd.networks.fusion import Outputs, StudyModel
from medsd.settings import Settings
from medsd.studies.boxes import read_boxes
from medsd.studies.manifest import Manifest
from medsd.training.augment import Augmentation
from medsd.training.evidence import boxes_of_rows, has_boxes, image_alone
from medsd.training.loaders import Batch, StudyArrays
from medsd.training.step import Loss, normalised_as_in_use

FILMS = 16  # boxed films of a step, drawn with replacement
_LEAST = 1e-6  # share of a map inside, below which the loss no longer grows


@dataclass(frozen=True)
class BoxedFilms:
    """Training films with boxes, one entry a film and finding.

    Attributes:
        pixels: uint8 (N, S, S).
        columns: int64 (N,) of the finding.
        masks: float32 (N, SIDE, SIDE), 1 inside a box.
    """

    pixels: npt.NDArray[np.uint8]
    columns: npt.NDArray[np.int64]
    masks: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.columns)


def boxed_films(
    settings: Settings, manifest: Manifest, arrays: StudyArrays, rows: npt.NDArray[np.int64]
) -> BoxedFilms | None:
    """The films among `rows` that have boxes; None where boxes are not asked for, or there are none.

    Raises:
        DataError: the table of boxes is there and cannot be read.
    """
    if not (settings.training.finetune.box_weight and has_boxes(settings)) or arrays.pixels is None:
        return None
    grouped = boxes_of_rows(read_boxes(manifest.root, manifest.findings), manifest, rows)
    if not grouped:
        return None
    films = np.array([row for row, _ in grouped])
    columns = np.array([manifest.findings.names.index(name) for _, name in grouped])
    masks = np.stack([box_mask(boxes) for boxes in grouped.values()]).astype(np.float32)
    return BoxedFilms(np.asarray(arrays.pixels[films]), columns, masks)


def with_boxes(whole: Loss, boxed: BoxedFilms | None, weight: float, augmentation: Augmentation | None = None) -> Loss:
    """`whole` plus `weight` times the pointing loss of `FILMS` boxed films, drawn by torch's generator.

    Films and boxes are turned, shifted and zoomed together. Batch normalisation reads these films with its running
    statistics, as the finished network will: they are few, and chosen, and have no say in what is normal.
    """
    if boxed is None or not weight:
        return whole

    def loss(model: StudyModel, outputs: Outputs, batch: Batch) -> Tensor:
        total = whole(model, outputs, batch)
        if outputs.evidence is None:
            return total
        chosen = torch.randint(len(boxed), (FILMS,)).numpy()
        films, masks = boxed.pixels[chosen], torch.from_numpy(boxed.masks[chosen])
        if augmentation is None:
            pixels = torch.from_numpy(films)[:, None].float().div(255)
        else:
            seeds = torch.randint(2**32, (FILMS,)).tolist()
            pixels, masks = augmentation(films, seeds), augmentation.masks(masks, seeds)
        device = outputs.evidence.device
        with normalised_as_in_use(model):
            evidence = model(image_alone(pixels).to(device)).evidence
        assert evidence is not None
        own = evidence[torch.arange(FILMS), torch.from_numpy(boxed.columns[chosen]).to(device)].float()
        return total + weight * pointing_loss(own, masks.to(device))

    return loss


def pointing_loss(maps: Tensor, masks: Tensor) -> Tensor:
    """The mean of −log of what lies in the boxes.

    Args:
        maps: (N, h, w), any values.
        masks: (N, H, W) in 0…1, over the same film.
    """
    covered = torch.nn.functional.adaptive_avg_pool2d(masks, (maps.shape[1], maps.shape[2])).flatten(1)  # (N, h·w)
    # A box smaller than a place of the map could never be pointed at wholly: the best place counts as right.
    covered = covered / covered.amax(dim=1, keepdim=True).clamp_min(1 / SIDE**2)
    inside = (maps.flatten(1).softmax(dim=1) * covered).sum(dim=1)
    return -inside.clamp_min(_LEAST).log().mean()
