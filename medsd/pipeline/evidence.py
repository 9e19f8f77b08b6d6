"""Evidence maps against boxes that radiologists drew, beside Grad-CAM and maps that need no network.

Grad-CAM (Selvaraju et al., ICCV 2017) is MONAI's, at the encoder's last feature map.
"""

import copy
from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch
from monai.visualize import GradCAM
from scipy.stats import spearmanr
from torch import Tensor, nn

from medsd.errors import DataError
from medsd.evaluation.evidence import EvidenceReport, Maps, centre_prior, judge, usual_place
from medsd.evaluation.saved import options_of
from medsd.networks.fusion import EvidenceHead, StudyInputs, StudyModel
from medsd.pipeline import evidence_head as fitting
from medsd.pipeline.enough import not_trained
from medsd.settings import Settings
from medsd.studies.boxes import Box, read_boxes
from medsd.studies.manifest import SELECTED, Manifest
from medsd.training.loaders import StudyArrays


class _ImageLogits(nn.Module):
    """Logits (B, F) of pixels (B, 1, S, S) alone, as MONAI's maps want their network."""

    def __init__(self, model: StudyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(StudyInputs(pixels)).logits


def judge_evidence(
    settings: Settings, manifest: Manifest, arrays: StudyArrays, model: StudyModel, head: EvidenceHead
) -> EvidenceReport | None:
    """Measure the maps on test patients' images that have boxes; None if there are none, or too few.

    Images that were picked by finding are among them: boxes are drawn on such images. The model is on the CPU. The
    usual place of each finding comes from the training patients' boxes. A table of boxes that cannot be read is a
    DataError.
    """
    if not fitting.has_boxes(settings):
        return None
    boxes = read_boxes(manifest.root, manifest.findings)
    held_out = np.concatenate([manifest.rows("test"), manifest.rows(SELECTED)])
    grouped, known = (fitting.boxes_of_rows(boxes, manifest, rows) for rows in (held_out, manifest.rows("train")))
    silent = not_trained(manifest)
    grouped = {(row, name): of_image for (row, name), of_image in grouped.items() if name not in silent}
    if not grouped:
        return None
    names = np.array([name for _, name in grouped])
    rows = np.array([row for row, _ in grouped])
    columns = np.array([manifest.findings.names.index(name) for name in names])
    pixels = fitting.pixels_of(arrays, rows)
    places: dict[str, list[list[Box]]] = defaultdict(list)
    for (_, name), of_image in known.items():
        places[name].append(of_image)
    own = evidence_maps(model, pixels, columns, head)
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
        drawn = _random_head(head, fitting.average_evidence(other, arrays, manifest.rows("train")))
        randomised[name] = _likeness(own, evidence_maps(other, pixels, columns, drawn))
    boxed = names, manifest.patients[rows], list(grouped.values())
    try:
        return judge(maps, *boxed, options_of(settings.evaluation, settings.seed), randomised=randomised)
    except DataError:  # too few
        return None


def evidence_maps(
    model: StudyModel, pixels: Tensor, columns: npt.NDArray[np.int64], head: EvidenceHead | None = None
) -> Maps:
    """(N, h, w): the map of each image (N, 1, S, S) for the finding of that column, by `head` or by the model."""
    one = torch.ones(1, 1, 1, 1)
    maps = []
    for outputs in fitting.image_outputs(model, pixels):
        assert outputs.evidence is not None
        maps.append(outputs.evidence if head is None else head(outputs, one))
    return torch.cat(maps)[torch.arange(len(pixels)), torch.from_numpy(columns)].numpy()


def grad_cam_maps(model: StudyModel, pixels: Tensor, columns: npt.NDArray[np.int64]) -> Maps:
    """(N, h, w): MONAI's Grad-CAM at the encoder's last feature map, before it is enlarged."""
    network = _ImageLogits(model).eval()
    cam = GradCAM(nn_module=network, target_layers="model.image")

    def maps(part: Tensor, findings: Tensor) -> Tensor:
        # MONAI takes one class per call, so one image at a time.
        each = [cam.compute_map(x[None], class_idx=int(finding)) for x, finding in zip(part, findings, strict=True)]
        return torch.cat(each)[:, 0]

    with torch.inference_mode(False), torch.enable_grad():
        pixels = pixels.clone().requires_grad_()
        parts = zip(pixels.split(fitting.BATCH), torch.from_numpy(columns).split(fitting.BATCH), strict=True)
        return torch.cat([maps(part, findings).detach().float() for part, findings in parts]).numpy()


def _randomised(model: StudyModel, *, whole: bool) -> StudyModel:
    """The same network with new weights: of the classifier, or of all layers that can be reset."""
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    for module in other.modules() if whole else (other.classifier,):
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return other


def _random_head(head: EvidenceHead, average: Tensor) -> EvidenceHead:
    """Pointers of the same size at random, where there are any."""
    torch.manual_seed(1)
    pointer = torch.randn_like(head.pointer)
    pointer = pointer * head.pointer.norm(dim=1, keepdim=True) / pointer.norm(dim=1, keepdim=True)
    return EvidenceHead(torch.where(head.pointer.any(dim=1)[:, None, None], 0.0, average), pointer)


def _likeness(first: Maps, second: Maps) -> float:
    """The mean rank correlation of the maps of the same image; 0 for a flat map."""
    pairs = zip(first.reshape(len(first), -1), second.reshape(len(second), -1), strict=True)
    each = [float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs]
    return round(float(np.mean(each)), 6)
