"""The head of the evidence maps: the loss by hand, what boxes teach, and what they leave as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medsd.errors import DataError
from medsd.evaluation.evidence import SIDE
from medsd.networks.fusion import EvidenceHead, StudyModel
from medsd.pipeline.evidence_head import (
    FEW,
    BoxedRegions,
    fit_evidence_head,
    fit_pointer,
    image_outputs,
    pixels_of,
    pointing_loss,
    read_evidence_head,
    write_evidence_head,
)
from medsd.settings import ImageSettings, NetworkSettings, load_settings
from medsd.studies.manifest import Manifest, complete
from medsd.training.loaders import StudyArrays
from tests.pipeline.test_evidence import FINDINGS, SIZE

COUNT = 40


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
    return StudyModel(network, len(FINDINGS), SIZE).eval()


def films() -> np.ndarray:
    """A bright corner, upper left or lower right."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (COUNT, SIZE, SIZE), dtype=np.uint8)
    half = SIZE // 2
    pixels[::2, :half, :half] += 150
    pixels[1::2, half:, half:] += 150
    return pixels


MASKS = torch.from_numpy(np.stack([corner(number % 2 == 0) for number in range(40)]))


@pytest.fixture(scope="module")
def taught() -> BoxedRegions:
    """What a network with random weights sees of them."""
    model, boxed = tiny(), films()
    labels, one = np.zeros((COUNT, len(FINDINGS)), np.float32), np.ones(COUNT, dtype=bool)
    pixels = pixels_of(StudyArrays(boxed, labels, one, ~one), np.arange(COUNT))
    regions = torch.cat([outputs.regions for outputs in image_outputs(model, pixels)])  # type: ignore[misc]
    return BoxedRegions(regions.clone(), torch.full((COUNT,), 3), MASKS)


def part(boxed: BoxedRegions, chosen: slice) -> BoxedRegions:
    return BoxedRegions(boxed.regions[chosen], boxed.columns[chosen], boxed.masks[chosen])


def test_a_map_learns_to_point_into_boxes_of_films_that_it_was_not_taught_on(taught: BoxedRegions) -> None:
    weight = tiny().classifier.weight.detach()
    teach, new = part(taught, slice(0, 24)), part(taught, slice(24, None))
    pointer = fit_pointer(weight, teach, new)
    assert pointer[3].any() and not pointer[[0, 1, 2, 4]].any()
    maps = torch.einsum("d,ndhw->nhw", weight[3] + pointer[3], new.regions)
    before = torch.einsum("d,ndhw->nhw", weight[3], new.regions)
    assert float(pointing_loss(maps, new.masks)) < 0.5 * float(pointing_loss(before, new.masks))


def test_a_finding_with_too_few_boxes_follows_none(taught: BoxedRegions) -> None:
    weight = tiny().classifier.weight.detach()
    few = part(taught, slice(0, FEW - 1))
    assert not fit_pointer(weight, few, few).any()


def test_boxes_move_the_parts_of_a_logit_and_leave_its_height(taught: BoxedRegions) -> None:
    torch.manual_seed(2)
    model = tiny()
    pixels = torch.from_numpy(films())[:5, None].float() / 255
    (outputs,) = image_outputs(model, pixels)
    shape = outputs.evidence.shape[1:]  # type: ignore[union-attr]
    plain = EvidenceHead(torch.zeros(shape), torch.zeros_like(model.classifier.weight))
    drawn = EvidenceHead(torch.zeros(shape), torch.randn_like(model.classifier.weight))
    one = torch.ones(1, 1, 1, 1)
    first, second = plain(outputs, one), drawn(outputs, one)
    torch.testing.assert_close(first.sum((2, 3)) + model.classifier.bias, outputs.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(second.sum((2, 3)), first.sum((2, 3)), atol=1e-5, rtol=1e-4)
    assert float((first - second).abs().max()) > 1e-3


def study_set(folder: Path) -> tuple[Manifest, StudyArrays]:
    findings = FINDINGS
    names = [f"{n:08d}_000" for n in range(COUNT)]
    table = pd.DataFrame({"study": names, "patient": names, "path": [f"images/{name}.png" for name in names]})
    table["split"] = ["train"] * 24 + ["validation"] * 8 + ["test"] * 8
    labels = np.zeros((COUNT, len(findings)), dtype=np.float32)
    table[list(findings)] = labels
    manifest = Manifest(complete(table, findings), findings, folder)
    arrays = StudyArrays(films(), labels, np.ones(COUNT, dtype=bool), np.zeros(COUNT, dtype=bool))
    rows = [f"{name}.png,Mass,{0 if n % 2 else 512},{0 if n % 2 else 512},512,512" for n, name in enumerate(names)]
    (folder / "boxes.csv").write_text("\n".join(["Image Index,Finding Label,Bbox [x,y,w,h]", *rows]))
    return manifest, arrays


def test_the_head_learns_from_training_patients_and_never_from_test_ones(tmp_path: Path) -> None:
    manifest, arrays = study_set(tmp_path)
    settings = load_settings(Path(__file__).parents[2] / "configs" / "nih14.yaml", [f"data.root={tmp_path}"])
    head, boxed = fit_evidence_head(settings, manifest, arrays, tiny())
    column = FINDINGS.names.index("Mass")
    assert boxed == ("Mass",) and not head.average[column].any() and head.average[column - 1].any()
    path = tmp_path / "boxes.csv"
    lines = path.read_text().splitlines()
    moved = [line.replace("512,512,512", "9,9,30") if n > 32 else line for n, line in enumerate(lines)]
    path.write_text("\n".join(moved))
    again, _ = fit_evidence_head(settings, manifest, arrays, tiny())
    assert torch.equal(again.pointer, head.pointer)  # the boxes of test films have moved
    path.unlink()
    plain, boxed = fit_evidence_head(settings, manifest, arrays, tiny())
    assert not boxed and not plain.pointer.any() and plain.average[column].any()


def test_a_head_comes_back_as_it_was_written_and_a_missing_one_says_what_to_do(tmp_path: Path) -> None:
    head = EvidenceHead(torch.rand(3, 2, 2), torch.rand(3, 4))
    write_evidence_head(tmp_path / "head.safetensors", head, ("Mass",))
    again, boxed = read_evidence_head(tmp_path / "head.safetensors")
    assert boxed == ("Mass",) and torch.equal(again.pointer, head.pointer) and torch.equal(again.average, head.average)
    with pytest.raises(DataError, match="run medsd calibrate first"):
        read_evidence_head(tmp_path / "none.safetensors")
