"""Fits the head that draws evidence maps: it subtracts the average image and learns from boxes of radiologists.

A linear map on the trained network's regions learns to point into boxes; the network and its probabilities do not
change. After Li et al., Thoracic Disease Identification and Localization with Limited Supervision, CVPR 2018. The same
loss in fine-tuning, at a weight of 0.02 to 0.4, lowered the validation AUROC by 0.03 to 0.12.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medsd.errors import DataError
from medsd.evaluation.evidence import SIDE, box_mask
from medsd.networks.fusion import EvidenceHead, StudyInputs, StudyModel, StudyOutputs
from medsd.settings import Settings
from medsd.studies.boxes import Box, read_boxes
from medsd.studies.manifest import Manifest
from medsd.training.checkpoints import load_checkpoint, save_checkpoint
from medsd.training.loaders import StudyArrays, spread

log = logging.getLogger(__name__)

BATCH = 32
AVERAGED = 512  # training images in the average
FEW = 20  # images with boxes of a finding, below which its map learns from none
DECAYS = (0.01, 0.03, 0.1, 0.3)  # of the pointer's squared length, per finding; chosen on validation images
_STEPS = 200
_LEAST = 1e-6  # share of a map inside, below which the loss no longer grows


@dataclass(frozen=True)
class BoxedRegions:
    """Images with boxes as the network sees them, one entry per image and finding."""

    regions: Tensor  # float32 (N, D, h, w)
    columns: Tensor  # int64 (N,), of the finding
    masks: Tensor  # float32 (N, SIDE, SIDE), 1 inside a box


def fit_evidence_head(
    settings: Settings, manifest: Manifest, arrays: StudyArrays, model: StudyModel
) -> tuple[EvidenceHead, tuple[str, ...]]:
    """The head of a trained model of images, and the findings whose maps learned from boxes.

    It is fitted on training images; validation images choose the decay. A DataError is raised if no training study has
    an image, or the table of boxes cannot be read.
    """
    train, validation = (manifest.rows(split) for split in ("train", "validation"))
    average = average_evidence(model, arrays, train)
    pointer = torch.zeros_like(model.classifier.weight)
    if has_boxes(settings):
        boxes = read_boxes(manifest.root, manifest.findings)
        teach, choose = (
            boxed_regions(model, arrays, manifest, boxes_of_rows(boxes, manifest, rows)) for rows in (train, validation)
        )
        if teach is not None and choose is not None:
            pointer = fit_pointer(model.classifier.weight.detach(), teach, choose)
    taught = pointer.any(dim=1)
    average[taught] = 0  # the usual place of a finding is part of what boxes teach
    names = tuple(name for name, each in zip(manifest.findings, taught.tolist(), strict=True) if each)
    if names:
        log.info("evidence maps follow boxes for %s", ", ".join(names))
    return EvidenceHead(average, pointer).eval(), names


def write_evidence_head(path: Path, head: EvidenceHead, boxed: tuple[str, ...]) -> None:
    """Write the head and the findings that learned from boxes, atomically."""
    save_checkpoint(path, {"head": head.state_dict()}, {"boxed": list(boxed)})


def read_evidence_head(path: Path) -> tuple[EvidenceHead, tuple[str, ...]]:
    """What `write_evidence_head` wrote; a missing or damaged file is a DataError."""
    if not path.exists():
        raise DataError(f"{path}: no head of the evidence maps; run medsd calibrate first")
    found = load_checkpoint(path)
    tensors = found.part("head")
    return EvidenceHead(tensors["average"], tensors["pointer"]).eval(), tuple(found.meta["boxed"])


def fit_pointer(weight: Tensor, teach: BoxedRegions, choose: BoxedRegions) -> Tensor:
    """(F, D): what to add to the classifier's weights (F, D) so that maps point into boxes.

    L-BFGS solves it for each decay; the one with the least loss on the images of `choose` is kept. 0 for findings with
    fewer than `FEW` images in `teach`, and for all if `choose` has none of the others.
    """
    enough = torch.bincount(teach.columns, minlength=len(weight)) >= FEW  # (F,)
    pointer = torch.zeros_like(weight)
    kept, judged = enough[teach.columns], enough[choose.columns]
    if not (kept.any() and judged.any()):
        return pointer
    columns, masks = teach.columns[kept], teach.masks[kept]
    scale = teach.regions.std()
    regions = teach.regions[kept] / scale
    least = np.inf
    for decay in DECAYS:
        added = torch.zeros_like(weight, requires_grad=True)
        solver = torch.optim.LBFGS([added], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def closure(added: Tensor = added, solver: torch.optim.LBFGS = solver, decay: float = decay) -> Tensor:
            solver.zero_grad()
            maps = _maps(weight * scale + added, regions, columns)
            loss = pointing_loss(maps, masks) + decay * added.square().sum() / int(enough.sum())
            loss.backward()
            return loss

        solver.step(closure)
        found = added.detach() / scale
        maps = _maps(weight + found, choose.regions[judged], choose.columns[judged])
        loss = float(pointing_loss(maps, choose.masks[judged]))
        if loss < least:
            least, pointer = loss, found
    return pointer


def pointing_loss(maps: Tensor, masks: Tensor) -> Tensor:
    """−log of the share of softmaxed maps (N, h, w) in the boxes, masks (N, H, W) in 0…1; the mean over N."""
    covered = torch.nn.functional.adaptive_avg_pool2d(masks, (maps.shape[1], maps.shape[2])).flatten(1)  # (N, h·w)
    # A box smaller than a place of the map cannot cover it: the best place counts as fully covered.
    covered = covered / covered.amax(dim=1, keepdim=True).clamp_min(1 / SIDE**2)
    inside = (maps.flatten(1).softmax(dim=1) * covered).sum(dim=1)
    return -inside.clamp_min(_LEAST).log().mean()


def boxed_regions(
    model: StudyModel, arrays: StudyArrays, manifest: Manifest, grouped: dict[tuple[int, str], list[Box]]
) -> BoxedRegions | None:
    """The regions of these images and findings; None if there are none."""
    if not grouped:
        return None
    rows = np.array([row for row, _ in grouped])
    columns = torch.tensor([manifest.findings.names.index(name) for _, name in grouped])
    masks = torch.from_numpy(np.stack([box_mask(boxes) for boxes in grouped.values()]).astype(np.float32))
    outputs = image_outputs(model, pixels_of(arrays, rows))
    regions = torch.cat([each.regions for each in outputs if each.regions is not None])
    return BoxedRegions(regions.clone(), columns, masks)


def average_evidence(model: StudyModel, arrays: StudyArrays, rows: npt.NDArray[np.int64]) -> Tensor:
    """(F, h, w): the mean activation map of each finding over `AVERAGED` images of `rows`, read without their notes."""
    seen = rows[arrays.has_image[rows]]
    if not len(seen):
        raise DataError("evidence maps: none of the training studies has an image to start from")
    chosen = spread(seen, AVERAGED)
    sums = [
        outputs.evidence.double().sum(dim=0)
        for outputs in image_outputs(model, pixels_of(arrays, chosen))
        if outputs.evidence is not None
    ]
    return (torch.stack(sums).sum(dim=0) / len(chosen)).float().clone()


def image_outputs(model: StudyModel, pixels: Tensor) -> Iterator[StudyOutputs]:
    """The outputs of the model for images (N, 1, S, S) without notes, in batches, in evaluation mode."""
    model.eval()
    for part in pixels.split(BATCH):
        with torch.inference_mode():
            outputs: StudyOutputs = model(StudyInputs(part))
        yield outputs


def pixels_of(arrays: StudyArrays, rows: npt.NDArray[np.int64]) -> Tensor:
    """float32 (N, 1, S, S) in 0…1 of these studies' images."""
    assert arrays.pixels is not None
    return torch.from_numpy(np.asarray(arrays.pixels[rows])).unsqueeze(1).float() / 255


def has_boxes(settings: Settings) -> bool:
    """Whether there may be boxes for this run's images."""
    return settings.data.source == "nih14" and settings.network.image is not None


def boxes_of_rows(
    boxes: tuple[Box, ...], manifest: Manifest, rows: npt.NDArray[np.int64]
) -> dict[tuple[int, str], list[Box]]:
    """By row of the manifest and finding, the boxes of these rows' images."""
    place = {str(manifest.table["study"].iloc[row]): int(row) for row in rows}
    grouped: dict[tuple[int, str], list[Box]] = defaultdict(list)
    for box in boxes:
        if box.study in place:
            grouped[place[box.study], box.finding].append(box)
    return dict(grouped)


def _maps(weight: Tensor, regions: Tensor, columns: Tensor) -> Tensor:
    """(N, h, w): the map of each image's finding by weights (F, D)."""
    return torch.einsum("nd,ndhw->nhw", weight[columns], regions)
