"""The maps that are judged are the bundle's, Grad-CAM agrees where it must, and random weights change what is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medsd.calibration.types import PlattCalibration
from medsd.export.onnx import ServingModel
from medsd.findings import finding_set
from medsd.networks.fusion import EvidenceHead, StudyModel
from medsd.pipeline.evidence_head import average_evidence, fit_evidence_head
from medsd.pipeline.judge import evidence_maps, grad_cam_maps, judge_evidence
from medsd.settings import ImageSettings, NetworkSettings, Settings, load_settings
from medsd.studies.manifest import Manifest, complete
from medsd.training.loaders import StudyArrays

FINDINGS = finding_set("nih14")
SIZE, COUNT = 64, 60


@pytest.fixture(scope="module")
def model() -> StudyModel:
    torch.manual_seed(0)
    network = NetworkSettings(image=ImageSettings(backbone="densenet-small", weights="none"), embedding=16)
    return StudyModel(network, len(FINDINGS), SIZE).eval()


@pytest.fixture(scope="module")
def arrays() -> StudyArrays:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, SIZE, SIZE), dtype=np.uint8)
    labels = (rng.random((COUNT, len(FINDINGS))) < 0.3).astype(np.float32)
    return StudyArrays(pixels, labels, np.ones(COUNT, dtype=bool), np.zeros(COUNT, dtype=bool))


def pixels_of(arrays: StudyArrays) -> torch.Tensor:
    assert arrays.pixels is not None
    return torch.from_numpy(arrays.pixels)[:, None].float() / 255


COLUMNS = np.arange(COUNT) % len(FINDINGS)


def test_the_average_is_taken_off_and_logits_still_come_back(model: StudyModel, arrays: StudyArrays) -> None:
    average = average_evidence(model, arrays, np.arange(COUNT))
    calibration = {name: PlattCalibration(slope=1.0, intercept=0.0) for name in FINDINGS}
    head = EvidenceHead(average, torch.zeros_like(model.classifier.weight))
    serving = ServingModel(model, FINDINGS, calibration, head).eval()
    with torch.inference_mode():
        _, logits, _, evidence, _ = serving(pixels_of(arrays)[:8])
    start = average.mean(dim=(1, 2)) + model.classifier.bias
    torch.testing.assert_close(evidence.sum(dim=(2, 3)) + start, logits, atol=1e-5, rtol=1e-4)
    judged = evidence_maps(model, pixels_of(arrays)[:8], COLUMNS[:8], head)
    np.testing.assert_allclose(judged, evidence.numpy()[np.arange(8), COLUMNS[:8]], atol=1e-6)


def test_over_the_films_that_it_was_made_of_nothing_is_left_of_the_average(
    model: StudyModel, arrays: StudyArrays
) -> None:
    average = average_evidence(model, arrays, np.arange(COUNT))
    head = EvidenceHead(average, torch.zeros_like(model.classifier.weight))
    left = evidence_maps(model, pixels_of(arrays), np.zeros(COUNT, dtype=np.int64), head)
    np.testing.assert_allclose(left.mean(axis=0), 0, atol=1e-5)


def test_grad_cam_is_the_activation_map_up_to_scale_and_what_is_below_zero(
    model: StudyModel, arrays: StudyArrays
) -> None:
    own, cam = (maps(model, pixels_of(arrays)[:6], COLUMNS[:6]) for maps in (evidence_maps, grad_cam_maps))
    assert cam.shape == own.shape and (cam >= 0).all() and cam.any()
    assert model.image is not None
    bias = torch.mv(model.classifier.weight, model.image_to_space.bias).detach().numpy()[COLUMNS[:6], None, None]
    places = own.shape[1] * own.shape[2]
    np.testing.assert_allclose(cam, np.maximum(own - bias, 0) / places, atol=1e-5)


def fixed_settings(folder: Path) -> Settings:
    config = Path(__file__).parents[2] / "configs" / "nih14.yaml"
    return load_settings(config, [f"data.root={folder}", "evaluation.bootstrap=20", "evaluation.minimum_positives=3"])


def test_held_out_images_are_judged_with_those_picked_by_finding_and_places_come_from_training_ones(
    model: StudyModel, arrays: StudyArrays, tmp_path: Path
) -> None:
    names = [f"{n:08d}_000" for n in range(COUNT)]
    table = pd.DataFrame({"study": names, "patient": names, "path": [f"images/{name}.png" for name in names]})
    table["split"] = ["train", "validation", "test", "train", "validation", "selected"] * (COUNT // 6)
    table[list(FINDINGS)] = arrays.labels
    manifest = Manifest(complete(table, FINDINGS), FINDINGS, tmp_path)
    rows = [f"{name}.png,Mass,100,100,300,300" for name in names]
    (tmp_path / "boxes.csv").write_text("\n".join(["Image Index,Finding Label,Bbox [x,y,w,h]", *rows]))
    head, boxed = fit_evidence_head(fixed_settings(tmp_path), manifest, arrays, model)
    assert boxed == ("Mass",)
    report = judge_evidence(fixed_settings(tmp_path), manifest, arrays, model, head)
    assert report is not None and report.images == report.patients == COUNT // 3
    assert [each.name for each in report.methods] == [
        "evidence", "activation map", "Grad-CAM", "usual place", "centre",
    ]  # fmt: skip
    assert report.methods[3].pointing.value == 1  # all boxes lie in one place
    assert set(report.randomised) == {"classifier", "all weights"}
    assert all(value < 0.99 for value in report.randomised.values())  # other weights, other maps
    (tmp_path / "boxes.csv").unlink()
    assert judge_evidence(fixed_settings(tmp_path), manifest, arrays, model, head) is None
