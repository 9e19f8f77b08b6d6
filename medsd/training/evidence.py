"""What evidence maps are held against: the average film that they start from, and boxes that radiologists drew.

A class activation map carries what all films have in common: most findings are rare, so most logits are low, and that
is written all over the lungs. `average_evidence` is that common part, place by place; the bundle's maps are what a film
has beyond it. `judge_evidence` measures them (`medsd.evaluation.evidence`) beside Grad-CAM (Selvaraju et al., ICCV
2017), which is MONAI's, at the encoder's last feature map, and beside what needs no network.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from monai.visualize import GradCAM
from scipy.stats import spearmanr
from torch import Tensor, nn

from medsd.errors import DataError
from medsd.evaluation.evidence import Boxed, EvidenceReport, Maps, centre_prior, judge, usual_place
from medsd.networks.fusion import Inputs, StudyModel
from medsd.settings import Settings
from medsd.studies.boxes import Box, read_boxes
from medsd.studies.manifest import Manifest
from medsd.training.loaders import StudyArrays

BATCH = 32
AVERAGED = 512  # training films in the average


class _ImageLogits(nn.Module):
    """Logits (B, F) of pixels (B, 1, S, S) alone, as MONAI's maps want their network."""

    def __init__(self, model: StudyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(image_alone(pixels)).logits


def image_alone(pixels: Tensor) -> Inputs:
    """Inputs of studies without a note; the model's note encoder, if there is one, sees padding."""
    ones, zeros = torch.ones(len(pixels)), torch.zeros(len(pixels))
    tokens = torch.ones(len(pixels), 4, dtype=torch.int64)
    return Inputs(pixels, ones, tokens, tokens, zeros)


def has_boxes(settings: Settings) -> bool:
    """Whether there may be boxes for this run's films."""
    return settings.data.source == "nih14" and settings.network.image is not None


def judge_evidence(
    settings: Settings, manifest: Manifest, arrays: StudyArrays, model: StudyModel, split: str = "test"
) -> EvidenceReport | None:
    """Judge the maps on the films of a split that have boxes.

    Args:
        settings: of the run.
        manifest: its studies.
        arrays: their pixels.
        model: trained, on the CPU.
        split: whose films are judged; the usual place of each finding comes from the training patients' boxes.

    Returns:
        None where the data set has no boxes, or too few.

    Raises:
        DataError: the table of boxes is there and cannot be read.
    """
    if not has_boxes(settings):
        return None
    boxes = read_boxes(manifest.root, manifest.findings)
    grouped, known = (boxes_of_rows(boxes, manifest, manifest.rows(part)) for part in (split, "train"))
    if not grouped:
        return None
    names = np.array([name for _, name in grouped])
    rows = np.array([row for row, _ in grouped])
    columns = np.array([manifest.findings.names.index(name) for name in names])
    pixels = _pixels(arrays, rows)
    places: dict[str, list[list[Box]]] = defaultdict(list)
    for (_, name), of_film in known.items():
        places[name].append(of_film)
    average = average_evidence(model, arrays, manifest.rows("train"))
    own = evidence_maps(model, pixels, columns, average)
    maps: dict[str, Maps] = {
        "evidence": own,
        "activation map": evidence_maps(model, pixels, columns),
        "Grad-CAM": grad_cam_maps(model, pixels, columns),
        "usual place": usual_place(names, places),
        "centre": centre_prior(len(names)),
    }
    randomised = {}
    for name, whole in (("classifier", False), ("all weights", True)):
        other = _randomised(model, whole=whole)
        common = average_evidence(other, arrays, manifest.rows("train")[:AVERAGED])
        randomised[name] = _likeness(own, evidence_maps(other, pixels, columns, common))
    boxed = Boxed(names, manifest.patients[rows], list(grouped.values()))
    try:
        return judge(maps, boxed, settings.evaluation, seed=settings.seed, randomised=randomised, split=split)
    except DataError:  # too few
        return None


def average_evidence(model: StudyModel, arrays: StudyArrays, rows: npt.NDArray[np.int64]) -> Tensor:
    """(F, h, w): the mean activation map of each finding over `AVERAGED` of these studies, read without their notes.

    Args:
        model: trained, of images, on the CPU.
        arrays: all studies.
        rows: among which films are taken, at even distances.

    Raises:
        DataError: none of them has a film.
    """
    seen = rows[arrays.has_image[rows]]
    if not len(seen):
        raise DataError("evidence maps: none of the training studies has a film to start from")
    chosen = seen[np.unique(np.linspace(0, len(seen) - 1, min(AVERAGED, len(seen))).astype(np.int64))]
    model.eval()
    total: Tensor | float = 0.0
    with torch.inference_mode():
        for part in np.array_split(chosen, -(-len(chosen) // BATCH)):
            evidence = model(image_alone(_pixels(arrays, part))).evidence
            assert evidence is not None
            total = total + evidence.double().sum(dim=0)
    assert isinstance(total, Tensor)
    return (total / len(chosen)).float()


def evidence_maps(
    model: StudyModel, pixels: Tensor, columns: npt.NDArray[np.int64], average: Tensor | None = None
) -> Maps:
    """(N, h, w): the model's own map of each film (N, 1, S, S) for the finding of that column, beyond the average's."""

    def maps(part: Tensor, findings: Tensor) -> Tensor:
        with torch.inference_mode():
            evidence = model(image_alone(part)).evidence
        assert evidence is not None
        if average is not None:
            evidence = evidence - average
        return evidence[torch.arange(len(part)), findings]

    return _in_batches(model, pixels, columns, maps)


def grad_cam_maps(model: StudyModel, pixels: Tensor, columns: npt.NDArray[np.int64]) -> Maps:
    """(N, h, w): MONAI's Grad-CAM at the encoder's last feature map, before it is enlarged."""
    network = _ImageLogits(model)
    cam = GradCAM(nn_module=network, target_layers="model.image")

    def maps(part: Tensor, findings: Tensor) -> Tensor:
        # MONAI takes one class a call, so one film at a time.
        each = [cam.compute_map(x[None], class_idx=int(finding)) for x, finding in zip(part, findings, strict=True)]
        return torch.cat(each)[:, 0]

    with torch.inference_mode(False), torch.enable_grad():
        return _in_batches(network, pixels.clone().requires_grad_(), columns, maps)


def _in_batches(
    network: nn.Module, pixels: Tensor, columns: npt.NDArray[np.int64], maps: Callable[[Tensor, Tensor], Tensor]
) -> Maps:
    network.eval()
    parts = zip(pixels.split(BATCH), torch.from_numpy(columns).split(BATCH), strict=True)
    return torch.cat([maps(part, findings).detach().float() for part, findings in parts]).numpy()


def boxes_of_rows(
    boxes: tuple[Box, ...], manifest: Manifest, rows: npt.NDArray[np.int64]
) -> dict[tuple[int, str], list[Box]]:
    """By row of the manifest and finding, the boxes of these rows' films."""
    place = {str(manifest.table["study"].iloc[row]): int(row) for row in rows}
    grouped: dict[tuple[int, str], list[Box]] = defaultdict(list)
    for box in boxes:
        if box.study in place:
            grouped[place[box.study], box.finding].append(box)
    return dict(grouped)


def _pixels(arrays: StudyArrays, rows: npt.NDArray[np.int64]) -> Tensor:
    assert arrays.pixels is not None
    return torch.from_numpy(np.asarray(arrays.pixels[rows])).unsqueeze(1).float() / 255


def _randomised(model: StudyModel, *, whole: bool) -> StudyModel:
    """The same network with weights as new: the classifier's alone, or all that can be reset."""
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    for module in other.modules() if whole else (other.classifier,):
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return other


def _likeness(first: Maps, second: Maps) -> float:
    """The mean rank correlation of the maps of the same film; a flat map is like nothing."""
    pairs = zip(first.reshape(len(first), -1), second.reshape(len(second), -1), strict=True)
    each = [float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs]
    return round(float(np.mean(each)), 6)
