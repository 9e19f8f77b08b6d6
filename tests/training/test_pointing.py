"""Maps learn to point into boxes: the loss by hand, what it asks of a network, whose boxes teach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medsd.evaluation.evidence import SIDE
from medsd.findings import finding_set
from medsd.networks.fusion import Outputs, StudyModel
from medsd.settings import AugmentSettings, ImageSettings, NetworkSettings, load_settings
from medsd.studies.manifest import Manifest, complete
from medsd.training.augment import Augmentation
from medsd.training.evidence import evidence_maps, image_alone
from medsd.training.loaders import Batch, StudyArrays
from medsd.training.pointing import BoxedFilms, boxed_films, pointing_loss, with_boxes
from tests.training.test_evidence import FINDINGS, SIZE

COUNT = 24


def corner(left: bool) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=np.float32)
    mask[: SIDE // 2, : SIDE // 2] = left
    mask[SIDE // 2 :, SIDE // 2 :] = not left
    return mask


def test_the_loss_is_minus_the_log_of_the_share_in_the_box() -> None:
    masks = torch.from_numpy(np.stack([corner(True)] * 2))
    maps = torch.zeros(2, 2, 2)
    assert float(pointing_loss(maps, masks)) == pytest.approx(np.log(4))
    maps[:, 0, 0] = 20.0
    assert float(pointing_loss(maps, masks)) < 1e-6
    maps[:, 1, 1] = 60.0
    assert 10 < float(pointing_loss(maps, masks)) < 14.5  # bounded: one wrong film does not rule the step


def test_a_box_smaller_than_a_place_of_the_map_can_be_pointed_at_wholly() -> None:
    mask = torch.zeros(1, SIDE, SIDE)
    mask[0, 3, 3] = 1
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, 0] = 30.0
    assert float(pointing_loss(maps, mask)) < 1e-6


def tiny() -> StudyModel:
    torch.manual_seed(0)
    network = NetworkSettings(image=ImageSettings(backbone="densenet-small", weights="none"), embedding=16)
    return StudyModel(network, len(FINDINGS), SIZE)


def films() -> BoxedFilms:
    """A bright corner, upper left or lower right, and the box over it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (COUNT, SIZE, SIZE), dtype=np.uint8)
    half = SIZE // 2
    pixels[::2, :half, :half] += 150
    pixels[1::2, half:, half:] += 150
    masks = np.stack([corner(number % 2 == 0) for number in range(COUNT)])
    return BoxedFilms(pixels, np.full(COUNT, 3), masks)


def nothing(model: StudyModel, outputs: Outputs, batch: Batch) -> Tensor:
    return outputs.logits.sum() * 0


def test_without_boxes_or_weight_the_loss_is_the_one_that_was_given() -> None:
    assert with_boxes(nothing, None, 1.0) is nothing and with_boxes(nothing, films(), 0.0) is nothing


def test_a_network_learns_to_point_where_the_boxes_are() -> None:
    model, boxed = tiny(), films()
    loss = with_boxes(nothing, boxed, 1.0)
    pixels = torch.from_numpy(boxed.pixels)[:, None].float() / 255
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch = Batch(inputs=None, labels=torch.zeros(COUNT, len(FINDINGS)), rows=torch.arange(COUNT))  # type: ignore[arg-type]
    first = last = 0.0
    for step in range(25):
        model.train()
        value = loss(model, model(image_alone(pixels)), batch)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        first, last = (float(value.detach()), last) if step == 0 else (first, float(value.detach()))
    assert last < 0.6 * first
    maps = evidence_maps(model, pixels, boxed.columns)
    maps = maps - maps.mean(axis=0)
    points = maps.reshape(COUNT, -1).argmax(axis=1)
    inside = [(point // maps.shape[2] < maps.shape[1] / 2) == (number % 2 == 0) for number, point in enumerate(points)]
    assert np.mean(inside) > 0.9


def test_boxed_films_are_moved_and_leave_the_running_statistics_alone() -> None:
    model, boxed = tiny(), films()
    still = {name: value.clone() for name, value in model.named_buffers()}
    batch = Batch(inputs=None, labels=torch.zeros(1, len(FINDINGS)), rows=torch.arange(1))  # type: ignore[arg-type]
    outputs = model.eval()(image_alone(torch.from_numpy(boxed.pixels)[:, None].float() / 255))
    model.train()
    losses = []
    for moving in (None, Augmentation(AugmentSettings(), SIZE)):
        torch.manual_seed(1)
        losses.append(float(with_boxes(nothing, boxed, 1.0, moving)(model, outputs, batch).detach()))
    assert losses[0] != losses[1] and np.isfinite(losses).all()
    assert all(torch.equal(value, still[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())


def test_only_boxes_of_the_rows_given_teach_and_only_where_they_are_asked_for(tmp_path: Path) -> None:
    findings = finding_set("nih14")
    names = [f"{n:08d}_000" for n in range(COUNT)]
    table = pd.DataFrame({"study": names, "patient": names, "path": [f"images/{name}.png" for name in names]})
    table["split"] = ["train", "validation", "test"] * (COUNT // 3)
    labels = np.zeros((COUNT, len(findings)), dtype=np.float32)
    table[list(findings)] = labels
    manifest = Manifest(complete(table, findings), findings, tmp_path)
    rows = [f"{name}.png,Mass,100,100,300,300" for name in names]
    (tmp_path / "boxes.csv").write_text("\n".join(["Image Index,Finding Label,Bbox [x,y,w,h]", *rows]))
    pixels = np.arange(COUNT, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), dtype=np.uint8)
    arrays = StudyArrays(pixels, labels, np.ones(COUNT, dtype=bool), np.zeros(COUNT, dtype=bool))
    config = Path(__file__).parents[2] / "configs" / "nih14.yaml"
    asked = load_settings(config, [f"data.root={tmp_path}", "training.finetune.box_weight=0.1"])
    boxed = boxed_films(asked, manifest, arrays, manifest.rows("train"))
    assert boxed is not None and set(boxed.pixels[:, 0, 0].tolist()) == set(manifest.rows("train").tolist())
    assert set(boxed.columns.tolist()) == {findings.names.index("Mass")}
    plain = load_settings(config, [f"data.root={tmp_path}"])
    assert boxed_films(plain, manifest, arrays, manifest.rows("train")) is None
    (tmp_path / "boxes.csv").unlink()
    assert boxed_films(asked, manifest, arrays, manifest.rows("train")) is None
