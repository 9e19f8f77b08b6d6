"""Measurements for which the network reads test images again: evidence maps, changes of handling, unlike images.

`medsd.evaluation` has the figures, in modules of these names. Grad-CAM (Selvaraju et al., ICCV 2017) is MONAI's, at the
encoder's last feature map.
"""

import copy
import logging
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.visualize import GradCAM
from scipy.stats import spearmanr
from torch import Tensor, nn

from medsd.bundle import layout
from medsd.calibration.fit import calibrated, thresholds_of
from medsd.dicom.read import read_radiograph
from medsd.errors import DataError, ImageError
from medsd.evaluation.distribution import AS_THEY_ARE, DISTRIBUTION, measure_distribution, unsuitable
from medsd.evaluation.evidence import EvidenceReport, Maps, centre_prior, judge, usual_place
from medsd.evaluation.robustness import CHANGES, RobustnessReport, Said, measure_changes
from medsd.evaluation.saved import options_of
from medsd.inference import out_of_distribution
from medsd.metrics.intervals import one_a_patient
from medsd.metrics.two_samples import tell_apart
from medsd.networks.fusion import EvidenceHead, StudyInputs, StudyModel
from medsd.pipeline import evidence_head as fitting
from medsd.pipeline.enough import not_trained
from medsd.pipeline.folder import Run
from medsd.preprocessing.pixels import ModelPixels, to_pixels
from medsd.settings import Settings
from medsd.studies.boxes import Box, read_boxes
from medsd.studies.manifest import SELECTED, SPLITS, Manifest
from medsd.training.loaders import StudyArrays, spread
from medsd.training.stages import read_images

log = logging.getLogger(__name__)

MOST_CHANGED = 200  # images, evenly spaced; ten changes of each are read
MOST_UNSUITABLE = 150  # each is read four times more

Outputs = dict[str, npt.NDArray[np.float32]]


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


def judge_robustness(run: Run, manifest: Manifest, arrays: StudyArrays, model: StudyModel) -> RobustnessReport | None:
    """Read up to `MOST_CHANGED` test images from their files, without notes, as they are and after each change.

    None if there are none, or a prepared image can no longer be read.
    """
    settings, calls, findings = run.settings, run.read_calls(), manifest.findings
    rows = manifest.rows("test")
    rows = rows[arrays.has_image[rows]]
    if not len(rows):
        return None
    rows = spread(rows, MOST_CHANGED)
    views: dict[str, list[ModelPixels]] = {name: [] for name in ("", *CHANGES)}
    for name in manifest.table["path"].iloc[rows]:
        try:
            pixels = read_radiograph(manifest.root / name, policy=settings.gate).pixels
        except ImageError as error:
            log.warning("robustness is not measured: the images have changed since they were prepared: %s", error)
            return None
        views[""].append(to_pixels(pixels, settings.pixels))
        for change, apply in CHANGES.items():
            views[change].append(to_pixels(apply(pixels), settings.pixels))

    def said(images: list[ModelPixels]) -> Said:
        logits, embeddings = read_images(model, np.stack(images))
        return Said(calibrated(logits, calls.calibration, findings.names), embeddings)

    return measure_changes(
        findings,
        said(views.pop("")),
        {name: said(images) for name, images in views.items()},
        manifest.labels[rows],
        manifest.patients[rows],
        thresholds_of(calls.operating_points, findings.names),
        options_of(settings.evaluation, settings.seed),
    )


def fit_distribution(
    run: Run, folder: Path, manifest: Manifest, arrays: StudyArrays, model: StudyModel, outputs: Outputs
) -> layout.OutOfDistribution:
    """Limits on how unlike the training images an image may be, judged on test images if there are any.

    The statistics and evaluation_distribution.json are written into the bundle that is made in `folder`.
    """
    assert arrays.pixels is not None, "a model of images"
    patients, seed = manifest.patients, run.settings.seed
    train, validation, test = (rows[arrays.has_image[rows]] for rows in map(manifest.rows, SPLITS))
    embeddings = outputs["embeddings"]
    if "embeddings_image" in outputs:  # images come with a note and without, so every second one is taken without
        embeddings = np.where(np.arange(len(embeddings))[:, None] % 2, outputs["embeddings_image"], embeddings)
    seen = [(arrays.pixels[rows], embeddings[rows]) for rows in (train, validation)]
    description, statistics = out_of_distribution.fit(*seen[0], *seen[1], patients=patients[train])
    out_of_distribution.save(folder / layout.OUT_OF_DISTRIBUTION, statistics)
    if not len(test):
        return description
    options = options_of(run.settings.evaluation, seed)
    first, second = (
        embeddings[one_a_patient(np.random.default_rng(seed).permutation(rows), patients)] for rows in (train, test)
    )
    apart = tell_apart(first, second, options)
    reference = out_of_distribution.Reference.from_arrays(description, statistics)
    rows = spread(test, MOST_UNSUITABLE)
    images = np.asarray(arrays.pixels[rows])
    values = {AS_THEY_ARE: reference.values(images, embeddings[rows])}
    for name, changed in unsuitable(images).items():
        values[name] = reference.values(changed, read_images(model, changed)[1])
    measure_distribution(values, patients[rows], options, told_apart=apart).write(folder / DISTRIBUTION)
    return description
